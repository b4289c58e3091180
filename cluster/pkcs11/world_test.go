package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
)

const bobPIN, alicePIN = "bob:bob-password", "alice:alice-password"

// world is a daemon in front of a cluster of HSMs in this process.
type world struct {
	t    testing.TB
	d    *Daemon
	hsms []*soft.HSM
	log  *logBuffer

	mu   sync.Mutex
	away map[string]bool // addresses that do not answer
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newWorld(t testing.TB, hsms int, policy cluster.Policy) *world {
	t.Helper()
	return newWorldWith(t, hsms, policy, nil)
}

// auditFunc is what HSMs tell their audit log.
type auditFunc = func(context.Context, string, hsm.Principal, hsm.KeyRef, string, error)

func newWorldWith(t testing.TB, hsms int, policy cluster.Policy, audit auditFunc) *world {
	t.Helper()
	w := &world{t: t, log: &logBuffer{}, away: map[string]bool{}}
	id, keyring := hsm.NewClusterID(), hsm.NewKeyring()
	p := &profile.Profile{Name: "east", ID: id, Region: "here", Lineage: keyring.Lineage()}
	byAddress := map[string]*soft.HSM{}
	var members []hsm.Member
	for i := range hsms {
		m := hsm.Member{ID: hsm.NewHSMID(), Name: fmt.Sprintf("hsm-%d", i+1), Address: fmt.Sprintf("hsm-%d:2223", i+1), Zone: fmt.Sprintf("zone-%d", i+1)}
		h, err := soft.Open(soft.Options{Dir: t.TempDir(), ID: m.ID, Cluster: id, ClusterName: "east", Region: "here", Zone: m.Zone, Keyring: keyring, Iterations: 1, Audit: audit})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		w.hsms, members, byAddress[m.Address] = append(w.hsms, h), append(members, m), h
		p.HSMs = append(p.HSMs, profile.HSM{ID: m.ID, Name: m.Name, Address: m.Address, Zone: m.Zone})
	}
	w.fill(w.hsms[0], members)
	for _, h := range w.hsms[1:] {
		w.copy(w.hsms[0], h)
	}
	dial := func(_ context.Context, m hsm.Member) (hsm.Module, error) {
		return &module{Module: byAddress[m.Address].Module(hsm.Principal{Role: hsm.RoleNone, Name: "daemon"}), w: w, address: m.Address}, nil
	}
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	d, err := New([]Slot{{Profile: p, Options: []cluster.Option{cluster.WithDialer(dial), cluster.WithPolicy(policy)}}}, log, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.d = d
	return w
}

// copy brings all objects of one HSM to another.
func (w *world) copy(from, to *soft.HSM) {
	w.t.Helper()
	as := hsm.Principal{Role: hsm.RoleHSM, Name: hsm.NewHSMID().String()}
	a, err := from.Module(as).Session(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	defer a.Close()
	b, err := to.Module(as).Session(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	defer b.Close()
	for _, scope := range []hsm.Scope{hsm.ScopeLineage, hsm.ScopeCluster} {
		var refs []hsm.KeyRef
		for o, err := range a.Scoped(scope).Objects(w.t.Context()) {
			if err != nil {
				w.t.Fatal(err)
			}
			refs = append(refs, o.Ref)
		}
		if _, err := b.Scoped(scope).Insert(w.t.Context(), a.Scoped(scope).Extract(w.t.Context(), slices.Values(refs))); err != nil {
			w.t.Fatal(err)
		}
	}
}

// fill makes users and members.
func (w *world) fill(h *soft.HSM, members []hsm.Member) {
	w.t.Helper()
	s, err := h.Module(hsm.Principal{Role: hsm.RoleHSM, Name: members[0].ID.String()}).Session(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	defer s.Close()
	change := func(s hsm.Session, c hsm.Change) {
		w.t.Helper()
		if _, err := s.Change(w.t.Context(), c); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, m := range members {
		change(s, hsm.Change{Kind: hsm.ChangeMember, Member: &m})
	}
	change(s, hsm.Change{Kind: hsm.ChangeUserCreate, User: "root", Role: hsm.RoleAdmin, Password: hsm.NewSecret([]byte("root-password"))})
	admin, err := h.Module(hsm.Principal{Role: hsm.RoleAdmin, Name: "root"}).Session(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	defer admin.Close()
	for _, user := range []string{"bob", "alice"} {
		change(admin, hsm.Change{Kind: hsm.ChangeUserCreate, User: user, Role: hsm.RoleCryptoUser, Password: hsm.NewSecret([]byte(user + "-password"))})
	}
}

// module is an HSM across a network that can be cut.
type module struct {
	hsm.Module
	w       *world
	address string
}

var errAway = fmt.Errorf("%w: it is away", hsm.ErrUnavailable)

func (m *module) cut() bool {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return m.w.away[m.address]
}

func (m *module) wrap(s hsm.Session, err error) (hsm.Session, error) {
	if err != nil {
		return nil, err
	}
	return &cutSession{Session: s, m: m}, nil
}

func (m *module) Login(ctx context.Context, role hsm.Role, name string, password hsm.Secret) (hsm.Session, hsm.Secret, error) {
	if m.cut() {
		return nil, hsm.Secret{}, errAway
	}
	s, ticket, err := m.Module.Login(ctx, role, name, password)
	s, err = m.wrap(s, err)
	return s, ticket, err
}

func (m *module) Redeem(ctx context.Context, ticket hsm.Secret) (hsm.Session, error) {
	if m.cut() {
		return nil, errAway
	}
	return m.wrap(m.Module.Redeem(ctx, ticket))
}

func (m *module) Session(ctx context.Context) (hsm.Session, error) {
	if m.cut() {
		return nil, errAway
	}
	return m.wrap(m.Module.Session(ctx))
}

// cutSession fails what applications do most when its HSM is away.
type cutSession struct {
	hsm.Session
	m *module
}

func (s *cutSession) Use(ctx context.Context, u hsm.Use) ([]byte, error) {
	if s.m.cut() {
		return nil, errAway
	}
	return s.Session.Use(ctx, u)
}

func (s *cutSession) Key(ctx context.Context, ref hsm.KeyRef) (hsm.KeyInfo, error) {
	if s.m.cut() {
		return hsm.KeyInfo{}, errAway
	}
	return s.Session.Key(ctx, ref)
}

func (s *cutSession) Create(ctx context.Context, op hsm.OpID, r hsm.CreateRequest) (hsm.Created, error) {
	if s.m.cut() {
		return hsm.Created{}, errAway
	}
	return s.Session.Create(ctx, op, r)
}

func (s *cutSession) Info(ctx context.Context) (hsm.Info, error) {
	if s.m.cut() {
		return hsm.Info{}, errAway
	}
	return s.Session.Info(ctx)
}

// hsmPrincipal is another HSM of the cluster.
var hsmPrincipal = hsm.Principal{Role: hsm.RoleHSM, Name: hsm.NewHSMID().String()}

func (s *cutSession) Prepare(ctx context.Context, op hsm.OpID, lease time.Duration, objects []hsm.MaskedObject) error {
	if s.m.cut() {
		return errAway
	}
	return s.Session.Prepare(ctx, op, lease, objects)
}

func (s *cutSession) Commit(ctx context.Context, op hsm.OpID) error {
	if s.m.cut() {
		return errAway
	}
	return s.Session.Commit(ctx, op)
}

func (s *cutSession) Abort(ctx context.Context, op hsm.OpID) error {
	if s.m.cut() {
		return errAway
	}
	return s.Session.Abort(ctx, op)
}

func (s *cutSession) Change(ctx context.Context, c hsm.Change) (hsm.MaskedObject, error) {
	if s.m.cut() {
		return hsm.MaskedObject{}, errAway
	}
	return s.Session.Change(ctx, c)
}

// setAway cuts HSMs off, by number from 1.
func (w *world) setAway(hsms ...int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away = map[string]bool{}
	for _, n := range hsms {
		w.away[fmt.Sprintf("hsm-%d:2223", n)] = true
	}
}

// app is an application under test.
type app struct {
	t testing.TB
	*App
}

func (w *world) app() *app { return w.appOf(rpc.FormModule) }

func (w *world) appOf(form rpc.Form) *app {
	a := newApp(w.d, Peer{PID: 1234, UID: 99, Program: "judge"}, form)
	w.t.Cleanup(a.Close)
	return &app{w.t, a}
}

// call makes a call that must succeed.
func (a *app) call(c rpc.Call, args ...any) []any {
	a.t.Helper()
	out, err := a.App.Call(a.t.Context(), c, args)
	if err != nil {
		a.t.Fatalf("%s: %v", c, err)
	}
	return out
}

// want makes a call that must return rv.
func (a *app) want(rv ck.RV, c rpc.Call, args ...any) {
	a.t.Helper()
	_, err := a.App.Call(a.t.Context(), c, args)
	var got ck.RV
	if err != nil && !errors.As(err, &got) {
		a.t.Fatalf("%s: %v, which is no return value", c, err)
	}
	if got != rv {
		a.t.Errorf("%s: %v, want %v", c, got, rv)
	}
}

func (a *app) open(flags uint64) uint64 {
	a.t.Helper()
	return a.call(rpc.OpenSession, uint64(0), flags|ck.SessionSerial)[0].(uint64)
}

// session is a session in which a user is logged in.
func (a *app) session(pin string) uint64 {
	a.t.Helper()
	s := a.open(ck.SessionRW)
	a.call(rpc.Login, s, ck.UserUser, []byte(pin))
	return s
}

func attr(t ck.Attr, v any) rpc.Attribute {
	a := rpc.Attribute{Type: t, Valid: true}
	switch v := v.(type) {
	case bool:
		if v {
			a.Num = 1
		}
	case int:
		a.Num = uint64(v)
	case uint64:
		a.Num = v
	case string:
		a.Bytes = []byte(v)
	case []byte:
		a.Bytes = v
	case []ck.Mech:
		a.Mechs = v
	default:
		panic(v)
	}
	return a
}

func mech(m ck.Mech) rpc.Mechanism { return rpc.Mechanism{Type: m} }

func (a *app) aes(s uint64, attributes ...rpc.Attribute) uint64 {
	a.t.Helper()
	return a.call(rpc.GenerateKey, s, mech(ck.AESKeyGen), append([]rpc.Attribute{attr(ck.ValueLen, 32)}, attributes...))[0].(uint64)
}

func (a *app) pair(s uint64, m ck.Mech, public, private []rpc.Attribute) (pub, priv uint64) {
	a.t.Helper()
	out := a.call(rpc.GenerateKeyPair, s, mech(m), public, private)
	return out[0].(uint64), out[1].(uint64)
}

// value reads one attribute.
func (a *app) value(s, object uint64, t ck.Attr) (rpc.Attribute, ck.RV) {
	a.t.Helper()
	out := a.call(rpc.GetAttributeValue, s, object, []rpc.AttributeRoom{{Type: t, Room: 4096}})
	return out[0].([]rpc.Attribute)[0], ck.RV(out[1].(uint64))
}

func (a *app) find(s uint64, template ...rpc.Attribute) []uint64 {
	a.t.Helper()
	a.call(rpc.FindObjectsInit, s, template)
	found := a.call(rpc.FindObjects, s, rpc.Room{N: 100})[0].([]uint64)
	a.call(rpc.FindObjectsFinal, s)
	return slices.Clone(found)
}

var room = rpc.Room{N: 1 << 20}

func (a *app) crypt(kind rpc.Call, s uint64, m rpc.Mechanism, key uint64, data []byte) []byte {
	a.t.Helper()
	a.call(kind, s, m, key)
	return a.call(kind+1, s, data, room)[0].([]byte)
}
