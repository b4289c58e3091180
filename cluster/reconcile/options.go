package reconcile

// Option adjusts Diff, Apply, Sync and Copy. Each says which of them it
// concerns; the others ignore it.
type Option func(*options)

type options struct {
	maxCells   int
	maxEntries int
	rootsFirst bool
	list       bool
	keep       func(Entry) bool
	progress   func(Progress)
	entry      func(Entry)
	batch      int
	workers    int
}

// Defaults.
const (
	// DefaultMaxCells bounds the memory of a decoder to some 150 MiB.
	DefaultMaxCells = 1 << 20
	// DefaultMaxEntries bounds the memory of a Difference to 1.25 GiB.
	DefaultMaxEntries = 1 << 25
	// DefaultBatch is how many objects one Extract and one Insert carry.
	DefaultBatch = 512
	// DefaultWorkers is how many batches are on their way at a time.
	DefaultWorkers = 4
)

func newOptions(opts []Option) *options {
	o := &options{maxCells: DefaultMaxCells, maxEntries: DefaultMaxEntries, batch: DefaultBatch, workers: DefaultWorkers}
	for _, f := range opts {
		f(o)
	}
	return o
}

// MaxCells is the number of cells after which Diff and Sync list instead.
func MaxCells(n int) Option { return func(o *options) { o.maxCells = min(max(n, 1), 1<<30) } }

// MaxEntries is the number of entries at which Diff fails with ErrTooMany.
func MaxEntries(n int) Option { return func(o *options) { o.maxEntries = max(n, 1) } }

// RootsFirst makes Diff and Sync ask for the cells only after the roots turned
// out to differ: one more round trip if they do, and nothing but the roots on
// the wire if they do not. It is for those who ask every second.
func RootsFirst() Option { return func(o *options) { o.rootsFirst = true } }

// ListOnly makes Diff and Sync compare sorted lists, without any sketch.
func ListOnly() Option { return func(o *options) { o.list = true } }

// Entries makes Apply, Sync and Copy leave out the entries for which keep is
// false. It is called from one goroutine.
func Entries(keep func(Entry) bool) Option { return func(o *options) { o.keep = keep } }

// OnEntry makes Sync report every entry that differs, extra ones included, as
// soon as it is known. It is called from one goroutine.
func OnEntry(report func(Entry)) Option { return func(o *options) { o.entry = report } }

// OnProgress makes Apply, Sync and Copy report after each batch. Calls do not
// overlap.
func OnProgress(report func(Progress)) Option { return func(o *options) { o.progress = report } }

// Batch is how many objects Apply, Sync and Copy move at a time.
func Batch(objects int) Option { return func(o *options) { o.batch = max(objects, 1) } }

// Workers is how many batches Apply, Sync and Copy have on their way at a time.
func Workers(n int) Option { return func(o *options) { o.workers = max(n, 1) } }

// Progress is how far a transfer is.
type Progress struct {
	Objects int   // durable in the destination
	Total   int   // to be moved; 0 if not known beforehand
	Bytes   int64 // of the objects
}
