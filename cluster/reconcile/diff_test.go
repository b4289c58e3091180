package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile/reconciletest"
)

var testKeys = hsm.FingerprintKeys{Root: [32]byte{1, 2, 3}, Sketch: [16]byte{4, 5, 6}}

// pair makes two sets of n common objects that differ in d: a third each is
// missing, changed and extra.
func pair(seed uint64, n, d, prefix int) (from, to *reconciletest.Set) {
	r := rand.New(rand.NewPCG(seed, 7))
	common := make([]hsm.Object, n)
	for i := range common {
		common[i] = reconciletest.RandomObject(r)
	}
	a, b := slices.Clone(common), slices.Clone(common)
	for i := range d {
		o := reconciletest.RandomObject(r)
		if i%3 != 2 {
			a = append(a, o)
		}
		if i%3 == 1 {
			o.Digest[0]++
		}
		if i%3 != 0 {
			b = append(b, o)
		}
	}
	return reconciletest.NewSet(testKeys, prefix, a), reconciletest.NewSet(testKeys, prefix, b)
}

// naive is Diff by way of maps.
func naive(from, to *reconciletest.Set) *reconcile.Difference {
	digests := map[hsm.KeyRef]hsm.Digest{}
	for _, o := range to.All() {
		digests[o.Ref] = o.Digest
	}
	d := &reconcile.Difference{}
	for _, o := range from.All() {
		e := reconcile.Entry{Ref: o.Ref, From: o.Digest, To: digests[o.Ref]}
		switch {
		case e.Missing():
			d.Missing = append(d.Missing, e)
		case e.From != e.To:
			d.Changed = append(d.Changed, e)
		}
		delete(digests, o.Ref)
	}
	for _, o := range to.All() {
		if _, left := digests[o.Ref]; left {
			d.Extra = append(d.Extra, reconcile.Entry{Ref: o.Ref, To: o.Digest})
		}
	}
	return d
}

func diff(t *testing.T, from, to hsm.Source, opts ...reconcile.Option) *reconcile.Difference {
	t.Helper()
	d, err := reconcile.Diff(t.Context(), from, to, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// entriesOnly compares differences by their entries.
var entriesOnly = cmpopts.IgnoreFields(reconcile.Difference{}, "Stats")

func TestDiff(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 5000} {
		for _, d := range []int{0, 1, 2, 3, 10, 100, 1000} {
			t.Run(fmt.Sprintf("n=%d,d=%d", n, d), func(t *testing.T) {
				from, to := pair(uint64(n+d), n, d, 256)
				want := naive(from, to)
				got := diff(t, from, to)
				if diff := cmp.Diff(want, got, entriesOnly); diff != "" {
					t.Errorf("by sketch (-want +got):\n%s", diff)
				}
				if got.Equal != (d == 0) || got.Empty() != (d == 0) {
					t.Errorf("equal %v, empty %v with %d differences", got.Equal, got.Empty(), d)
				}
				if n == 5000 && got.Listed {
					t.Errorf("listed although few differ: %v", got.Abandoned)
				}
				listed := diff(t, plain{from}, to)
				if diff := cmp.Diff(want, listed, entriesOnly); diff != "" || !listed.Listed {
					t.Errorf("by list (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func TestDiffProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		r := rand.New(rand.NewPCG(seed, 3))
		from, to := pair(seed, rapid.IntRange(0, 300).Draw(rt, "n"), 0, rapid.IntRange(1, 300).Draw(rt, "prefix"))
		for range rapid.IntRange(0, 200).Draw(rt, "changes") {
			side := from
			if r.IntN(2) == 0 {
				side = to
			}
			switch o := reconciletest.RandomObject(r); {
			case r.IntN(3) == 0 && len(side.All()) > 0:
				side.Remove(side.All()[r.IntN(len(side.All()))].Ref)
			case r.IntN(2) == 0 && len(side.All()) > 0:
				o.Ref = side.All()[r.IntN(len(side.All()))].Ref
				side.Put(o)
			default:
				side.Put(o)
			}
		}
		want := naive(from, to)
		for _, opts := range [][]reconcile.Option{nil, {reconcile.RootsFirst()}, {reconcile.ListOnly()}, {reconcile.MaxCells(10)}} {
			got, err := reconcile.Diff(context.Background(), from, to, opts...)
			if err != nil {
				rt.Fatal(err)
			}
			if diff := cmp.Diff(want, got, entriesOnly); diff != "" {
				rt.Fatalf("(-want +got):\n%s", diff)
			}
		}
	})
}

func TestDiffRoundTrips(t *testing.T) {
	const trip = 50 * time.Millisecond
	few := func() (a, b *reconciletest.Set) { return pair(1, 2000, 30, 0) }
	many := func() (a, b *reconciletest.Set) { return pair(1, 10, 3000, 0) }
	equal := func() (a, b *reconciletest.Set) { return pair(1, 2000, 0, 0) }
	for _, c := range []struct {
		name  string
		pair  func() (a, b *reconciletest.Set)
		trips int
		opts  []reconcile.Option
	}{
		{"equal", equal, 1, nil},
		{"equal, roots first", equal, 1, []reconcile.Option{reconcile.RootsFirst()}},
		{"few", few, 1, nil},
		{"few, roots first", few, 2, []reconcile.Option{reconcile.RootsFirst()}},
		{"many", many, 2, nil},
		{"few, listed", few, 1, []reconcile.Option{reconcile.ListOnly()}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				from, to := c.pair()
				begun := time.Now() // of the bubble: nothing but waiting takes time
				d := diff(t, far{from, trip}, far{to, trip}, c.opts...)
				if took := time.Since(begun); took != time.Duration(c.trips)*trip || d.RoundTrips != c.trips {
					t.Errorf("took %s and counted %d round trips, want %d of %s", took, d.RoundTrips, c.trips, trip)
				}
			})
		})
	}
}

// Whatever a source is waiting for, Diff, Sync and Copy end with their context,
// and leave no goroutine behind (synctest sees to that).
func TestCancel(t *testing.T) {
	for name, run := range map[string]func(ctx context.Context, from hsm.Sketcher, to hsm.Replica) error{
		"diff": func(ctx context.Context, from hsm.Sketcher, to hsm.Replica) error {
			_, err := reconcile.Diff(ctx, from, to)
			return err
		},
		"diff of lists": func(ctx context.Context, from hsm.Sketcher, to hsm.Replica) error {
			_, err := reconcile.Diff(ctx, from, to, reconcile.ListOnly())
			return err
		},
		"sync": func(ctx context.Context, from hsm.Sketcher, to hsm.Replica) error {
			_, err := reconcile.Sync(ctx, from, to, reconcile.RootsFirst())
			return err
		},
		"copy": func(ctx context.Context, from hsm.Sketcher, to hsm.Replica) error {
			_, err := reconcile.Copy(ctx, from, to)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				from, to := reconciletest.NewReplica(keyring), reconciletest.NewReplica(keyring)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				begun := time.Now()
				err := run(ctx, far{from, time.Hour}, to)
				if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Second {
					t.Errorf("got %v after %s", err, time.Since(begun))
				}
			})
		})
	}
}

// The sketch of a small difference in a large set must not read the set.
func TestDiffReadsNothing(t *testing.T) {
	from, to := pair(5, 5000, 500, 0)
	never := func(name string) func(seq objectSeq) objectSeq {
		return func(objectSeq) objectSeq {
			return func(func(hsm.Object, error) bool) { t.Errorf("the %s was listed", name) }
		}
	}
	d := diff(t, source{Sketcher: from, objects: never("source")}, source{Sketcher: to, objects: never("destination")})
	if d.Listed || d.Cells == 0 || d.Cells > 1500 || d.SketchBytes != int64(d.Cells)*reconcile.CellBytes {
		t.Errorf("%d cells, %d bytes, listed %v", d.Cells, d.SketchBytes, d.Listed)
	}
}

func TestDiffEmptyDestination(t *testing.T) {
	from, to := pair(6, 0, 0, 0)
	r := rand.New(rand.NewPCG(6, 6))
	for range 2000 {
		from.Put(reconciletest.RandomObject(r))
	}
	d := diff(t, from, to)
	if !d.Listed || d.Cells != 0 || len(d.Missing) != 2000 {
		t.Errorf("listed %v after %d cells, %d missing: want lists at once, 2000", d.Listed, d.Cells, len(d.Missing))
	}
}
