package backup

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/storagetest"
)

// What a prune may not delete is decided twice: when it plans, and again in each turn of
// the sweep. The tests here have the repository change between the two.

// orphans has the store hold the objects of the first snapshot of from, which no manifest
// there names, since a time beyond the grace period.
func orphans(t *testing.T, from *pruned, to *clockStore) []string {
	t.Helper()
	defer to.tick(2 * DefaultGrace)
	return youngOrphans(t, from, to)
}

// youngOrphans is orphans that the store has just taken.
func youngOrphans(t *testing.T, from *pruned, to *clockStore) (names []string) {
	t.Helper()
	names = neededBy(from.open(t, from.store, "1").manifest)
	for _, name := range names {
		stored, err := storage.ReadAll(t.Context(), from.store, name, format.MaxStoredPack)
		if err == nil {
			err = put(t.Context(), to, name, stored)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return names
}

// TestASweepLooksAgain: a plan deletes objects that nothing needs. Before it is carried
// out, or between two turns of the sweep, something happens on another host. What is
// left then stays.
func TestASweepLooksAgain(t *testing.T) {
	source := newPruned(t, 1)
	for name, happens := range map[string]func(t *testing.T, p *pruned){
		"a snapshot is removed, which begins the grace period anew": func(t *testing.T, p *pruned) { p.forge(t, format.ActionRemove, fmtID(1)) },
		"a copy begins": func(t *testing.T, p *pruned) {
			stored, err := format.EncodeCopy(format.CopyRecord{Sequence: 77, Manifest: format.NameOf(nil), Begun: time.Now(), Software: "test"})
			if err == nil {
				err = put(t.Context(), p.store, format.CopyPath(77), stored)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		"a manifest comes that names them": func(t *testing.T, p *pruned) {
			_, stored, err := loadManifest(t.Context(), source.store, 1)
			if err == nil {
				err = put(t.Context(), p.store, format.ManifestPath(1), stored)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		"a manifest comes that cannot be read": func(t *testing.T, p *pruned) {
			if err := put(t.Context(), p.store, format.ManifestPath(77), []byte("junk")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		for when, before := range map[string]int{"before the sweep": 0, "after its first turn": 1} {
			t.Run(name+", "+when, func(t *testing.T) {
				p := &pruned{testCluster: source.testCluster, store: newClockStore(t)}
				if !strings.Contains(name, "names them") {
					p.full(t)
					p.full(t)
				}
				planned := orphans(t, source, p.store)
				plan, err := PlanPrune(t.Context(), p.store, PruneOptions{Policy: Policy{Last: Unlimited}, Grace: DefaultGrace, At: p.store.now, perTurn: 1})
				if err != nil || len(plan.Objects) != len(planned) {
					t.Fatalf("%+v, %v", plan, err)
				}
				happened := sync.OnceFunc(func() { happens(t, p) })
				marks := 0
				hooked := &putHook{Store: p.store, putting: func(name string) {
					if strings.HasPrefix(name, format.MarkPrefix) {
						if marks++; marks > before {
							happened()
						}
					}
				}}
				r, err := plan.Execute(t.Context(), hooked)
				if err != nil {
					t.Fatal(err)
				}
				if r.Objects != before {
					t.Errorf("%d objects are gone, want %d: %+v", r.Objects, before, r)
				}
			})
		}
	}
}

// putHook calls something before each put.
type putHook struct {
	storage.Store
	putting func(name string)
}

func (s *putHook) Put(ctx context.Context, name string, body io.ReadSeeker, size int64) error {
	s.putting(name)
	return s.Store.Put(ctx, name, body, size)
}

// TestTheStoresClockJudges: the clock of the host that prunes is days ahead of the
// store's. What a snapshot under way has stored an hour ago stays.
func TestTheStoresClockJudges(t *testing.T) {
	p := newPruned(t, 1)
	o := p.options()
	o.Full = true
	p.signing = func([]byte) { // everything is stored but the manifest
		p.signing = nil
		p.store.tick(time.Hour)
		plan, err := PlanPrune(t.Context(), p.store, PruneOptions{Policy: Policy{Last: Unlimited}, Grace: DefaultGrace, At: p.store.now.Add(3 * DefaultGrace)})
		if err != nil || len(plan.Objects) == 0 {
			t.Errorf("the plan of a host whose clock is ahead: %+v, %v", plan, err)
			return
		}
		if r, err := plan.Execute(t.Context(), p.store); err != nil || r.Objects != 0 {
			t.Errorf("%+v, %v", r, err)
		}
	}
	mustTake(t, p, p.store, o)
	p.restorable(t)
}

// TestRemovalBeginsTheGracePeriod: a prune dies between the mark that says that a
// snapshot is being removed and its manifest. The next one, days later, removes the
// manifest; what that named stays for the grace period from then on, since whoever saw
// the manifest a moment before may build on it.
func TestRemovalBeginsTheGracePeriod(t *testing.T) {
	p := newPruned(t, 1)
	p.full(t)
	named := neededBy(p.open(t, p.store, "1").manifest)
	dies := storagetest.NewFaulty(p.store)
	dies.Set(storagetest.Fault{N: 1, Dead: true, Only: func(op storagetest.Op, name string) bool {
		return op == storagetest.Delete && strings.HasPrefix(name, format.ManifestPrefix)
	}})
	o := PruneOptions{Policy: Policy{Last: 1}, Grace: DefaultGrace, Now: true, At: p.store.now}
	plan, err := PlanPrune(t.Context(), dies, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plan.Execute(t.Context(), dies); !errors.Is(err, storagetest.ErrInjected) {
		t.Fatal(err)
	}
	p.store.tick(UndeleteWindow + DefaultGrace)
	o.Now = false
	if _, r := p.prune(t, o); !slices.Equal(r.Removed, []string{fmtID(1)}) || r.Objects != 0 {
		t.Fatalf("%+v", r)
	}
	p.store.tick(DefaultGrace - time.Minute)
	if _, r := p.prune(t, o); r.Objects != 0 {
		t.Fatalf("within the grace period of the removal: %+v", r)
	}
	for _, name := range named {
		if there, err := exists(t.Context(), p.store, name); err != nil || !there {
			t.Fatalf("%s: %t, %v", name, there, err)
		}
	}
	p.store.tick(time.Minute)
	if _, r := p.prune(t, o); r.Objects != len(named) {
		t.Fatalf("after it: %+v", r)
	}
	p.restorable(t)
}

// TestALockedManifestStopsNoSweep: the store refuses to delete a manifest, and does not
// tell before that it will. What earlier prunes left goes all the same.
func TestALockedManifestStopsNoSweep(t *testing.T) {
	p := newPruned(t, 1)
	p.full(t)
	p.store.locked[format.ManifestPath(1)] = true
	o := PruneOptions{Policy: Policy{Last: 1}, Grace: DefaultGrace}
	p.prune(t, o)
	p.store.tick(UndeleteWindow)
	if _, r := p.prune(t, o); !slices.Equal(r.Locked, []string{format.ManifestPath(1)}) {
		t.Fatalf("%+v", r)
	}
	youngOrphans(t, newPruned(t, 1), p.store)
	gone := 0
	for range 60 {
		_, r := p.prune(t, o)
		gone += r.Objects
		p.store.tick(time.Hour)
	}
	if gone != 3 {
		t.Errorf("%d objects are gone within %s", gone, 60*time.Hour)
	}
	p.restorable(t)
	delete(p.store.locked, format.ManifestPath(1))
	p.store.tick(DefaultGrace)
	if _, r := p.prune(t, o); !slices.Equal(r.Removed, []string{fmtID(1)}) { // it is due as long as it takes
		t.Errorf("unlocked: %+v", r)
	}
	p.restorable(t)
}

// listHook calls something after each listing.
type listHook struct {
	storage.Store
	listed func(prefix string)
}

func (s *listHook) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		s.Store.List(ctx, prefix)(yield)
		s.listed(prefix)
	}
}

// TestATurnIsMarkedBeforeItLooks: a copy begins when the turn of a sweep has just seen
// that none is in progress. It finds the mark of the turn, waits for its end, and is
// whole afterwards.
func TestATurnIsMarkedBeforeItLooks(t *testing.T) {
	source, to := newPruned(t, 1), newClockStore(t)
	planned := orphans(t, source, to)
	plan, err := PlanPrune(t.Context(), to, PruneOptions{Policy: Policy{Last: 1}, Grace: DefaultGrace, At: to.now})
	if err != nil || len(plan.Objects) != len(planned) {
		t.Fatalf("%+v, %v", plan, err)
	}
	waiting, swept, copied := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	waits := sync.OnceFunc(func() { close(waiting) })
	begins := sync.OnceFunc(func() {
		go func() {
			_, err := Copy(context.Background(), source.store, to, "1", CopyOptions{wait: func(context.Context, time.Duration) error {
				waits()
				<-swept
				return nil
			}})
			waits() // or believes that it is done
			copied <- err
		}()
		<-waiting
	})
	_, err = plan.Execute(t.Context(), &listHook{Store: to, listed: func(prefix string) {
		if prefix == format.CopyPrefix {
			begins()
		}
	}})
	close(swept)
	if err := errors.Join(err, <-copied); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, source.testCluster, to, "1")
}

// TestMarksAreReadAfterManifests: while a turn looks, a snapshot comes that names what
// is about to go, and another prune removes it, which begins the grace period anew.
func TestMarksAreReadAfterManifests(t *testing.T) {
	source := newPruned(t, 1)
	p := &pruned{testCluster: source.testCluster, store: newClockStore(t)}
	planned := orphans(t, source, p.store)
	plan, err := PlanPrune(t.Context(), p.store, PruneOptions{Policy: Policy{Last: 1}, Grace: DefaultGrace, At: p.store.now})
	if err != nil || len(plan.Objects) != len(planned) {
		t.Fatalf("%+v, %v", plan, err)
	}
	comesAndGoes := sync.OnceFunc(func() {
		_, stored, err := loadManifest(t.Context(), source.store, 1)
		if err == nil {
			err = put(t.Context(), p.store, format.ManifestPath(1), stored)
		}
		if err != nil {
			t.Fatal(err)
		}
		p.forge(t, format.ActionRemove, fmtID(1))
		p.take(t, format.ManifestPath(1))
	})
	marked := false
	hooked := &listHook{Store: &putHook{Store: p.store, putting: func(string) { marked = true }}, listed: func(prefix string) {
		if marked && (prefix == format.MarkPrefix || prefix == format.ManifestPrefix) { // whichever is first
			comesAndGoes()
		}
	}}
	if r, err := plan.Execute(t.Context(), hooked); err != nil || r.Objects != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestAnOldCopyRecordHoldsNoSweepBack: a copy that was interrupted long ago is run again.
// While it runs, the snapshot whose packs it found there is removed, a grace period
// passes, and a sweep that has seen no manifest which needs them deletes them right after
// the copy has looked for the last time. It waits for that sweep, and brings them again.
func TestAnOldCopyRecordHoldsNoSweepBack(t *testing.T) {
	source, to := newPruned(t, 2), newClockStore(t)
	mustCopy(t, source.store, to, "1")
	q := &pruned{testCluster: source.testCluster, store: to}
	dies := storagetest.NewFaulty(to)
	dies.Set(storagetest.Fault{N: 1, Dead: true, Only: func(op storagetest.Op, name string) bool {
		return op == storagetest.Put && strings.HasPrefix(name, format.PackPrefix)
	}})
	if _, err := Copy(t.Context(), source.store, dies, "2", CopyOptions{}); !errors.Is(err, storagetest.ErrInjected) {
		t.Fatal(err)
	}
	to.tick(2 * UndeleteWindow)
	looked, copied, swept := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	sweeps := sync.OnceFunc(func() {
		q.forge(t, format.ActionRemove, fmtID(1)) // the snapshot after it is about to be there
		q.take(t, format.ManifestPath(1))
		to.tick(2 * DefaultGrace)
		plan, err := PlanPrune(t.Context(), to, PruneOptions{Policy: Policy{Last: 1}, Grace: DefaultGrace, At: to.now})
		if err != nil || len(plan.Objects) == 0 {
			t.Errorf("%+v, %v", plan, err)
		}
		deletes := sync.OnceFunc(func() {
			close(looked)
			<-copied
		})
		go func() {
			_, err := plan.Execute(context.Background(), &hookedStore{Store: to, deleting: func(string) { deletes() }})
			swept <- err
		}()
		<-looked
	})
	over := sync.OnceFunc(func() {
		close(copied)
		if err := <-swept; err != nil {
			t.Error(err)
		}
	})
	beginsToSweep := &putHook{Store: to, putting: func(name string) {
		if strings.HasPrefix(name, format.ManifestPrefix) {
			sweeps()
		}
	}}
	_, err := Copy(t.Context(), source.store, beginsToSweep, "2", CopyOptions{Source: "in the same millisecond another record", wait: func(context.Context, time.Duration) error {
		over()
		return nil
	}})
	over() // or it believes that it is done
	if err != nil {
		t.Fatal(err)
	}
	mustVerify(t, source.testCluster, to, "2")
}

// TestATurnEnds: within sweepTurn of its mark, whatever a deletion does.
func TestATurnEnds(t *testing.T) {
	p := newPruned(t, 1)
	orphans(t, newPruned(t, 1), p.store)
	plan, err := PlanPrune(t.Context(), p.store, PruneOptions{Policy: Policy{Last: 1}, Grace: DefaultGrace, At: p.store.now})
	if err != nil || len(plan.Objects) != 3 {
		t.Fatalf("%+v, %v", plan, err)
	}
	var marked time.Time
	deletions := 0
	store := &deadlines{Store: &putHook{Store: p.store, putting: func(name string) {
		if strings.HasPrefix(name, format.MarkPrefix) {
			marked = time.Now()
		}
	}}}
	store.deleting = func(ctx context.Context, name string) {
		if ends, bounded := ctx.Deadline(); !strings.HasPrefix(name, format.MarkPrefix) && (!bounded || ends.After(marked.Add(sweepTurn))) {
			t.Errorf("the deletion of %s may last until %v, %t; the turn was marked at %v", name, ends, bounded, marked)
		}
		deletions++
	}
	if _, err := plan.Execute(t.Context(), store); err != nil || deletions < 3 {
		t.Fatalf("%d deletions, %v", deletions, err)
	}
}

// deadlines shows the context of each deletion.
type deadlines struct {
	storage.Store
	mu       sync.Mutex
	deleting func(ctx context.Context, name string)
}

func (s *deadlines) Delete(ctx context.Context, name string) error {
	s.mu.Lock()
	s.deleting(ctx, name)
	s.mu.Unlock()
	return s.Store.Delete(ctx, name)
}

// TestUnchangedNoticesAPrunedParent removes the snapshot that already says everything, and
// all that only it needs, at each storage call of a take in turn: what the take names in
// the end is there.
func TestUnchangedNoticesAPrunedParent(t *testing.T) {
	for n := 1; ; n++ {
		p := newPruned(t, 2)
		s := &atCall{Store: p.store, n: n, do: func() {
			p.full(t)
			p.prune(t, PruneOptions{Policy: Policy{Last: 1}, Now: true, Grace: 0})
		}}
		r := mustTake(t, p, s, p.options())
		mustVerify(t, p.testCluster, p.store, r.ID)
		if calls := s.calls.Load(); calls < int64(n) {
			if n < 6 {
				t.Fatalf("a take of %d calls", calls)
			}
			return
		}
	}
}

// TestDueByTheStoresClock: the clock of the host that prunes is days ahead, and a
// snapshot that is pending since an hour seems due. It is not removed, and can be had back.
func TestDueByTheStoresClock(t *testing.T) {
	p := newPruned(t, 2)
	if _, err := Delete(t.Context(), p.store, "1", "test"); err != nil {
		t.Fatal(err)
	}
	p.store.tick(time.Hour)
	plan, err := PlanPrune(t.Context(), p.store, PruneOptions{Policy: Policy{Last: Unlimited}, Grace: DefaultGrace, At: p.store.now.Add(UndeleteWindow)})
	if err != nil || plan.Count(PruneRemove) != 1 {
		t.Fatalf("the plan of a host whose clock is ahead: %+v, %v", plan, err)
	}
	if r, err := plan.Execute(t.Context(), p.store); err != nil || len(r.Removed) != 0 || !slices.Equal(r.Skipped, []string{fmtID(1)}) {
		t.Errorf("%+v, %v", r, err)
	}
	if s, err := Undelete(t.Context(), p.store, "1", "test"); err != nil || s.State != StateReady {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestKeptAfterThePlan: a snapshot that is marked keep between plan and execution stays,
// whether it was pending or not and whether the prune waits or not.
func TestKeptAfterThePlan(t *testing.T) {
	for _, now := range []bool{false, true} {
		for _, pending := range []bool{false, true} {
			p := newPruned(t, 2)
			if pending {
				if _, err := Delete(t.Context(), p.store, "1", "test"); err != nil {
					t.Fatal(err)
				}
				p.store.tick(UndeleteWindow)
			}
			plan, err := PlanPrune(t.Context(), p.store, PruneOptions{Policy: Policy{Last: 1}, Grace: DefaultGrace, Now: now, At: p.store.now})
			if err != nil || plan.Count(PruneRemove)+plan.Count(PruneDelete) != 1 {
				t.Fatalf("%+v, %v", plan, err)
			}
			p.forge(t, format.ActionKeep, fmtID(1)) // Keep refuses what is pending; another version may not
			r, err := plan.Execute(t.Context(), p.store)
			if err != nil || len(r.Removed)+len(r.Marked) != 0 || !slices.Equal(r.Skipped, []string{fmtID(1)}) {
				t.Errorf("now %t, pending %t: %+v, %v", now, pending, r, err)
			}
		}
	}
}

// TestALongTakeLooksAfterItsOwnPacks: a prune with too short a grace period removes what
// a take has stored, right before its manifest. The take notices, and what follows is whole.
func TestALongTakeLooksAfterItsOwnPacks(t *testing.T) {
	for _, prefix := range objectPrefixes {
		p := newPruned(t, 0)
		o := p.options()
		o.begun = time.Now().Add(-2 * longTake)
		r := mustTake(t, p, &vanishingStore{Store: p.store, prefix: prefix}, o)
		if r.FullReason == "" || len(r.Notes) == 0 {
			t.Errorf("%s: %+v", prefix, r)
		}
		mustVerify(t, p.testCluster, p.store, "")
	}
}

// TestALockThatIsToldLeavesNoMark: a mark that nothing takes back would say that a
// snapshot is going which a lock keeps, where the store tells of the lock before.
func TestALockThatIsToldLeavesNoMark(t *testing.T) {
	p := newPruned(t, 2)
	manifest := format.ManifestPath(1)
	store := &lockable{Store: p.store, held: map[string]storage.Retention{manifest: {Mode: storage.Compliance, Until: time.Now().Add(24 * time.Hour)}}}
	plan, err := PlanPrune(t.Context(), store, PruneOptions{Policy: Policy{Last: 1}, Grace: DefaultGrace, Now: true, At: p.store.now})
	if err != nil || plan.Count(PruneRemove) != 1 {
		t.Fatalf("%+v, %v", plan, err)
	}
	if r, err := plan.Execute(t.Context(), store); err != nil || len(r.Removed) != 0 || !slices.Equal(r.Locked, []string{manifest}) {
		t.Errorf("%+v, %v", r, err)
	}
	if state := p.states(t)[fmtID(1)]; state != StateReady {
		t.Errorf("the snapshot is %s", state)
	}
}

// TestASignedRecordIsNotSuperseded by one that anybody may have made.
func TestASignedRecordIsNotSuperseded(t *testing.T) {
	whole := Verified{Level: LevelRoot, OK: true, Checked: 5, Packs: 5}
	old, signed := whole, whole
	old.path, old.Signed, signed.Signed = "old", true, true
	for _, v := range []struct {
		newer Verified
		want  bool
	}{{whole, false}, {signed, true}} {
		if s := (&Entry{Verified: []Verified{old, v.newer}}); s.superseded("old") != v.want {
			t.Errorf("by %+v: %t, want %t", v.newer, !v.want, v.want)
		}
	}
}
