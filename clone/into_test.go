package clone

import (
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft/mech"
	"github.com/hsmbackup/hsmbackup/cluster/keytest"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// history is a cluster's, in two snapshots, and a clone of the first.
type history struct {
	vault         *vault
	first, second *backup.Snapshot
	west          *running

	same, renamed, later      hsm.KeyRef // in both snapshots; west has "later" in a later state
	goneWest, goneEast        hsm.KeyRef // destroyed in the clone; between the snapshots
	lost, carols, sharedCarol hsm.KeyRef // made between the snapshots
	bobs                      hsm.KeyRef
	conflict                  hsm.KeyRef // made between the snapshots, and another one in the clone
}

func newHistory(t *testing.T) *history {
	t.Helper()
	h := &history{vault: newVault(t)}
	east := h.vault.newCluster(t, "east", 2)
	h.same, h.renamed, h.later = east.key("alice", "same"), east.key("alice", "renamed"), east.key("alice", "later")
	h.goneWest, h.goneEast = east.key("alice", "gone in the west"), east.key("alice", "gone in the east")
	h.first = east.snapshot(h.vault)

	east.createUser("carol")
	h.lost, h.conflict, h.bobs = east.key("alice", "lost"), east.key("alice", "conflict"), east.key("bob", "bob's")
	h.carols, h.sharedCarol = east.key("carol", "carol's"), east.key("alice", "shared with carol", "carol")
	east.change("alice", hsm.Change{Kind: hsm.ChangeAttribute, Ref: h.renamed, Name: "label", Value: "renamed in the east"})
	east.destroy("alice", h.goneEast)
	h.second = east.snapshot(h.vault)

	h.west = h.vault.restoreAndStart(t, h.first, 2)
	h.west.destroy("alice", h.goneWest)
	h.west.change("alice", hsm.Change{Kind: hsm.ChangeAttribute, Ref: h.later, Name: "label", Value: "later in the west"})
	keyring, _, err := h.second.Recovery(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := records(t, mech.Spec{Type: mech.AES, Size: 16})[0]
	r.Ref = h.conflict
	insert(t, h.west.auto, mask(t, keyring, r))
	return h
}

// into restores the second snapshot into the clone, after a plan that must say
// the same and do nothing.
func (h *history) into(t *testing.T, o IntoOptions) *IntoResult {
	t.Helper()
	before, err := h.west.auto.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := PlanInto(t.Context(), h.second, h.west.auto, o)
	if err != nil {
		t.Fatal(err)
	}
	if after, err := h.west.auto.Root(t.Context()); err != nil || after != before {
		t.Errorf("a plan changed the cluster, %v", err)
	}
	r, err := RestoreInto(t.Context(), h.second, h.west.auto, o)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Result.Plan || r.Plan {
		t.Error("plan and result are not told apart")
	}
	planned := *r
	planned.Plan, planned.Applied = true, 0
	if diff := cmp.Diff(planned, p.Result); diff != "" {
		t.Errorf("what was done is not what was planned:\n%s", diff)
	}
	if err := h.west.auto.Wait(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	return r
}

// counts are the numbers of a result.
type counts struct{ Added, Changed, Unchanged, Destroyed, Users, Conflicts, Blocked, Applied int }

func (r *IntoResult) counts() counts {
	return counts{r.Added, r.Changed, r.Unchanged, r.Destroyed, r.Users, len(r.Conflicts), len(r.Blocked), r.Applied}
}

func TestRestoreIntoBringsBackWhatIsMissing(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	r := h.into(t, IntoOptions{})
	// "same" and "later" are unchanged; the conflict stays; carol is not there.
	if got, want := r.counts(), (counts{Added: 2, Changed: 1, Unchanged: 2, Destroyed: 1, Conflicts: 1, Blocked: 2, Applied: 3}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if !slices.Equal(r.Conflicts, []hsm.KeyRef{h.conflict}) {
		t.Errorf("conflicts %v, want %s", r.Conflicts, h.conflict)
	}
	for _, b := range r.Blocked {
		why := map[hsm.KeyRef]string{h.carols: "its owner is carol", h.sharedCarol: "it is shared with carol"}[b.Ref]
		if why == "" || !strings.Contains(b.Reason, why) || !strings.Contains(b.Reason, "--users") {
			t.Errorf("%s is blocked: %s", b.Ref, b.Reason)
		}
	}
	alice := h.west.as("alice")
	for ref, label := range map[hsm.KeyRef]string{h.same: "same", h.renamed: "renamed in the east", h.later: "later in the west", h.lost: "lost", h.goneEast: "gone in the east"} {
		if k, err := alice.Key(t.Context(), ref); err != nil || k.Label != label {
			t.Errorf("key %q: %q, %v", label, k.Label, err)
		}
	}
	for ref, want := range map[hsm.KeyRef]error{h.goneWest: hsm.ErrDestroyed, h.sharedCarol: hsm.ErrNotFound} {
		if _, err := alice.Key(t.Context(), ref); !errors.Is(err, want) {
			t.Errorf("key %s: %v, want %v", ref, err, want)
		}
	}
	if _, err := h.west.as("bob").Use(t.Context(), hsm.Use{Kind: hsm.UseEncrypt, Key: h.bobs, Data: keytest.Question, Params: hsm.Params{Mechanism: "aes-gcm"}}); err != nil {
		t.Errorf("a restored key is not used: %v", err)
	}

	again := h.into(t, IntoOptions{})
	if got, want := again.counts(), (counts{Unchanged: 5, Destroyed: 1, Conflicts: 1, Blocked: 2}); got != want {
		t.Errorf("again: %+v, want %+v", got, want)
	}
	withUsers := h.into(t, IntoOptions{Users: true})
	if got, want := withUsers.counts(), (counts{Added: 2, Unchanged: 5, Destroyed: 1, Users: 1, Conflicts: 1, Applied: 3}); got != want {
		t.Errorf("with users: %+v, want %+v", got, want)
	}
	if k, err := h.west.as("carol").Key(t.Context(), h.sharedCarol); err != nil || k.Label != "shared with carol" {
		t.Errorf("carol, who was taken along: %v", err)
	}
	last := h.into(t, IntoOptions{Users: true})
	if got, want := last.counts(), (counts{Unchanged: 7, Destroyed: 1, Conflicts: 1}); got != want {
		t.Errorf("at last: %+v, want %+v", got, want)
	}
}

func TestRestoreIntoKeepsToTheFilter(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	label := func(l string) hsm.Filter { return hsm.Filter{Attrs: map[string]string{"label": l}} }
	for _, c := range []struct {
		name   string
		filter hsm.Filter
		users  bool
		want   counts
	}{
		{"nothing of that label", label("nothing"), false, counts{}},
		{"by the label in the snapshot", label("renamed in the east"), false, counts{Changed: 1, Applied: 1}},
		{"by a label, unchanged", label("same"), false, counts{Unchanged: 1}},
		{"destroyed here", hsm.Filter{Refs: []hsm.KeyRef{h.goneWest}}, false, counts{Destroyed: 1}},
		{"destroyed there", hsm.Filter{Refs: []hsm.KeyRef{h.goneEast}}, false, counts{}},
		{"by reference", hsm.Filter{Refs: []hsm.KeyRef{h.lost, h.same, h.conflict}}, false, counts{Added: 1, Unchanged: 1, Conflicts: 1, Applied: 1}},
		{"of an owner who is not there", hsm.Filter{Owner: "carol"}, false, counts{Blocked: 1}},
		{"users that nobody needs", label("same"), true, counts{Unchanged: 1}},
		{"of an owner", hsm.Filter{Owner: "bob"}, true, counts{Added: 1, Applied: 1}},
		{"with the owner", hsm.Filter{Owner: "carol"}, true, counts{Added: 1, Users: 1, Applied: 2}},
	} {
		r := h.into(t, IntoOptions{Filter: c.filter, Users: c.users})
		if got := r.counts(); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
		if got, want := r.Selected(), c.want.Added+c.want.Changed+c.want.Unchanged+c.want.Destroyed+c.want.Conflicts+c.want.Blocked; got != want {
			t.Errorf("%s: %d selected, want %d", c.name, got, want)
		}
	}
}

// TestRestoreIntoNamesWhatIsMissing: of keys that are named, those are told of which
// the snapshot holds none that lives and fits.
func TestRestoreIntoNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	unknown := hsm.NewKeyRef()
	named := hsm.Filter{Refs: []hsm.KeyRef{h.lost, unknown, h.same, h.goneEast, h.goneWest, h.conflict, unknown}}
	want := []hsm.KeyRef{unknown, h.goneEast} // destroyed in the snapshot
	slices.Sort(want)
	if r := h.into(t, IntoOptions{Filter: named}); !slices.Equal(r.Missing, want) || r.Added != 1 {
		t.Errorf("missing %v, want %v: %+v", r.Missing, want, r)
	}
	named.Owner = "bob"
	if r := h.into(t, IntoOptions{Filter: named}); len(r.Missing) != 6 || r.Selected() != 0 {
		t.Errorf("of another owner: %+v", r)
	}
}

// TestRestoreIntoAsACryptoUser: the keys it owns, and no others.
func TestRestoreIntoAsACryptoUser(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	bob := h.west.as("bob")
	for name, o := range map[string]IntoOptions{"users": {Users: true}, "another's keys": {Filter: hsm.Filter{Owner: "alice"}}} {
		if _, err := PlanInto(t.Context(), h.second, bob, o); !errors.Is(err, hsm.ErrDenied) {
			t.Errorf("%s: %v, want ErrDenied", name, err)
		}
	}
	r, err := RestoreInto(t.Context(), h.second, bob, IntoOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.counts(), (counts{Added: 1, Applied: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if k, err := bob.Key(t.Context(), h.bobs); err != nil || k.Label != "bob's" {
		t.Errorf("bob's key: %v", err)
	}
}

func TestRestoreIntoDoesNotBringBackDeletedOwners(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	east := v.newCluster(t, "east", 1)
	ref := east.key("bob", "bob's")
	s := east.snapshot(v)
	east.destroy("bob", ref)
	later := east.snapshot(v)
	east.change("root", hsm.Change{Kind: hsm.ChangeUserDelete, User: "bob"})
	other := v.restoreAndStart(t, later, 1) // where bob is still there
	if r, err := RestoreInto(t.Context(), s, other.auto, IntoOptions{Users: true}); err != nil || r.counts() != (counts{Destroyed: 1}) {
		t.Errorf("a destroyed key: %+v, %v", r, err)
	}
	keyring, _, err := s.Recovery(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// A key of bob's of which this cluster knows nothing, in another snapshot.
	m := newMemory(t, v, 1)
	m.keyring, m.hsms[0] = keyring, newMemoryReplica(keyring)
	r := records(t, mech.Spec{Type: mech.AES, Size: 16})[0]
	r.Core.Owner = "bob"
	insert(t, m.hsms[0], mask(t, keyring, r))
	for o, err := range s.Objects(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if o.Kind == hsm.KindUser {
			for u, err := range s.Extract(t.Context(), slices.Values([]hsm.KeyRef{o.Ref})) {
				if err != nil {
					t.Fatal(err)
				}
				insert(t, m.hsms[0], u)
			}
		}
	}
	got, err := RestoreInto(t.Context(), newVaultOf(v).take(t, m), east.auto, IntoOptions{Users: true})
	if err != nil {
		t.Fatal(err)
	}
	if got.counts() != (counts{Blocked: 1}) || !strings.Contains(got.Blocked[0].Reason, "deleted") {
		t.Errorf("a key of a deleted user: %+v", got)
	}
}

func TestRestoreIntoRefusesAnotherLineage(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	m := newMemory(t, v, 1)
	m.everyKey(t)
	east := v.newCluster(t, "east", 1)
	if _, err := PlanInto(t.Context(), v.take(t, m), east.auto, IntoOptions{}); !errors.Is(err, hsm.ErrLineage) {
		t.Errorf("got %v, want ErrLineage", err)
	}
}

func TestRestoreIntoNeedsAnIdentity(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	east := v.newCluster(t, "east", 1)
	first := east.snapshot(v)
	east.key("alice", "later")
	second := east.snapshot(v)
	west := v.restoreAndStart(t, first, 1)
	s, err := backup.Open(t.Context(), v.store, second.ID(), backup.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := PlanInto(t.Context(), s, west.auto, IntoOptions{}); !errors.Is(err, backup.ErrIdentity) {
		t.Errorf("got %v, want ErrIdentity", err)
	}
}

// TestAnUnsettledSnapshotIsRestoredInto: of several states the strongest counts,
// once, and all are merged.
func TestAnUnsettledSnapshotIsRestoredInto(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	m, s, ref := unsettled(t, v)
	empty := newMemory(t, newVault(t), 1)
	empty.keyring, empty.ca, empty.hsms[0] = m.keyring, m.ca, newMemoryReplica(m.keyring)
	other := records(t, mech.Spec{Type: mech.AES, Size: 16})[0]
	insert(t, empty.hsms[0], mask(t, m.keyring, other))
	west := empty.vault.restoreAndStart(t, empty.vault.take(t, empty), 1)
	r, err := RestoreInto(t.Context(), s, west.auto, IntoOptions{Filter: hsm.Filter{Refs: []hsm.KeyRef{ref}}})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.counts(); got != (counts{Blocked: 1}) || !strings.Contains(r.Blocked[0].Reason, "neither in the cluster nor in the snapshot") {
		t.Errorf("%+v", r)
	}
}

// twice returns two HSMs in memory that hold what a snapshot does.
func (v *vault) twice(t *testing.T, s *backup.Snapshot) *memory {
	t.Helper()
	keyring, ca, err := s.Recovery(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := newMemory(t, newVaultOf(v), 2)
	m.keyring, m.ca = keyring, ca
	for i := range m.hsms {
		m.hsms[i] = newMemoryReplica(keyring)
		if _, err := reconcile.Copy(t.Context(), s, m.hsms[i]); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// TestAnUnsettledKeyIsRevivedOnce: a destroyed key of which the snapshot holds two live
// states comes back, and counts as one.
func TestAnUnsettledKeyIsRevivedOnce(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	east := v.newCluster(t, "east", 1)
	ref := east.key("alice", "as it was")
	before := east.snapshot(v)
	m := v.twice(t, before)
	m.hsms[0].SetLabel(ref, "as one HSM has it")
	m.hsms[1].SetLabel(ref, "as another HSM has it")
	s := m.vault.take(t, m)
	east.destroy("alice", ref)
	r, err := RestoreInto(t.Context(), s, east.as("root"), IntoOptions{Revive: true, Filter: hsm.Filter{Refs: []hsm.KeyRef{ref}}})
	if err != nil || r.Revived != 1 || r.Applied != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := east.as("alice").Key(t.Context(), ref); err != nil {
		t.Error(err)
	}
}

// TestARestoreIntoDestroysNothing: of a key that was destroyed on one HSM and live on
// another when the snapshot was taken, the snapshot holds both states. It counts as
// destroyed, whatever selects it, and lives on in the cluster.
func TestARestoreIntoDestroysNothing(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	east := v.newCluster(t, "east", 1)
	ref := east.key("alice", "half destroyed")
	before := east.snapshot(v)
	west := v.restoreAndStart(t, before, 1)
	m := v.twice(t, before)
	m.hsms[0].SetLabel(ref, "half destroyed, and renamed")
	m.hsms[1].Destroy(ref)
	s := m.vault.take(t, m)
	if s.Settled() {
		t.Fatal("the snapshot is settled")
	}
	label := hsm.Filter{Attrs: map[string]string{"label": "half destroyed, and renamed"}}
	for name, f := range map[string]hsm.Filter{"by label": label, "by reference": {Refs: []hsm.KeyRef{ref}}, "all": {}} {
		r, err := RestoreInto(t.Context(), s, west.auto, IntoOptions{Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		if r.Applied != 0 || r.Changed != 0 {
			t.Errorf("%s: %+v", name, r)
		}
		if k, err := west.as("alice").Key(t.Context(), ref); err != nil || k.Label != "half destroyed" {
			t.Errorf("%s: the key in the cluster: %q, %v", name, k.Label, err)
		}
	}
}

// TestRestoreIntoRevivesOnlyWhatIsNamed: a destroyed key comes back when its
// reference is given and an admin or its owner asks; repeated, nothing changes;
// and every HSM, and a later snapshot, hold it then.
func TestRestoreIntoRevivesOnlyWhatIsNamed(t *testing.T) {
	h := newHistory(t)
	if _, err := PlanInto(t.Context(), h.second, h.west.as("root"), IntoOptions{Revive: true}); !errors.Is(err, hsm.ErrInvalid) {
		t.Fatalf("without a name: %v", err)
	}
	named := IntoOptions{Revive: true, Filter: hsm.Filter{Refs: []hsm.KeyRef{h.goneWest}}}
	if _, err := RestoreInto(t.Context(), h.second, h.west.auto, named); !errors.Is(err, hsm.ErrDenied) {
		t.Fatalf("as an appliance: %v", err)
	}
	if r, err := RestoreInto(t.Context(), h.second, h.west.as("bob"), named); err != nil || r.Applied != 0 {
		t.Fatalf("as another user: %+v, %v", r, err)
	}
	r, err := RestoreInto(t.Context(), h.second, h.west.as("alice"), named)
	if err != nil || r.Revived != 1 || r.Applied != 1 || r.Destroyed != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err = RestoreInto(t.Context(), h.second, h.west.as("root"), named); err != nil || r.Applied != 0 || r.Unchanged != 1 {
		t.Fatalf("again: %+v, %v", r, err)
	}
	k, err := h.west.as("alice").Key(t.Context(), h.goneWest)
	if err != nil || k.Incarnation != 1 || len(k.Coverage) != 2 {
		t.Fatalf("%+v, %v", k, err)
	}
	if _, err := h.west.as("alice").Use(t.Context(), hsm.Use{Kind: hsm.UseMAC, Key: h.goneWest, Data: []byte("x"), Params: hsm.Params{Mechanism: "aes-cmac"}}); err != nil {
		t.Fatalf("use of the revived key: %v", err)
	}
	again := h.west.snapshot(h.vault)
	restored := h.vault.restoreAndStart(t, again, 1)
	if _, err := restored.as("alice").Key(t.Context(), h.goneWest); err != nil {
		t.Fatalf("after another restore: %v", err)
	}
}

// TestDecisionsAndSnapshots: a key that stands above another birth is snapshotted and
// restored as such. A snapshot ends no live key that nobody here has decided on, and
// an old one brings nothing back that had to give way.
func TestDecisionsAndSnapshots(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	east := v.newCluster(t, "east", 1)
	west := v.restoreAndStart(t, east.snapshot(v), 1)
	ref := east.key("alice", "of the east")
	plain := east.snapshot(v)
	keyring, _, err := plain.Recovery(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := records(t, mech.Spec{Type: mech.AES, Size: 16})[0]
	r.Ref = ref
	r.Registers[hsm.AttributeRegister("destroyable")] = hsm.Register{Value: hsm.BoolValue(true)}
	twin := mask(t, keyring, r)
	insert(t, west.auto, twin)
	of := func(s hsm.Source) hsm.MaskedObject {
		for m, err := range s.Extract(t.Context(), slices.Values([]hsm.KeyRef{ref})) {
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		t.Fatal("not there")
		return hsm.MaskedObject{}
	}
	_, stands, err := hsm.ParseMasked(of(plain).Bytes)
	if err != nil {
		t.Fatal(err)
	}
	decide := hsm.Change{Kind: hsm.ChangeSupersede, Ref: ref, Masked: &twin, Value: hex.EncodeToString(stands.Birth[:])}
	east.change("root", decide)
	decided := east.snapshot(v)

	into := func(s *backup.Snapshot) *IntoResult {
		r, err := RestoreInto(t.Context(), s, west.auto, IntoOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := into(decided); !slices.Equal(r.Conflicts, []hsm.KeyRef{ref}) || of(west.auto).Object != twin.Object {
		t.Errorf("a live key gave way to a snapshot: %+v", r)
	}
	made, err := Restore(t.Context(), decided, v.spec(t, "north", 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	north := start(t, made.Profile)
	insert(t, north.auto, twin)
	if of(north.auto).Object != of(east.auto).Object {
		t.Error("the clone holds something else")
	}
	seen := of(decided)
	decide.Masked = &seen
	west.change("root", decide)
	for _, s := range []*backup.Snapshot{plain, decided} {
		if r := into(s); len(r.Conflicts) != 0 || r.Applied != 0 || of(west.auto).Object != of(east.auto).Object {
			t.Errorf("after the decision: %+v", r)
		}
	}
}
