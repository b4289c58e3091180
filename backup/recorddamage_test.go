package backup

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/storage"
)

// marked is a repository whose snapshots have marks of every kind and records of
// verification, signed ones and one that is not.
type marked struct {
	*pruned
	states map[string]State
	files  map[string][]byte // marks and records by name
}

func newMarked(t *testing.T) *marked {
	t.Helper()
	p := newPruned(t, 5)
	ctx := t.Context()
	for _, id := range []string{"1", "2"} {
		if _, err := Delete(ctx, p.store, id, "test"); err != nil {
			t.Fatal(err)
		}
	}
	_, undone := Undelete(ctx, p.store, "2", "test")
	_, kept := Keep(ctx, p.store, "3", true, "test")
	if err := errors.Join(undone, kept); err != nil {
		t.Fatal(err)
	}
	for id, o := range map[string]OpenOptions{"3": {Identities: p.identities()}, "4": {Identities: p.identities()}, "5": {}} {
		level := LevelRoot
		if len(o.Identities) == 0 {
			level = LevelHashes
		}
		r, err := Verify(ctx, p.store, id, level, o)
		if err == nil {
			err = r.Record(ctx, p.store, level, 0, 0, "test")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r := &marked{pruned: p, states: p.states(t), files: map[string][]byte{}}
	for _, name := range names(t, p.store) {
		if strings.HasPrefix(name, format.MarkPrefix) || strings.HasPrefix(name, format.VerifiedPrefix) {
			b, err := storage.ReadAll(ctx, p.store, name, format.MaxRecord)
			if err != nil {
				t.Fatal(err)
			}
			r.files[name] = b
		}
	}
	if len(r.files) != 7 {
		t.Fatalf("%d marks and records", len(r.files))
	}
	return r
}

// put replaces an object, as a damaged store does; nil takes it away.
func (r *marked) put(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := r.store.Store.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if b == nil {
		return
	}
	if err := r.store.Store.Put(t.Context(), name, bytes.NewReader(b), int64(len(b))); err != nil {
		t.Fatal(err)
	}
}

// verified lists which snapshots a repository says were verified.
func verifiedIn(inv *Inventory) (out []string) {
	for _, s := range inv.Snapshots {
		for _, v := range s.Verified {
			out = append(out, s.ID+" "+string(v.Level))
		}
	}
	return out
}

// TestDamagedMarksAndRecords damages each mark and each record of verification in every way. What is
// damaged is named in the notes and says nothing; no other one says anything else for it;
// and the next prune removes nothing that it would have left, because whoever cannot read the
// log does not write to it.
func TestDamagedMarksAndRecords(t *testing.T) {
	r := newMarked(t)
	before, err := TakeInventory(t.Context(), r.store)
	if err != nil || len(before.Notes) > 0 {
		t.Fatal(err, before.Notes)
	}
	for name, good := range r.files {
		mark := strings.HasPrefix(name, format.MarkPrefix)
		for what, bad := range damages(r.files, name, good) {
			r.put(t, name, bad)
			inv, err := TakeInventory(t.Context(), r.store)
			if err != nil {
				t.Fatalf("%s %s: %v", name, what, err)
			}
			unsigned := strings.HasPrefix(name, format.VerifiedPrefix+fmtID(5))
			if bad != nil && !unsigned && (len(inv.Notes) != 1 || !strings.Contains(inv.Notes[0], name)) {
				t.Errorf("%s %s is not named: %q", name, what, inv.Notes)
			}
			if got := verifiedIn(inv); len(got) > 3 || !mark && !unsigned && len(got) > 2 {
				t.Errorf("%s %s: verified are %v", name, what, got)
			}
			if _, err := Keep(t.Context(), r.store, "2", true, "test"); mark && bad != nil && !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s %s: the log cannot be read, and is written to: %v", name, what, err)
			}
			r.removesNothing(t, name+" "+what)
			r.restoreFiles(t)
		}
	}
	if after := r.pruned.states(t); len(after) != len(r.states) {
		t.Fatalf("%v, before %v", after, r.states)
	}
	r.restorable(t)
}

// damages yields what can become of a file, missing last.
func damages(all map[string][]byte, name string, good []byte) map[string][]byte {
	out := map[string][]byte{"emptied": {}, "cut off": good[:len(good)/2], "missing": nil, "with a byte more": append(slices.Clone(good), 0)}
	for other, b := range all {
		if other != name && strings.HasPrefix(other, name[:6]) {
			out["swapped with "+other] = b
		}
	}
	for bit := 0; bit < 8*len(good); bit += 37 {
		flipped := slices.Clone(good)
		flipped[bit/8] ^= 1 << (bit % 8)
		out["bit "+fmtID(bit)] = flipped
	}
	return out
}

// removesNothing prunes by a rule that keeps everything. A snapshot that is pending is not
// due, whatever a damaged log says of it.
func (r *marked) removesNothing(t *testing.T, what string) {
	t.Helper()
	plan, err := PlanPrune(t.Context(), r.store, PruneOptions{Policy: Policy{Last: Unlimited}, At: r.store.now})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	done, err := plan.Execute(context.Background(), r.store)
	if err != nil && !errors.Is(err, ErrCorrupt) || len(done.Removed) > 0 || done.Objects > 0 {
		t.Errorf("%s: the prune removed %v and %d objects: %v", what, done.Removed, done.Objects, err)
	}
}

// restoreFiles undoes the damage, and what came of it.
func (r *marked) restoreFiles(t *testing.T) {
	t.Helper()
	for _, name := range names(t, r.store) {
		if strings.HasPrefix(name, format.MarkPrefix) || strings.HasPrefix(name, format.VerifiedPrefix) {
			if err := r.store.Store.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, b := range r.files {
		if err := r.store.Store.Put(t.Context(), name, bytes.NewReader(b), int64(len(b))); err != nil {
			t.Fatal(err)
		}
	}
}
