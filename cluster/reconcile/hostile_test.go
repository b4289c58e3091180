package reconcile_test

import (
	"encoding/binary"
	"errors"
	"iter"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile/reconciletest"
)

type (
	objectSeq = iter.Seq2[hsm.Object, error]
	cellSeq   = iter.Seq2[hsm.Cell, error]
)

var errBroken = errors.New("the disk is on fire")

// Whatever a source's sketch says, Diff ends, and the lists decide.
func TestDiffHostileSketch(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	randomCell := func(_ int, c hsm.Cell) hsm.Cell {
		for i := range c.Item {
			c.Item[i] = byte(r.Uint32())
		}
		return hsm.Cell{Item: c.Item, Check: r.Uint64(), Count: int64(r.IntN(3)) - 1}
	}
	claim := func(n uint64) func() (hsm.Root, error) {
		return func() (hsm.Root, error) { return hsm.Root{Count: n}, nil }
	}
	for name, change := range map[string]func(s *source){
		"random cells":      func(s *source) { s.cells = mapped(randomCell) },
		"zero cells":        func(s *source) { s.cells = mapped(func(int, hsm.Cell) hsm.Cell { return hsm.Cell{} }) },
		"never decodes":     func(s *source) { s.cells = mapped(func(i int, c hsm.Cell) hsm.Cell { c.Check ^= 1; return c }) },
		"one bit in cell 9": func(s *source) { s.cells = mapped(flip(9)) },
		"extreme counts": func(s *source) {
			s.cells = mapped(func(i int, c hsm.Cell) hsm.Cell { c.Count = math.MinInt64; return c })
		},
		"cells end":           func(s *source) { s.cells = failAfter[hsm.Cell](5, nil) },
		"no cells":            func(s *source) { s.cells = failAfter[hsm.Cell](0, nil) },
		"cells denied":        func(s *source) { s.cells = failAfter[hsm.Cell](0, hsm.ErrDenied) },
		"cells fail":          func(s *source) { s.cells = failAfter[hsm.Cell](5, errBroken) },
		"source changes":      func(s *source) { s.cells = failAfter[hsm.Cell](5, reconcile.ErrChanged) },
		"root denied":         func(s *source) { s.root = func() (hsm.Root, error) { return hsm.Root{}, hsm.ErrDenied } },
		"keys denied":         func(s *source) { s.keys = func() (k hsm.FingerprintKeys, err error) { return k, hsm.ErrDenied } },
		"count too large":     func(s *source) { s.root = claim(math.MaxUint64) },
		"count zero":          func(s *source) { s.root = claim(0) },
		"wrong root":          func(s *source) { s.root = claim(300) },
		"count and no decode": func(s *source) { s.root = claim(math.MaxUint64 / 2); s.cells = mapped(randomCell) },
	} {
		t.Run(name, func(t *testing.T) {
			for _, side := range []string{"source", "destination"} {
				from, to := pair(2, 300, 30, 64)
				a, b := source{Sketcher: from}, source{Sketcher: to}
				if change(&a); side == "destination" {
					a, b = source{Sketcher: from}, source{Sketcher: to}
					change(&b)
				}
				d := diff(t, a, b, reconcile.MaxCells(5000))
				if diff := cmp.Diff(naive(from, to), d, entriesOnly); diff != "" {
					t.Errorf("hostile %s, %d cells, %v (-want +got):\n%s", side, d.Cells, d.Abandoned, diff)
				}
				if d.Listed != (d.Abandoned != nil) {
					t.Errorf("listed %v, because %v", d.Listed, d.Abandoned)
				}
			}
		})
	}
}

func flip(cell int) func(int, hsm.Cell) hsm.Cell {
	return func(i int, c hsm.Cell) hsm.Cell {
		if i == cell {
			c.Item[20] ^= 4
		}
		return c
	}
}

// A source may claim objects that it does not have: they are missing, and stay
// so, since it cannot hand them over.
func TestDiffInventedItems(t *testing.T) {
	from, to := pair(3, 300, 0, 0)
	r := rand.New(rand.NewPCG(3, 3))
	liar, _ := pair(3, 300, 0, 0)
	liar.Put(reconciletest.RandomObject(r))
	d := diff(t, source{Sketcher: from, root: func() (hsm.Root, error) { return liar.Root(t.Context()) },
		cells: func(cellSeq) cellSeq { return liar.Cells(t.Context(), 0) }}, to)
	if len(d.Missing) != 1 || d.Listed {
		t.Errorf("%d missing, listed %v", len(d.Missing), d.Listed)
	}
}

// Items that no object can have do not come out of a sketch.
func TestDiffImpossibleItems(t *testing.T) {
	valid := hsm.Object{Ref: 7, Digest: hsm.Digest{1}}
	twice := hsm.Object{Ref: 7, Digest: hsm.Digest{2}}
	for name, objects := range map[string][]hsm.Object{
		"reference zero":       {{Ref: 0, Digest: hsm.Digest{1}}},
		"reference of 64 bits": {{Ref: 1 << 63, Digest: hsm.Digest{1}}},
		"digest zero":          {{Ref: 7}},
		"two states":           {valid, twice},
	} {
		t.Run(name, func(t *testing.T) {
			liar := reconciletest.NewSet(testKeys, 0, objects)
			_, empty := pair(1, 0, 0, 0)
			_, err := reconcile.Diff(t.Context(), liar, empty)
			if !errors.Is(err, reconcile.ErrPeer) { // from the list, which lies too
				t.Errorf("got %v, want %v", err, reconcile.ErrPeer)
			}
			honest := source{Sketcher: liar, objects: failAfter[hsm.Object](0, nil)}
			if d := diff(t, honest, empty); !d.Empty() || !errors.Is(d.Abandoned, reconcile.ErrUndecodable) {
				t.Errorf("got %+v, want nothing, for the sketch does not decode", d)
			}
		})
	}
}

func TestDiffHostileList(t *testing.T) {
	swap := func(s objectSeq) objectSeq {
		return func(yield func(hsm.Object, error) bool) {
			var all []hsm.Object
			for o := range s {
				all = append(all, o)
			}
			all[3], all[4] = all[4], all[3]
			for _, o := range all {
				if !yield(o, nil) {
					return
				}
			}
		}
	}
	for name, c := range map[string]struct {
		objects func(objectSeq) objectSeq
		want    error
	}{
		"out of order": {swap, reconcile.ErrPeer},
		"repeats":      {mapped(func(i int, o hsm.Object) hsm.Object { o.Ref = 9; return o }), reconcile.ErrPeer},
		"no reference": {mapped(func(i int, o hsm.Object) hsm.Object { o.Ref = 0; return o }), reconcile.ErrPeer},
		"fails":        {failAfter[hsm.Object](5, errBroken), errBroken},
		"endless": {func(objectSeq) objectSeq {
			return func(yield func(hsm.Object, error) bool) {
				for o := (hsm.Object{Ref: 1, Digest: hsm.Digest{1}}); yield(o, nil); o.Ref++ {
				}
			}
		}, reconcile.ErrTooMany},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := pair(4, 300, 30, 64)
			bad := source{Sketcher: from, objects: c.objects}
			for _, sides := range [][2]hsm.Source{{plain{bad}, to}, {to, plain{bad}}} {
				d, err := reconcile.Diff(t.Context(), sides[0], sides[1], reconcile.MaxEntries(10000))
				if d != nil || !errors.Is(err, c.want) {
					t.Errorf("got %v, %v, want %v", d, err, c.want)
				}
			}
		})
	}
}

func TestDiffLineage(t *testing.T) {
	from, to := pair(5, 10, 3, 0)
	_, err := reconcile.Diff(t.Context(), source{Sketcher: from, lineage: &hsm.Lineage{2}, root: func() (hsm.Root, error) {
		t.Error("a source of another lineage was asked")
		return hsm.Root{}, nil
	}}, to)
	if !errors.Is(err, hsm.ErrLineage) {
		t.Errorf("other lineage: got %v", err)
	}
	keys := testKeys
	binary.BigEndian.PutUint64(keys.Sketch[:], 99)
	_, err = reconcile.Diff(t.Context(), source{Sketcher: from, keys: func() (hsm.FingerprintKeys, error) { return keys, nil }}, to)
	if !errors.Is(err, hsm.ErrLineage) {
		t.Errorf("other keys: got %v", err)
	}
}

// An unreachable source is not asked for its list as well.
func TestDiffUnavailable(t *testing.T) {
	from, to := pair(5, 10, 3, 0)
	down := source{Sketcher: from, root: func() (hsm.Root, error) { return hsm.Root{}, hsm.ErrUnavailable },
		objects: func(objectSeq) objectSeq {
			t.Error("listed")
			return func(func(hsm.Object, error) bool) {}
		}}
	if _, err := reconcile.Diff(t.Context(), down, to); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), "root") {
		t.Errorf("got %v", err)
	}
}
