package backup

import (
	"bytes"
	"context"
	"io"
	"iter"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/hsmtest"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
	"github.com/hsmbackup/hsmbackup/storage"
)

// bigSource is a source of many masked objects that costs little itself: what
// is measured is the snapshot.
type bigSource struct {
	lineage hsm.Lineage
	keys    hsm.FingerprintKeys
	objects []hsm.MaskedObject // ascending
	state   *reconcile.State
	bytes   int64
}

func newBigSource(k *hsm.Keyring, n int) *bigSource {
	s := &bigSource{lineage: k.Lineage(), keys: k.FingerprintKeys(), objects: hsmtest.Multiply(k, "crypto_user", n), state: reconcile.NewState(k.FingerprintKeys(), 0)}
	for _, m := range s.objects {
		s.state.Update(nil, &m.Object)
		s.bytes += int64(len(m.Bytes))
	}
	return s
}

func (s *bigSource) Lineage() hsm.Lineage { return s.lineage }
func (s *bigSource) FingerprintKeys(context.Context) (hsm.FingerprintKeys, error) {
	return s.keys, nil
}
func (s *bigSource) Root(context.Context) (hsm.Root, error) { return s.state.Root(), nil }
func (s *bigSource) Objects(context.Context) iter.Seq2[hsm.Object, error] {
	return func(yield func(hsm.Object, error) bool) {
		for _, m := range s.objects {
			if !yield(m.Object, nil) {
				return
			}
		}
	}
}
func (s *bigSource) Extract(_ context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		at := -1 // of the reference before: stretches of references ascend
		for ref := range refs {
			if at++; at == 0 || at >= len(s.objects) || s.objects[at].Ref != ref {
				var ok bool
				if at, ok = slices.BinarySearchFunc(s.objects, ref, func(m hsm.MaskedObject, r hsm.KeyRef) int { return compareRefs(m.Ref, r) }); !ok {
					continue
				}
			}
			if !yield(s.objects[at], nil) {
				return
			}
		}
	}
}
func (s *bigSource) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return reconcile.CellsFrom(s.keys, s.state.Cells(), from, func() iter.Seq2[hsm.Object, error] { return s.Objects(ctx) })
}

// ramStore keeps objects in memory, so that no disk is measured.
type ramStore struct {
	mu      sync.Mutex
	objects map[string][]byte
}

func newRAMStore() *ramStore { return &ramStore{objects: map[string][]byte{}} }

func (s *ramStore) Put(_ context.Context, name string, body io.ReadSeeker, size int64) error {
	b := make([]byte, size)
	if _, err := io.ReadFull(body, b); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.objects[name]; ok {
		return storage.ErrExist
	}
	s.objects[name] = b
	return nil
}
func (s *ramStore) Get(_ context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.objects[name]
	if !ok {
		return nil, storage.ErrNotExist
	}
	if b = b[min(offset, int64(len(b))):]; length >= 0 {
		b = b[:min(length, int64(len(b)))]
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}
func (s *ramStore) List(_ context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		s.mu.Lock()
		var all []storage.Info
		for name, b := range s.objects {
			if len(name) >= len(prefix) && name[:len(prefix)] == prefix {
				all = append(all, storage.Info{Name: name, Size: int64(len(b))})
			}
		}
		s.mu.Unlock()
		slices.SortFunc(all, func(a, b storage.Info) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
		for _, i := range all {
			if !yield(i, nil) {
				return
			}
		}
	}
}
func (s *ramStore) Delete(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, name)
	return nil
}

// peak samples the heap in use beyond what there was before, with a collector
// that keeps little garbage: the test data would otherwise allow for much.
func peak(f func()) (bytes uint64) {
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before := m.HeapInuse
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			bytes = max(bytes, m.HeapInuse-min(before, m.HeapInuse))
			time.Sleep(5 * time.Millisecond)
		}
	})
	f()
	stop.Store(true)
	wg.Wait()
	return bytes
}

// discardStore takes packs and forgets them, so that memory is the take's own.
type discardStore struct{ *ramStore }

func (s *discardStore) Put(ctx context.Context, name string, body io.ReadSeeker, size int64) error {
	if _, err := io.Copy(io.Discard, body); err != nil {
		return err
	}
	return nil
}

// benchObjects is how many keys are backed up: HSMBACKUP_BENCH_KEYS, or
// 100,000 of about 1.1 KiB.
var benchObjects = keysFromEnvironment(100_000)

func keysFromEnvironment(n int) int {
	if s := os.Getenv("HSMBACKUP_BENCH_KEYS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			panic(err)
		}
	}
	return n
}

// reportCPU reports what a core does a second: on a machine that others share
// the clock measures them.
func reportCPU(b *testing.B, bytes int64) func() {
	before := cpuTime(b)
	return func() {
		spent := (cpuTime(b) - before) / time.Duration(b.N)
		b.ReportMetric(float64(bytes)/1e6/spent.Seconds(), "MB/cpu-s")
		b.ReportMetric(float64(spent.Nanoseconds()), "cpu-ns/op")
	}
}

func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchCluster(b *testing.B) (*testCluster, *bigSource) {
	c := newTestCluster(b, 1)
	big := newBigSource(c.keyring, benchObjects)
	c.wrap = func(s NamedSource) NamedSource { s.Sketcher = big; return s }
	return c, big
}

func BenchmarkTake(b *testing.B) {
	c, big := benchCluster(b)
	o := c.options()
	o.PackSize = 0
	b.SetBytes(big.bytes)
	report := reportCPU(b, big.bytes)
	for b.Loop() {
		mustTake(b, c, &discardStore{newRAMStore()}, o)
	}
	b.ReportMetric(float64(benchObjects)*float64(b.N)/b.Elapsed().Seconds(), "objects/s")
	report()
}

func BenchmarkIncrement(b *testing.B) {
	c, big := benchCluster(b)
	o := c.options()
	o.PackSize = 0
	store := newRAMStore()
	mustTake(b, c, store, o)
	for b.Loop() { // 1 % more
		b.StopTimer()
		more := newBigSource(c.keyring, benchObjects/100)
		big.objects = append(big.objects, more.objects...)
		slices.SortFunc(big.objects, func(a, b hsm.MaskedObject) int {
			if a.Ref < b.Ref {
				return -1
			}
			return 1
		})
		for _, m := range more.objects {
			big.state.Update(nil, &m.Object)
		}
		b.StartTimer()
		if r := mustTake(b, c, store, o); r.NewObjects != uint64(benchObjects/100) {
			b.Fatalf("%+v", r)
		}
	}
}

func BenchmarkIdleIncrement(b *testing.B) {
	c, _ := benchCluster(b)
	o := c.options()
	o.PackSize = 0
	store := newRAMStore()
	mustTake(b, c, store, o)
	report := reportCPU(b, 0)
	for b.Loop() {
		if !mustTake(b, c, store, o).Unchanged {
			b.Fatal("changed")
		}
	}
	report()
}

func BenchmarkExtract(b *testing.B) {
	c, big := benchCluster(b)
	o := c.options()
	o.PackSize = 0
	store := newRAMStore()
	mustTake(b, c, store, o)
	b.SetBytes(big.bytes)
	report := reportCPU(b, big.bytes)
	for b.Loop() {
		if n, err := drain(b.Context(), c.open(b, store, "")); err != nil || n != benchObjects {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(float64(benchObjects)*float64(b.N)/b.Elapsed().Seconds(), "objects/s")
	report()
}

func BenchmarkVerifyRoot(b *testing.B) {
	c, big := benchCluster(b)
	o := c.options()
	o.PackSize = 0
	store := newRAMStore()
	mustTake(b, c, store, o)
	b.SetBytes(big.bytes)
	report := reportCPU(b, big.bytes)
	for b.Loop() {
		if r, err := Verify(b.Context(), store, "", LevelRoot, OpenOptions{Identities: []Identity{c.recipient.Identity}}); err != nil || !r.OK() {
			b.Fatal(err)
		}
	}
	report()
}

// BenchmarkMemory tells how much memory a full take and an extraction need at
// most, beside the objects and the store.
func BenchmarkMemory(b *testing.B) {
	c, _ := benchCluster(b)
	o := c.options()
	o.PackSize = 0
	store := newRAMStore()
	mustTake(b, c, store, o)
	var take, extract uint64
	for b.Loop() {
		take = max(take, peak(func() { mustTake(b, c, &discardStore{newRAMStore()}, o) }))
		extract = max(extract, peak(func() {
			if _, err := drain(b.Context(), c.open(b, store, "")); err != nil {
				b.Fatal(err)
			}
		}))
	}
	b.ReportMetric(float64(take)/(1<<20), "take-peak-MiB")
	b.ReportMetric(float64(extract)/(1<<20), "extract-peak-MiB")
}

// BenchmarkLimitZstdAge is the limit: the same bytes as one stream through
// zstd (fastest) and age.
func BenchmarkLimitZstdAge(b *testing.B) {
	c, big := benchCluster(b)
	b.SetBytes(big.bytes)
	report := reportCPU(b, big.bytes)
	for b.Loop() {
		zstdAge(b, c, big, io.Discard)
	}
	report()
}

func BenchmarkLimitUnAgeZstd(b *testing.B) {
	c, big := benchCluster(b)
	var buf bytes.Buffer
	zstdAge(b, c, big, &buf)
	b.SetBytes(big.bytes)
	report := reportCPU(b, big.bytes)
	for b.Loop() {
		r, err := age.Decrypt(bytes.NewReader(buf.Bytes()), c.recipient.Identity)
		if err != nil {
			b.Fatal(err)
		}
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, z); err != nil || n != big.bytes {
			b.Fatal(n, err)
		}
		z.Close()
	}
	report()
}

func zstdAge(b *testing.B, c *testCluster, big *bigSource, to io.Writer) {
	r, err := ParseRecipient(c.recipient.recipient)
	if err != nil {
		b.Fatal(err)
	}
	a, err := age.Encrypt(to, r)
	if err != nil {
		b.Fatal(err)
	}
	z, err := zstd.NewWriter(a, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		b.Fatal(err)
	}
	for _, m := range big.objects {
		if _, err := z.Write(m.Bytes); err != nil {
			b.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		b.Fatal(err)
	}
	if err := a.Close(); err != nil {
		b.Fatal(err)
	}
}
