package backup

import (
	"context"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func TestFullSnapshotRestores(t *testing.T) {
	c, store := newTestCluster(t, 3), newStore(t)
	refs := keys(c.hsm(0), 300)
	c.hsm(0).Destroy(refs[7])
	c.sync(t)
	o := c.options()
	o.Tags = map[string]string{"why": "test"}
	r := mustTake(t, c, store, o)
	if r.ID != "0000000001" || r.Parent != "" || r.Unchanged || r.Objects != 300 || r.NewObjects != 300 || r.Keys != 299 || len(r.Coverage.Answered) != 3 {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, c, store, "")
	s := c.open(t, store, r.ID)
	if got := restore(t, s); rootOf(t, got) != rootOf(t, c.hsm(0)) {
		t.Fatal("the restored replica has another root")
	}
	_, ca, err := s.Recovery(t.Context())
	if err != nil || !ca.Equal(c.ca) {
		t.Fatalf("recovery: %v", err)
	}
	sum := s.Summary()
	if sum.Tags["why"] != "test" || sum.Tombstones != 1 || sum.Cluster != c.id || len(s.manifest.Covers) != 3 {
		t.Fatalf("%+v", sum)
	}
}

func TestIncrementCostsWhatChanged(t *testing.T) {
	c, store := newTestCluster(t, 2), newStore(t)
	refs := keys(c.hsm(0), 200)
	c.sync(t)
	mustTake(t, c, store, c.options())
	c.hsm(1).SetLabel(refs[3], "new label")
	c.hsm(0).Destroy(refs[4])
	keys(c.hsm(0), 5)
	c.sync(t)
	r := mustTake(t, c, store, c.options())
	if r.Parent != "0000000001" || r.NewObjects != 7 || r.Objects != 205 || r.Packs != 1 || r.FullReason != "" || r.Keys != 204 {
		t.Fatalf("%+v", r)
	}
	if got := rootOf(t, c.hsm(0)); r.Root != got {
		t.Fatal("root differs from the HSM's")
	}
	if c.sealed != 1 {
		t.Fatalf("the envelope was sealed %d times", c.sealed)
	}
	for _, id := range []string{"1", "2"} {
		mustVerify(t, c, store, id)
	}
	if got := restore(t, c.open(t, store, "")); rootOf(t, got) != r.Root {
		t.Fatal("the restored replica has another root")
	}
}

func TestUnchangedClusterWritesNothing(t *testing.T) {
	c, store := newTestCluster(t, 3), newStore(t)
	keys(c.hsm(0), 20)
	c.sync(t)
	first := mustTake(t, c, store, c.options())
	before := len(names(t, store))
	r := mustTake(t, c, store, c.options())
	if !r.Unchanged || r.ID != first.ID || r.NewObjects != 0 || len(names(t, store)) != before {
		t.Fatalf("%+v", r)
	}
	o := c.options()
	o.Full = true
	if r := mustTake(t, c, store, o); r.Unchanged || r.Parent != "" || r.NewObjects != 20 {
		t.Fatalf("full: %+v", r)
	}
}

func TestEmptyClusterHasASnapshot(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	r := mustTake(t, c, store, c.options())
	if r.ID == "" || r.Unchanged || r.Objects != 0 {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, c, store, "")
	keys(c.hsm(0), 3)
	if r := mustTake(t, c, store, c.options()); r.Objects != 3 || r.Parent == "" {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, c, store, "")
}

func TestKeysOnAnyHSMAreInTheSnapshot(t *testing.T) {
	c, store := newTestCluster(t, 3), newStore(t)
	shared := keys(c.hsm(0), 10)
	c.sync(t)
	mustTake(t, c, store, c.options())
	for i := range 3 {
		keys(c.hsm(i), 4) // not synced
	}
	r := mustTake(t, c, store, c.options())
	if r.Objects != 22 || r.NewObjects != 12 || r.Unsettled != 0 {
		t.Fatalf("%+v", r)
	}
	restored := restore(t, c.open(t, store, ""))
	c.sync(t)
	if rootOf(t, restored) != rootOf(t, c.hsm(0)) || r.Root != rootOf(t, c.hsm(0)) {
		t.Fatal("the snapshot does not hold what the cluster holds")
	}
	// Now every HSM covers it, and any of them alone can continue the chain.
	c.setDown(0, true)
	c.setDown(2, true)
	c.hsm(1).SetLabel(shared[0], "changed")
	if r := mustTake(t, c, store, c.options()); r.Parent == "" && r.FullReason == "" {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, c, store, "")
}

func TestMissingHSMs(t *testing.T) {
	c, store := newTestCluster(t, 3), newStore(t)
	keys(c.hsm(0), 3)
	c.sync(t)
	c.setDown(1, true)
	r := mustTake(t, c, store, c.options())
	if len(r.Coverage.Answered) != 2 || len(r.Coverage.Missing) != 1 || r.Coverage.Missing[0] != c.ids[1] {
		t.Fatalf("%+v", r.Coverage)
	}
	o := c.options()
	o.RequireAll = true
	_, err := Take(t.Context(), c, store, o)
	wantErr(t, err, ErrCoverage)
	c.setDown(0, true)
	c.setDown(2, true)
	_, err = Take(t.Context(), c, store, c.options())
	if err == nil {
		t.Fatal("a snapshot of no HSM")
	}
}

// faulty is an HSM that goes away after some objects.
type faulty struct {
	hsm.Sketcher
	after int
	err   error
}

func (f *faulty) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		for m, err := range f.Sketcher.Extract(ctx, refs) {
			if f.after--; f.after < 0 {
				yield(hsm.MaskedObject{}, f.err)
				return
			}
			if !yield(m, err) {
				return
			}
		}
	}
}

// TestHSMGoesAwayWhileRead: it dies, or it was started again, which ends its
// sessions.
func TestHSMGoesAwayWhileRead(t *testing.T) {
	for _, err := range []error{hsm.ErrUnavailable, hsm.ErrSession} {
		t.Run(err.Error(), func(t *testing.T) { goesAwayWhileRead(t, err) })
	}
}

func goesAwayWhileRead(t *testing.T, gone error) {
	c, store := newTestCluster(t, 3), newStore(t)
	keys(c.hsm(0), 30)
	c.sync(t)
	lame := c.ids[0]
	c.wrap = func(s NamedSource) NamedSource {
		if s.ID == lame {
			s.Sketcher = &faulty{Sketcher: s.Sketcher, after: 10, err: gone}
		}
		return s
	}
	r := mustTake(t, c, store, c.options())
	if r.Objects != 30 || len(r.Coverage.Missing) != 1 || r.Coverage.Missing[0] != lame || len(r.Notes) != 1 {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, c, store, "")
	if got := restore(t, c.open(t, store, "")); rootOf(t, got) != rootOf(t, c.hsm(1)) {
		t.Fatal("roots differ")
	}
}

// TestHSMIsStartedAgainWhileRead: whatever call meets the session that is over, the
// HSM is read under its new one, and the snapshot lacks nothing.
func TestHSMIsStartedAgainWhileRead(t *testing.T) {
	for _, method := range []string{"keys", "root", "extract"} {
		t.Run(method, func(t *testing.T) {
			c, store := newTestCluster(t, 3), newStore(t)
			keys(c.hsm(0), 30)
			c.sync(t)
			restarted := map[hsm.HSMID]bool{} // each once, one after the other
			c.wrap = func(s NamedSource) NamedSource {
				if !restarted[s.ID] {
					s.Sketcher = &forgotten{s.Sketcher, method, func() { restarted[s.ID] = true }}
				}
				return s
			}
			o := c.options()
			o.RequireAll = true
			var last Progress
			o.Progress = func(p Progress) { last = p }
			r := mustTake(t, c, store, o)
			if last.Objects != 30 || last.TotalObjects != 30 {
				t.Errorf("at the end its progress is %+v", last)
			}
			if r.Objects != 30 || len(r.Coverage.Answered) != 3 || len(restarted) == 0 || c.rechecks != len(restarted) {
				t.Fatalf("%d were restarted, %d rechecks: %+v", len(restarted), c.rechecks, r)
			}
			mustVerify(t, c, store, "")
		})
	}
}

// forgotten is an HSM that was started again: the session is over.
type forgotten struct {
	hsm.Sketcher
	method string
	met    func()
}

func (f *forgotten) fails(method string) error {
	if method != f.method {
		return nil
	}
	f.met()
	return hsm.ErrSession
}

func (f *forgotten) FingerprintKeys(ctx context.Context) (hsm.FingerprintKeys, error) {
	if err := f.fails("keys"); err != nil {
		return hsm.FingerprintKeys{}, err
	}
	return f.Sketcher.FingerprintKeys(ctx)
}

func (f *forgotten) Root(ctx context.Context) (hsm.Root, error) {
	if err := f.fails("root"); err != nil {
		return hsm.Root{}, err
	}
	return f.Sketcher.Root(ctx)
}

func (f *forgotten) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	if err := f.fails("extract"); err != nil {
		return func(yield func(hsm.MaskedObject, error) bool) { yield(hsm.MaskedObject{}, err) }
	}
	return f.Sketcher.Extract(ctx, refs)
}

func TestUnsettledStatesAreAllKept(t *testing.T) {
	c, store := newTestCluster(t, 2), newStore(t)
	refs := keys(c.hsm(0), 10)
	c.sync(t)
	mustTake(t, c, store, c.options())
	// Both HSMs change one key, in different registers, and do not hear of each other.
	c.hsm(0).SetLabel(refs[0], "by the first")
	c.hsm(1).SetLabel(refs[0], "by the second")
	r := mustTake(t, c, store, c.options())
	if r.Unsettled != 2 {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, c, store, "")
	s := c.open(t, store, "")
	if s.Settled() {
		t.Fatal("settled")
	}
	restored := restore(t, s)
	// The same again writes nothing: both states are stored.
	if again := mustTake(t, c, store, c.options()); !again.Unchanged {
		t.Fatalf("%+v", again)
	}
	c.sync(t)
	if rootOf(t, restored) != rootOf(t, c.hsm(0)) {
		t.Fatal("restoring did not merge the states")
	}
	// Once they agree, so does the snapshot.
	r = mustTake(t, c, store, c.options())
	if r.Unsettled != 0 || r.Root != rootOf(t, c.hsm(0)) || r.Unchanged {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, c, store, "")
	if got := restore(t, c.open(t, store, "")); rootOf(t, got) != r.Root {
		t.Fatal("roots differ")
	}
}

func TestSettlesWhileServerSideSyncWorks(t *testing.T) {
	c, store := newTestCluster(t, 2), newStore(t)
	refs := keys(c.hsm(0), 10)
	c.sync(t)
	mustTake(t, c, store, c.options())
	c.hsm(0).SetLabel(refs[0], "by the first")
	c.hsm(1).SetLabel(refs[0], "by the second")
	o := c.options()
	o.Settle = time.Minute
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(50 * time.Millisecond)
		c.sync(t)
	}()
	r := mustTake(t, c, store, o)
	<-done
	if r.Unsettled != 0 || r.Root != rootOf(t, c.hsm(0)) {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, c, store, "")
}

func TestStaleHSMAloneDoesNotReplaceNewerStates(t *testing.T) {
	c, store := newTestCluster(t, 2), newStore(t)
	refs := keys(c.hsm(0), 10)
	c.sync(t)
	c.setDown(1, true)
	c.hsm(0).SetLabel(refs[0], "new")
	first := mustTake(t, c, store, c.options())
	c.setDown(0, true)
	c.setDown(1, false)
	r := mustTake(t, c, store, c.options())
	if r.FullReason == "" || r.Parent != "" {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, c, store, r.ID)
	mustVerify(t, c, store, first.ID)
}

func TestTwoBirthsUnderOneReference(t *testing.T) {
	c, store := newTestCluster(t, 2), newStore(t)
	ref := hsm.NewKeyRef()
	c.hsm(0).NewKeyAt(ref, "one")
	c.hsm(1).NewKeyAt(ref, "other")
	if r := mustTake(t, c, store, c.options()); r.Unsettled != 2 {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, c, store, "")
	s := c.open(t, store, "")
	n := 0
	for _, err := range s.Extract(t.Context(), func(yield func(hsm.KeyRef) bool) { yield(ref) }) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 2 {
		t.Fatalf("%d states", n)
	}
}

func TestCustodiansChangeWithoutTouchingPacks(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	keys(c.hsm(0), 10)
	mustTake(t, c, store, c.options())
	other := newIdentity(t)
	c.custodians = []string{other.recipient}
	r := mustTake(t, c, store, c.options())
	if r.Unchanged || r.NewObjects != 0 || r.Packs != 0 || count(t, store, "envelopes/") != 2 || count(t, store, "packs/") != 1 {
		t.Fatalf("%+v", r)
	}
	s, err := Open(t.Context(), store, "", OpenOptions{Identities: []Identity{c.recipient.Identity, other.Identity}})
	if err != nil {
		t.Fatal(err)
	}
	restore(t, s)
	s, _ = Open(t.Context(), store, "", OpenOptions{Identities: c.identities()})
	_, _, err = s.Recovery(t.Context())
	wantErr(t, err, ErrIdentity)
}

func TestOtherRecipientsTakeAFullSnapshot(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	keys(c.hsm(0), 10)
	mustTake(t, c, store, c.options())
	c.recipient = newIdentity(t)
	r := mustTake(t, c, store, c.options())
	if r.Parent != "" || r.FullReason == "" || r.NewObjects != 10 {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, c, store, "")
}

// TestChainOfIncrements: should packs pile up all the same, a full snapshot ends
// the chain.
func TestChainOfIncrements(t *testing.T) {
	defer func(n int) { mergeCount = n }(mergeCount)
	mergeCount = 1000
	c, store := newTestCluster(t, 1), newStore(t)
	c.cheap(t)
	var roots []hsm.Root
	refs := keys(c.hsm(0), 50)
	full := 0
	for i := range 70 {
		c.hsm(0).SetLabel(refs[i%7], "label")
		keys(c.hsm(0), 1)
		r := mustTake(t, c, store, c.options())
		if r.Parent == "" {
			full++
		}
		roots = append(roots, r.Root)
		if r.Root != rootOf(t, c.hsm(0)) {
			t.Fatalf("increment %d has another root than the HSM", i)
		}
	}
	if full < 2 {
		t.Error("increments pile up without a full snapshot")
	}
	for i := 0; i < len(roots); i += 11 {
		s := c.open(t, store, fmtID(i+1))
		if got := restore(t, s); rootOf(t, got) != roots[i] {
			t.Fatalf("snapshot %s restores to another root", s.ID())
		}
	}
	mustVerify(t, c, store, "")
	all, err := List(t.Context(), store)
	if err != nil || len(all) != 70 {
		t.Fatalf("%d snapshots: %v", len(all), err)
	}
	id, err := FindAt(all, all[40].Started)
	if err != nil || id != all[40].ID {
		t.Fatalf("at: %s, %v", id, err)
	}
	_, err = FindAt(all, all[0].Started.Add(-time.Hour))
	wantErr(t, err, ErrNoSnapshot)
}

// TestFindAtDoesNotPassOverDamage: a manifest that does not open may be the one that
// is asked for, unless one before it was begun later.
func TestFindAtDoesNotPassOverDamage(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	c.cheap(t)
	begun := time.Now().Add(-time.Hour).Truncate(time.Second)
	for i := range 3 {
		keys(c.hsm(0), 1)
		o := c.options()
		o.begun = begun.Add(time.Duration(i) * time.Minute)
		mustTake(t, c, store, o)
	}
	replace := func(id int) {
		path := format.ManifestPath(uint64(id))
		if err := store.Delete(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		if err := put(t.Context(), store, path, []byte("no manifest")); err != nil {
			t.Fatal(err)
		}
	}
	listed := func() []Summary {
		all, err := List(t.Context(), store)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	replace(2)
	for after, want := range map[time.Duration]string{0: "", 90 * time.Second: "", 3 * time.Minute: fmtID(3)} {
		id, err := FindAt(listed(), begun.Add(after))
		if id != want || (err != nil) != (want == "") || err != nil && !(damaged(err) && strings.Contains(err.Error(), fmtID(2))) {
			t.Errorf("after %s: %q, %v; want %q", after, id, err, want)
		}
	}
	_, err := FindAt(listed(), begun.Add(-time.Minute))
	wantErr(t, err, ErrNoSnapshot)
	replace(1)
	if _, err := FindAt(listed(), begun); !damaged(err) {
		t.Errorf("where nothing else is: %v", err)
	}
}

// TestBusyClusterKeepsItsChain: while keys are made, every HSM may lack what
// another has just got; the next snapshot is an increment all the same.
func TestBusyClusterKeepsItsChain(t *testing.T) {
	c, store := newTestCluster(t, 3), newStore(t)
	c.cheap(t)
	keys(c.hsm(0), 5)
	c.sync(t)
	mustTake(t, c, store, c.options())
	for i := range 3 {
		for j := range 3 {
			c.hsm(j).NewKey("not synced")
		}
		o := c.options()
		o.Settle = time.Minute
		done := make(chan struct{})
		go func() {
			defer close(done)
			time.Sleep(30 * time.Millisecond)
			c.sync(t)
		}()
		r := mustTake(t, c, store, o)
		<-done
		if r.FullReason != "" || r.Parent != fmtID(i+1) || r.NewObjects != 3 {
			t.Fatalf("%+v", r)
		}
		if s := c.open(t, store, ""); len(s.manifest.Covers) == 0 {
			t.Fatal("no HSM is known to hold the snapshot")
		}
	}
}

// TestLargeDifferences go beyond the sketch in the manifest, and fill several
// packs at a time.
func TestLargeDifferences(t *testing.T) {
	c, store := newTestCluster(t, 2), newStore(t)
	c.cheap(t)
	big := newBigSource(c.keyring, 4000)
	if _, err := c.hsm(0).Insert(t.Context(), big.Extract(t.Context(), refsOnly(big))); err != nil {
		t.Fatal(err)
	}
	c.hsm(1).NewKey("made here")
	insertAll(t, c.hsm(1), c.hsm(0))
	r := mustTake(t, c, store, c.options())
	if r.Objects != 4001 || r.Packs < 3 {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, c, store, "")
	n := 0
	for _, m := range big.objects[:1500] { // 1,500 changed: more than 1,024 cells can tell
		c.hsm(0).Destroy(m.Ref)
		n++
	}
	r = mustTake(t, c, store, c.options())
	if r.NewObjects != uint64(n) || r.Parent == "" || r.Keys != 2501 {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, c, store, "")
	restored := restore(t, c.open(t, store, ""))
	if rootOf(t, restored) != r.Root {
		t.Fatal("roots differ")
	}
}

func refsOnly(s *bigSource) iter.Seq[hsm.KeyRef] {
	return func(yield func(hsm.KeyRef) bool) {
		for _, m := range s.objects {
			if !yield(m.Ref) {
				return
			}
		}
	}
}
