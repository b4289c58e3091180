package cluster

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// fault is what becomes of one call to one HSM.
type fault int

const (
	pass    fault = iota
	drop          // not done, and hsm.ErrUnavailable
	lose          // done, and hsm.ErrUnavailable all the same
	hang          // not done, and no answer until the caller gives up
	kill          // the HSM dies before the call
	killing       // the HSM does the call and dies before it answers
	full          // the HSM refuses: its disk is full
)

var faultNames = map[fault]string{pass: "pass", drop: "drop", lose: "lose", hang: "hang", kill: "kill", killing: "killing", full: "full"}

func (f fault) String() string { return faultNames[f] }

// world is a cluster of software HSMs in this process, with a network between
// them and their client that can fail.
type world struct {
	t        testing.TB
	cluster  hsm.ClusterID
	keyring  *hsm.Keyring
	boxes    []*box
	ahead    atomic.Int64 // how far the HSMs' clocks are ahead
	faults   atomic.Pointer[func(b *box, call string) fault]
	calls    atomic.Int64
	underWay atomic.Int64 // calls to HSMs
}

// box is one HSM process: it can be killed and started again.
type box struct {
	w      *world
	member hsm.Member
	fs     vfs.FS
	dir    string
	away   atomic.Bool // cut off from its clients and peers

	power  sync.Mutex // held while it is started or killed
	mu     sync.Mutex
	soft   *soft.HSM // nil while it is down
	life   int
	logins atomic.Int64
	skew   atomic.Int64  // how far its clock is ahead of the others'
	leaves atomic.Bool   // as it was told itself
	since  atomic.Uint64 // its departure
}

const (
	adminName, adminPassword = "root", "root-password"
	userName, userPassword   = "bob", "bob-password"
)

func newWorld(t testing.TB, hsms, minCopies int, check bool) *world {
	return newWorldOf(t, hsm.NewKeyring(), hsms, minCopies, check)
}

// newWorldOf makes a cluster of a lineage.
func newWorldOf(t testing.TB, keyring *hsm.Keyring, hsms, minCopies int, check bool) *world {
	w := &world{t: t, cluster: hsm.NewClusterID(), keyring: keyring}
	w.setFaults(nil)
	for i := range hsms {
		m := hsm.Member{ID: hsm.NewHSMID(), Name: fmt.Sprintf("hsm-%d", i+1), Address: fmt.Sprintf("hsm-%d:2223", i+1), Zone: fmt.Sprintf("zone-%d", i+1)}
		w.boxes = append(w.boxes, &box{w: w, member: m, fs: memFS()})
	}
	slices.SortFunc(w.boxes, func(a, b *box) int {
		if a.member.ID < b.member.ID {
			return -1
		}
		return 1
	})
	for _, b := range w.boxes {
		b.start()
	}
	w.fill(minCopies, check)
	t.Cleanup(w.stop)
	return w
}

// fill makes the first objects of a cluster.
func (w *world) fill(minCopies int, check bool) {
	first := w.boxes[0].peer()
	for _, b := range w.boxes {
		w.change(first, hsm.Change{Kind: hsm.ChangeMember, Member: &b.member})
	}
	w.change(first, hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: minCopies, CheckOnUse: check}})
	w.change(first, hsm.Change{Kind: hsm.ChangeUserCreate, User: adminName, Role: hsm.RoleAdmin, Password: secret(adminPassword)})
	admin := w.boxes[0].as(hsm.RoleAdmin, adminName)
	w.change(admin, hsm.Change{Kind: hsm.ChangeUserCreate, User: userName, Role: hsm.RoleCryptoUser, Password: secret(userPassword)})
	w.sync()
}

func secret(s string) hsm.Secret { return hsm.NewSecret([]byte(s)) }

func (w *world) change(s hsm.Session, c hsm.Change) {
	w.t.Helper()
	if _, err := s.Change(context.Background(), c); err != nil {
		w.t.Fatalf("%s: %v", c.Kind, err)
	}
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

func (b *box) now() time.Time { return b.w.now().Add(time.Duration(b.skew.Load())) }

func (w *world) stop() {
	for _, b := range w.boxes {
		b.kill()
	}
}

func (w *world) setFaults(f func(b *box, call string) fault) {
	if f == nil {
		f = func(*box, string) fault { return pass }
	}
	w.faults.Store(&f)
}

// start starts the process on its disk.
func (b *box) start() {
	b.power.Lock()
	defer b.power.Unlock()
	if h, _ := b.running(); h != nil {
		return
	}
	h, err := soft.Open(soft.Options{
		Dir: cmp.Or(b.dir, "store"), FS: b.fs, ID: b.member.ID, Cluster: b.w.cluster, ClusterName: "test", Region: "here", Zone: b.member.Zone,
		Version: "test", Keyring: b.w.keyring, Now: b.now, Iterations: 1,
	})
	if err != nil {
		b.w.t.Fatalf("start %s: %v", b.member.Name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.soft = h
	b.life++
}

// kill ends the process. What it has acknowledged is on its disk.
func (b *box) kill() {
	b.power.Lock()
	defer b.power.Unlock()
	b.mu.Lock()
	h := b.soft
	b.soft = nil
	b.mu.Unlock()
	if h != nil {
		h.Close()
	}
}

// running returns the process and which one it is.
func (b *box) running() (*soft.HSM, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.soft, b.life
}

// peer is a session with the rights of another HSM, past the network.
func (b *box) peer() hsm.Session { return b.as(hsm.RoleHSM, b.member.ID.String()) }

// as is a session of anyone, past the network.
func (b *box) as(role hsm.Role, name string) hsm.Session {
	b.w.t.Helper()
	h, _ := b.running()
	s, err := h.Module(hsm.Principal{Role: role, Name: name}).Session(context.Background())
	if err != nil {
		b.w.t.Fatal(err)
	}
	return s
}

// network says what becomes of a call, having let it pass or not.
func (b *box) network(ctx context.Context, name string, life int, call func() error) error {
	b.w.calls.Add(1)
	b.w.underWay.Add(1)
	defer b.w.underWay.Add(-1)
	f := (*b.w.faults.Load())(b, name)
	h, now := b.running()
	gone := fmt.Errorf("%w: %s does not answer", hsm.ErrUnavailable, b.member.Name)
	switch {
	case b.away.Load() || h == nil || f == drop:
		return gone
	case life != 0 && life != now:
		return fmt.Errorf("%w: %s was started again", hsm.ErrSession, b.member.Name)
	case f == hang:
		<-ctx.Done()
		return ctx.Err()
	case f == kill:
		b.kill()
		return gone
	case f == full:
		return fmt.Errorf("%w: %s", hsm.ErrFull, b.member.Name)
	}
	err := call()
	switch f {
	case lose:
		return gone
	case killing:
		b.kill()
		return gone
	}
	return err
}

// dialer connects to the boxes by address, with the rights of a certificate.
func (w *world) dialer(role hsm.Role) Dialer {
	return func(ctx context.Context, m hsm.Member) (hsm.Module, error) {
		for _, b := range w.boxes {
			if b.member.Address == m.Address {
				return &faultyModule{b: b, role: role}, nil
			}
		}
		return nil, fmt.Errorf("%w: nobody at %s", hsm.ErrUnavailable, m.Address)
	}
}

type faultyModule struct {
	b    *box
	role hsm.Role
}

func (m *faultyModule) enter(ctx context.Context, name string, open func(hsm.Module) (hsm.Session, error)) (hsm.Session, error) {
	var s hsm.Session
	h, life := m.b.running()
	err := m.b.network(ctx, name, life, func() (err error) {
		s, err = open(h.Module(hsm.Principal{Role: m.role, Name: "test"}))
		return err
	})
	if err != nil {
		return nil, err
	}
	return &faultySession{inner: s, b: m.b, life: life}, nil
}

func (m *faultyModule) Login(ctx context.Context, role hsm.Role, name string, password hsm.Secret) (hsm.Session, hsm.Secret, error) {
	var ticket hsm.Secret
	m.b.logins.Add(1)
	s, err := m.enter(ctx, "Login", func(inner hsm.Module) (s hsm.Session, err error) {
		s, ticket, err = inner.Login(ctx, role, name, password)
		return s, err
	})
	return s, ticket, err
}

func (m *faultyModule) LoginMFA(ctx context.Context, role hsm.Role, name string, password hsm.Secret, factor hsm.SecondFactor) (hsm.Session, hsm.Secret, error) {
	var ticket hsm.Secret
	m.b.logins.Add(1)
	s, err := m.enter(ctx, "LoginMFA", func(inner hsm.Module) (s hsm.Session, err error) {
		s, ticket, err = inner.(hsm.MFA).LoginMFA(ctx, role, name, password, factor)
		return s, err
	})
	return s, ticket, err
}

func (m *faultyModule) Redeem(ctx context.Context, ticket hsm.Secret) (hsm.Session, error) {
	return m.enter(ctx, "Redeem", func(inner hsm.Module) (hsm.Session, error) { return inner.Redeem(ctx, ticket) })
}

func (m *faultyModule) Session(ctx context.Context) (hsm.Session, error) {
	return m.enter(ctx, "Session", func(inner hsm.Module) (hsm.Session, error) { return inner.Session(ctx) })
}

func (m *faultyModule) Close() error { return nil }

// faultySession is a session across the network.
type faultySession struct {
	inner hsm.Session
	b     *box
	life  int
	scope hsm.SketchReplica // nil: the lineage
}

func through[T any](ctx context.Context, s *faultySession, name string, f func() (T, error)) (T, error) {
	var v T
	err := s.b.network(ctx, name, s.life, func() (err error) {
		v, err = f()
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return v, nil
}

func stream[T any](ctx context.Context, s *faultySession, name string, f func() iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		all, err := through(ctx, s, name, func() ([]T, error) {
			var all []T
			for v, err := range f() {
				if err != nil {
					return nil, err
				}
				all = append(all, v)
			}
			return all, nil
		})
		for _, v := range all {
			if !yield(v, nil) {
				return
			}
		}
		if err != nil {
			var none T
			yield(none, err)
		}
	}
}

func (s *faultySession) replica() hsm.SketchReplica {
	if s.scope != nil {
		return s.scope
	}
	return s.inner
}

func (s *faultySession) Lineage() hsm.Lineage { return s.inner.Lineage() }
func (s *faultySession) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return stream(ctx, s, "Objects", func() iter.Seq2[hsm.Object, error] { return s.replica().Objects(ctx) })
}
func (s *faultySession) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return stream(ctx, s, "Extract", func() iter.Seq2[hsm.MaskedObject, error] { return s.replica().Extract(ctx, refs) })
}
func (s *faultySession) Insert(ctx context.Context, objects iter.Seq2[hsm.MaskedObject, error]) (hsm.Inserted, error) {
	return through(ctx, s, "Insert", func() (hsm.Inserted, error) { return s.replica().Insert(ctx, objects) })
}
func (s *faultySession) FingerprintKeys(ctx context.Context) (hsm.FingerprintKeys, error) {
	return through(ctx, s, "FingerprintKeys", func() (hsm.FingerprintKeys, error) { return s.replica().FingerprintKeys(ctx) })
}
func (s *faultySession) Root(ctx context.Context) (hsm.Root, error) {
	return through(ctx, s, "Root", func() (hsm.Root, error) { return s.replica().Root(ctx) })
}
func (s *faultySession) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return func(yield func(hsm.Cell, error) bool) {
		err := s.b.network(ctx, "Cells", s.life, func() error { return nil })
		if err != nil {
			yield(hsm.Cell{}, err)
			return
		}
		for c, err := range s.replica().Cells(ctx, from) {
			if !yield(c, err) {
				return
			}
		}
	}
}
func (s *faultySession) Prepare(ctx context.Context, op hsm.OpID, lease time.Duration, objects []hsm.MaskedObject) error {
	return s.b.network(ctx, "Prepare", s.life, func() error { return s.inner.Prepare(ctx, op, lease, objects) })
}
func (s *faultySession) Commit(ctx context.Context, op hsm.OpID) error {
	return s.b.network(ctx, "Commit", s.life, func() error { return s.inner.Commit(ctx, op) })
}
func (s *faultySession) Abort(ctx context.Context, op hsm.OpID) error {
	return s.b.network(ctx, "Abort", s.life, func() error { return s.inner.Abort(ctx, op) })
}
func (s *faultySession) Resolve(ctx context.Context, op hsm.OpID) (hsm.OpState, error) {
	return through(ctx, s, "Resolve", func() (hsm.OpState, error) { return s.inner.Resolve(ctx, op) })
}
func (s *faultySession) Principal() hsm.Principal { return s.inner.Principal() }
func (s *faultySession) Info(ctx context.Context) (hsm.Info, error) {
	info, err := through(ctx, s, "Info", func() (hsm.Info, error) { return s.inner.Info(ctx) })
	if err == nil && s.b.leaves.Load() {
		info.State, info.Departure = hsm.StateLeaving, s.b.since.Load()
	}
	return info, err
}
func (s *faultySession) Members(ctx context.Context) ([]hsm.Member, error) {
	return through(ctx, s, "Members", func() ([]hsm.Member, error) { return s.inner.Members(ctx) })
}
func (s *faultySession) Scoped(scope hsm.Scope) hsm.SketchReplica {
	return &faultySession{inner: s.inner, b: s.b, life: s.life, scope: s.inner.Scoped(scope)}
}
func (s *faultySession) Create(ctx context.Context, op hsm.OpID, r hsm.CreateRequest) (hsm.Created, error) {
	return through(ctx, s, "Create", func() (hsm.Created, error) { return s.inner.Create(ctx, op, r) })
}
func (s *faultySession) Change(ctx context.Context, c hsm.Change) (hsm.MaskedObject, error) {
	return through(ctx, s, "Change", func() (hsm.MaskedObject, error) {
		own := c.Kind == hsm.ChangeMember && c.Member.ID == s.b.member.ID
		if own && c.Departure != 0 && (!s.b.leaves.Load() || c.Departure != s.b.since.Load()) {
			return hsm.MaskedObject{}, hsm.ErrLate
		}
		m, err := s.inner.Change(ctx, c)
		if err == nil && own && s.b.leaves.Swap(c.Member.Leaving || c.Member.Removed) != c.Member.Leaving {
			s.b.since.Add(1)
		}
		return m, err
	})
}
func (s *faultySession) Use(ctx context.Context, u hsm.Use) ([]byte, error) {
	return through(ctx, s, "Use", func() ([]byte, error) { return s.inner.Use(ctx, u) })
}
func (s *faultySession) Keys(ctx context.Context, f hsm.Filter) iter.Seq2[hsm.KeyInfo, error] {
	return stream(ctx, s, "Keys", func() iter.Seq2[hsm.KeyInfo, error] { return s.inner.Keys(ctx, f) })
}
func (s *faultySession) Key(ctx context.Context, ref hsm.KeyRef) (hsm.KeyInfo, error) {
	return through(ctx, s, "Key", func() (hsm.KeyInfo, error) { return s.inner.Key(ctx, ref) })
}
func (s *faultySession) Token(ctx context.Context, service hsm.Service, key hsm.KeyRef) ([]byte, error) {
	return through(ctx, s, "Token", func() ([]byte, error) { return s.inner.Token(ctx, service, key) })
}
func (s *faultySession) Tokens(ctx context.Context) ([]hsm.TokenInfo, error) {
	return through(ctx, s, "Tokens", func() ([]hsm.TokenInfo, error) { return s.inner.Tokens(ctx) })
}
func (s *faultySession) DeleteTokens(ctx context.Context, all bool) (int, error) {
	return through(ctx, s, "DeleteTokens", func() (int, error) { return s.inner.DeleteTokens(ctx, all) })
}
func (s *faultySession) Users(ctx context.Context) ([]hsm.UserInfo, error) {
	return through(ctx, s, "Users", func() ([]hsm.UserInfo, error) { return s.inner.Users(ctx) })
}
func (s *faultySession) Envelope(ctx context.Context, custodians []string, threshold int) ([]byte, error) {
	return through(ctx, s, "Envelope", func() ([]byte, error) { return s.inner.Envelope(ctx, custodians, threshold) })
}
func (s *faultySession) Sign(ctx context.Context, p hsm.Purpose, message []byte) (hsm.LineageSignature, error) {
	return through(ctx, s, "Sign", func() (hsm.LineageSignature, error) { return s.inner.Sign(ctx, p, message) })
}
func (s *faultySession) Close() error { return s.inner.Close() }

// fast are intervals for tests: short between tries, and patient with answers, which a busy
// machine may delay. HSMs that are away say so at once.
var fast = timing{
	connect: 4 * time.Second, call: 4 * time.Second, grace: 2 * time.Second, ready: 2 * time.Second,
	backoffMin: 5 * time.Millisecond, backoffMax: 50 * time.Millisecond,
	refresh: 50 * time.Millisecond, recheck: 50 * time.Millisecond,
	clock: time.Minute, cleanup: 4 * time.Second, close: time.Second,
}

func (w *world) profile() *profile.Profile {
	p := &profile.Profile{Name: "test", ID: w.cluster, Lineage: w.keyring.Lineage(), Region: "here"}
	for _, b := range w.boxes {
		p.HSMs = append(p.HSMs, profile.HSM{ID: b.member.ID, Name: b.member.Name, Address: b.member.Address, Zone: b.member.Zone})
	}
	return p
}

var asUser = Credential{Role: hsm.RoleCryptoUser, Name: userName, Password: secret(userPassword)}
var asAdmin = Credential{Role: hsm.RoleAdmin, Name: adminName, Password: secret(adminPassword)}

// open connects a client, which the test closes at its end.
func (w *world) open(cred Credential, opts ...Option) *Cluster {
	w.t.Helper()
	role := hsm.RoleNone
	if cred.Name == "" {
		role = hsm.RoleAppliance
	}
	c, err := Open(context.Background(), w.profile(), cred, append([]Option{WithDialer(w.dialer(role)), withTiming(fast)}, opts...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// quiet ends the faults, and waits for calls under way: one that has met a fault
// may still kill an HSM.
func (w *world) quiet() {
	w.setFaults(nil)
	for w.underWay.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
}

// heal starts every HSM and mends the network.
func (w *world) heal() {
	w.quiet()
	for _, b := range w.boxes {
		b.away.Store(false)
		b.start()
	}
}

// sync is server-side sync: every HSM pulls from every other.
func (w *world) sync() {
	w.t.Helper()
	for _, to := range w.boxes {
		for _, from := range w.boxes {
			if to == from {
				continue
			}
			for _, scope := range []hsm.Scope{hsm.ScopeCluster, hsm.ScopeLineage} {
				if _, err := reconcile.Sync(context.Background(), from.peer().Scoped(scope), to.peer().Scoped(scope)); err != nil {
					w.t.Fatalf("sync %s from %s: %v", to.member.Name, from.member.Name, err)
				}
			}
		}
	}
}

// settle lets all leases run out and settles operations in doubt by the rule of
// DESIGN.md §7.4: committed anywhere, commit; nowhere, drop.
func (w *world) settle() {
	w.t.Helper()
	w.ahead.Add(int64(time.Hour))
	for _, b := range w.boxes {
		h, _ := b.running()
		for _, p := range h.InDoubt() {
			committed := false
			for _, other := range w.boxes {
				if other == b {
					continue
				}
				state, err := other.peer().Resolve(context.Background(), p.Op)
				if err != nil || state == hsm.OpPrepared {
					w.t.Fatalf("resolve on %s: %v, %v", other.member.Name, state, err)
				}
				committed = committed || state == hsm.OpCommitted
			}
			if err := h.ResolveAs(context.Background(), p.Op, committed); err != nil {
				w.t.Fatalf("resolve as %t: %v", committed, err)
			}
		}
	}
}

// converge heals the world, lets server-side sync run, and checks that all HSMs
// agree and nothing is in doubt.
func (w *world) converge() {
	w.t.Helper()
	w.heal()
	w.settle()
	w.sync()
	w.sync()
	var root hsm.Root
	for i, b := range w.boxes {
		h, _ := b.running()
		if n := len(h.InDoubt()); n > 0 {
			w.t.Errorf("%s: %d operations in doubt", b.member.Name, n)
		}
		r, err := b.peer().Root(context.Background())
		if err != nil {
			w.t.Fatal(err)
		}
		if i > 0 && r != root {
			w.t.Errorf("roots differ: %v and %v", root, r)
		}
		root = r
	}
}

// keysOn lists the live and destroyed token keys of one HSM.
func (b *box) keysOn() (live, destroyed []hsm.KeyRef) {
	b.w.t.Helper()
	for o, err := range b.peer().Objects(context.Background()) {
		switch {
		case err != nil:
			b.w.t.Fatal(err)
		case o.Kind != hsm.KindKey && !o.Tombstone:
		case o.Tombstone:
			destroyed = append(destroyed, o.Ref)
		default:
			live = append(live, o.Ref)
		}
	}
	return live, destroyed
}

// holders counts the HSMs on which a key is live, those that are down included.
func (w *world) holders(ref hsm.KeyRef) int {
	w.t.Helper()
	n := 0
	for _, b := range w.boxes {
		was, _ := b.running()
		b.start()
		if live, _ := b.keysOn(); slices.Contains(live, ref) {
			n++
		}
		if was == nil {
			b.kill()
		}
	}
	return n
}

// checkGoroutines checks, at the end of the test, that none is left over.
func checkGoroutines(t *testing.T) {
	before := stacks()
	t.Cleanup(func() {
		deadline := time.Now().Add(time.Minute)
		for {
			left := stacks()
			maps.DeleteFunc(left, func(id string, _ string) bool { _, was := before[id]; return was })
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				for _, s := range left {
					t.Errorf("goroutine left over:\n%s", s)
				}
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

// stacks maps the goroutines of this package to their stacks.
func stacks() map[string]string {
	buf := make([]byte, 1<<22)
	buf = buf[:runtime.Stack(buf, true)]
	found := map[string]string{}
	for _, s := range splitStacks(string(buf)) {
		found[s.id] = s.text
	}
	return found
}

func memFS() vfs.FS { return vfs.NewMem() }
