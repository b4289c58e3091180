package reconcile_test

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile/reconciletest"
)

// The physical limit is an HMAC-SHA-256 and a SipHash of 24 bytes, and 16 cells
// of 40 bytes, per item; an update is two items.
func BenchmarkUpdate(b *testing.B) {
	s := reconcile.NewState(testKeys, 0)
	objects := randomObjects(1, 1024)
	for i := range objects {
		s.Update(nil, &objects[i])
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		before, after := objects[i%1024], objects[i%1024]
		after.Digest[i%16]++
		s.Update(&before, &after)
		objects[i%1024] = after
	}
}

func BenchmarkAdd(b *testing.B) {
	s := reconcile.NewState(testKeys, 0)
	objects := randomObjects(1, 1024)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		objects[i%1024].Digest[i%16]++
		s.Update(nil, &objects[i%1024])
	}
}

// large makes sets of n objects that differ in 100, once per n.
var large = func() func(n int) (a, b *reconciletest.Set) {
	var mu sync.Mutex
	made := map[int][2]*reconciletest.Set{}
	return func(n int) (a, b *reconciletest.Set) {
		mu.Lock()
		defer mu.Unlock()
		if made[n][0] == nil {
			from, to := pair(1, n, 100, 0)
			made[n] = [2]*reconciletest.Set{from, to}
		}
		return made[n][0], made[n][1]
	}
}()

// BenchmarkDiffOfSize shows that 100 differences cost the same in a set of any
// size. Cells cannot be fewer than the items that differ.
func BenchmarkDiffOfSize(b *testing.B) {
	// The garbage collector works when the heap has grown by a share of itself: it
	// would run more often beside a small set than beside a large one, and be
	// measured. With a fixed limit it runs equally often beside all.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(2 << 30))
	for _, n := range []int{10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("objects=%d", n), func(b *testing.B) {
			from, to := large(n)
			benchmarkDiff(b, func() (hsm.Source, hsm.Source) { return from, to })
		})
	}
}

// BenchmarkDifferences reports cells and bytes per differing item.
func BenchmarkDifferences(b *testing.B) {
	for _, d := range []int{1, 10, 100, 1000, 10_000} {
		b.Run(fmt.Sprintf("differences=%d", d), func(b *testing.B) {
			var pairs [][2]*reconciletest.Set
			common := randomObjects(99, 50_000)
			for seed := range uint64(max(1, min(50, 20_000/d))) {
				from := reconciletest.NewSet(testKeys, 0, append(slices.Clone(common), randomObjects(seed, d)...))
				pairs = append(pairs, [2]*reconciletest.Set{from, reconciletest.NewSet(testKeys, 0, common)})
				if d == 1 && seed == 9 {
					break
				}
			}
			i := 0
			benchmarkDiff(b, func() (hsm.Source, hsm.Source) {
				i++
				p := pairs[i%len(pairs)]
				return p[0], p[1]
			})
		})
	}
}

func benchmarkDiff(b *testing.B, next func() (from, to hsm.Source)) {
	cells, bytes, entries := 0, int64(0), 0
	b.ReportAllocs()
	for b.Loop() {
		from, to := next()
		d, err := reconcile.Diff(context.Background(), from, to)
		if err != nil || d.Listed {
			b.Fatalf("%+v, %v", d, err)
		}
		cells, bytes = cells+d.Cells, bytes+d.SketchBytes
		entries += len(d.Missing) + 2*len(d.Changed) + len(d.Extra)
	}
	b.ReportMetric(float64(cells)/float64(entries), "cells/item")
	b.ReportMetric(float64(bytes)/float64(entries), "B/item")
}

// BenchmarkDiffEqual is the cost of a round of server-side sync with nothing to
// do, both sides being near.
func BenchmarkDiffEqual(b *testing.B) {
	from, to := pair(1, 10_000, 0, 0)
	for name, opts := range map[string][]reconcile.Option{"at once": nil, "roots first": {reconcile.RootsFirst()}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if d, err := reconcile.Diff(context.Background(), from, to, opts...); err != nil || !d.Equal {
					b.Fatal(d, err)
				}
			}
		})
	}
}

// BenchmarkCellsFrom is one scan of 100,000 objects for the cells past the
// prefix.
func BenchmarkCellsFrom(b *testing.B) {
	objects := randomObjects(1, 100_000)
	e := reconcile.NewEncoder(testKeys, func() objectSeq { return each(objects) })
	for b.Loop() {
		if _, err := e.Cells(4096, 4096); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(objects)), "ns/object")
}

func BenchmarkDiffListed(b *testing.B) {
	from, to := pair(1, 100_000, 100, 0)
	for b.Loop() {
		if _, err := reconcile.Diff(context.Background(), from, to, reconcile.ListOnly()); err != nil {
			b.Fatal(err)
		}
	}
}
