package reconcile_test

import (
	"context"
	"fmt"
	"iter"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile/reconciletest"
)

// million are the objects that both sides hold, in ascending order.
var million = sync.OnceValue(func() []hsm.Object { return commonSet().All() })

var commonSet = sync.OnceValue(func() *reconciletest.Set {
	return reconciletest.NewSet(testKeys, 0, randomObjects(77, 1_000_000))
})

var commonTree = map[int]func() *merkle{
	1: sync.OnceValue(func() *merkle { return newMerkle(1, million()) }),
	4: sync.OnceValue(func() *merkle { return newMerkle(4, million()) }),
}

// grown is a set and a few objects more.
type grown struct {
	*reconciletest.Set
	extra []hsm.Object
	state *reconcile.State
}

func grow(set *reconciletest.Set, state *reconcile.State, extra []hsm.Object) *grown {
	g := &grown{set, slices.Clone(extra), reconcile.NewState(testKeys, 0)}
	slices.SortFunc(g.extra, func(a, b hsm.Object) int { return int(int64(a.Ref>>1) - int64(b.Ref>>1)) })
	for i := range g.extra {
		g.state.Update(nil, &g.extra[i])
	}
	g.state.Join(state)
	return g
}

func (g *grown) Root(context.Context) (hsm.Root, error) { return g.state.Root(), nil }

func (g *grown) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return func(yield func(hsm.Object, error) bool) {
		a, b := g.Set.All(), g.extra
		for len(a)+len(b) > 0 {
			from := &a
			if len(a) == 0 || len(b) > 0 && b[0].Ref < a[0].Ref {
				from = &b
			}
			o := (*from)[0]
			if *from = (*from)[1:]; !yield(o, nil) {
				return
			}
		}
	}
}

func (g *grown) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return reconcile.CellsFrom(testKeys, g.state.Cells(), from, func() iter.Seq2[hsm.Object, error] { return g.Objects(ctx) })
}

var commonState = sync.OnceValue(func() *reconcile.State {
	s := reconcile.NewState(testKeys, 0)
	for i := range million() {
		s.Update(nil, &million()[i])
	}
	return s
})

// BenchmarkFigureBytes: what it takes to learn d differences among 1,000,000
// objects, in bytes of one side per difference, and in round trips: the sketch,
// trees with 16 and with 2 children, and the floor, an item of 24 bytes each.
// x-floor is the ratio to the floor.
func BenchmarkFigureBytes(b *testing.B) {
	for _, c := range [][2]int{{1, 100}, {10, 50}, {100, 20}, {1000, 5}, {10_000, 1}} {
		d, samples := c[0], c[1]
		report := func(b *testing.B, bytes int64, trips, n int) {
			perDifference := float64(bytes) / float64(n) / float64(d)
			b.ReportMetric(perDifference, "B/diff")
			b.ReportMetric(perDifference/float64(len(reconcile.Item{})), "x-floor")
			b.ReportMetric(float64(trips)/float64(n), "round-trips")
			b.ReportMetric(0, "ns/op")
		}
		b.Run(fmt.Sprintf("differences=%d/sketch", d), func(b *testing.B) {
			bytes, trips, n := int64(0), 0, 0
			for b.Loop() {
				for range samples {
					n++
					diff, err := reconcile.Diff(b.Context(), grow(commonSet(), commonState(), randomObjects(uint64(n), d)), commonSet())
					if err != nil || diff.Listed || len(diff.Missing) != d {
						b.Fatalf("%v, %+v", err, diff.Stats)
					}
					bytes, trips = bytes+diff.SketchBytes, trips+diff.RoundTrips
				}
			}
			report(b, bytes, trips, n)
		})
		for _, bits := range []int{4, 1} {
			b.Run(fmt.Sprintf("differences=%d/tree-%d", d, 1<<bits), func(b *testing.B) {
				bytes, trips, n := int64(0), 0, 0
				for b.Loop() {
					got, sent, asked := newMerkle(bits, million(), randomObjects(uint64(n), d)).exchange(commonTree[bits](), func() {})
					if len(got) != d {
						b.Fatal(len(got))
					}
					bytes, trips, n = bytes+sent, trips+asked, n+1
				}
				report(b, bytes, trips, n)
			})
		}
	}
}

// link is how long a round trip takes.
const link = 80 * time.Millisecond

// BenchmarkFigureLink: how long it takes to learn d differences among 1,000,000
// objects over a link of 80 ms, the CPU time of both sides included. The floor is
// one round trip. The objects themselves are not moved here; see synckey.
func BenchmarkFigureLink(b *testing.B) {
	for _, d := range []int{0, 1, 100, 10_000} {
		from := grow(commonSet(), commonState(), randomObjects(5, d))
		report := func(b *testing.B) {
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/link.Seconds(), "x-floor")
		}
		b.Run(fmt.Sprintf("differences=%d/sketch", d), func(b *testing.B) {
			for b.Loop() {
				diff, err := reconcile.Diff(b.Context(), far{from, link}, far{commonSet(), link})
				if err != nil || len(diff.Missing) != d {
					b.Fatal(err)
				}
			}
			report(b)
		})
		b.Run(fmt.Sprintf("differences=%d/tree-16", d), func(b *testing.B) {
			tree := newMerkle(4, million(), from.extra)
			for b.Loop() {
				if got, _, _ := tree.exchange(commonTree[4](), func() { time.Sleep(link) }); len(got) != d {
					b.Fatal(len(got))
				}
			}
			report(b)
		})
	}
}

// BenchmarkFigureCPU: what 10 differences cost each side in CPU time, in sets of
// any size: an HSM, which shows its root and as many cells as are needed, and the
// client, which decodes those of both sides.
func BenchmarkFigureCPU(b *testing.B) {
	// As in BenchmarkDiffOfSize: the heap's size must not count.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(2 << 30))
	const d = 10
	for _, n := range []int{10_000, 100_000, 1_000_000} {
		set, state := commonSet(), commonState()
		if n < 1_000_000 {
			set = reconciletest.NewSet(testKeys, 0, million()[:n])
			state = stateOf(million()[:n], 0)
		}
		from := grow(set, state, randomObjects(5, d))
		diff, err := reconcile.Diff(b.Context(), from, set)
		if err != nil || len(diff.Missing) != d {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("objects=%d/HSM", n), func(b *testing.B) {
			for b.Loop() {
				if _, err := from.Root(b.Context()); err != nil {
					b.Fatal(err)
				}
				firstCells(b, from, diff.Cells)
			}
		})
		b.Run(fmt.Sprintf("objects=%d/client", n), func(b *testing.B) {
			one, two := firstCells(b, from, diff.Cells), firstCells(b, set, diff.Cells)
			for b.Loop() {
				dec := reconcile.NewDecoder(testKeys)
				for i := range one {
					if err := dec.Add(one[i], two[i]); err != nil {
						b.Fatal(err)
					}
				}
				if !dec.Done() || len(dec.FromOnly()) != d {
					b.Fatal("it does not decode")
				}
			}
		})
	}
}

func firstCells(b *testing.B, s hsm.Sketcher, n int) (cells []hsm.Cell) {
	for c, err := range s.Cells(b.Context(), 0) {
		if err != nil {
			b.Fatal(err)
		}
		if cells = append(cells, c); len(cells) == n {
			break
		}
	}
	return cells
}
