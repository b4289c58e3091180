package reconcile_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"iter"
	"math/big"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile/reconciletest"
)

func randomObjects(seed uint64, n int) []hsm.Object {
	r := rand.New(rand.NewPCG(seed, 11))
	out := make([]hsm.Object, n)
	for i := range out {
		out[i] = reconciletest.RandomObject(r)
	}
	return out
}

func stateOf(objects []hsm.Object, prefix int) *reconcile.State {
	s := reconcile.NewState(testKeys, prefix)
	for _, o := range objects {
		s.Update(nil, &o)
	}
	return s
}

// take copies the first n cells of a sequence.
func take(t *testing.T, n int, cells cellSeq) []hsm.Cell {
	t.Helper()
	out := make([]hsm.Cell, 0, n)
	for c, err := range cells {
		if err != nil {
			t.Fatal(err)
		}
		if out = append(out, c); len(out) == n {
			break
		}
	}
	return out
}

func TestItem(t *testing.T) {
	o := hsm.Object{Ref: 0x0102030405060708, Digest: hsm.Digest{9, 15: 24}}
	i := reconcile.ItemOf(o)
	want := reconcile.Item{1, 2, 3, 4, 5, 6, 7, 8, 9, 23: 24}
	if i != want || i.Ref() != o.Ref || i.Digest() != o.Digest {
		t.Errorf("item %x, reference %s, digest %s", i, i.Ref(), i.Digest())
	}
}

// The root is the sum of the items' HMACs modulo 2^256, in big endian.
func TestRootIsSum(t *testing.T) {
	sum := new(big.Int)
	objects := randomObjects(1, 100)
	for _, o := range objects {
		item := reconcile.ItemOf(o)
		m := hmac.New(sha256.New, testKeys.Root[:])
		m.Write(item[:])
		sum.Add(sum, new(big.Int).SetBytes(m.Sum(nil)))
	}
	sum.Mod(sum, new(big.Int).Lsh(big.NewInt(1), 256))
	want := hsm.Root{Count: 100}
	sum.FillBytes(want.Sum[:])
	if got := stateOf(objects, 1).Root(); got != want {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestStateOrderAndUndo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		r := rand.New(rand.NewPCG(seed, 5))
		objects := randomObjects(seed, rapid.IntRange(0, 60).Draw(t, "n"))
		wantRoot, wantCells := stateOf(objects, 64).Snapshot()

		shuffled := slices.Clone(objects)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		s := reconcile.NewState(testKeys, 64)
		for _, o := range shuffled {
			before, passing := o, reconciletest.RandomObject(r)
			before.Digest[r.IntN(16)] ^= byte(1 + r.IntN(255))
			s.Update(nil, &before)
			s.Update(nil, &passing)
			s.Update(&before, &o)
			s.Update(&o, &o)
			s.Update(&passing, nil)
		}
		root, cells := s.Snapshot()
		if root != wantRoot {
			t.Fatalf("root %x, want %x", root, wantRoot)
		}
		if diff := cmp.Diff(wantCells, cells); diff != "" {
			t.Fatalf("cells (-want +got):\n%s", diff)
		}
	})
}

// Two states of disjoint sets, joined, are the state of their union.
func TestStatesJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		a := randomObjects(seed, rapid.IntRange(0, 40).Draw(t, "a"))
		b := randomObjects(seed+1, rapid.IntRange(0, 40).Draw(t, "b"))
		joined := stateOf(a, 50)
		joined.Join(stateOf(b, 50))
		root, cells := joined.Snapshot()
		wantRoot, wantCells := stateOf(append(a, b...), 50).Snapshot()
		if root != wantRoot || !slices.Equal(cells, wantCells) {
			t.Fatalf("root %x, want %x", root, wantRoot)
		}
	})
}

// The cells of two disjoint sets add up to those of their union.
func TestSketchLinear(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		a := randomObjects(seed, rapid.IntRange(0, 40).Draw(t, "a"))
		b := randomObjects(seed+1, rapid.IntRange(0, 40).Draw(t, "b"))
		cellsA, cellsB := stateOf(a, 50).Cells(), stateOf(b, 50).Cells()
		for i, want := range stateOf(append(a, b...), 50).Cells() {
			got := cellsA[i]
			for j := range got.Item {
				got.Item[j] ^= cellsB[i].Item[j]
			}
			got.Check ^= cellsB[i].Check
			got.Count += cellsB[i].Count
			if got != want {
				t.Fatalf("cell %d: got %+v, want %+v", i, got, want)
			}
		}
	})
}

func TestUpdateNothing(t *testing.T) {
	s, empty := stateOf(nil, 8), stateOf(nil, 8)
	s.Update(nil, nil)
	o := hsm.Object{Ref: 1, Digest: hsm.Digest{1}}
	s.Update(nil, &o)
	s.Update(&o, nil)
	if s.Root() != empty.Root() || s.Root() != (hsm.Root{}) || !slices.Equal(s.Cells(), make([]hsm.Cell, 8)) {
		t.Errorf("root %x after nothing", s.Root())
	}
}

// Object zero is an object like any other to a State that is told of it.
func TestUpdateZeroObject(t *testing.T) {
	s := reconcile.NewState(testKeys, 8)
	s.Update(nil, &hsm.Object{})
	if s.Root().Count != 1 {
		t.Errorf("count %d, want 1", s.Root().Count)
	}
}

// What was handed out is of one moment, whatever is changed afterwards.
func TestStateCopies(t *testing.T) {
	more := randomObjects(2, 1)[0]
	for name, change := range map[string]func(*reconcile.State){
		"update": func(s *reconcile.State) { s.Update(nil, &more) },
		"join":   func(s *reconcile.State) { s.Join(stateOf([]hsm.Object{more}, 0)) },
	} {
		s := stateOf(randomObjects(1, 10), 0)
		cells := s.Cells()
		if len(cells) != reconcile.DefaultPrefix {
			t.Fatalf("%d cells", len(cells))
		}
		before := slices.Clone(cells)
		change(s)
		if !slices.Equal(cells, before) || s.Cells()[0].Count != 11 || s.Root().Count != 11 {
			t.Errorf("%s changes what was handed out, or not what comes next", name)
		}
	}
}

func TestUpdateDoesNotAllocate(t *testing.T) {
	s := reconcile.NewState(testKeys, 0)
	a, b := randomObjects(1, 1)[0], randomObjects(2, 1)[0]
	s.Update(nil, &a)
	if n := testing.AllocsPerRun(100, func() { s.Update(&a, &b); s.Update(&b, &a); s.Root() }); n != 0 {
		t.Errorf("%v allocations per update, want none", n)
	}
}

// Root and cells of a snapshot are of one moment, whoever writes.
func TestStateConcurrent(t *testing.T) {
	s := reconcile.NewState(testKeys, 128)
	var wg sync.WaitGroup
	for seed := range uint64(4) {
		wg.Go(func() {
			for _, o := range randomObjects(seed, 200) {
				s.Update(nil, &o)
			}
		})
	}
	for range 50 {
		root, cells := s.Snapshot()
		if root.Count != uint64(cells[0].Count) {
			t.Errorf("root counts %d, cells %d", root.Count, cells[0].Count)
		}
	}
	wg.Wait()
	var all []hsm.Object
	for seed := range uint64(4) {
		all = append(all, randomObjects(seed, 200)...)
	}
	if s.Root() != stateOf(all, 1).Root() {
		t.Error("updates were lost")
	}
}

// However long the maintained prefix, the cells are the same.
func TestCellsFrom(t *testing.T) {
	const n = 10000
	objects := randomObjects(3, 500)
	want := stateOf(objects, n).Cells()
	items := func() objectSeq { return each(objects) }
	for _, prefix := range []int{0, 1, 100, 4096} {
		var cells []hsm.Cell
		if prefix > 0 {
			cells = stateOf(objects, prefix).Cells()
		}
		for _, from := range []int{-1, 0, 50, 100, 5000} {
			got := take(t, n-max(from, 0), reconcile.CellsFrom(testKeys, cells, from, items))
			if !slices.Equal(got, want[max(from, 0):]) {
				t.Errorf("prefix %d, from %d: other cells", prefix, from)
			}
		}
	}
	got, err := reconcile.NewEncoder(testKeys, items).Cells(700, 300)
	if err != nil || !slices.Equal(got, want[700:1000]) {
		t.Errorf("encoder: other cells, or %v", err)
	}
}

// However many share a scan, and whether the last batch is full or not, the cells are the
// same, also those of the next scan.
func TestCellsOfManyWorkers(t *testing.T) {
	for _, procs := range []int{1, 2, 9} {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
		for _, n := range []int{1023, 1024, 1025, 9 << 10, 9<<10 + 77} {
			objects := randomObjects(uint64(n), n)
			want := stateOf(objects, 3000).Cells()
			e := reconcile.NewEncoder(testKeys, func() iter.Seq2[hsm.Object, error] { return each(objects) })
			for _, from := range []int{0, 2000} {
				got, err := e.Cells(from, 1000)
				if err != nil || !slices.Equal(got, want[from:from+1000]) {
					t.Errorf("%d processors, %d objects, from %d: other cells, or %v", procs, n, from, err)
				}
			}
		}
	}
}

// A scan that fails, early or late, leaves nobody behind.
func TestFailedScan(t *testing.T) {
	objects := randomObjects(8, 5000)
	for _, n := range []int{0, 1000, 1024, 4999} {
		e := reconcile.NewEncoder(testKeys, func() iter.Seq2[hsm.Object, error] { return failAfter[hsm.Object](n, errBroken)(each(objects)) })
		if _, err := e.Cells(0, 100); !errors.Is(err, errBroken) {
			t.Errorf("after %d objects: %v, want %v", n, err, errBroken)
		}
	}
}

func each(objects []hsm.Object) objectSeq {
	return func(yield func(hsm.Object, error) bool) {
		for _, o := range objects {
			if !yield(o, nil) {
				return
			}
		}
	}
}

// Cells far past the prefix take few scans.
func TestCellsFromScans(t *testing.T) {
	objects, scans := randomObjects(4, 10), 0
	items := func() objectSeq { scans++; return each(objects) }
	prefix := stateOf(objects, 0).Cells()
	take(t, len(prefix), reconcile.CellsFrom(testKeys, prefix, 0, items))
	if scans != 0 {
		t.Errorf("%d scans for the prefix", scans)
	}
	take(t, 200_000, reconcile.CellsFrom(testKeys, prefix, 0, items))
	if scans != 2 {
		t.Errorf("%d scans for 200,000 cells, want 2", scans)
	}
}

func TestCellsFromChanged(t *testing.T) {
	objects := randomObjects(5, 100)
	prefix := stateOf(objects, 16).Cells()
	other := append(slices.Clone(objects), randomObjects(6, 1)...)
	scans := 0
	sometimes := func() objectSeq {
		if scans++; scans > 1 {
			return each(other)
		}
		return each(objects)
	}
	fails := func() objectSeq { return failAfter[hsm.Object](50, errBroken)(each(objects)) }
	for _, c := range []struct {
		name   string
		prefix []hsm.Cell
		items  func() iter.Seq2[hsm.Object, error]
		want   error
	}{
		{"other than the prefix", prefix, func() objectSeq { return each(other) }, reconcile.ErrChanged},
		{"other in the second scan", nil, sometimes, reconcile.ErrChanged},
		{"error", prefix, fails, errBroken},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []error
			for _, err := range reconcile.CellsFrom(testKeys, c.prefix, 0, c.items) {
				if got != nil {
					t.Fatal("something follows the error")
				}
				if err != nil {
					got = append(got, err)
				}
			}
			if len(got) != 1 || !errors.Is(got[0], c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}
