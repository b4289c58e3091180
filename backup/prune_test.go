package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/storagetest"
)

// clockStore is a store with a clock of its own, which tests move.
type clockStore struct {
	storage.Store

	mu     sync.Mutex
	now    time.Time
	taken  map[string]time.Time
	locked map[string]bool // objects that a lock keeps
}

func newClockStore(t testing.TB) *clockStore {
	return &clockStore{Store: newStore(t), now: time.Now(), taken: map[string]time.Time{}, locked: map[string]bool{}}
}

func (s *clockStore) tick(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

func (s *clockStore) Put(ctx context.Context, name string, body io.ReadSeeker, size int64) error {
	s.mu.Lock()
	if s.taken[name].IsZero() { // before anybody can list it
		s.taken[name] = s.now
	}
	s.mu.Unlock()
	return s.Store.Put(ctx, name, body, size)
}

func (s *clockStore) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		for info, err := range s.Store.List(ctx, prefix) {
			s.mu.Lock()
			info.Modified = s.taken[info.Name]
			s.mu.Unlock()
			if !yield(info, err) {
				return
			}
		}
	}
}

func (s *clockStore) Delete(ctx context.Context, name string) error {
	s.mu.Lock()
	locked := s.locked[name]
	s.mu.Unlock()
	if locked {
		return &storage.Error{Op: "delete", Name: name, Location: "clock store", Kind: storage.ErrLocked}
	}
	return s.Store.Delete(ctx, name)
}

// pruned is a cluster with snapshots in a store with a clock.
type pruned struct {
	*testCluster
	store *clockStore
	refs  []hsm.KeyRef
}

// newPruned takes n snapshots a day apart, the first of them full and the others
// increments.
func newPruned(t testing.TB, n int) *pruned {
	t.Helper()
	p := &pruned{testCluster: newTestCluster(t, 1), store: newClockStore(t)}
	p.cheap(t)
	p.refs = keys(p.hsm(0), 3)
	for i := range n {
		if i > 0 {
			p.store.tick(24 * time.Hour)
		}
		p.snapshot(t)
	}
	return p
}

func (p *pruned) snapshot(t testing.TB) *Report {
	t.Helper()
	p.refs = append(p.refs, p.hsm(0).NewKey("one more"))
	o := p.options()
	o.begun = p.store.now
	return mustTake(t, p, p.store, o)
}

// full takes a full snapshot.
func (p *pruned) full(t testing.TB) *Report {
	t.Helper()
	o := p.options()
	o.begun, o.Full = p.store.now, true
	return mustTake(t, p, p.store, o)
}

func (p *pruned) prune(t testing.TB, o PruneOptions) (*PrunePlan, *PruneReport) {
	t.Helper()
	o.At = p.store.now
	plan, err := PlanPrune(t.Context(), p.store, o)
	if err != nil {
		t.Fatal(err)
	}
	r, err := plan.Execute(t.Context(), p.store)
	if err != nil {
		t.Fatal(err)
	}
	return plan, r
}

// states lists the states by id.
func (p *pruned) states(t testing.TB) map[string]State {
	t.Helper()
	inv, err := TakeInventory(t.Context(), p.store)
	if err != nil || len(inv.Notes) > 0 {
		t.Fatal(err, inv.Notes)
	}
	out := map[string]State{}
	for _, s := range inv.Snapshots {
		out[s.ID] = s.State
	}
	return out
}

// restorable demands that every snapshot whose manifest is there verifies, and
// that the newest restores to the cluster's root.
func (p *pruned) restorable(t testing.TB) {
	t.Helper()
	all, err := List(t.Context(), p.store)
	if err != nil || len(all) == 0 {
		t.Fatalf("%d snapshots, %v", len(all), err)
	}
	for _, s := range all {
		mustVerify(t, p.testCluster, p.store, s.ID)
	}
	if rootOf(t, restore(t, p.open(t, p.store, ""))) != rootOf(t, p.hsm(0)) {
		t.Fatal("the newest snapshot restores to another root")
	}
}

// whole demands that every snapshot whose manifest is there is whole.
func (p *pruned) whole(t testing.TB) {
	t.Helper()
	all, err := List(t.Context(), p.store)
	if err != nil || len(all) == 0 {
		t.Fatalf("%d snapshots, %v", len(all), err)
	}
	for _, s := range all {
		if r, err := Verify(t.Context(), p.store, s.ID, LevelHashes, OpenOptions{}); err != nil || !r.OK() {
			t.Fatalf("snapshot %s: %v, %v", s.ID, err, r)
		}
	}
}

// TestPruneInSteps follows snapshots through READY, PENDING_DELETION, and away,
// and their packs after them; every snapshot that is there verifies at any time.
func TestPruneInSteps(t *testing.T) {
	p := newPruned(t, 3)
	p.full(t) // needs nothing of the others
	packs := count(t, p.store, "packs/")
	o := PruneOptions{Policy: Policy{Last: 2}, Grace: DefaultGrace}
	plan, r := p.prune(t, o)
	if d := cmp.Diff([]string{fmtID(1), fmtID(2)}, r.Marked); d != "" || len(r.Removed) > 0 || plan.Nothing() {
		t.Fatal(d, r)
	}
	want := map[string]State{fmtID(1): StatePending, fmtID(2): StatePending, fmtID(3): StateReady, fmtID(4): StateReady}
	if d := cmp.Diff(want, p.states(t)); d != "" {
		t.Fatal(d)
	}
	p.restorable(t)

	p.store.tick(UndeleteWindow - time.Minute)
	if plan, r = p.prune(t, o); !plan.Nothing() || len(r.Removed) > 0 || plan.Count(PruneWait) != 2 {
		t.Fatalf("before seven days are over: %+v", r)
	}
	if _, err := Undelete(t.Context(), p.store, fmtID(2), "test"); err != nil {
		t.Fatal(err)
	}
	p.store.tick(time.Minute)
	if _, r = p.prune(t, o); !slices.Equal(r.Removed, []string{fmtID(1)}) || !slices.Equal(r.Marked, []string{fmtID(2)}) {
		t.Fatalf("after seven days: %+v", r)
	}
	if n := count(t, p.store, "packs/"); n != packs {
		t.Fatalf("%d packs, want %d: the grace period was not waited out", n, packs)
	}
	p.store.tick(UndeleteWindow)
	if _, r = p.prune(t, o); !slices.Equal(r.Removed, []string{fmtID(2)}) || r.Objects != 0 {
		t.Fatalf("%+v", r)
	}
	p.restorable(t)
	if plan, r = p.prune(t, o); !plan.Nothing() || r.Objects != 0 {
		t.Fatalf("within the grace period: %+v", r)
	}
	p.store.tick(DefaultGrace)
	// Snapshot 3 is an increment: the packs of its ancestors stay.
	if _, r = p.prune(t, o); r.Objects != 0 || count(t, p.store, "packs/") != packs {
		t.Fatalf("%+v", r)
	}
	o.Policy = Policy{Last: 1}
	o.Now, o.Grace = true, 0
	if plan, r = p.prune(t, o); !slices.Equal(r.Removed, []string{fmtID(3)}) || r.Objects != 7 || r.Bytes != plan.Bytes || count(t, p.store, "packs/") != 1 || count(t, p.store, "index/") != 1 {
		t.Fatalf("%+v", r)
	}
	p.restorable(t)
	want = map[string]State{fmtID(1): StateDeleted, fmtID(2): StateDeleted, fmtID(3): StateDeleted, fmtID(4): StateReady}
	if d := cmp.Diff(want, p.states(t)); d != "" {
		t.Fatal(d)
	}
	p.snapshot(t)
	p.restorable(t)
}

func TestPruneNeverTakes(t *testing.T) {
	p := newPruned(t, 6)
	ctx := t.Context()
	// Snapshot 2 is marked keep, 3 was verified and has a signed record, 4 was
	// verified as a whole, 5 in part, 6 is the last.
	if _, err := Keep(ctx, p.store, fmtID(2), true, "test"); err != nil {
		t.Fatal(err)
	}
	record := func(id string, level Level, s Sample, ids []Identity) {
		r, err := VerifySample(ctx, p.store, id, level, s, OpenOptions{Identities: ids})
		if err != nil || !r.OK() {
			t.Fatal(err, r)
		}
		if err := r.Record(ctx, p.store, level, 0, 0, "test"); err != nil {
			t.Fatal(err)
		}
	}
	record(fmtID(3), LevelRoot, Sample{}, p.identities())
	record(fmtID(4), LevelHashes, Sample{}, nil)
	record(fmtID(5), LevelHashes, Sample{Share: 0.2}, nil)
	o := PruneOptions{Policy: Policy{Tags: []TagList{{"none has it"}}}, Now: true}
	plan, r := p.prune(t, o)
	if d := cmp.Diff([]string{fmtID(1), fmtID(5)}, r.Removed); d != "" {
		t.Fatal(d)
	}
	for id, want := range map[string]string{fmtID(2): "keep", fmtID(3): "with a signature", fmtID(4): "verified", fmtID(6): "last of its cluster"} {
		i := slices.IndexFunc(plan.Snapshots, func(s PlannedSnapshot) bool { return s.ID == id })
		if s := plan.Snapshots[i]; s.Action != PruneKeep || len(s.Reasons) == 0 || !strings.Contains(s.Reasons[0], want) {
			t.Errorf("%+v", s)
		}
	}
	for _, id := range []string{fmtID(2), fmtID(3), fmtID(4), fmtID(6)} {
		_, err := Delete(ctx, p.store, id, "test")
		wantErr(t, err, ErrRetention)
	}
	p.restorable(t)
}

// TestClustersAreCountedApart: the last snapshot of each cluster stays, and each
// has its own last n.
func TestClustersAreCountedApart(t *testing.T) {
	p := newPruned(t, 3)
	other := &pruned{testCluster: newTestCluster(t, 1), store: p.store}
	other.cheap(t)
	for range 3 {
		other.snapshot(t)
	}
	_, r := p.prune(t, PruneOptions{Policy: Policy{Last: 2}, Now: true})
	if d := cmp.Diff([]string{fmtID(1), fmtID(4)}, r.Removed); d != "" {
		t.Fatal(d)
	}
	other.restorableAs(t, fmtID(3), p)
}

func (p *pruned) restorableAs(t testing.TB, id string, of *pruned) {
	t.Helper()
	mustVerify(t, of.testCluster, p.store, id)
	if rootOf(t, restore(t, p.open(t, p.store, ""))) != rootOf(t, p.hsm(0)) {
		t.Fatal("another root")
	}
}

func TestDeleteAndUndelete(t *testing.T) {
	p := newPruned(t, 3)
	ctx := t.Context()
	s, err := Delete(ctx, p.store, "1", "test")
	if err != nil || s.State != StatePending || !s.DeleteAt.Equal(p.store.now.Add(7*24*time.Hour)) {
		t.Fatalf("%+v, %v", s, err)
	}
	p.store.tick(time.Hour)
	if again, err := Delete(ctx, p.store, "1", "test"); err != nil || !again.DeleteAt.Equal(s.DeleteAt) || count(t, p.store, "marks/") != 1 {
		t.Fatalf("a second delete gives more time: %+v, %v", again, err)
	}
	_, err = Keep(ctx, p.store, "1", true, "test")
	wantErr(t, err, ErrRetention)
	if s, err = Undelete(ctx, p.store, "1", "test"); err != nil || s.State != StateReady {
		t.Fatalf("%+v, %v", s, err)
	}
	if s, err = Keep(ctx, p.store, "1", true, "test"); err != nil || !s.Keep {
		t.Fatalf("%+v, %v", s, err)
	}
	_, err = Delete(ctx, p.store, "1", "test")
	wantErr(t, err, ErrRetention)
	if s, err = Keep(ctx, p.store, "1", false, "test"); err != nil || s.Keep {
		t.Fatalf("%+v, %v", s, err)
	}
	if _, err = Delete(ctx, p.store, "1", "test"); err != nil {
		t.Fatal(err)
	}
	p.store.tick(UndeleteWindow)
	if _, r := p.prune(t, PruneOptions{Policy: Policy{Last: Unlimited}}); !slices.Equal(r.Removed, []string{fmtID(1)}) {
		t.Fatalf("%+v", r)
	}
	_, err = Undelete(ctx, p.store, "1", "test")
	wantErr(t, err, ErrNoSnapshot)
	_, err = Delete(ctx, p.store, "77", "test")
	wantErr(t, err, ErrNoSnapshot)
	_, err = Delete(ctx, p.store, "x", "test")
	wantErr(t, err, ErrNoSnapshot)
}

// TestUndeleteAndPruneRace: the log settles it. Whoever writes first wins, and
// the other sees it.
func TestUndeleteAndPruneRace(t *testing.T) {
	for range 20 {
		p := newPruned(t, 2)
		if _, err := Delete(t.Context(), p.store, "1", "test"); err != nil {
			t.Fatal(err)
		}
		p.store.tick(UndeleteWindow)
		plan, err := PlanPrune(t.Context(), p.store, PruneOptions{Policy: Policy{Last: Unlimited}, At: p.store.now})
		if err != nil || plan.Count(PruneRemove) != 1 {
			t.Fatal(err, plan)
		}
		var wg sync.WaitGroup
		var back error
		var r *PruneReport
		wg.Go(func() { _, back = Undelete(t.Context(), p.store, "1", "test") })
		wg.Go(func() { r, err = plan.Execute(t.Context(), p.store) })
		wg.Wait()
		if err != nil {
			t.Fatal(err)
		}
		state := p.states(t)[fmtID(1)]
		switch {
		case back == nil && state == StateReady && slices.Equal(r.Skipped, []string{fmtID(1)}) && len(r.Removed) == 0:
		case (errors.Is(back, ErrRetention) || errors.Is(back, ErrNoSnapshot)) && state == StateDeleted && slices.Equal(r.Removed, []string{fmtID(1)}):
		default:
			t.Fatalf("undelete: %v, state %s, prune: %+v", back, state, r)
		}
		p.restorable(t)
	}
}

// TestDamagedManifestHoldsObjectsBack: what it needs is not known, so no object that
// was there before it goes until it is deleted by name. What came a day later it cannot
// need.
func TestDamagedManifestHoldsObjectsBack(t *testing.T) {
	p := newPruned(t, 3)
	put(t.Context(), p.store, format.PackPath(format.NameOf([]byte("orphan"))), []byte("orphan"))
	damageManifest(t, p.store.Store, 2, []byte("hsmbackup manifest v2\n"))
	p.full(t)
	o := PruneOptions{Policy: Policy{Last: 1}, Now: true, Grace: 0}
	plan, r := p.prune(t, o)
	if r.Objects != 0 || len(plan.Notes) != 1 || !strings.Contains(plan.Notes[0], fmtID(2)) || slices.Contains(r.Removed, fmtID(2)) {
		t.Fatalf("%+v, %+v", plan, r)
	}
	p.store.tick(time.Hour)
	young := format.PackPath(format.NameOf([]byte("young orphan")))
	put(t.Context(), p.store, young, []byte("young orphan"))
	if plan, r = p.prune(t, o); r.Objects != 1 || plan.Objects[0].Name != young {
		t.Fatalf("%+v, %+v", plan, r)
	}
	if _, err := Delete(t.Context(), p.store, "2", "test"); err != nil {
		t.Fatal(err)
	}
	if plan, r = p.prune(t, o); plan.Held != "" || !slices.Equal(r.Removed, []string{fmtID(2)}) || r.Objects == 0 || count(t, p.store, "packs/") != 1 {
		t.Fatalf("%+v, %+v", plan, r)
	}
	p.restorable(t)
}

// TestJunkManifestIsDeletedByName: whoever may only add objects puts a manifest under
// the highest number there is, of no version and of one to come. It does not hold the
// packs back that come and go later, and where nothing at all can read it, naming it is enough.
func TestJunkManifestIsDeletedByName(t *testing.T) {
	p := newPruned(t, 2)
	if err := put(t.Context(), p.store, format.ManifestPath(9999999999), []byte("junk")); err != nil {
		t.Fatal(err)
	}
	o := PruneOptions{Policy: Policy{Last: 1}, Now: true}
	p.full(t)
	if _, r := p.prune(t, o); r.Objects != 0 || len(r.Removed) != 2 {
		t.Fatalf("%+v", r)
	}
	for range 3 {
		p.store.tick(2 * DefaultGrace)
		p.full(t)
		p.prune(t, o)
	}
	if n := count(t, p.store, "packs/"); n != 4 { // two and one from before the junk, and one that is needed
		t.Fatalf("%d packs", n)
	}
	if _, err := Delete(t.Context(), p.store, "9999999999", "test"); err != nil {
		t.Fatal(err)
	}
	p.store.tick(UndeleteWindow)
	o.Now = false
	p.prune(t, o)
	p.prune(t, o)
	if count(t, p.store, "packs/") != 1 || count(t, p.store, "manifests/") != 1 {
		t.Fatal(names(t, p.store))
	}
	if r := p.snapshot(t); r.ID != fmtID(7) {
		t.Fatalf("%+v", r)
	}
	p.restorable(t)
}

// damageManifest puts other bytes in the place of a manifest.
func damageManifest(t testing.TB, store storage.Store, n uint64, stored []byte) {
	t.Helper()
	damageObject(t, store, format.ManifestPath(n), stored)
}

// damageObject puts other bytes under a name.
func damageObject(t testing.TB, store storage.Store, path string, stored []byte) {
	t.Helper()
	if err := store.Delete(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if err := put(t.Context(), store, path, stored); err != nil {
		t.Fatal(err)
	}
}

// TestForeignNamesAreLeftAlone: prune touches only what this format names.
func TestForeignNamesAreLeftAlone(t *testing.T) {
	p := newPruned(t, 2)
	foreign := []string{"packs/ab/not-a-hash", "packs/readme", "index/x", "index/" + strings.Repeat("A", 3), "other/file", "marks/x", "verified/x", "verified/0000000001/9-x", "copies/x"}
	for _, name := range foreign {
		put(t.Context(), p.store, strings.ToLower(name), []byte("x"))
	}
	p.full(t)
	p.prune(t, PruneOptions{Policy: Policy{Last: 1}, Now: true})
	left := names(t, p.store)
	for _, name := range foreign {
		if !slices.Contains(left, strings.ToLower(name)) {
			t.Errorf("%s is gone", name)
		}
	}
}

// TestYoungObjectsStay: a snapshot that another host is writing has packs and no
// manifest yet.
func TestYoungObjectsStay(t *testing.T) {
	p := newPruned(t, 1)
	o := p.options()
	o.Full = true
	ran := false
	p.signing = func([]byte) { // everything is stored but the manifest
		if ran {
			return
		}
		ran = true
		p.store.tick(DefaultGrace - time.Minute)
		if _, r := p.prune(t, PruneOptions{Policy: Policy{Last: 1}, Grace: DefaultGrace}); r.Objects != 0 {
			t.Errorf("%+v", r)
		}
	}
	mustTake(t, p, p.store, o)
	p.restorable(t)
	if !ran {
		t.Fatal("nothing was signed")
	}
}

// TestTakeNoticesAPrunedParent removes the parent, and all that only it needs,
// at each storage call of a take in turn: the take starts over, or its manifest
// came first and keeps the packs; the newest snapshot is whole in any case.
func TestTakeNoticesAPrunedParent(t *testing.T) {
	for n := 1; ; n++ {
		p := newPruned(t, 2)
		p.hsm(0).SetLabel(p.refs[0], "changed")
		s := &atCall{Store: p.store, n: n, do: func() {
			p.full(t) // the newest is another one now, so that the parent may go
			p.prune(t, PruneOptions{Policy: Policy{Last: 1}, Now: true, Grace: 0})
		}}
		r := mustTake(t, p, s, p.options())
		if r.Root != rootOf(t, p.hsm(0)) {
			t.Fatalf("call %d: another root", n)
		}
		m, _, err := loadManifest(t.Context(), p.store, mustID(t, r.ID))
		if err != nil {
			t.Fatalf("call %d: %v", n, err)
		}
		if err := presence(t.Context(), p.store, m); err != nil {
			t.Fatalf("call %d: %v", n, err)
		}
		mustVerify(t, p.testCluster, p.store, r.ID)
		if rootOf(t, restore(t, p.open(t, p.store, ""))) != rootOf(t, p.hsm(0)) {
			t.Fatalf("call %d: the newest is not whole", n)
		}
		if calls := s.calls.Load(); calls < int64(n) {
			if n < 8 {
				t.Fatalf("a take of %d calls", calls)
			}
			return
		}
	}
}

func mustID(t testing.TB, id string) uint64 {
	t.Helper()
	n, ok := format.ParseID(id)
	if !ok {
		t.Fatal(id)
	}
	return n
}

// atCall does something before its nth call.
type atCall struct {
	storage.Store
	n     int
	calls atomic.Int64
	do    func()
}

func (s *atCall) count() {
	if s.calls.Add(1) == int64(s.n) {
		s.do()
	}
}

func (s *atCall) Put(ctx context.Context, name string, body io.ReadSeeker, size int64) error {
	s.count()
	return s.Store.Put(ctx, name, body, size)
}

func (s *atCall) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	s.count()
	return s.Store.Get(ctx, name, offset, length)
}

func (s *atCall) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		s.count()
		s.Store.List(ctx, prefix)(yield)
	}
}

// TestPruneUnderFaults fails every storage call of a prune that marks, removes
// and sweeps, in turn and in both ways; every snapshot that is listed verifies
// then, and the same command again does the rest.
func TestPruneUnderFaults(t *testing.T) {
	for _, fault := range []storagetest.Fault{
		{Mode: storagetest.NotApplied}, {Mode: storagetest.Applied}, {Mode: storagetest.Applied, Dead: true},
	} {
		t.Run(fmt.Sprintf("%s, dead %t", fault.Mode, fault.Dead), func(t *testing.T) {
			t.Parallel()
			for fault.N = 1; pruneUnderFault(t, fault); fault.N++ {
			}
			if fault.N < 25 {
				t.Fatalf("a prune of %d storage calls", fault.N)
			}
		})
	}
}

func pruneUnderFault(t *testing.T, fault storagetest.Fault) bool {
	p := newPruned(t, 2)
	ctx := t.Context()
	if _, err := Delete(ctx, p.store, "1", "test"); err != nil {
		t.Fatal(err)
	}
	p.store.tick(UndeleteWindow)
	put(ctx, p.store, format.PackPath(format.NameOf([]byte("orphan"))), []byte("orphan"))
	p.full(t)
	p.full(t)
	f := storagetest.NewFaulty(p.store)
	f.Set(fault)
	o := PruneOptions{Policy: Policy{Last: 2}, At: p.store.now}
	plan, err := PlanPrune(ctx, f, o)
	if err == nil {
		_, err = plan.Execute(ctx, f)
	}
	if err != nil && !errors.Is(err, storagetest.ErrInjected) {
		t.Fatalf("call %d: %v", fault.N, err)
	}
	p.whole(t)
	p.store.tick(time.Minute)
	p.prune(t, o)
	p.store.tick(UndeleteWindow)
	p.prune(t, o)
	want := map[string]State{fmtID(1): StateDeleted, fmtID(2): StateDeleted, fmtID(3): StateReady, fmtID(4): StateReady}
	if d := cmp.Diff(want, p.states(t)); d != "" {
		t.Fatalf("call %d: %s", fault.N, d)
	}
	p.restorable(t)
	p.snapshot(t)
	if n := count(t, p.store, "packs/"); n != 3 {
		t.Fatalf("call %d: %d packs are left", fault.N, n)
	}
	return f.Calls() >= fault.N
}

// TestLockedObjectsAreReported: a lock keeps what it keeps, and the rest goes.
func TestLockedObjectsAreReported(t *testing.T) {
	p := newPruned(t, 1)
	p.full(t)
	packs := names(t, p.store)
	locked := packs[slices.IndexFunc(packs, func(s string) bool { return strings.HasPrefix(s, "packs/") })]
	p.store.locked[locked] = true
	p.store.locked[format.ManifestPath(1)] = true
	o := PruneOptions{Policy: Policy{Last: 1}, Now: true}
	_, r := p.prune(t, o)
	if !slices.Equal(r.Locked, []string{format.ManifestPath(1)}) || len(r.Removed) != 0 || p.states(t)[fmtID(1)] != StatePending {
		t.Fatalf("%+v", r)
	}
	p.restorable(t)
	delete(p.store.locked, format.ManifestPath(1))
	if _, r = p.prune(t, o); !slices.Equal(r.Removed, []string{fmtID(1)}) || r.Objects+len(r.Locked) != 3 {
		t.Fatalf("%+v", r)
	}
	p.restorable(t)
}

// TestMarksStayFew: the log does not grow with the number of prunes.
func TestMarksStayFew(t *testing.T) {
	p := newPruned(t, 1)
	for range 10 {
		p.store.tick(24 * time.Hour)
		p.full(t)
		p.prune(t, PruneOptions{Policy: Policy{Last: 1}, Now: true})
	}
	if n := count(t, p.store, "marks/"); n > 10+4 { // one for each removal, and those of the last day
		t.Fatalf("%d marks: %v", n, names(t, p.store))
	}
	if n := len(p.states(t)); n != 11 {
		t.Fatalf("%d snapshots are known", n)
	}
}

func TestDamagedMarksStopWriters(t *testing.T) {
	p := newPruned(t, 3)
	p.full(t)
	put(t.Context(), p.store, format.MarkPath(7), []byte("hsmbackup mark v2\n"))
	_, err := Delete(t.Context(), p.store, "1", "test")
	wantErr(t, err, ErrVersion)
	plan, err := PlanPrune(t.Context(), p.store, PruneOptions{Policy: Policy{Last: 1}, At: p.store.now})
	if err != nil || plan.Held == "" || len(plan.Notes) != 1 {
		t.Fatalf("%+v, %v", plan, err)
	}
	if _, err = plan.Execute(t.Context(), p.store); !errors.Is(err, ErrVersion) {
		t.Fatal(err)
	}
	p.restorable(t)
}
