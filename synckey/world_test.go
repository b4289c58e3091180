package synckey

import (
	"context"
	"crypto/rand"
	"fmt"
	"iter"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// region is a cluster of software HSMs in this process.
type region struct {
	t       testing.TB
	name    string
	id      hsm.ClusterID
	keyring *hsm.Keyring
	boxes   []*box
}

// box is one HSM and the network to it.
type box struct {
	id   hsm.HSMID
	soft *soft.HSM
	down atomic.Bool
	old  atomic.Bool                               // it does not know rivals
	hook atomic.Pointer[func(method string) error] // asked before each call
	lost atomic.Pointer[func(method string) error] // asked after each call that writes
	seen atomic.Pointer[insertWatch]               // sees each insertion
}

const (
	password  = "the-password"
	appliance = "" // a login name for open
	admin     = "root"
)

// newRegion starts a cluster with the admin root and the crypto users alice and
// bob, on all HSMs.
func newRegion(t testing.TB, hsms int) *region {
	r := start(t, "east", hsm.NewKeyring(), hsms)
	for _, c := range []hsm.Change{
		{Kind: hsm.ChangeUserCreate, User: admin, Role: hsm.RoleAdmin, Password: secret(password)},
		{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 1}},
	} {
		r.put([]hsm.MaskedObject{r.must(r.peer(0).Change(context.Background(), c))})
	}
	r.user("alice")
	r.user("bob")
	return r
}

// start starts a cluster that holds nothing.
func start(t testing.TB, name string, keyring *hsm.Keyring, hsms int) *region {
	r := &region{t: t, name: name, id: hsm.NewClusterID(), keyring: keyring}
	for range hsms {
		b := &box{id: hsm.NewHSMID()}
		h, err := soft.Open(soft.Options{Dir: "store", FS: vfs.NewMem(), ID: b.id, Cluster: r.id, ClusterName: name, Region: name, Version: "test", Keyring: keyring, Iterations: 1})
		if err != nil {
			t.Fatal(err)
		}
		b.soft = h
		r.boxes = append(r.boxes, b)
		t.Cleanup(func() { h.Close() })
	}
	return r
}

// clone starts another cluster of the lineage with what r holds now.
func (r *region) clone(hsms int) *region {
	r.t.Helper()
	c := start(r.t, "west", r.keyring, hsms)
	for i := range c.boxes {
		if _, err := reconcile.Copy(context.Background(), r.peer(0), c.peer(i)); err != nil {
			r.t.Fatal(err)
		}
	}
	return c
}

// stop ends all HSMs before the test does.
func (r *region) stop() {
	for _, b := range r.boxes {
		b.soft.Close()
	}
}

func secret(s string) hsm.Secret { return hsm.NewSecret([]byte(s)) }

func (r *region) must(m hsm.MaskedObject, err error) hsm.MaskedObject {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// as is a session on one HSM, past the network.
func (r *region) as(i int, role hsm.Role, name string) hsm.Session {
	r.t.Helper()
	s, err := r.boxes[i].soft.Module(hsm.Principal{Role: role, Name: name}).Session(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *region) peer(i int) hsm.Session { return r.as(i, hsm.RoleHSM, "peer") }

// change changes something on one HSM as a user.
func (r *region) changeOn(i int, role hsm.Role, name string, c hsm.Change) hsm.MaskedObject {
	r.t.Helper()
	return r.must(r.as(i, role, name).Change(context.Background(), c))
}

// put inserts objects on the HSMs named, or on all.
func (r *region) put(objects []hsm.MaskedObject, on ...int) {
	r.t.Helper()
	for i := range r.boxes {
		if len(on) > 0 && !slices.Contains(on, i) {
			continue
		}
		if _, err := r.peer(i).Insert(context.Background(), all(objects)); err != nil {
			r.t.Fatal(err)
		}
	}
}

func all(objects []hsm.MaskedObject) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		for _, m := range objects {
			if !yield(m, nil) {
				return
			}
		}
	}
}

var clock = hsm.NewClock(hsm.NewHSMID(), time.Now)

// birth makes a masked AES key of some owner, shared with users.
func (r *region) birth(ref hsm.KeyRef, owner, label string, shares ...string) hsm.MaskedObject {
	r.t.Helper()
	material := make([]byte, 32)
	rand.Read(material)
	at := clock.Next()
	k := &hsm.Record{
		Kind: hsm.KindKey, Ref: ref,
		Core:      hsm.Core{Class: hsm.ClassSecret, Type: "aes", Size: len(material), Origin: hsm.MethodGenerate, Created: at, Owner: owner, SensitiveAtBirth: true},
		Registers: map[string]hsm.Register{}, Hidden: map[string]hsm.Register{}, Material: hsm.NewSecret(material),
	}
	for _, flag := range []string{"destroyable", "modifiable", "encrypt", "sensitive"} {
		k.Set(hsm.AttributeRegister(flag), hsm.BoolValue(true), at)
	}
	k.Set(hsm.AttributeRegister("label"), []byte(label), at)
	for _, user := range shares {
		k.Set(hsm.ShareRegister(user), hsm.BoolValue(true), at)
	}
	var err error
	if k.Birth, err = r.keyring.Birth(k); err != nil {
		r.t.Fatal(err)
	}
	return r.must(r.keyring.Mask(k))
}

// keys makes n keys of alice on all HSMs.
func (r *region) keys(n int) (refs []hsm.KeyRef) {
	r.t.Helper()
	var made []hsm.MaskedObject
	for i := range n {
		m := r.birth(hsm.NewKeyRef(), "alice", fmt.Sprintf("key %d", i))
		made, refs = append(made, m), append(refs, m.Ref)
	}
	r.put(made)
	return refs
}

// key makes one key on the HSMs named, or on all.
func (r *region) key(owner, label string, on ...int) hsm.KeyRef {
	r.t.Helper()
	m := r.birth(hsm.NewKeyRef(), owner, label)
	r.put([]hsm.MaskedObject{m}, on...)
	return m.Ref
}

func (r *region) user(name string) {
	r.t.Helper()
	r.put([]hsm.MaskedObject{r.changeOn(0, hsm.RoleAdmin, admin, hsm.Change{Kind: hsm.ChangeUserCreate, User: name, Role: hsm.RoleCryptoUser, Password: secret(password)})})
}

func (r *region) deleteUser(name string) {
	r.t.Helper()
	r.put([]hsm.MaskedObject{r.changeOn(0, hsm.RoleAdmin, admin, hsm.Change{Kind: hsm.ChangeUserDelete, User: name})})
}

func (r *region) setPassword(name, to string) {
	r.t.Helper()
	r.put([]hsm.MaskedObject{r.changeOn(0, hsm.RoleAdmin, admin, hsm.Change{Kind: hsm.ChangeUserPassword, User: name, Password: secret(to)})})
}

func (r *region) setLabel(ref hsm.KeyRef, label string, on ...int) {
	r.t.Helper()
	r.put([]hsm.MaskedObject{r.changeOn(first(on), hsm.RoleCryptoUser, "alice", hsm.Change{Kind: hsm.ChangeAttribute, Ref: ref, Name: "label", Value: label})}, on...)
}

func (r *region) share(ref hsm.KeyRef, user string) {
	r.t.Helper()
	r.put([]hsm.MaskedObject{r.changeOn(0, hsm.RoleCryptoUser, "alice", hsm.Change{Kind: hsm.ChangeShare, Ref: ref, User: user})})
}

func (r *region) destroy(owner string, ref hsm.KeyRef, on ...int) {
	r.t.Helper()
	r.put([]hsm.MaskedObject{r.changeOn(first(on), hsm.RoleCryptoUser, owner, hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})}, on...)
}

// revive is what an operator does who asks for a destroyed key by name: the
// object as it was, in its next incarnation.
func (r *region) revive(m hsm.MaskedObject) {
	r.t.Helper()
	rec, err := r.keyring.Unmask(m)
	if err != nil {
		r.t.Fatal(err)
	}
	rec.Incarnation++
	r.put([]hsm.MaskedObject{r.must(r.keyring.Mask(rec))})
}

func first(on []int) int {
	if len(on) == 0 {
		return 0
	}
	return on[0]
}

// get returns one object of one HSM; without bytes if it holds none.
func (r *region) get(i int, ref hsm.KeyRef) (m hsm.MaskedObject) {
	r.t.Helper()
	for o, err := range r.peer(i).Extract(context.Background(), slices.Values([]hsm.KeyRef{ref})) {
		if err != nil {
			r.t.Fatal(err)
		}
		m = o
	}
	return m
}

// sync is server-side sync: every HSM pulls from every other.
func (r *region) sync() {
	r.t.Helper()
	for i := range r.boxes {
		for j := range r.boxes {
			if i == j {
				continue
			}
			if _, err := reconcile.Sync(context.Background(), r.peer(j), r.peer(i)); err != nil {
				r.t.Fatal(err)
			}
		}
	}
}

func (r *region) root(i int) hsm.Root {
	r.t.Helper()
	root, err := r.peer(i).Root(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	return root
}

// equal tells whether all HSMs of both regions hold the same.
func equal(a, b *region) bool {
	for _, r := range []*region{a, b} {
		for i := range r.boxes {
			if r.root(i) != a.root(0) {
				return false
			}
		}
	}
	return true
}

func (r *region) profile() *profile.Profile {
	p := &profile.Profile{Name: r.name, ID: r.id, Lineage: r.keyring.Lineage(), Region: r.name, MinCopies: 1}
	for i, b := range r.boxes {
		p.HSMs = append(p.HSMs, profile.HSM{ID: b.id, Name: fmt.Sprintf("hsm-%d", i+1), Address: fmt.Sprintf("hsm-%d:2223", i+1)})
	}
	return p
}

// open connects as the appliance, or as a user.
func (r *region) open(name string, opts ...cluster.Option) *cluster.Cluster {
	r.t.Helper()
	cred := cluster.Credential{Name: name, Password: secret(password)}
	switch name {
	case appliance:
		cred.Role = hsm.RoleAppliance
	case admin:
		cred.Role = hsm.RoleAdmin
	default:
		cred.Role = hsm.RoleCryptoUser
	}
	c, err := cluster.Open(context.Background(), r.profile(), cred, append([]cluster.Option{cluster.WithDialer(r.dial)}, opts...)...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

func (r *region) dial(_ context.Context, m hsm.Member) (hsm.Module, error) {
	for _, b := range r.boxes {
		if b.id == m.ID {
			return wire{Module: b.soft.Module(hsm.Principal{Role: hsm.RoleAppliance, Name: "backup"}), b: b}, nil
		}
	}
	return nil, fmt.Errorf("%w: nobody at %s", hsm.ErrUnavailable, m.Address)
}

// call says what becomes of a call to the HSM.
func (b *box) call(method string) error {
	if hook := b.hook.Load(); hook != nil {
		if err := (*hook)(method); err != nil {
			return err
		}
	}
	if b.down.Load() {
		return fmt.Errorf("%w: %s does not answer", hsm.ErrUnavailable, b.id)
	}
	return nil
}

// onAnswer has f say what becomes of the answer to a call that writes.
func (b *box) onAnswer(f func(method string) error) { b.lost.Store(&f) }

// heal mends the network to all HSMs.
func (r *region) heal() {
	for _, b := range r.boxes {
		b.down.Store(false)
		b.hook.Store(nil)
		b.lost.Store(nil)
	}
}

func (b *box) onCall(f func(method string) error) { b.hook.Store(&f) }

// wire is the network to one HSM.
type wire struct {
	hsm.Module
	b *box
}

func (w wire) Login(ctx context.Context, role hsm.Role, name string, p hsm.Secret) (hsm.Session, hsm.Secret, error) {
	if err := w.b.call("Login"); err != nil {
		return nil, hsm.Secret{}, err
	}
	s, ticket, err := w.Module.Login(ctx, role, name, p)
	return wired{s, w.b}, ticket, err
}

func (w wire) Redeem(ctx context.Context, ticket hsm.Secret) (hsm.Session, error) {
	if err := w.b.call("Redeem"); err != nil {
		return nil, err
	}
	s, err := w.Module.Redeem(ctx, ticket)
	return wired{s, w.b}, err
}

func (w wire) Session(ctx context.Context) (hsm.Session, error) {
	if err := w.b.call("Session"); err != nil {
		return nil, err
	}
	s, err := w.Module.Session(ctx)
	return wired{s, w.b}, err
}

// wired is a session across the network.
type wired struct {
	hsm.Session
	b *box
}

func (s wired) Info(ctx context.Context) (hsm.Info, error) {
	if err := s.b.call("Info"); err != nil {
		return hsm.Info{}, err
	}
	info, err := s.Session.Info(ctx)
	if s.b.old.Load() {
		info.Format = 0
	}
	return info, err
}

func (s wired) Change(ctx context.Context, c hsm.Change) (hsm.MaskedObject, error) {
	if err := s.b.call("Change"); err != nil {
		return hsm.MaskedObject{}, err
	}
	m, err := s.Session.Change(ctx, c)
	if after := s.b.lost.Load(); after != nil && err == nil {
		err = (*after)("Change")
	}
	return m, err
}

func (s wired) Sign(ctx context.Context, p hsm.Purpose, m []byte) (hsm.LineageSignature, error) {
	if err := s.b.call("Sign"); err != nil {
		return hsm.LineageSignature{}, err
	}
	return s.Session.Sign(ctx, p, m)
}

func (s wired) Root(ctx context.Context) (hsm.Root, error) {
	if err := s.b.call("Root"); err != nil {
		return hsm.Root{}, err
	}
	return s.Session.Root(ctx)
}

func (s wired) Users(ctx context.Context) ([]hsm.UserInfo, error) {
	if err := s.b.call("Users"); err != nil {
		return nil, err
	}
	return s.Session.Users(ctx)
}

func (s wired) Insert(ctx context.Context, in iter.Seq2[hsm.MaskedObject, error]) (hsm.Inserted, error) {
	if err := s.b.call("Insert"); err != nil {
		return hsm.Inserted{}, err
	}
	if w := s.b.seen.Load(); w != nil {
		var objects []hsm.MaskedObject
		for m, err := range in {
			if err != nil {
				return hsm.Inserted{}, err
			}
			objects = append(objects, m)
		}
		defer w.begin(objects)()
		in = all(objects)
	}
	done, err := s.Session.Insert(ctx, in)
	if after := s.b.lost.Load(); after != nil && err == nil {
		err = (*after)("Insert")
	}
	return done, err
}

func (s wired) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return pass(s.b, "Cells", s.Session.Cells(ctx, from))
}

func (s wired) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return pass(s.b, "Objects", s.Session.Objects(ctx))
}

func (s wired) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return pass(s.b, "Extract", s.Session.Extract(ctx, refs))
}

func pass[T any](b *box, method string, in iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		if err := b.call(method); err != nil {
			var none T
			yield(none, err)
			return
		}
		in(yield)
	}
}

// run is Run without the wait for a server-side sync that these regions do not
// have.
func run(ctx context.Context, src, dst *cluster.Cluster, o Options) (*Result, error) {
	p, err := NewPlan(ctx, src, dst, o)
	if err != nil {
		return nil, err
	}
	p.settle = 0
	if err := p.Apply(ctx); err != nil {
		return p.Result, err
	}
	return p.Result, p.Check(ctx)
}

// pair is two regions of one lineage and the appliance's connections to them.
type pair struct {
	a, b     *region
	src, dst *cluster.Cluster
}

// newPair makes a region with some keys and its clone.
func newPair(t testing.TB) *pair {
	a := newRegion(t, 2)
	a.keys(5)
	b := a.clone(2)
	return &pair{a, b, a.open(appliance), b.open(appliance)}
}

func (p *pair) run(t testing.TB, o Options) *Result {
	t.Helper()
	r, err := run(context.Background(), p.src, p.dst, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := check(r); err != nil {
		t.Error(err)
	}
	return r
}

// check checks what holds of every finished result.
func check(r *Result) error {
	if r.RootsEqual != (r.Remaining == 0) {
		return fmt.Errorf("roots equal: %t, and %d objects remain", r.RootsEqual, r.Remaining)
	}
	if r.Remaining <= maxLeft && len(r.Left) != r.Remaining {
		return fmt.Errorf("%d objects remain, and the list has %d: %v", r.Remaining, len(r.Left), r.Left)
	}
	return nil
}
