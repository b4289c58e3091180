package backup

import (
	"context"
	"io"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/hsmbackup/hsmbackup/storage"
)

// fullStore has no room left until something is deleted.
type fullStore struct {
	storage.Store
	full atomic.Bool
}

func (s *fullStore) Put(ctx context.Context, name string, body io.ReadSeeker, size int64) error {
	if s.full.Load() {
		return &storage.Error{Op: "put", Name: name, Location: "full store", Kind: storage.ErrFull}
	}
	return s.Store.Put(ctx, name, body, size)
}

func (s *fullStore) Delete(ctx context.Context, name string) error {
	err := s.Store.Delete(ctx, name)
	if err == nil {
		s.full.Store(false)
	}
	return err
}

// TestPruneOfAFullStore: where there is no room for a mark, records that newer ones
// supersede make some.
func TestPruneOfAFullStore(t *testing.T) {
	p := newPruned(t, 2)
	p.full(t)
	for count(t, p.store, "verified/") < 2 { // of two moments: a record is named after its millisecond
		r, err := Verify(t.Context(), p.store, "", LevelHashes, OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Record(t.Context(), p.store, LevelHashes, 0, 0, "test"); err != nil {
			t.Fatal(err)
		}
	}
	full := &fullStore{Store: p.store}
	full.full.Store(true)
	plan, err := PlanPrune(t.Context(), full, PruneOptions{Policy: Policy{Last: 1}, Now: true, At: p.store.now})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := plan.Execute(t.Context(), full); err != nil || !slices.Equal(r.Removed, []string{fmtID(1), fmtID(2)}) || count(t, p.store, "verified/") != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	p.restorable(t)
}

// TestPruneOfAFullStoreWithoutRoom: where nothing may go without a mark, the error
// says what it takes, and nothing has changed.
func TestPruneOfAFullStoreWithoutRoom(t *testing.T) {
	p := newPruned(t, 2)
	p.full(t)
	full := &fullStore{Store: p.store}
	full.full.Store(true)
	before := names(t, p.store)
	plan, err := PlanPrune(t.Context(), full, PruneOptions{Policy: Policy{Last: 1}, Now: true, At: p.store.now})
	if err != nil {
		t.Fatal(err)
	}
	_, err = plan.Execute(t.Context(), full)
	wantErr(t, err, ErrNoRoom, storage.ErrFull)
	if !slices.Equal(before, names(t, p.store)) {
		t.Fatalf("it removed something: %v, then %v", before, names(t, p.store))
	}
}
