package clone

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft/mech"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile/reconciletest"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/file"
)

var passwords = map[string]string{"root": "correct-horse", "alice": "alice-is-here", "bob": "bob-was-here", "carol": "carol-came-late"}

func secret(s string) hsm.Secret { return hsm.NewSecret([]byte(s)) }

// vault is an object store with the identity that opens its snapshots.
type vault struct {
	store    storage.Store
	identity *age.X25519Identity
}

func newVault(t *testing.T) *vault {
	t.Helper()
	store, err := file.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return &vault{store: store, identity: id}
}

// take takes a snapshot.
func (v *vault) take(t *testing.T, o backup.Origin) *backup.Snapshot {
	t.Helper()
	r, err := backup.Take(t.Context(), o, v.store, backup.TakeOptions{Recipients: []string{v.identity.Recipient().String()}, Settle: -1})
	if err != nil {
		t.Fatal(err)
	}
	return v.open(t, r.ID)
}

func (v *vault) open(t *testing.T, id string) *backup.Snapshot {
	t.Helper()
	s, err := backup.Open(t.Context(), v.store, id, backup.OpenOptions{Identities: []backup.Identity{v.identity}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// spec describes a cluster; for a new one the custodian of the vault.
func (v *vault) spec(t *testing.T, name string, hsms int) server.Spec {
	t.Helper()
	return server.Spec{
		Name: name, Region: name, Dir: filepath.Join(t.TempDir(), name), HSMs: hsms, MinCopies: 1, Version: "test", SealEnvelope: backup.SealEnvelope,
		Iterations: testIterations, Admin: "root", Password: secret(passwords["root"]), Custodians: []string{v.identity.Recipient().String()}, Threshold: 1,
	}
}

// running is a cluster whose HSMs serve in this process.
type running struct {
	t       *testing.T
	profile *profile.Profile
	auto    *cluster.Cluster
	users   map[string]*cluster.Cluster
}

// newCluster makes a cluster with users root, alice and bob, and starts it.
func (v *vault) newCluster(t *testing.T, name string, hsms int) *running {
	t.Helper()
	p, err := server.Create(t.Context(), v.spec(t, name, hsms))
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, p)
	r.createUser("alice")
	r.createUser("bob")
	return r
}

// start serves the HSMs of a profile until the test ends.
func start(t *testing.T, p *profile.Profile) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	t.Cleanup(func() { cancel(); serving.Wait() })
	for _, h := range p.HSMs {
		s, err := server.Open(ctx, p.Resolve(h.Dir), serverOptions())
		if err != nil {
			t.Fatal(err)
		}
		serving.Go(func() {
			if err := errors.Join(s.Serve(ctx), s.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	r := &running{t: t, profile: p, users: map[string]*cluster.Cluster{}}
	r.auto = r.open(cluster.Credential{Identity: p.AppliancePath()})
	r.awaitActive()
	return r
}

// awaitActive waits until every HSM has caught up with the others.
func (r *running) awaitActive() {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		info, err := r.auto.Info(r.t.Context())
		if err == nil && !slices.ContainsFunc(info.HSMs, func(h cluster.HSMInfo) bool { return h.State != string(hsm.StateActive) }) {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("not all HSMs serve: %+v, %v", info, err)
		}
	}
}

func (r *running) open(c cluster.Credential) *cluster.Cluster {
	r.t.Helper()
	opened, err := cluster.Open(r.t.Context(), r.profile, c)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { opened.Close() })
	return opened
}

// as returns the connection of a user.
func (r *running) as(name string) *cluster.Cluster {
	r.t.Helper()
	if r.users[name] == nil {
		r.users[name] = r.open(cluster.Credential{Name: name, Password: secret(passwords[name])})
	}
	return r.users[name]
}

func (r *running) change(as string, c hsm.Change) {
	r.t.Helper()
	if _, err := r.as(as).Change(r.t.Context(), c); err != nil {
		r.t.Fatalf("%s: %v", c.Kind, err)
	}
}

func (r *running) createUser(name string) {
	r.t.Helper()
	r.change("root", hsm.Change{Kind: hsm.ChangeUserCreate, User: name, Role: hsm.RoleCryptoUser, Password: secret(passwords[name])})
}

// key makes an AES key.
func (r *running) key(owner, label string, shares ...string) hsm.KeyRef {
	r.t.Helper()
	made, err := r.as(owner).Create(r.t.Context(), hsm.CreateRequest{
		Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32, Shares: shares,
		Attributes: map[string]string{"label": label, "encrypt": "true", "decrypt": "true"},
	}, cluster.Policy{})
	if err != nil {
		r.t.Fatal(err)
	}
	return made.Keys[0].Ref
}

func (r *running) destroy(owner string, ref hsm.KeyRef) {
	r.t.Helper()
	r.change(owner, hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
}

// snapshot waits for the HSMs to agree and takes a snapshot.
func (r *running) snapshot(v *vault) *backup.Snapshot {
	r.t.Helper()
	if err := r.auto.Wait(r.t.Context(), 0); err != nil {
		r.t.Fatal(err)
	}
	return v.take(r.t, Origin(r.auto))
}

// restoreAndStart makes a clone of a snapshot and starts it.
func (v *vault) restoreAndStart(t *testing.T, s *backup.Snapshot, hsms int) *running {
	t.Helper()
	r, err := Restore(t.Context(), s, v.spec(t, "west", hsms), nil)
	if err != nil {
		t.Fatal(err)
	}
	return start(t, r.Profile)
}

// memory is a cluster in memory, for snapshots that no real cluster would make:
// a backup.Origin.
type memory struct {
	keyring *hsm.Keyring
	ca      hsm.Secret
	id      hsm.ClusterID
	ids     []hsm.HSMID
	hsms    []*reconciletest.Replica
	vault   *vault
}

func newMemory(t *testing.T, v *vault, hsms int) *memory {
	t.Helper()
	m := &memory{keyring: hsm.NewKeyring(), id: hsm.NewClusterID(), vault: v}
	ca, err := pki.NewAuthority(m.keyring.Lineage())
	if err != nil {
		t.Fatal(err)
	}
	m.ca = ca.PEM()
	for range hsms {
		m.ids, m.hsms = append(m.ids, hsm.NewHSMID()), append(m.hsms, reconciletest.NewReplica(m.keyring))
	}
	return m
}

func (m *memory) Describe(context.Context) (backup.Description, error) {
	return backup.Description{Cluster: m.id, Name: "memory", Region: "here", Lineage: m.keyring.Lineage(), Version: "test"}, nil
}

func (m *memory) Sources(context.Context) (out []backup.NamedSource, _ []hsm.HSMID, _ error) {
	for i, id := range m.ids {
		out = append(out, backup.NamedSource{ID: id, Sketcher: m.hsms[i]})
	}
	return out, nil, nil
}

func (m *memory) Envelope(ctx context.Context, custodians []string, threshold int) ([]byte, error) {
	return backup.SealEnvelope(ctx, hsm.EncodeRecovery(m.keyring, m.ca), custodians, threshold)
}

func (m *memory) Settings(context.Context) (hsm.Settings, error) {
	return hsm.Settings{Custodians: []string{m.vault.identity.Recipient().String()}, Threshold: 1}, nil
}

func (m *memory) Sign(_ context.Context, p hsm.Purpose, b []byte) (hsm.LineageSignature, error) {
	return m.keyring.Sign(p, b), nil
}

// records makes key material and returns its records, the private key of a pair
// first.
func records(t *testing.T, spec mech.Spec) []*hsm.Record {
	t.Helper()
	g, err := mech.Generate(nil, spec)
	if err != nil {
		t.Fatal(err)
	}
	r := &hsm.Record{
		Kind: hsm.KindKey, Ref: hsm.NewKeyRef(), Material: hsm.NewSecret(g.Secret),
		Registers: map[string]hsm.Register{hsm.AttributeRegister("label"): {Value: []byte(spec.Type)}}, Hidden: map[string]hsm.Register{},
		Core: hsm.Core{Class: hsm.ClassSecret, Type: string(g.Spec.Type), Size: g.Spec.Size, Curve: string(g.Spec.Curve), Origin: hsm.MethodGenerate, Owner: "alice", Public: g.Public},
	}
	if g.Public == nil {
		r.Core.Check, err = mech.CheckValueSecret(g.Spec.Type, g.Secret)
		if err != nil {
			t.Fatal(err)
		}
		return []*hsm.Record{r}
	}
	r.Core.Class = hsm.ClassPrivate
	if r.Core.Check, err = mech.CheckValuePublic(g.Public); err != nil {
		t.Fatal(err)
	}
	public := r.Clone()
	public.Ref, public.Core.Class, public.Material = hsm.NewKeyRef(), hsm.ClassPublic, hsm.Secret{}
	return []*hsm.Record{r, public}
}

// mask completes a record and masks it.
func mask(t *testing.T, k *hsm.Keyring, r *hsm.Record) hsm.MaskedObject {
	t.Helper()
	var err error
	if r.Birth, err = k.Birth(r); err != nil {
		t.Fatal(err)
	}
	m, err := k.Mask(r)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// insert puts objects into a replica as they are.
func insert(t *testing.T, into hsm.Replica, objects ...hsm.MaskedObject) {
	t.Helper()
	_, err := into.Insert(t.Context(), func(yield func(hsm.MaskedObject, error) bool) {
		for _, m := range objects {
			if !yield(m, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// keySpecs are specs of every type; RSA in the smallest size.
var keySpecs = []mech.Spec{
	{Type: mech.AES, Size: 16}, {Type: mech.AES, Size: 24}, {Type: mech.AES, Size: 32}, {Type: mech.GenericSecret, Size: 32}, {Type: mech.RSA, Size: 2048},
	{Type: mech.EC, Curve: mech.Secp224r1}, {Type: mech.EC, Curve: mech.Secp256r1}, {Type: mech.EC, Curve: mech.Secp384r1}, {Type: mech.EC, Curve: mech.Secp521r1},
	{Type: mech.EC, Curve: mech.Secp256k1}, {Type: mech.Ed25519}, {Type: mech.MLDSA, Size: 44}, {Type: mech.MLDSA, Size: 87}, {Type: mech.MLKEM, Size: 768}, {Type: mech.MLKEM, Size: 1024},
}

// everyKey puts a key of every type into all HSMs and returns their number.
func (m *memory) everyKey(t *testing.T) (n int) {
	t.Helper()
	for _, spec := range keySpecs {
		for _, r := range records(t, spec) {
			masked := mask(t, m.keyring, r)
			for _, h := range m.hsms {
				insert(t, h, masked)
			}
			n++
		}
	}
	return n
}

func newMemoryReplica(k *hsm.Keyring) *reconciletest.Replica { return reconciletest.NewReplica(k) }

// newVaultOf makes another store for the same identity.
func newVaultOf(v *vault) *vault {
	store, err := file.Open(v.store.(*file.Store).String() + "-other")
	if err != nil {
		panic(err)
	}
	return &vault{store: store, identity: v.identity}
}
