package backup

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
)

// TakeOptions says how to take a snapshot.
type TakeOptions struct {
	// Recipients can decrypt the packs, beside the custodians, who read them
	// through the recovery envelope; see ParseRecipient.
	Recipients []string
	// Full writes everything again instead of an increment to the newest
	// snapshot of the cluster.
	Full bool
	// RequireAll refuses (ErrCoverage) if an HSM does not answer.
	RequireAll bool
	// Tags are kept in the manifest, in clear.
	Tags map[string]string
	// PackSize is the stored size of a pack, format.MinPackSize to MaxPackSize;
	// 0 means format.DefaultPackSize.
	PackSize int
	// Workers is how many packs are made at a time, each in memory; 0 means up
	// to 4, and fewer for large packs.
	Workers int
	// Settle is how long to wait for HSMs that hold different states of one
	// object to agree; 0 means five seconds, below 0 not at all.
	Settle time.Duration
	// Progress is called now and then, never twice at a time.
	Progress func(Progress)

	begun time.Time // of tests; zero: now
}

// Progress is how far a take, an extraction or a verification is.
type Progress struct {
	Objects      int   // so far
	TotalObjects int   // to come in all, as far as known
	Bytes        int64 // of masked objects, or of packs when verifying
}

// Coverage tells which HSMs a snapshot was taken from.
type Coverage struct {
	Answered []hsm.HSMID `json:"answered"`
	Missing  []hsm.HSMID `json:"missing"`
}

// Report is what Take did.
type Report struct {
	ID          string        `json:"id"`     // the snapshot, or the parent if Unchanged
	Parent      string        `json:"parent"` // "" for a full snapshot
	Unchanged   bool          `json:"unchanged"`
	FullReason  string        `json:"full_reason,omitempty"` // why it is full although an increment was asked for
	Objects     uint64        `json:"objects"`               // in the snapshot, tombstones included
	Keys        uint64        `json:"keys"`
	NewObjects  uint64        `json:"new_objects"`
	Merged      uint64        `json:"merged"` // objects of small packs, stored once more in larger ones
	BytesStored uint64        `json:"bytes_stored"`
	Packs       int           `json:"packs"` // written
	Root        hsm.Root      `json:"-"`
	Unsettled   int           `json:"unsettled"`
	Coverage    Coverage      `json:"coverage"`
	Started     time.Time     `json:"started"`
	Elapsed     time.Duration `json:"-"`
	Notes       []string      `json:"notes,omitempty"` // what an operator should look at
}

// maxTries is how often a take starts over because another one was first.
const maxTries = 16

// defaultSettle is long compared with the interval of server-side sync, 1 s.
const defaultSettle = 5 * time.Second

// Take writes a snapshot that holds every object acknowledged before Take was
// called on any HSM that answers, and says which did not.
//
// Unless Full is set, it is an increment to the newest snapshot of the same
// cluster in the repository, and costs what differs; nothing is written if
// nothing differs (Report.Unchanged). A take is full by itself, and says why in
// FullReason, when there is no snapshot to build on, when that one is damaged,
// when the recipients are others, when no HSM answers of which the parent is
// known to hold no more than it does, or when increments have piled up.
//
// Objects are written in the order packs, indexes, envelope, manifest, each
// durable before the next: the snapshot exists if and only if its manifest
// does. A take that fails or dies leaves at most objects that nothing names,
// and the same command again succeeds. Several takes may run at the same time,
// on any host: of two that want the same number one is first, and the other
// starts over from its result.
//
// Errors: those of the sources and of storage; ErrCoverage, ErrUnsettled,
// ErrRecipient, ErrRaced; hsm.ErrLineage if a source is of another lineage than
// the origin.
func Take(ctx context.Context, origin Origin, store storage.Store, o TakeOptions) (*Report, error) {
	return NewSeries(origin, store, o).Take(ctx)
}

// take is one call of Take.
type take struct {
	series  *Series
	origin  Origin
	store   storage.Store
	options TakeOptions
	begun   time.Time

	packer     *packer
	recipients [32]byte // fingerprint
	custody    [32]byte
	sealed     *sealed // the envelope that the origin sealed for this take, or nil
	desc       Description
	settings   hsm.Settings
	hsms       []NamedSource
	absent     []hsm.HSMID
	left       map[hsm.HSMID]int // how often an HSM went away

	mu       sync.Mutex
	progress Progress

	// of one attempt
	followed   bool             // the series knows the newest snapshot
	highest    uint64           // number there is, unless followed
	parent     *format.Manifest // nil: full
	contents   *contents
	fullReason string
	suspect    string // why the parent is not to be built on although it is signed, or ""
	notes      []string
}

func (t *take) run(ctx context.Context) (*Report, error) {
	if err := t.prepare(ctx); err != nil {
		return nil, err
	}
	for tries := 0; tries < maxTries; {
		report, err := t.attempt(ctx)
		switch {
		case errors.Is(err, errLost): // each HSM maxLost times at most
		case errors.Is(err, errTaken), errors.Is(err, errAgain): // or the parent is of no use
			tries++
		default:
			return report, err
		}
	}
	return nil, fmt.Errorf("%w: %d times in a row", ErrRaced, maxTries)
}

var (
	errTaken = errors.New("the number is taken")
	errAgain = errors.New("start over")
	errLost  = errors.New("start over: an HSM went away")
)

// prepare checks the options and asks the origin what there is. Nothing is
// written.
func (t *take) prepare(ctx context.Context) error {
	o := &t.options
	if len(o.Recipients) > 0 {
		if _, err := ParseRecipients(o.Recipients); err != nil {
			return err
		}
	}
	var err error
	if err := checkTags(o.Tags); err != nil {
		return err
	}
	if err := t.size(); err != nil {
		return err
	}
	if err := t.describe(ctx); err != nil {
		return err
	}
	if t.settings, err = t.origin.Settings(ctx); err != nil {
		return fmt.Errorf("settings of the cluster: %w", err)
	}
	t.settings.Threshold = max(t.settings.Threshold, 1)
	if _, err := checkCustodians(t.settings.Custodians, t.settings.Threshold); err != nil {
		return err
	}
	t.custody = fingerprint(t.settings.Custodians, t.settings.Threshold)
	if err := t.sources(ctx); err != nil {
		return err
	}
	t.packer = &packer{
		store: t.store, lineage: t.desc.Lineage, target: o.PackSize, workers: o.Workers, progress: t.count,
	}
	return nil
}

// describe asks what cluster it is; a series asks now and then.
func (t *take) describe(ctx context.Context) error {
	if s := t.series; s.desc == nil || time.Since(s.looked) > relook {
		d, err := t.origin.Describe(ctx)
		if err != nil {
			return fmt.Errorf("describe the cluster: %w", err)
		}
		s.desc = &d
	}
	t.desc = *t.series.desc
	return nil
}

// memory is what all packs in the making may take together.
const memory = 96 << 20

func (t *take) size() error {
	o := &t.options
	if o.PackSize == 0 {
		o.PackSize = format.DefaultPackSize
	}
	if o.PackSize < format.MinPackSize || o.PackSize > format.MaxPackSize {
		return fmt.Errorf("%w: packs of %d bytes: want %d to %d", hsm.ErrInvalid, o.PackSize, format.MinPackSize, format.MaxPackSize)
	}
	if o.Workers <= 0 {
		o.Workers = min(4, 2*runtime.GOMAXPROCS(0), max(1, memory/o.PackSize))
	}
	if o.Settle == 0 {
		o.Settle = defaultSettle
	}
	return nil
}

func checkTags(tags map[string]string) error {
	if len(tags) > format.MaxTags {
		return fmt.Errorf("%w: %d tags, at most %d", hsm.ErrInvalid, len(tags), format.MaxTags)
	}
	for k, v := range tags {
		if k == "" || format.CheckText(k) != nil || format.CheckText(v) != nil {
			return fmt.Errorf("%w: tag %q=%q: want at most %d printable characters", hsm.ErrInvalid, k, v, format.MaxText)
		}
	}
	return nil
}

func (t *take) count(objects, bytes int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.progress.Objects += objects
	t.progress.Bytes += int64(bytes)
	if t.options.Progress != nil {
		t.options.Progress(t.progress)
	}
}

// note keeps what an operator should look at, once.
func (t *take) note(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(t.notes, s) {
		t.notes = append(t.notes, s)
	}
}

// beginAgain forgets the progress of an attempt whose packs do not count.
func (t *take) beginAgain() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.progress = Progress{}
}

func (t *take) expect(objects int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.progress.TotalObjects += objects
}

// attempt builds on the newest snapshot there is now. errTaken if another
// snapshot was written meanwhile, errAgain if the circumstances changed: then
// the same again will do.
func (t *take) attempt(ctx context.Context) (*Report, error) {
	numbers, err := t.survey(ctx)
	if err != nil {
		return nil, err
	}
	if err := t.begin(ctx, numbers); err != nil {
		return nil, t.recover(ctx, err)
	}
	if err := t.gather(ctx); err != nil {
		return nil, t.recover(ctx, err)
	}
	if err := t.checkParent(ctx); err != nil {
		return nil, t.recover(ctx, err)
	}
	if t.unchanged() {
		if !t.followed { // what a series has just followed is the newest, which nobody removes
			if err := t.parentStands(ctx); err != nil {
				return nil, err
			}
		}
		if err := t.extendLocks(ctx, t.parent); err != nil {
			return nil, err
		}
		t.learn(t.parent)
		return t.report(t.parent, nil), nil
	}
	number, err := t.next(ctx, numbers)
	if err != nil {
		return nil, err
	}
	m, err := t.manifest(ctx, number)
	if err != nil {
		return nil, t.recover(ctx, err)
	}
	if err := extendLocks(ctx, t.store, neededBy(m)); err != nil {
		return nil, err
	}
	if err := t.parentStands(ctx); err != nil {
		return nil, err
	}
	if err := t.commit(ctx, m); err != nil {
		return nil, err
	}
	if err := t.extendLocks(ctx, m); err != nil { // its own, if an answer was lost on its way
		return nil, err
	}
	if err := t.survived(ctx, m); err != nil {
		return nil, err
	}
	t.learn(m)
	return t.report(m, t.contents.added), nil
}

// survey lists the numbers of all snapshots, unless the series knows that the
// newest it remembers is the newest there is.
func (t *take) survey(ctx context.Context) ([]uint64, error) {
	if t.followed = t.series.follow(ctx); t.followed {
		return nil, nil
	}
	numbers, err := sequences(ctx, t.store)
	if errors.Is(err, storage.ErrNoBucket) {
		err = nil // a folder that the first Put makes; a missing bucket refuses the Put
	}
	t.highest = 0
	if len(numbers) > 0 {
		t.highest = numbers[len(numbers)-1]
	}
	return numbers, err
}

// learn has the series remember the newest snapshot.
func (t *take) learn(m *format.Manifest) {
	if !t.followed {
		t.series.looked, t.series.above = time.Now(), t.highest > m.Sequence
	}
	if t.contents.parent.store != nil {
		t.series.items = t.contents.parent
	}
	t.series.learn(m, t.contents.added)
}

// next returns the number of the snapshot to be written: the first free one
// after the newest manifest that the cluster's lineage signed, those excepted of
// which marks and records tell, so that no number is used twice although its
// manifest was damaged and then deleted. What others put under manifests/, with
// whatever number, is stepped over; it cannot use the numbers up.
func (t *take) next(ctx context.Context, numbers []uint64) (uint64, error) {
	if t.followed {
		return t.series.known.Sequence + 1, nil
	}
	var base uint64
	for m, err := range t.newest(ctx, numbers, func(error) {}) {
		if err != nil {
			return 0, err
		}
		if m.Lineage == t.desc.Lineage {
			base = m.Sequence
			break
		}
	}
	used, err := usedNumbers(ctx, t.store, base)
	if err != nil {
		return 0, err
	}
	for base++; ; base++ {
		if slices.Contains(numbers, base) || used[base] {
			continue
		}
		if there, err := recorded(ctx, t.store, base); err != nil || !there {
			return base, err
		}
	}
}

// newest yields the newest manifests that open, the last one first, maxBack of
// the numbers at most. passed is told of those that are damaged or forged.
func (t *take) newest(ctx context.Context, numbers []uint64, passed func(error)) iter.Seq2[*format.Manifest, error] {
	return func(yield func(*format.Manifest, error) bool) {
		for i, n := range slices.Backward(numbers) {
			if len(numbers)-i > maxBack {
				return
			}
			m, _, err := loadManifest(ctx, t.store, n)
			switch {
			case damaged(err) || errors.Is(err, hsm.ErrSignature):
				passed(err)
				continue
			case errors.Is(err, ErrNoSnapshot):
				continue
			}
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

// begin decides what to build on. A full snapshot that lost a race keeps what
// it has gathered and only looks for what came since.
func (t *take) begin(ctx context.Context, numbers []uint64) error {
	if t.contents != nil && t.parent == nil {
		return nil
	}
	t.parent, t.contents = nil, nil
	t.beginAgain()
	if !t.options.Full && t.fullReason == "" {
		if err := t.findParent(ctx, numbers); err != nil {
			return err
		}
	}
	if t.parent == nil {
		if err := t.address(ctx, nil); err != nil {
			return err
		}
	}
	if t.parent != nil {
		c := &catalog{store: t.store, lineage: t.parent.Lineage, packs: t.parent.Packs}
		if t.followed {
			c = t.series.items
		}
		t.contents = contentsOf(t.parent, c)
		t.packer.keys = t.parent.Fingerprints
		return nil
	}
	keys, err := t.hsms[0].FingerprintKeys(ctx)
	if err != nil {
		return at(t.hsms[0], err)
	}
	t.packer.keys = keys
	t.contents = emptyContents(t.desc.Lineage, keys, t.hsms)
	return nil
}

// maxBack is how many manifests are looked at for one of this cluster.
const maxBack = 256

// findParent finds the newest snapshot of this cluster that an increment can
// build on, or says why there is none.
func (t *take) findParent(ctx context.Context, numbers []uint64) error {
	if t.followed {
		return t.choose(ctx, t.series.known)
	}
	passed := func(err error) { t.note("passed over: %v", err) }
	for m, err := range t.newest(ctx, numbers, passed) {
		if err != nil {
			return err
		}
		if m.Lineage != t.desc.Lineage || m.Cluster != t.desc.Cluster {
			continue
		}
		return t.choose(ctx, m)
	}
	return nil
}

// choose builds on m if an increment can.
func (t *take) choose(ctx context.Context, m *format.Manifest) error {
	if err := t.address(ctx, m); err != nil {
		return err
	}
	if t.suspect != "" {
		t.note("%s", t.suspect)
	}
	if t.fullReason = cmp.Or(t.suspect, t.unfit(m)); t.fullReason == "" {
		t.parent = m
	}
	return nil
}

// A chain of increments ends with a full snapshot when, for all that small packs
// are merged (pile.go), it has minChain packs and a full one would write little for
// each of them (a request costs a store what some hundred KiB cost it), or would
// need half the objects; and at maxChain packs in any case.
const (
	minChain     = 64
	maxChain     = 4096
	bytesPerPack = 256 << 10
	chainOverrun = 2
)

// unfit tells why no increment can build on m, or "".
func (t *take) unfit(m *format.Manifest) string {
	var objects, bytes uint64
	for _, p := range m.Packs {
		objects += p.Objects
		bytes += p.Size
	}
	packs := uint64(len(m.Packs))
	long := packs >= maxChain || packs >= minChain && (objects > chainOverrun*m.Root.Count || bytes < packs*bytesPerPack)
	switch {
	case m.Recipients != t.recipients:
		return fmt.Sprintf("the recipients are others than those of snapshot %s", format.ID(m.Sequence))
	case long:
		return fmt.Sprintf("%d packs have piled up since the last full snapshot", len(m.Packs))
	}
	return ""
}

// unchanged tells whether the parent already says everything.
func (t *take) unchanged() bool {
	return t.parent != nil && !t.contents.anything && t.parent.Custody == t.custody &&
		slices.Equal(t.parent.Unsettled, t.contents.open)
}

// checkParent sees to it that neither an increment nor the word that nothing
// has changed rests on packs, indexes or an envelope that are gone. A bit that
// flipped without changing a size is for Verify to find.
func (t *take) checkParent(ctx context.Context) error {
	if t.parent == nil || t.followed { // a series looks now and then
		return nil
	}
	if err := presence(ctx, t.store, t.parent); err != nil {
		return err
	}
	_, err := fetch(ctx, t.store, format.EnvelopePath(t.parent.Envelope), t.parent.Envelope, format.MaxEnvelope)
	return missing(err)
}

// manifest describes what was gathered. Packs and indexes are durable; if we
// die before commit, no manifest names them.
func (t *take) manifest(ctx context.Context, sequence uint64) (*format.Manifest, error) {
	c := t.contents
	cells, err := c.sketch(ctx)
	if err != nil {
		return nil, err
	}
	m := &format.Manifest{
		Sequence: sequence, Started: t.begun, Created: time.Now(), Lineage: t.desc.Lineage,
		Cluster: t.desc.Cluster, ClusterName: t.desc.Name, Region: t.desc.Region, Software: t.desc.Version,
		Fingerprints: c.keys, Root: c.root, Live: c.live, Tombstones: c.dead, Cells: cells,
		Custody: t.custody, Recipients: t.recipients, Tags: t.options.Tags, Unsettled: c.open,
	}
	if t.parent != nil {
		m.Parent, m.Epoch = t.parent.Sequence, t.parent.Epoch
		m.Packs = c.unpiled(t.parent.Packs)
	}
	needs := map[uint64]bool{} // masking keys, by epoch
	for _, p := range c.added {
		m.Packs = append(m.Packs, p.entry)
		for _, epoch := range p.epochs {
			m.Epoch = max(m.Epoch, epoch)
			needs[epoch] = true
		}
	}
	for _, h := range t.hsms {
		m.Answered = append(m.Answered, h.ID)
		if c.covers[h.ID] {
			m.Covers = append(m.Covers, h.ID)
		}
	}
	m.Missing = slices.Clone(t.absent)
	for _, ids := range [][]hsm.HSMID{m.Answered, m.Covers, m.Missing} {
		slices.Sort(ids)
	}
	m.Envelope, err = t.envelope(ctx, m.Epoch, slices.Sorted(maps.Keys(needs)))
	return m, err
}

// envelope returns the name of a durable recovery envelope that fits: the parent's,
// if an HSM signed it, or a new one if the custodians changed, if an object that is new needs a
// masking key which the old one lacks, or if that is damaged. A key that was adopted
// from a clone may be older than the newest one, and new here all the same.
func (t *take) envelope(ctx context.Context, epoch uint64, needs []uint64) (format.Name, error) {
	if p := t.parent; p != nil && p.Custody == t.custody && p.Epoch == epoch {
		e, err := loadEnvelope(ctx, t.store, p.Envelope)
		switch {
		case err != nil && !damaged(err):
			return format.Name{}, err
		case err != nil:
			t.note("sealed the recovery envelope again: %v", err)
		case checkEnvelope(e, t.desc.Lineage) == nil && e.Custody == t.custody && lacking(e.Epochs, needs) == 0:
			return p.Envelope, nil
		}
	}
	if epoch != 0 && !slices.Contains(needs, epoch) {
		needs = append(needs, epoch)
	}
	s := t.sealed
	if s == nil || len(s.content.Epochs) == 0 || lacking(s.content.Epochs, needs) != 0 { // it may be older than an object
		var err error
		if s, err = t.seal(ctx); err != nil {
			return format.Name{}, err
		}
	}
	// It was sealed after all packs were gathered: an HSM that sealed an object
	// under a new masking key holds that key, but this may be another HSM.
	if epoch := lacking(s.content.Epochs, needs); epoch != 0 {
		return format.Name{}, fmt.Errorf("%w: recovery envelope: the HSM that sealed it lacks the masking key of epoch %d; wait until the rotation has reached every HSM", hsm.ErrUnavailable, epoch)
	}
	name := format.NameOf(s.stored)
	return name, put(ctx, t.store, format.EnvelopePath(name), s.stored)
}

// lacking returns an epoch of those needed that is not known, or 0. Old envelopes
// do not say what they know.
func lacking(known, needs []uint64) uint64 {
	for _, epoch := range needs {
		if len(known) > 0 && !slices.Contains(known, epoch) {
			return epoch
		}
	}
	return 0
}

// commit signs the manifest and writes it. Until the put the snapshot does not
// exist; from the put on it exists, whole, since all that it names is durable.
// errTaken if another writer has the number.
func (t *take) commit(ctx context.Context, m *format.Manifest) error {
	body, err := format.EncodeManifestBody(m)
	if err != nil {
		return err
	}
	signature, err := t.origin.Sign(ctx, hsm.PurposeManifest, body)
	if err != nil {
		return fmt.Errorf("sign the manifest: %w", err)
	}
	if err := signature.Verify(t.desc.Lineage, hsm.PurposeManifest, body); err != nil {
		return fmt.Errorf("sign the manifest: %w", err)
	}
	stored, err := format.EncodeManifest(body, signature)
	if err != nil {
		return err
	}
	err = t.store.Put(ctx, format.ManifestPath(m.Sequence), bytes.NewReader(stored), int64(len(stored)))
	if !errors.Is(err, storage.ErrExist) {
		return err
	}
	// Taken by another take, or by ourselves if an answer was lost on its way.
	_, there, err := loadManifest(ctx, t.store, m.Sequence)
	switch {
	case err == nil && bytes.Equal(there, stored):
		return nil
	case err == nil, damaged(err), errors.Is(err, hsm.ErrSignature), errors.Is(err, ErrNoSnapshot):
		return errTaken
	}
	return err
}

func (t *take) report(m *format.Manifest, added []packed) *Report {
	r := &Report{
		ID: format.ID(m.Sequence), Unchanged: added == nil && m == t.parent, FullReason: t.fullReason, Objects: m.Root.Count,
		Keys: m.Live[hsm.KindKey], Root: m.Root, Unsettled: len(m.Unsettled), Started: t.begun, Notes: slices.Concat(t.notes, lockNotes(t.store, neededBy(m))), Packs: len(added),
		Coverage: Coverage{Answered: []hsm.HSMID{}, Missing: slices.Clone(t.absent)},
	}
	if m.Parent != 0 {
		r.Parent = format.ID(m.Parent)
	}
	for _, h := range t.hsms {
		r.Coverage.Answered = append(r.Coverage.Answered, h.ID)
	}
	for _, p := range added {
		r.NewObjects += p.entry.Objects
		r.BytesStored += p.entry.Size + p.entry.IndexSize
	}
	if m == t.parent {
		return r
	}
	r.Merged = t.contents.repeated
	r.NewObjects -= r.Merged
	return r
}
