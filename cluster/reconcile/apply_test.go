package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile/reconciletest"
)

var keyring = hsm.NewKeyring()

func root(t interface{ Fatal(...any) }, s hsm.Sketcher) hsm.Root {
	r, err := s.Root(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// replicas returns a replica with n keys and one that holds a copy of them.
func replicas(t *testing.T, n int) (from, to *reconciletest.Replica) {
	t.Helper()
	from, to = reconciletest.NewReplica(keyring), reconciletest.NewReplica(keyring)
	for i := range n {
		from.NewKey(fmt.Sprint("key ", i))
	}
	if _, err := reconcile.Copy(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	if root(t, from) != root(t, to) {
		t.Fatal("a copy has another root")
	}
	return from, to
}

func TestApplyConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		a, b := reconciletest.NewReplicaPrefix(keyring, 16), reconciletest.NewReplicaPrefix(keyring, 32)
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			step(t, r, a, b)
		}
		opts := []reconcile.Option{reconcile.Batch(rapid.IntRange(1, 9).Draw(t, "batch"))}
		if rapid.Bool().Draw(t, "listed") {
			opts = append(opts, reconcile.ListOnly())
		}
		for _, pair := range [][2]*reconciletest.Replica{{a, b}, {b, a}} {
			d, err := reconcile.Diff(context.Background(), pair[0], pair[1], opts...)
			if err != nil {
				t.Fatal(err)
			}
			done, err := reconcile.Apply(context.Background(), d, pair[0], pair[1], opts...)
			if err != nil {
				t.Fatal(err)
			}
			if done.Added != len(d.Missing) || done.Changed+done.Unchanged != len(d.Changed) || done.Objects != len(d.Missing)+len(d.Changed) {
				t.Fatalf("%+v of %d missing, %d changed", done, len(d.Missing), len(d.Changed))
			}
		}
		if root(t, a) != root(t, b) {
			t.Fatal("roots differ after both directions")
		}
	})
}

// step does something to one of two replicas, or brings one up to the other.
func step(t *rapid.T, r *rand.Rand, a, b *reconciletest.Replica) {
	if r.IntN(2) == 0 {
		a, b = b, a
	}
	ref, held := a.At(r.IntN(1 + a.Len()))
	switch r.IntN(6) {
	case 0, 1, 2:
		a.NewKey("new")
	case 3:
		if held {
			a.SetLabel(ref, fmt.Sprint("label ", r.IntN(100)))
		}
	case 4:
		if held {
			a.Destroy(ref)
		}
	case 5:
		if _, err := reconcile.Sync(context.Background(), a, b); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSync(t *testing.T) {
	from, to := replicas(t, 300)
	changed, destroyed, lost := from.NewKey("a"), from.NewKey("b"), from.NewKey("c")
	if _, err := reconcile.Sync(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	from.SetLabel(changed, "a2")
	from.Destroy(destroyed)
	to.Remove(lost)
	only := to.NewKey("only here")
	var extra []hsm.KeyRef
	entries := 0
	s, err := reconcile.Sync(t.Context(), from, to, reconcile.RootsFirst(), reconcile.OnEntry(func(e reconcile.Entry) {
		if entries++; e.Extra() {
			extra = append(extra, e.Ref)
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if entries != 4 || !slices.Equal(extra, []hsm.KeyRef{only}) {
		t.Errorf("%d entries reported, extra %v", entries, extra)
	}
	if s.Missing != 1 || s.Changed != 2 || s.Extra != 1 || s.Added != 1 || s.Inserted.Changed != 0+2 || s.Objects != 3 || s.Listed {
		t.Errorf("got %+v", s)
	}
	if label, _ := to.Label(changed); label != "a2" {
		t.Errorf("label %q", label)
	}
	if o, _ := to.Get(destroyed); !o.Tombstone {
		t.Error("destroyed key lives on")
	}
	back, err := reconcile.Sync(t.Context(), to, from)
	if err != nil || back.Added != 1 || root(t, from) != root(t, to) {
		t.Errorf("back: %+v, %v", back, err)
	}
	if again, err := reconcile.Sync(t.Context(), from, to); err != nil || !again.Equal || again.Objects != 0 || again.RoundTrips != 1 {
		t.Errorf("again: %+v, %v", again, err)
	}
}

// A first transfer streams, and a tombstone travels with it.
func TestSyncEmptyDestination(t *testing.T) {
	from, _ := replicas(t, 700)
	from.Destroy(from.NewKey("gone"))
	to := reconciletest.NewReplica(keyring)
	var last reconcile.Progress
	reported := 0
	s, err := reconcile.Sync(t.Context(), from, to, reconcile.Batch(100), reconcile.OnProgress(func(p reconcile.Progress) { last = p }),
		reconcile.OnEntry(func(reconcile.Entry) { reported++ }))
	if err != nil {
		t.Fatal(err)
	}
	if !s.Listed || reported != 701 || s.Missing != 701 || s.Added != 701 || last.Objects != 701 || last.Bytes != s.Bytes || s.Bytes == 0 {
		t.Errorf("got %+v, progress %+v", s, last)
	}
	if root(t, from) != root(t, to) {
		t.Error("roots differ")
	}
}

func TestApplyEntries(t *testing.T) {
	from, to := replicas(t, 200)
	wanted, unwanted := from.NewKey("wanted"), from.NewKey("unwanted")
	only := reconcile.Entries(func(e reconcile.Entry) bool { return e.Ref == wanted })
	var totals []int
	progress := reconcile.OnProgress(func(p reconcile.Progress) { totals = append(totals, p.Total) })
	done, err := reconcile.Apply(t.Context(), diff(t, from, to), from, to, only, progress)
	if err != nil || done.Objects != 1 || !slices.Equal(totals, []int{1}) {
		t.Errorf("got %+v, %v, totals %v", done, err, totals)
	}
	if _, held := to.Get(unwanted); held {
		t.Error("an entry that was left out arrived")
	}
	if done, err := reconcile.Copy(t.Context(), from, to, reconcile.Entries(func(reconcile.Entry) bool { return false })); err != nil || done.Objects != 0 {
		t.Errorf("copy of nothing: %+v, %v", done, err)
	}
}

// A source that hands over what it was not asked for is stopped: Entries is
// about rights.
func TestApplyUnasked(t *testing.T) {
	from, to := replicas(t, 10)
	wanted, smuggled := from.NewKey("wanted"), from.NewKey("smuggled")
	d := diff(t, from, to)
	only := reconcile.Entries(func(e reconcile.Entry) bool { return e.Ref == wanted })
	o, _ := from.Get(smuggled)
	elsewhere := o
	elsewhere.Ref, elsewhere.Lineage = wanted, hsm.Lineage{9}
	for _, bad := range []hsm.MaskedObject{o, elsewhere} {
		liar := source{Sketcher: from, extract: func(iter.Seq2[hsm.MaskedObject, error]) iter.Seq2[hsm.MaskedObject, error] {
			return func(yield func(hsm.MaskedObject, error) bool) { yield(bad, nil) }
		}}
		if _, err := reconcile.Apply(t.Context(), d, liar, to, only); !errors.Is(err, reconcile.ErrPeer) {
			t.Errorf("got %v", err)
		}
	}
	if to.Len() != 10 {
		t.Error("it arrived")
	}
}

// Items that a source claims and cannot hand over are counted.
func TestApplyGone(t *testing.T) {
	from, to := replicas(t, 10)
	ref := from.NewKey("gone")
	from.NewKey("there")
	d := diff(t, from, to)
	from.Remove(ref)
	done, err := reconcile.Apply(t.Context(), d, from, to)
	if err != nil || done.Gone != 1 || done.Added != 1 {
		t.Errorf("got %+v, %v", done, err)
	}
}

func TestApplyErrors(t *testing.T) {
	from, to := replicas(t, 10)
	for i := range 100 {
		from.NewKey(fmt.Sprint("new ", i))
	}
	d := diff(t, from, to)
	broken := source{Sketcher: from, extract: failAfter[hsm.MaskedObject](3, errBroken)}
	if _, err := reconcile.Apply(t.Context(), d, broken, to); !errors.Is(err, errBroken) {
		t.Errorf("extract: got %v", err)
	}
	if _, err := reconcile.Apply(t.Context(), d, from, failing{to, new(atomic.Int64)}, reconcile.Batch(10)); !errors.Is(err, errBroken) {
		t.Errorf("insert: got %v", err)
	}
	listless := source{Sketcher: from, objects: failAfter[hsm.Object](3, errBroken)}
	if _, err := reconcile.Copy(t.Context(), listless, to); !errors.Is(err, errBroken) {
		t.Errorf("list: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := reconcile.Apply(ctx, d, from, to); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	if _, err := reconcile.Apply(t.Context(), d, source{Sketcher: from, lineage: &hsm.Lineage{1}}, to); !errors.Is(err, hsm.ErrLineage) {
		t.Errorf("lineage: got %v", err)
	}
	if done, err := reconcile.Apply(t.Context(), d, from, to); err != nil || root(t, from) != root(t, to) {
		t.Errorf("once more: %+v, %v", done, err)
	}
}

// failing fails at the third Insert, after half of it is done.
type failing struct {
	hsm.Replica
	calls *atomic.Int64
}

func (f failing) Insert(ctx context.Context, objects iter.Seq2[hsm.MaskedObject, error]) (hsm.Inserted, error) {
	if f.calls.Add(1) < 3 {
		return f.Replica.Insert(ctx, objects)
	}
	return f.Replica.Insert(ctx, failAfter[hsm.MaskedObject](5, errBroken)(objects))
}

// What Applied counts is in the destination, also after an error.
func TestApplyCountsWhatIsDurable(t *testing.T) {
	from, to := replicas(t, 0)
	for i := range 100 {
		from.NewKey(fmt.Sprint("new ", i))
	}
	done, err := reconcile.Apply(t.Context(), diff(t, from, to), from, failing{to, new(atomic.Int64)}, reconcile.Batch(10), reconcile.Workers(1))
	if !errors.Is(err, errBroken) || done.Added != 25 || to.Len() != 25 || done.Objects != 20 {
		t.Errorf("got %+v, %v; the destination holds %d", done, err, to.Len())
	}
}

// Two births under one reference are reported, and neither is overwritten.
func TestSyncConflict(t *testing.T) {
	from, to := replicas(t, 50)
	ref := from.NewKey("mine")
	to.NewKeyAt(ref, "theirs")
	s, err := reconcile.Sync(t.Context(), from, to)
	if err != nil || !slices.Equal(s.Conflicts, []hsm.KeyRef{ref}) {
		t.Errorf("got %+v, %v", s, err)
	}
	if label, _ := to.Label(ref); label != "theirs" {
		t.Errorf("overwritten with %q", label)
	}
}

// Two replicas that sync from each other at once, while both are written to,
// end up equal.
func TestSyncBothWays(t *testing.T) {
	a, b := replicas(t, 20)
	errs := make(chan error, 4)
	for _, pair := range [][2]*reconciletest.Replica{{a, b}, {b, a}} {
		go func() {
			for i := range 50 {
				pair[0].NewKey(fmt.Sprint("key ", i))
			}
			errs <- nil
		}()
		go func() {
			var err error
			for range 10 {
				_, e := reconcile.Sync(t.Context(), pair[0], pair[1], reconcile.Batch(3))
				err = errors.Join(err, e)
			}
			errs <- err
		}()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	for _, pair := range [][2]*reconciletest.Replica{{a, b}, {b, a}} {
		if _, err := reconcile.Sync(t.Context(), pair[0], pair[1]); err != nil {
			t.Fatal(err)
		}
	}
	if root(t, a) != root(t, b) || a.Len() != 120 {
		t.Errorf("%d and %d keys, roots differ", a.Len(), b.Len())
	}
}
