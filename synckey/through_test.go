package synckey

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestReadAhead: whatever order batches come in, they are used in that of their
// references; no more than so many are under way; and after an error nothing is.
func TestReadAhead(t *testing.T) {
	refs := make([]hsm.KeyRef, 20*readBatch+7)
	for i := range refs {
		refs[i] = hsm.KeyRef(i + 1)
	}
	var under, most atomic.Int32
	fetch := func(_ context.Context, batch []hsm.KeyRef) ([]hsm.KeyRef, error) {
		now := under.Add(1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		defer under.Add(-1)
		return slices.Clone(batch), nil
	}
	var used []hsm.KeyRef
	use := func(batch, got []hsm.KeyRef) error {
		if !slices.Equal(batch, got) {
			t.Errorf("batch from %d gets that from %d", batch[0], got[0])
		}
		used = append(used, batch...)
		return nil
	}
	if err := readAhead(t.Context(), refs, fetch, use); err != nil || !slices.Equal(used, refs) || most.Load() > aheadBatches {
		t.Errorf("%v, %d used, %d at a time", err, len(used), most.Load())
	}
	failed := errors.New("failed")
	for n := range 4 {
		calls := 0
		err := readAhead(t.Context(), refs, fetch, func(_, _ []hsm.KeyRef) error {
			if calls++; calls > n {
				return failed
			}
			return nil
		})
		if !errors.Is(err, failed) || calls != n+1 || under.Load() != 0 {
			t.Errorf("use fails at %d: %v, %d calls, %d under way", n, err, calls, under.Load())
		}
	}
	err := readAhead(t.Context(), refs, func(_ context.Context, batch []hsm.KeyRef) (int, error) {
		return 0, fmt.Errorf("at %d: %w", batch[0], failed)
	}, func([]hsm.KeyRef, int) error { return nil })
	if !errors.Is(err, failed) || err.Error() != "at 1: failed" {
		t.Errorf("fetch fails: %v", err)
	}
	if err := readAhead(t.Context(), nil, fetch, use); err != nil {
		t.Error(err)
	}
}

// TestInsertionsKeepTheirOrder: insertions are under way beside each other, as many as
// are allowed and no more, and none of a phase before the one before is through: users
// before keys, keys before policies; with a rate one at a time.
func TestInsertionsKeepTheirOrder(t *testing.T) {
	for name, o := range map[string]Options{"unbounded": {Users: true}, "at a rate": {Users: true, Rate: Rate{objects: 1e9}}} {
		t.Run(name, func(t *testing.T) {
			a := newRegion(t, 1)
			b := a.clone(1)
			for i := range 3 {
				a.user(fmt.Sprintf("late_%d", i))
			}
			var made []hsm.MaskedObject
			for i := range 12 * sliceObjects {
				made = append(made, a.birth(hsm.NewKeyRef(), fmt.Sprintf("late_%d", i%3), "k"))
			}
			a.put(made)
			a.put([]hsm.MaskedObject{a.changeOn(0, hsm.RoleAdmin, admin, hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 1, CheckOnUse: true}})})
			w := &insertWatch{t: t}
			b.boxes[0].seen.Store(w)
			if r, err := run(t.Context(), a.open(appliance), b.open(appliance), o); err != nil || !r.RootsEqual || r.Applied != len(made)+4 {
				t.Fatalf("%v, %+v", err, r)
			}
			want := insertsAhead
			if o.Rate != (Rate{}) {
				want = 1
			}
			if w.most > want || want > 1 && w.most < 2 {
				t.Errorf("%d insertions at a time; want 2 to %d", w.most, want)
			}
			if len(w.kinds) != 3 || w.kinds[0] != hsm.KindUser || w.kinds[1] != hsm.KindKey || w.kinds[2] != hsm.KindPolicy {
				t.Errorf("in the order %v", w.kinds)
			}
		})
	}
}

// insertWatch sees what is inserted into an HSM, and what at the same time.
type insertWatch struct {
	t     *testing.T
	mu    sync.Mutex
	under map[hsm.Kind]int
	most  int
	kinds []hsm.Kind
}

func (w *insertWatch) begin(objects []hsm.MaskedObject) (end func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.under == nil {
		w.under = map[hsm.Kind]int{}
	}
	kind := objects[0].Kind
	w.under[kind]++
	if len(w.kinds) == 0 || w.kinds[len(w.kinds)-1] != kind {
		w.kinds = append(w.kinds, kind)
	}
	n := 0
	for k, under := range w.under {
		if n += under; under > 0 && k != kind {
			w.t.Errorf("%s inserted while %s is", kind, k)
		}
	}
	w.most = max(w.most, n)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.under[kind]--
	}
}
