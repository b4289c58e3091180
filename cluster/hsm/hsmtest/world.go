package hsmtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// The users of every test. Passwords are made up.
const (
	adminName = "admin"
	alice     = "alice"
	bob       = "bob"
)

// world is one cluster with a clock that stands still until it is moved.
type world struct {
	*testing.T
	open    Open
	keyring *hsm.Keyring
	cluster hsm.ClusterID

	mu   sync.Mutex
	time time.Time
}

func newWorld(t *testing.T, open Open) *world {
	return &world{T: t, open: open, keyring: hsm.NewKeyring(), cluster: hsm.NewClusterID(), time: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.time
}

func (w *world) advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.time = w.time.Add(d)
}

// node is one HSM of the world.
type node struct {
	w    *world
	id   hsm.HSMID
	mods Modules
}

// empty opens an HSM without users.
func (w *world) empty() *node {
	w.Helper()
	return w.openWith(w.keyring, w.cluster)
}

func (w *world) openWith(k *hsm.Keyring, c hsm.ClusterID) *node {
	w.Helper()
	id := hsm.NewHSMID()
	mods := w.open(w.T, Config{
		ID: id, Cluster: c, Keyring: k, CA: hsm.NewSecret([]byte("certificate authority")), Now: w.now, Iterations: 2, Seal: sealForTest,
	})
	return &node{w: w, id: id, mods: mods}
}

// sealForTest shows what was sealed to whom, without showing it.
func sealForTest(_ context.Context, secret hsm.Secret, custodians []string, threshold int) ([]byte, error) {
	return fmt.Appendf(nil, "%x to %d of %s", sha256.Sum256(secret.Reveal()), threshold, strings.Join(custodians, "+")), nil
}

// node opens an HSM with an admin, and crypto users alice and bob.
func (w *world) node() *node {
	w.Helper()
	n := w.empty()
	w.must(n.hsm().Change(n.ctx(), hsm.Change{Kind: hsm.ChangeUserCreate, User: adminName, Role: hsm.RoleAdmin, Password: password(adminName)}))
	for _, name := range []string{alice, bob} {
		w.must(n.admin().Change(n.ctx(), hsm.Change{Kind: hsm.ChangeUserCreate, User: name, Role: hsm.RoleCryptoUser, Password: password(name)}))
	}
	return n
}

func password(name string) hsm.Secret { return hsm.NewSecret([]byte("password of " + name)) }

func (w *world) must(_ hsm.MaskedObject, err error) {
	w.Helper()
	w.ok(err)
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// want fails the test unless err is the wanted one.
func (w *world) want(what string, err, want error) {
	w.Helper()
	if !errors.Is(err, want) {
		w.Errorf("%s: %v, want: %v", what, err, want)
	}
}

func (n *node) ctx() context.Context { return n.w.Context() }

// session opens a session without login.
func (n *node) session(role hsm.Role, name string) hsm.Session {
	n.w.Helper()
	s, err := n.mods(hsm.Principal{Role: role, Name: name}).Session(n.ctx())
	n.w.ok(err)
	n.w.Cleanup(func() { _ = s.Close() }) // it may be closed already
	return s
}

func (n *node) hsm() hsm.Session       { return n.session(hsm.RoleHSM, n.id.String()) }
func (n *node) appliance() hsm.Session { return n.session(hsm.RoleAppliance, "appliance") }
func (n *node) nobody() hsm.Session    { return n.session(hsm.RoleNone, "") }

func (n *node) module() hsm.Module { return n.mods(hsm.Principal{}) }

func (n *node) login(role hsm.Role, name string) hsm.Session {
	n.w.Helper()
	s, _, err := n.module().Login(n.ctx(), role, name, password(name))
	n.w.ok(err)
	n.w.Cleanup(func() { _ = s.Close() })
	return s
}

func (n *node) admin() hsm.Session           { return n.login(hsm.RoleAdmin, adminName) }
func (n *node) user(name string) hsm.Session { return n.login(hsm.RoleCryptoUser, name) }

// tryLogin returns the error of a login.
func (n *node) tryLogin(role hsm.Role, name string, pw hsm.Secret) error {
	s, _, err := n.module().Login(n.ctx(), role, name, pw)
	if err == nil {
		_ = s.Close()
	}
	return err
}

func newOp() (op hsm.OpID) {
	rand.Read(op[:])
	return op
}

// create makes token keys, or session keys, and commits them.
func (n *node) create(s hsm.Session, r hsm.CreateRequest) []hsm.KeyInfo {
	n.w.Helper()
	keys, err := n.tryCreate(s, r)
	n.w.ok(err)
	return keys
}

func (n *node) tryCreate(s hsm.Session, r hsm.CreateRequest) ([]hsm.KeyInfo, error) {
	op := newOp()
	made, err := s.Create(n.ctx(), op, r)
	if err != nil || !r.Token {
		return made.Keys, err
	}
	return made.Keys, s.Commit(n.ctx(), op)
}

// aes makes a token key with some attributes set to true.
func (n *node) aes(s hsm.Session, flags ...string) hsm.KeyInfo {
	n.w.Helper()
	return n.create(s, aesRequest(flags...))[0]
}

func aesRequest(flags ...string) hsm.CreateRequest {
	return hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32, Attributes: trues(flags...)}
}

func trues(flags ...string) map[string]string {
	m := map[string]string{}
	for _, f := range flags {
		m[f] = "true"
	}
	return m
}

// ec makes a P-256 pair that signs.
func (n *node) ec(s hsm.Session) (private, public hsm.KeyInfo) {
	n.w.Helper()
	keys := n.create(s, hsm.CreateRequest{
		Method: hsm.MethodGenerate, Token: true, Type: "ec", Curve: "secp256r1", Attributes: trues("sign", "derive"), Public: trues("verify"),
	})
	return keys[0], keys[1]
}

// objects lists a source; it must ascend by reference.
func (w *world) objects(s hsm.Source) map[hsm.KeyRef]hsm.Object {
	w.Helper()
	all, last := map[hsm.KeyRef]hsm.Object{}, hsm.KeyRef(0)
	for o, err := range s.Objects(w.Context()) {
		w.ok(err)
		if o.Ref <= last {
			w.Errorf("%s follows %s: the listing does not ascend", o.Ref, last)
		}
		all[o.Ref], last = o, o.Ref
	}
	return all
}

// extract reads objects.
func (w *world) extract(s hsm.Source, refs ...hsm.KeyRef) []hsm.MaskedObject {
	w.Helper()
	var all []hsm.MaskedObject
	for m, err := range s.Extract(w.Context(), slices.Values(refs)) {
		w.ok(err)
		all = append(all, m)
	}
	return all
}

func (w *world) extractOne(s hsm.Source, ref hsm.KeyRef) hsm.MaskedObject {
	w.Helper()
	all := w.extract(s, ref)
	if len(all) != 1 {
		w.Fatalf("extract %s: %d objects, want 1", ref, len(all))
	}
	return all[0]
}

// insert inserts objects.
func (w *world) insert(r hsm.Replica, objects ...hsm.MaskedObject) (hsm.Inserted, error) {
	return r.Insert(w.Context(), each(objects))
}

func each(objects []hsm.MaskedObject) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		for _, m := range objects {
			if !yield(m, nil) {
				return
			}
		}
	}
}

// sync copies everything from one HSM to another.
func (w *world) sync(from, to *node) {
	w.Helper()
	for _, scope := range []hsm.Scope{hsm.ScopeLineage, hsm.ScopeCluster} {
		source, dest := from.hsm().Scoped(scope), to.hsm().Scoped(scope)
		all := func(yield func(hsm.KeyRef) bool) {
			for ref := range w.objects(source) {
				if !yield(ref) {
					return
				}
			}
		}
		if _, err := dest.Insert(w.Context(), source.Extract(w.Context(), all)); err != nil {
			w.Fatal(err)
		}
	}
}

// visible tells whether a session sees a key, by all means it has.
func (w *world) visible(s hsm.Session, ref hsm.KeyRef) bool {
	w.Helper()
	_, err := s.Key(w.Context(), ref)
	listed := false
	for k, err := range s.Keys(w.Context(), hsm.Filter{}) {
		w.ok(err)
		listed = listed || k.Ref == ref
	}
	if listed != (err == nil) {
		w.Errorf("key %s: listed %t, but Key answers %v", ref, listed, err)
	}
	return listed
}

// mask masks a record made by the test, with its birth counted.
func (w *world) mask(r *hsm.Record) hsm.MaskedObject {
	w.Helper()
	var err error
	r.Birth, err = w.keyring.Birth(r)
	w.ok(err)
	m, err := w.keyring.Mask(r)
	w.ok(err)
	return m
}

// key makes the record of an AES key by hand.
func (w *world) key(ref hsm.KeyRef, owner string, at time.Time) *hsm.Record {
	material := make([]byte, 32)
	rand.Read(material)
	stamp := hsm.Stamp{Time: uint64(at.UnixMilli()) << 16, HSM: 1}
	r := &hsm.Record{
		Kind: hsm.KindKey, Ref: ref, Registers: map[string]hsm.Register{}, Hidden: map[string]hsm.Register{}, Material: hsm.NewSecret(material),
		Core: hsm.Core{Class: hsm.ClassSecret, Type: "aes", Size: 32, Origin: hsm.MethodGenerate, Created: stamp, Owner: owner},
	}
	for name, v := range hsm.DefaultAttributes(hsm.ClassSecret, "aes") {
		a, err := hsm.LookupAttribute(name)
		w.ok(err)
		value, err := hsm.ParseAttribute(a, v)
		w.ok(err)
		r.Set(hsm.AttributeRegister(name), value, stamp)
	}
	return r
}

func (w *world) root(s hsm.Sketcher) hsm.Root {
	w.Helper()
	root, err := s.Root(w.Context())
	w.ok(err)
	return root
}

// equal fails the test unless got is what is wanted.
func (w *world) equal(what string, got, want any) {
	w.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		w.Errorf("%s (-want +got):\n%s", what, diff)
	}
}
