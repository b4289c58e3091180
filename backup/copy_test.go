package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/storagetest"
)

func mustCopy(t testing.TB, from, to storage.Store, id string) *CopyReport {
	t.Helper()
	r, err := Copy(t.Context(), from, to, id, CopyOptions{Source: "there"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCopyBringsWhatIsMissing(t *testing.T) {
	p := newPruned(t, 3)
	to := newClockStore(t)
	r := mustCopy(t, p.store, to, fmtID(2))
	if r.ID != fmtID(2) || r.Copied != 5 || r.Present != 0 || r.Already || r.State != StateReady {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, p.testCluster, to, "")
	bytes := r.Bytes
	if r = mustCopy(t, p.store, to, ""); r.ID != fmtID(3) || r.Copied != 2 || r.Present != 5 || r.Bytes >= bytes {
		t.Fatalf("%+v", r)
	}
	if r = mustCopy(t, p.store, to, ""); !r.Already || r.Copied != 0 || r.Bytes != 0 {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, p.testCluster, to, "")
	if rootOf(t, restore(t, p.open(t, to, ""))) != rootOf(t, p.hsm(0)) {
		t.Fatal("the copy restores to another root")
	}
	inv, err := TakeInventory(t.Context(), to)
	if err != nil || len(inv.Snapshots) != 2 || inv.Snapshots[1].Copy == nil || inv.Snapshots[1].Copy.Source != "there" || inv.Snapshots[1].Copy.Begun.IsZero() {
		t.Fatalf("%+v, %v", inv, err)
	}
	if !inv.Snapshots[1].Started.Equal(p.open(t, p.store, "3").Summary().Started) {
		t.Fatal("the copy has another time than its source")
	}
}

// TestCopyOntoItself: whoever names the source as the destination, by another name, is
// told that there is no second one; a copy of a copy back to the source is told the same.
func TestCopyOntoItself(t *testing.T) {
	p := newPruned(t, 1)
	if r := mustCopy(t, p.store, p.store, ""); !r.Already || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "it was taken there") {
		t.Errorf("%+v", r)
	}
	to := newStore(t)
	for range 2 { // the second time it is there, with a record
		if r := mustCopy(t, p.store, to, ""); len(r.Notes) != 0 {
			t.Errorf("elsewhere: %+v", r)
		}
	}
	if r := mustCopy(t, to, p.store, ""); len(r.Notes) != 1 {
		t.Errorf("back: %+v", r)
	}
}

func TestCopyTags(t *testing.T) {
	p := newPruned(t, 1)
	o := p.options()
	o.Tags, o.Full = map[string]string{"why": "release"}, true
	mustTake(t, p, p.store, o)
	for want, tags := range map[string]map[string]string{"release": nil, "region": {"why": "region"}} {
		to := newStore(t)
		if _, err := Copy(t.Context(), p.store, to, "", CopyOptions{Tags: tags}); err != nil {
			t.Fatal(err)
		}
		inv, err := TakeInventory(t.Context(), to)
		if err != nil || inv.Snapshots[0].Tags["why"] != want {
			t.Errorf("%+v, %v", inv.Snapshots, err)
		}
	}
}

func TestCopyRefusals(t *testing.T) {
	p, other := newPruned(t, 3), newPruned(t, 1)
	try := func(to storage.Store, o CopyOptions, targets ...error) {
		t.Helper()
		before := names(t, to)
		_, err := Copy(t.Context(), p.store, to, "1", o)
		wantErr(t, err, targets...)
		if d := cmp.Diff(before, names(t, to)); d != "" {
			t.Error(d)
		}
	}
	try(other.store, CopyOptions{}, hsm.ErrLineage)
	l := other.keyring.Lineage()
	try(newStore(t), CopyOptions{Trust: &l}, hsm.ErrLineage)

	// The same lineage, and another snapshot of that number.
	same := &pruned{testCluster: newTestCluster(t, 1), store: newClockStore(t)}
	same.cheap(t)
	same.keyring = p.keyring
	same.hsms[same.ids[0]] = p.hsm(0)
	same.snapshot(t)
	try(same.store, CopyOptions{}, ErrOccupied)

	// One that was deleted at the destination is not brought back.
	to := newClockStore(t)
	mustCopy(t, p.store, to, "1")
	mustCopy(t, p.store, to, "2")
	q := &pruned{testCluster: p.testCluster, store: to}
	to.now = p.store.now
	if _, r := q.prune(t, PruneOptions{Policy: Policy{Last: 1}, Now: true}); !slices.Equal(r.Removed, []string{fmtID(1)}) {
		t.Fatalf("%+v", r)
	}
	try(to, CopyOptions{}, ErrOccupied)
	_, err := Copy(t.Context(), p.store, to, "77", CopyOptions{})
	wantErr(t, err, ErrNoSnapshot)
}

// TestCopyFindsDamage: of the source before anything depends on it, and of what
// lies at the destination already.
func TestCopyFindsDamage(t *testing.T) {
	for _, prefix := range []string{"packs/", "index/", "envelopes/"} {
		p := newPruned(t, 1)
		damage(t, p.store, prefix)
		to := newStore(t)
		_, err := Copy(t.Context(), p.store, to, "", CopyOptions{})
		wantErr(t, err, ErrCorrupt)
		if !strings.Contains(err.Error(), "source") || !strings.Contains(err.Error(), prefix) || count(t, to, "manifests/") != 0 {
			t.Errorf("%s: %v", prefix, err)
		}

		p = newPruned(t, 1)
		to = newStore(t)
		for _, name := range names(t, p.store) {
			if strings.HasPrefix(name, prefix) {
				put(t.Context(), to, name, []byte("what a broken store kept of it"))
			}
		}
		_, err = Copy(t.Context(), p.store, to, "", CopyOptions{})
		wantErr(t, err, ErrCorrupt)
		if !strings.Contains(err.Error(), "destination") || !strings.Contains(err.Error(), prefix) || count(t, to, "manifests/") != 0 {
			t.Errorf("%s: %v", prefix, err)
		}
	}
}

// damage changes the first object below a prefix.
func damage(t testing.TB, store *clockStore, prefix string) {
	t.Helper()
	all := names(t, store)
	name := all[slices.IndexFunc(all, func(s string) bool { return strings.HasPrefix(s, prefix) })]
	stored, err := storage.ReadAll(t.Context(), store, name, 1<<26)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Store.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	put(t.Context(), store, name, flip(stored, len(stored)/2))
}

// TestCopyInProgressHoldsPruneBack: its packs have no manifest yet.
// TestCopyLooksForAllItNames: whatever vanishes from the destination until the
// manifest is there, the copy brings it once more.
func TestCopyLooksForAllItNames(t *testing.T) {
	for _, prefix := range objectPrefixes {
		p, to := newPruned(t, 1), newStore(t)
		vanishing := &vanishingStore{Store: to, prefix: prefix}
		mustCopy(t, p.store, vanishing, "")
		if !vanishing.done {
			t.Fatalf("nothing vanished from %s", prefix)
		}
		mustVerify(t, p.testCluster, to, "")
		restore(t, p.open(t, to, ""))
	}
}

// vanishingStore loses what is below a prefix right before the first manifest.
type vanishingStore struct {
	storage.Store
	prefix string
	done   bool
}

func (s *vanishingStore) Put(ctx context.Context, name string, body io.ReadSeeker, size int64) error {
	if strings.HasPrefix(name, format.ManifestPrefix) && !s.done {
		s.done = true
		for info, err := range s.List(ctx, s.prefix) {
			if err := errors.Join(err, s.Delete(ctx, info.Name)); err != nil {
				return err
			}
		}
	}
	return s.Store.Put(ctx, name, body, size)
}

func TestCopyInProgressHoldsPruneBack(t *testing.T) {
	p := newPruned(t, 2)
	to := newClockStore(t)
	mustCopy(t, p.store, to, "1")
	f := storagetest.NewFaulty(to)
	f.Set(storagetest.Fault{N: 1, Dead: true, Only: func(op storagetest.Op, name string) bool {
		return op == storagetest.Put && strings.HasPrefix(name, format.ManifestPrefix)
	}})
	if _, err := Copy(t.Context(), p.store, f, "2", CopyOptions{}); !errors.Is(err, storagetest.ErrInjected) {
		t.Fatal(err)
	}
	q := &pruned{testCluster: p.testCluster, store: to}
	if d := cmp.Diff(map[string]State{fmtID(1): StateReady, fmtID(2): StateInProgress}, q.states(t)); d != "" {
		t.Fatal(d)
	}
	to.tick(UndeleteWindow - 1)
	o := PruneOptions{Policy: Policy{Last: 1}, Grace: 0}
	if plan, r := q.prune(t, o); r.Objects != 0 || !strings.Contains(plan.Held, fmtID(2)) {
		t.Fatalf("%+v", plan)
	}
	mustCopy(t, p.store, to, "2")
	mustVerify(t, p.testCluster, to, "2")
	if d := cmp.Diff(map[string]State{fmtID(1): StateReady, fmtID(2): StateReady}, q.states(t)); d != "" {
		t.Fatal(d)
	}
	if rootOf(t, restore(t, p.open(t, to, ""))) != rootOf(t, p.hsm(0)) {
		t.Fatal("another root")
	}
}

// TestCopyUnderFaults fails every storage call of the source and of the
// destination in turn; what the destination lists verifies then, and the same
// command again completes the copy.
func TestCopyUnderFaults(t *testing.T) {
	p := newPruned(t, 2)
	for _, side := range []string{"source", "destination"} {
		for _, fault := range []storagetest.Fault{{Mode: storagetest.NotApplied}, {Mode: storagetest.Applied}, {Mode: storagetest.Applied, Dead: true}} {
			t.Run(fmt.Sprintf("%s, %s, dead %t", side, fault.Mode, fault.Dead), func(t *testing.T) {
				for fault.N = 1; copyUnderFault(t, p, side == "source", fault); fault.N++ {
				}
				if fault.N < 5 {
					t.Fatalf("a copy of %d calls", fault.N)
				}
			})
		}
	}
}

func copyUnderFault(t *testing.T, p *pruned, source bool, fault storagetest.Fault) bool {
	to := newStore(t)
	mustCopy(t, p.store, to, "1")
	from, dest := storagetest.NewFaulty(p.store), storagetest.NewFaulty(to)
	f := dest
	if source {
		f = from
	}
	f.Set(fault)
	if _, err := Copy(t.Context(), from, dest, "2", CopyOptions{}); err != nil && !errors.Is(err, storagetest.ErrInjected) {
		t.Fatalf("call %d: %v", fault.N, err)
	}
	all, err := List(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if r, err := Verify(t.Context(), to, s.ID, LevelHashes, OpenOptions{}); err != nil || !r.OK() {
			t.Fatalf("call %d: snapshot %s: %v, %v", fault.N, s.ID, r, err)
		}
	}
	mustCopy(t, p.store, to, "2")
	mustVerify(t, p.testCluster, to, "2")
	return f.Calls() >= fault.N
}

// hookedStore calls something before each deletion.
type hookedStore struct {
	storage.Store
	deleting func(name string)
}

func (s *hookedStore) Delete(ctx context.Context, name string) error {
	if s.deleting != nil {
		s.deleting(name)
	}
	return s.Store.Delete(ctx, name)
}

// TestCopyOntoWhatASweepIsRemoving: a sweep has read the manifests, and the objects of
// the snapshot that it is about to delete, since no manifest needs them, are what a
// copy finds there. The copy waits for the sweep, and is whole afterwards.
func TestCopyOntoWhatASweepIsRemoving(t *testing.T) {
	p := newPruned(t, 1)
	to := newClockStore(t)
	needs := neededBy(p.open(t, p.store, "1").manifest)
	for _, name := range needs { // an earlier copy got that far
		stored, err := storage.ReadAll(t.Context(), p.store, name, format.MaxStoredPack)
		if err == nil {
			err = put(t.Context(), to, name, stored)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	to.tick(2 * DefaultGrace)
	plan, err := PlanPrune(t.Context(), to, PruneOptions{Policy: Policy{Last: 1}, Grace: DefaultGrace, At: to.now})
	if err != nil || len(plan.Objects) != len(needs) {
		t.Fatalf("%+v, %v", plan, err)
	}
	waiting, swept, copied := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	wait := sync.OnceFunc(func() { close(waiting) })
	start := sync.OnceFunc(func() {
		go func() {
			_, err := Copy(context.Background(), p.store, to, "1", CopyOptions{wait: func(context.Context, time.Duration) error {
				wait()
				<-swept
				return nil
			}})
			wait() // or believes that it is done
			copied <- err
		}()
		<-waiting
	})
	_, err = plan.Execute(t.Context(), &hookedStore{Store: to, deleting: func(string) { start() }})
	close(swept)
	if err := errors.Join(err, <-copied); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, p.testCluster, to, "1")
}

// TestSweepTakesTurns: each turn begins with a mark and with a look at the manifests.
func TestSweepTakesTurns(t *testing.T) {
	p := newPruned(t, 1)
	for i := range 40 {
		b := fmt.Appendf(nil, "orphan %d", i)
		if err := put(t.Context(), p.store, format.PackPath(format.NameOf(b)), b); err != nil {
			t.Fatal(err)
		}
	}
	p.store.tick(2 * DefaultGrace)
	plan, err := PlanPrune(t.Context(), p.store, PruneOptions{Policy: Policy{Last: 1}, Grace: DefaultGrace, At: p.store.now, perTurn: 7})
	if err != nil || len(plan.Objects) != 40 {
		t.Fatalf("%+v, %v", plan, err)
	}
	r, err := plan.Execute(t.Context(), p.store)
	if err != nil || r.Objects != 40 {
		t.Fatalf("%+v, %v", r, err)
	}
	log, err := readMarks(t.Context(), p.store)
	if err != nil {
		t.Fatal(err)
	}
	sweeps := 0
	for _, m := range log.marks {
		if m.Action == format.ActionSweep {
			sweeps++
		}
	}
	if sweeps != 6 {
		t.Errorf("%d sweep marks for six turns", sweeps)
	}
	p.restorable(t)
}
