package backup

import (
	"slices"
	"testing"

	"github.com/hsmbackup/hsmbackup/backup/format"
)

// forge adds a mark about snapshots as whoever may write below marks/ can.
func (p *pruned) forge(t testing.TB, a format.Action, ids ...string) {
	t.Helper()
	inv, err := TakeInventory(t.Context(), p.store)
	if err != nil {
		t.Fatal(err)
	}
	_, err = addMark(t.Context(), p.store, "forger", func(*markLog) (*format.Mark, error) {
		m := &format.Mark{Action: a}
		for _, id := range ids {
			s, err := inv.Find(id)
			if err != nil {
				return nil, err
			}
			m.Snapshots = append(m.Snapshots, s.id)
		}
		return m, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestForgedRemoveMark: a remove mark that no deletion preceded takes nothing
// before seven days, and never the last snapshot nor the last verified one.
func TestForgedRemoveMark(t *testing.T) {
	p := newPruned(t, 4)
	r, err := Verify(t.Context(), p.store, fmtID(2), LevelHashes, OpenOptions{})
	if err != nil || !r.OK() {
		t.Fatal(err, r)
	}
	if err := r.Record(t.Context(), p.store, LevelHashes, 0, 0, "test"); err != nil {
		t.Fatal(err)
	}
	p.forge(t, format.ActionRemove, fmtID(1), fmtID(2), fmtID(3), fmtID(4))
	o := PruneOptions{Policy: Policy{Last: Unlimited}}
	if plan, r := p.prune(t, o); len(r.Removed) > 0 || plan.Count(PruneWait) != 2 {
		t.Fatalf("%+v, %+v", plan.Snapshots, r)
	}
	p.store.tick(UndeleteWindow)
	if _, r := p.prune(t, o); !slices.Equal(r.Removed, []string{fmtID(1), fmtID(3)}) {
		t.Fatalf("%+v", r)
	}
	p.whole(t)
}

// TestUndeletedBeforePruneNow: what somebody had back after the plan was made
// stays, also if the prune does not wait.
func TestUndeletedBeforePruneNow(t *testing.T) {
	p := newPruned(t, 2)
	ctx := t.Context()
	if _, err := Delete(ctx, p.store, "1", "test"); err != nil {
		t.Fatal(err)
	}
	plan, err := PlanPrune(ctx, p.store, PruneOptions{Policy: Policy{Last: Unlimited}, At: p.store.now, Now: true})
	if err != nil || plan.Count(PruneRemove) != 1 {
		t.Fatal(err, plan)
	}
	if _, err := Undelete(ctx, p.store, "1", "test"); err != nil {
		t.Fatal(err)
	}
	if r, err := plan.Execute(ctx, p.store); err != nil || len(r.Removed) > 0 || !slices.Equal(r.Skipped, []string{fmtID(1)}) {
		t.Fatalf("%+v, %v", r, err)
	}
}

// TestDamageFoundLaterDoesNotCount: a snapshot that was verified and found damaged
// afterwards does not stand in for the last good one.
func TestDamageFoundLaterDoesNotCount(t *testing.T) {
	p := newPruned(t, 4)
	ctx := t.Context()
	for _, v := range []struct {
		id     string
		failed int
	}{{fmtID(2), 0}, {fmtID(3), 0}, {fmtID(3), 1}} {
		r, err := Verify(ctx, p.store, v.id, LevelHashes, OpenOptions{})
		if err != nil || !r.OK() {
			t.Fatal(err, r)
		}
		if err := r.Record(ctx, p.store, LevelHashes, 0, v.failed, "test"); err != nil {
			t.Fatal(err)
		}
	}
	if _, r := p.prune(t, PruneOptions{Policy: Policy{Last: 1}, Now: true}); !slices.Equal(r.Removed, []string{fmtID(1)}) {
		t.Fatalf("the last good one is gone: %+v", r)
	}
}

// TestDamageIsNotUnsaid: a sample that is good does not supersede the record that
// says that the snapshot is damaged.
func TestDamageIsNotUnsaid(t *testing.T) {
	whole, bad := Verified{Level: LevelRoot, OK: true, Checked: 5, Packs: 5}, Verified{Level: LevelRoot, Checked: 5, Packs: 5, path: "bad"}
	sample := Verified{Level: LevelRoot, OK: true, Checked: 1, Packs: 5}
	for _, v := range []struct {
		of    []Verified
		sound bool
	}{
		{[]Verified{whole}, true},
		{[]Verified{whole, bad}, false},
		{[]Verified{whole, bad, sample}, false},
		{[]Verified{whole, bad, sample, whole}, true},
		{[]Verified{whole, bad, {Level: LevelHashes, OK: true}}, false},
		{[]Verified{bad, sample}, false},
	} {
		s := &Entry{Verified: v.of}
		if s.sound() != v.sound {
			t.Errorf("%+v: sound %t", v.of, s.sound())
		}
		if last := v.of[len(v.of)-1]; last == sample && s.superseded("bad") {
			t.Errorf("%+v: the record of damage is superseded", v.of)
		}
	}
}

// TestNumbersAreNotReusedBesideAnotherLineage: the highest number of one lineage
// is below those that another has had removed.
func TestNumbersAreNotReusedBesideAnotherLineage(t *testing.T) {
	p := newPruned(t, 1)
	other := &pruned{testCluster: newTestCluster(t, 1), store: p.store}
	other.cheap(t)
	for range 3 {
		other.snapshot(t)
	}
	if _, r := p.prune(t, PruneOptions{Policy: Policy{Last: 1}, Now: true}); !slices.Equal(r.Removed, []string{fmtID(2), fmtID(3)}) {
		t.Fatalf("%+v", r)
	}
	s := NewSeries(p, p.store, p.options())
	for _, want := range []string{fmtID(1), fmtID(5), fmtID(6)} {
		if r, err := s.Take(t.Context()); err != nil || r.ID != want {
			t.Fatalf("%+v, %v: want %s", r, err, want)
		}
		p.hsm(0).NewKey("one more")
	}
}

// TestNumbersOfDamagedSnapshotsAreNotReused: the newest manifest is damaged, deleted by
// name and removed; or somebody took it out of the store by hand, and a record of it
// is left. What was made of the number elsewhere is not mistaken for the next one.
func TestNumbersOfDamagedSnapshotsAreNotReused(t *testing.T) {
	for name, lose := range map[string]func(*pruned){
		"deleted by name": func(p *pruned) {
			damageManifest(t, p.store.Store, 3, []byte("hsmbackup manifest v1\nbad"))
			if _, err := Delete(t.Context(), p.store, "3", "test"); err != nil {
				t.Fatal(err)
			}
			if _, r := p.prune(t, PruneOptions{Policy: Policy{Last: Unlimited}, Now: true}); !slices.Equal(r.Removed, []string{fmtID(3)}) {
				t.Fatalf("%+v", r)
			}
		},
		"gone, marked": func(p *pruned) {
			if _, err := Keep(t.Context(), p.store, "3", true, "test"); err != nil {
				t.Fatal(err)
			}
			p.take(t, format.ManifestPath(3))
		},
		"gone, verified": func(p *pruned) {
			r, err := Verify(t.Context(), p.store, "3", LevelHashes, OpenOptions{})
			if err == nil {
				err = r.Record(t.Context(), p.store, LevelHashes, 0, 0, "test")
			}
			if err != nil {
				t.Fatal(err)
			}
			p.take(t, format.ManifestPath(3))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPruned(t, 3)
			lose(p)
			for _, want := range []string{fmtID(4), fmtID(5)} {
				if r := p.snapshot(t); r.ID != want {
					t.Fatalf("snapshot %s, want %s", r.ID, want)
				}
				p.store.tick(DefaultGrace)
			}
			mustVerify(t, p.testCluster, p.store, "")
		})
	}
}

// take takes an object out of the store by hand.
func (p *pruned) take(t *testing.T, name string) {
	t.Helper()
	if err := p.store.Store.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}
