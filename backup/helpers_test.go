package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"filippo.io/age"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile/reconciletest"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/file"
)

// testCluster is a cluster of replicas in memory: an Origin.
type testCluster struct {
	keyring    *hsm.Keyring
	ca         hsm.Secret
	id         hsm.ClusterID
	ids        []hsm.HSMID
	hsms       map[hsm.HSMID]*reconciletest.Replica
	custodian  identity
	recipient  identity
	custodians []string
	threshold  int

	mu      sync.Mutex
	down    map[hsm.HSMID]bool
	wrap    func(NamedSource) NamedSource
	sealed  int // envelopes
	reseal  func([]byte) []byte
	signing func([]byte) // called before each signature

	rechecks int
}

func newTestCluster(t testing.TB, hsms int) *testCluster {
	t.Helper()
	c := &testCluster{
		keyring: hsm.NewKeyring(), ca: hsm.NewSecret([]byte("a certificate authority")), id: hsm.NewClusterID(),
		hsms: map[hsm.HSMID]*reconciletest.Replica{}, down: map[hsm.HSMID]bool{}, threshold: 1,
		custodian: newIdentity(t), recipient: newIdentity(t),
	}
	c.custodians = []string{c.custodian.recipient}
	for range hsms {
		c.addHSM()
	}
	return c
}

// identity is an identity with its recipient.
type identity struct {
	Identity
	recipient string
}

func newIdentity(t testing.TB) identity {
	t.Helper()
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return identity{id, id.Recipient().String()}
}

func newX25519(t testing.TB) identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return identity{id, id.Recipient().String()}
}

// text is what an identity file holds.
func (i identity) text() string { return i.Identity.(fmt.Stringer).String() }

// cheap replaces the post-quantum identities, for tests that take many snapshots.
func (c *testCluster) cheap(t testing.TB) {
	t.Helper()
	c.recipient, c.custodian = newX25519(t), newX25519(t)
	c.custodians = []string{c.custodian.recipient}
}

func (c *testCluster) addHSM() *reconciletest.Replica {
	id, r := hsm.NewHSMID(), reconciletest.NewReplica(c.keyring)
	c.ids, c.hsms[id] = append(c.ids, id), r
	return r
}

// hsm returns the i-th HSM.
func (c *testCluster) hsm(i int) *reconciletest.Replica { return c.hsms[c.ids[i]] }

func (c *testCluster) setDown(i int, down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down[c.ids[i]] = down
}

// sync is server-side sync.
func (c *testCluster) sync(t testing.TB) {
	t.Helper()
	for range 2 {
		for _, a := range c.ids {
			for _, b := range c.ids {
				insertAll(t, c.hsms[a], c.hsms[b])
			}
		}
	}
}

func insertAll(t testing.TB, from hsm.Source, to hsm.Replica) hsm.Inserted {
	t.Helper()
	var refs []hsm.KeyRef
	for o, err := range from.Objects(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, o.Ref)
	}
	done, err := to.Insert(t.Context(), from.Extract(t.Context(), slices.Values(refs)))
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func (c *testCluster) Describe(context.Context) (Description, error) {
	return Description{Cluster: c.id, Name: "test", Region: "here", Lineage: c.keyring.Lineage(), Version: "v0"}, nil
}

func (c *testCluster) Recheck(context.Context) { c.rechecks++ }

func (c *testCluster) Sources(context.Context) (answered []NamedSource, missing []hsm.HSMID, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range c.ids {
		if c.down[id] {
			missing = append(missing, id)
			continue
		}
		s := NamedSource{ID: id, Sketcher: c.hsms[id]}
		if c.wrap != nil {
			s = c.wrap(s)
		}
		answered = append(answered, s)
	}
	return answered, missing, nil
}

func (c *testCluster) Envelope(ctx context.Context, custodians []string, threshold int) ([]byte, error) {
	c.mu.Lock()
	c.sealed++
	c.mu.Unlock()
	stored, err := SealEnvelope(ctx, hsm.EncodeRecovery(c.keyring, c.ca), custodians, threshold)
	if err == nil && c.reseal != nil {
		stored = c.reseal(stored)
	}
	return stored, err
}

func (c *testCluster) Settings(context.Context) (hsm.Settings, error) {
	return hsm.Settings{Custodians: c.custodians, Threshold: c.threshold}, nil
}

func (c *testCluster) Sign(_ context.Context, p hsm.Purpose, m []byte) (hsm.LineageSignature, error) {
	if c.signing != nil {
		c.signing(m)
	}
	return c.keyring.Sign(p, m), nil
}

func (c *testCluster) options() TakeOptions {
	return TakeOptions{Recipients: []string{c.recipient.recipient}, PackSize: 1 << 20, Settle: -1}
}

func (c *testCluster) identities() []Identity {
	return []Identity{c.recipient.Identity, c.custodian.Identity}
}

func (c *testCluster) open(t testing.TB, store storage.Store, id string) *Snapshot {
	t.Helper()
	l := c.keyring.Lineage()
	s, err := Open(t.Context(), store, id, OpenOptions{Identities: c.identities(), Trust: &l})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newStore(t testing.TB) storage.Store {
	t.Helper()
	store, err := file.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func mustTake(t testing.TB, c Origin, store storage.Store, o TakeOptions) *Report {
	t.Helper()
	r, err := Take(t.Context(), c, store, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// restore brings a snapshot into an empty replica made from its envelope.
func restore(t testing.TB, s *Snapshot) *reconciletest.Replica {
	t.Helper()
	keyring, _, err := s.Recovery(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, loaded := reconciletest.NewReplica(keyring), reconciletest.NewReplica(keyring)
	insertAll(t, s, r)
	if load(t, s, loaded); rootOf(t, loaded) != rootOf(t, r) {
		t.Fatalf("snapshot %s restores to one root object by object and to another in parts", s.ID())
	}
	return r
}

// load inserts the snapshot as hsm.Loader does, which takes parts that ascend
// and have no object in common, and what is unsettled.
func load(t testing.TB, s *Snapshot, into hsm.Replica) {
	t.Helper()
	parts, err := s.Parts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[hsm.KeyRef]bool{}
	for _, part := range parts {
		var last hsm.KeyRef
		n, err := into.Insert(t.Context(), func(yield func(hsm.MaskedObject, error) bool) {
			for m, err := range part {
				if err == nil && (m.Ref <= last || seen[m.Ref]) {
					t.Fatalf("%s after %s in a part, or a second time", m.Ref, last)
				}
				last, seen[m.Ref] = m.Ref, true
				m.Bytes = bytes.Clone(m.Bytes) // valid until the next one
				if !yield(m, err) {
					return
				}
			}
		})
		if err != nil || n.Changed+n.Unchanged+len(n.Conflicts) > 0 {
			t.Fatal(n, err)
		}
	}
	open := s.Unsettled()
	if slices.ContainsFunc(open, func(r hsm.KeyRef) bool { return seen[r] }) || (len(open) == 0) != s.Settled() {
		t.Fatalf("an unsettled object is in a part, or settled ones are named: %v", open)
	}
	if _, err := into.Insert(t.Context(), s.Extract(t.Context(), slices.Values(open))); err != nil {
		t.Fatal(err)
	}
}

func rootOf(t testing.TB, s hsm.Sketcher) hsm.Root {
	t.Helper()
	r, err := s.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// mustVerify checks that a snapshot verifies at both levels.
func mustVerify(t testing.TB, c *testCluster, store storage.Store, id string) {
	t.Helper()
	for _, level := range []Level{LevelHashes, LevelRoot} {
		r, err := Verify(t.Context(), store, id, level, OpenOptions{Identities: c.identities()})
		if err != nil {
			t.Fatalf("verify %s: %v", level, err)
		}
		if !r.OK() {
			t.Fatalf("verify %s: %v", level, r.Err())
		}
		if level == LevelRoot && (r.Envelope != "opened" || r.Unmasked != r.Objects) {
			t.Fatalf("verify %s: envelope %s, %d of %d unmasked", level, r.Envelope, r.Unmasked, r.Objects)
		}
	}
}

func names(t testing.TB, store storage.Store) (out []string) {
	t.Helper()
	for info, err := range store.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, info.Name)
	}
	return out
}

func count(t testing.TB, store storage.Store, prefix string) (n int) {
	for _, name := range names(t, store) {
		if strings.HasPrefix(name, prefix) {
			n++
		}
	}
	return n
}

func keys(r *reconciletest.Replica, n int) (refs []hsm.KeyRef) {
	for i := range n {
		refs = append(refs, r.NewKey(fmt.Sprintf("key %d", i)))
	}
	return refs
}

func wantErr(t testing.TB, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Fatalf("got %v, want %v", err, target)
		}
	}
	if len(targets) > 0 && Hint(err) == "" {
		t.Errorf("no hint for %v", err)
	}
}

func fmtID(n int) string { return fmt.Sprintf("%010d", n) }
