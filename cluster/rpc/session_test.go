package rpc

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/metadata"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

var aesKey = hsm.CreateRequest{Method: hsm.MethodGenerate, Type: "aes", Size: 32, Attributes: map[string]string{"label": "k"}}

func tokenKey() hsm.CreateRequest {
	r := aesKey
	r.Token = true
	return r
}

func TestEverySessionMethod(t *testing.T) {
	s := newSite(t)
	s.users("bob", "eve")
	ctx := t.Context()
	client := s.dial(pki.KindClient, "app")
	remote := loginAs(t, client, hsm.RoleCryptoUser, "bob")
	local := loginAs(t, s.hsm.Module(hsm.Principal{}), hsm.RoleCryptoUser, "bob")
	if remote.Principal() != local.Principal() || remote.Lineage() != local.Lineage() {
		t.Errorf("remote %v %v, local %v %v", remote.Principal(), remote.Lineage(), local.Principal(), local.Lineage())
	}
	created := create(t, remote, tokenKey())
	ref := created.Keys[0].Ref
	if len(created.Objects) != 1 || created.Objects[0].Ref != ref {
		t.Fatalf("created %d objects", len(created.Objects))
	}
	same(t, "Key", remote, local, func(s hsm.Session) (hsm.KeyInfo, error) { return s.Key(ctx, ref) })
	same(t, "Root", remote, local, func(s hsm.Session) (hsm.Root, error) { return s.Root(ctx) })
	same(t, "Users", remote, local, func(s hsm.Session) ([]hsm.UserInfo, error) { return s.Users(ctx) })
	same(t, "Members", remote, local, func(s hsm.Session) ([]hsm.Member, error) { return s.Members(ctx) })
	same(t, "Keys", remote, local, func(s hsm.Session) ([]hsm.KeyInfo, error) { return collect(s.Keys(ctx, hsm.Filter{Owner: "bob"})) })
	same(t, "Objects", remote, local, func(s hsm.Session) ([]hsm.Object, error) { return collect(s.Objects(ctx)) })
	same(t, "Info", remote, local, func(s hsm.Session) (hsm.Info, error) {
		i, err := s.Info(ctx)
		if i.Started = i.Started.Round(0).UTC(); i.Time.IsZero() {
			t.Error("Info: no time")
		}
		i.Time = time.Time{} // two moments
		return i, err
	})
	same(t, "Extract", remote, local, func(s hsm.Session) ([]hsm.MaskedObject, error) {
		return collect(s.Extract(ctx, slices.Values([]hsm.KeyRef{ref, 5})))
	})
	same(t, "Sign", remote, local, func(s hsm.Session) (hsm.LineageSignature, error) {
		return s.Sign(ctx, hsm.PurposeChallenge, []byte("nonce"))
	})
	changed, err := remote.Change(ctx, hsm.Change{Kind: hsm.ChangeShare, Ref: ref, User: "eve"})
	if err != nil || changed.Ref != ref {
		t.Fatal(changed.Ref, err)
	}
	mac, err := remote.Use(ctx, hsm.Use{Kind: hsm.UseRandom, Length: 24})
	if err != nil || len(mac) != 24 {
		t.Errorf("random: %d bytes, %v", len(mac), err)
	}
	n, err := remote.Insert(ctx, objects(changed))
	if err != nil || n.Unchanged != 1 {
		t.Errorf("insert: %+v, %v", n, err)
	}
	if err := remote.Close(); err != nil {
		t.Error(err)
	}
	if _, err := remote.Info(ctx); !errors.Is(err, hsm.ErrSession) {
		t.Errorf("after Close: %v", err)
	}
}

// same asks both sessions and compares.
func same[T any](t *testing.T, what string, remote, local hsm.Session, ask func(hsm.Session) (T, error)) {
	t.Helper()
	got, err := ask(remote)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	want, err := ask(local)
	if err != nil {
		t.Errorf("%s, locally: %v", what, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: %s", what, diff)
	}
}

func collect[T any](seq iter.Seq2[T, error]) (all []T, err error) {
	for v, err := range seq {
		if err != nil {
			return all, err
		}
		all = append(all, v)
	}
	return all, nil
}

func objects(ms ...hsm.MaskedObject) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		for _, m := range ms {
			if !yield(m, nil) {
				return
			}
		}
	}
}

func TestReplicaMethods(t *testing.T) {
	s := newSite(t)
	s.users("bob")
	ctx := t.Context()
	bob := loginAs(t, s.dial(pki.KindClient, "app"), hsm.RoleCryptoUser, "bob")
	for range 5 {
		create(t, bob, tokenKey())
	}
	peer := hsm.NewHSMID().String()
	remote := open(t, s.dial(pki.KindHSM, peer))
	local := open(t, s.hsm.Module(hsm.Principal{Role: hsm.RoleHSM, Name: peer}))
	same(t, "FingerprintKeys", remote, local, func(s hsm.Session) (hsm.FingerprintKeys, error) { return s.FingerprintKeys(ctx) })
	for _, scope := range []hsm.Scope{hsm.ScopeLineage, hsm.ScopeCluster} {
		same(t, "Root", remote, local, func(s hsm.Session) (hsm.Root, error) { return s.Scoped(scope).Root(ctx) })
		same(t, "Objects", remote, local, func(s hsm.Session) ([]hsm.Object, error) { return collect(s.Scoped(scope).Objects(ctx)) })
		for _, n := range []int{1, 64, 1025, 5000} {
			for _, from := range []int{0, 3}[:1+n%2] {
				got, err := first(remote.Scoped(scope).Cells(ctx, from), n)
				want, wantErr := first(local.Scoped(scope).Cells(ctx, from), n)
				if err != nil || wantErr != nil || !slices.Equal(got, want) {
					t.Errorf("%d cells from %d differ: %v, %v", n, from, err, wantErr)
				}
			}
		}
	}
	op := newOp()
	same(t, "Resolve", remote, local, func(s hsm.Session) (hsm.OpState, error) { return s.Resolve(ctx, op) })
	if err := remote.Commit(ctx, op); !errors.Is(err, hsm.ErrOp) {
		t.Errorf("commit of an aborted operation: %v", err)
	}
	if err := remote.Abort(ctx, newOp()); err != nil {
		t.Errorf("abort: %v", err)
	}
}

func first[T any](seq iter.Seq2[T, error], n int) (all []T, err error) {
	for v, err := range seq {
		if err != nil {
			return all, err
		}
		if all = append(all, v); len(all) == n {
			return all, nil
		}
	}
	return all, errors.New("the sequence ended")
}

// Many objects cross the boundaries of batches, in both directions.
func TestManyObjects(t *testing.T) {
	s := newSite(t)
	s.users("bob")
	ctx := t.Context()
	other := &site{t: t, cluster: s.cluster, id: hsm.NewHSMID(), authority: s.authority}
	other.hsm = newSoftOf(t, other.id, s.cluster, s.keyring)
	other.serve(other.module)
	remote := open(t, other.dial(pki.KindHSM, s.id.String()))
	const count = batchRefs + 100
	made := masked(t, s.keyring, count)
	n, err := remote.Insert(ctx, objects(made...))
	if err != nil || n.Added != count {
		t.Fatalf("insert: %+v, %v", n, err)
	}
	listed, err := collect(remote.Objects(ctx))
	if err != nil || len(listed) != count {
		t.Fatalf("%d objects, %v", len(listed), err)
	}
	refs := map[hsm.KeyRef]hsm.MaskedObject{}
	for _, m := range made {
		refs[m.Ref] = m
	}
	got, err := collect(remote.Extract(ctx, maps.Keys(refs)))
	if err != nil || len(got) != count {
		t.Fatalf("extracted %d, %v", len(got), err)
	}
	for _, m := range got {
		if want := refs[m.Ref]; m.Object != want.Object || m.Lineage != want.Lineage || !bytes.Equal(m.Bytes, want.Bytes) {
			t.Fatalf("%s changed on its way", m.Ref)
		}
	}
	if again, err := first(remote.Extract(ctx, maps.Keys(refs)), 10); err != nil || len(again) != 10 {
		t.Errorf("early end: %d, %v", len(again), err)
	}
}

// masked makes keys without an HSM.
func masked(t testing.TB, k *hsm.Keyring, n int) (all []hsm.MaskedObject) {
	t.Helper()
	clock := hsm.NewClock(hsm.NewHSMID(), time.Now)
	for range n {
		r := &hsm.Record{
			Kind: hsm.KindKey, Ref: hsm.NewKeyRef(), Material: hsm.NewSecret(bytes.Repeat([]byte{7}, 32)),
			Core:      hsm.Core{Class: hsm.ClassSecret, Type: "aes", Size: 32, Owner: "bob", Origin: hsm.MethodGenerate, Created: clock.Next()},
			Registers: map[string]hsm.Register{}, Hidden: map[string]hsm.Register{},
		}
		r.Set("attr/label", []byte("bulk"), clock.Next())
		var err error
		if r.Birth, err = k.Birth(r); err != nil {
			t.Fatal(err)
		}
		m, err := k.Mask(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	return all
}

// An insertion that fails half way tells what is durable all the same.
func TestInsertHalfWay(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	remote := open(t, s.dial(pki.KindHSM, hsm.NewHSMID().String()))
	made := masked(t, s.keyring, 100)
	bad := made[50]
	bad.Bytes = bytes.Clone(bad.Bytes)
	bad.Bytes[len(bad.Bytes)-1] ^= 1
	n, err := remote.Insert(ctx, objects(append(slices.Clone(made[:50]), append([]hsm.MaskedObject{bad}, made[51:]...)...)...))
	if !errors.Is(err, hsm.ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
	root, rootErr := remote.Root(ctx)
	if rootErr != nil || uint64(n.Added) != root.Count {
		t.Errorf("%d are said to be inserted, %d are there, %v", n.Added, root.Count, rootErr)
	}
	mine := errors.New("my own source broke")
	n, err = remote.Insert(ctx, func(yield func(hsm.MaskedObject, error) bool) {
		for _, m := range made[60:70] {
			if !yield(m, nil) {
				return
			}
		}
		yield(hsm.MaskedObject{}, mine)
	})
	if !errors.Is(err, mine) || n.Added != 10 {
		t.Errorf("%+v, %v; want 10 and the source's own error", n, err)
	}
	foreign := masked(t, hsm.NewKeyring(), 1)
	if _, err := remote.Insert(ctx, objects(foreign...)); !errors.Is(err, hsm.ErrLineage) {
		t.Errorf("foreign object: %v, want ErrLineage", err)
	}
	if n, err := remote.Insert(ctx, objects()); err != nil || n.Added != 0 {
		t.Errorf("nothing: %+v, %v", n, err)
	}
}

func TestLoginErrors(t *testing.T) {
	s := newSite(t)
	s.users("bob")
	m := s.dial(pki.KindClient, "app")
	wrong := hsm.NewSecret([]byte("wrong password"))
	if _, _, err := m.Login(t.Context(), hsm.RoleCryptoUser, "bob", wrong); !errors.Is(err, hsm.ErrLogin) {
		t.Errorf("wrong password: %v", err)
	}
	if _, _, err := m.Login(t.Context(), hsm.RoleCryptoUser, "nobody", wrong); !errors.Is(err, hsm.ErrLogin) {
		t.Errorf("unknown user: %v", err)
	}
	if !wrong.Equal(hsm.NewSecret([]byte("wrong password"))) {
		t.Error("the caller's password was overwritten")
	}
	if _, err := m.Redeem(t.Context(), hsm.NewSecret([]byte("no ticket"))); !errors.Is(err, hsm.ErrLogin) {
		t.Errorf("no ticket: %v", err)
	}
	_, ticket, err := m.Login(t.Context(), hsm.RoleCryptoUser, "bob", secretPassword())
	if err != nil {
		t.Fatal(err)
	}
	again, err := m.Redeem(t.Context(), ticket)
	if err != nil || again.Principal().Name != "bob" {
		t.Errorf("ticket: %v", err)
	}
}

func TestTokenOfAnotherConnection(t *testing.T) {
	s := newSite(t)
	s.users("bob")
	bob := loginAs(t, s.dial(pki.KindClient, "app"), hsm.RoleCryptoUser, "bob").(*session)
	thief := s.dial(pki.KindClient, "app").(*module) // even with the same certificate's name
	for name, token := range map[string]string{"stolen": bob.replica.token, "random": strings.Repeat("x", tokenSize), "short": "x", "empty": ""} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), tokenHeader, token)
		_, err := thief.api.Info(ctx, &pb.InfoRequest{})
		if err := thief.fail(ctx, err); !errors.Is(err, hsm.ErrSession) {
			t.Errorf("%s token: %v, want ErrSession", name, err)
		}
	}
	if _, err := thief.api.Info(t.Context(), &pb.InfoRequest{}); !errors.Is(thief.fail(t.Context(), err), hsm.ErrSession) {
		t.Errorf("no token: %v", err)
	}
	if _, err := bob.Info(t.Context()); err != nil {
		t.Errorf("the session itself: %v", err)
	}
}

// sessions counts the sessions of the HSM.
func (s *site) sessions() uint64 {
	info, err := open(s.t, s.hsm.Module(hsm.Principal{})).Info(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return info.Sessions
}

func (s *Server) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions
}

func TestConnectionDropClosesTheSession(t *testing.T) {
	s := newSite(t)
	s.users("bob")
	p := newProxy(t, s.address)
	m := s.dialAt(p.address(), pki.KindClient, "app")
	bob := loginAs(t, m, hsm.RoleCryptoUser, "bob")
	created := create(t, bob, aesKey)
	if _, err := bob.Key(t.Context(), created.Keys[0].Ref); err != nil {
		t.Fatal(err)
	}
	p.cut()
	eventually(t.Context(), t, "the server closes the session", func() bool { return s.server.open() == 0 })
	eventually(t.Context(), t, "the module is connected again", func() bool { return m.(*module).ping(t.Context(), time.Second) == nil })
	if _, err := bob.Key(t.Context(), created.Keys[0].Ref); !errors.Is(err, hsm.ErrSession) {
		t.Errorf("on the new connection: %v, want ErrSession", err)
	}
	if err := bob.Close(); err != nil {
		t.Errorf("Close after the connection was lost: %v", err)
	}
	again := loginAs(t, m, hsm.RoleCryptoUser, "bob")
	if _, err := again.Key(t.Context(), created.Keys[0].Ref); !errors.Is(err, hsm.ErrNotFound) {
		t.Errorf("the session key in a new session: %v, want ErrNotFound", err)
	}
}

func TestCloseOfModuleClosesSessions(t *testing.T) {
	s := newSite(t)
	m := s.dial(pki.KindClient, "app")
	session := open(t, m)
	m.Close()
	eventually(t.Context(), t, "the server closes the session", func() bool { return s.server.open() == 0 })
	if _, err := session.Info(t.Context()); !errors.Is(err, hsm.ErrSession) {
		t.Errorf("after Close of the module: %v, want ErrSession", err)
	}
	if _, err := m.Session(t.Context()); !errors.Is(err, hsm.ErrSession) {
		t.Errorf("Session of a closed module: %v, want ErrSession", err)
	}
}

func TestBlackholeIsNoticedByBothSides(t *testing.T) {
	t.Parallel() // it waits most of the time
	s := newSite(t)
	p := newProxy(t, s.address)
	m := s.dialAt(p.address(), pki.KindClient, "app")
	session := open(t, m)
	p.swallowed.Store(true)
	_, err := session.Info(t.Context()) // no deadline of its own
	if !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), errSilent.Error()) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
	eventually(t.Context(), t, "the server closes the session", func() bool { return s.server.open() == 0 })
	p.swallowed.Store(false)
	eventually(t.Context(), t, "a session can be had again", func() bool {
		_, err := m.Session(t.Context())
		return err == nil
	})
}

// A connection on which nothing happens stays.
func TestIdleConnectionStays(t *testing.T) {
	t.Parallel() // it waits
	s := newSite(t)
	session := open(t, s.dial(pki.KindClient, "app"))
	time.Sleep((deadAfter + pingAfter) * heartbeat)
	if _, err := session.Info(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestServerRestart(t *testing.T) {
	s := newSite(t)
	p := newProxy(t, s.address)
	m := s.dialAt(p.address(), pki.KindClient, "app")
	session := open(t, m)
	s.server.Stop()
	if _, err := session.Info(t.Context()); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("stopped: %v, want ErrUnavailable", err)
	}
	s.serve(s.module)
	p.mu.Lock()
	p.target = s.address
	p.mu.Unlock()
	eventually(t.Context(), t, "a session on the new server", func() bool {
		_, err := m.Session(t.Context())
		return err == nil
	})
	if _, err := session.Info(t.Context()); !errors.Is(err, hsm.ErrSession) {
		t.Errorf("old session: %v, want ErrSession", err)
	}
}

func TestSessionLimit(t *testing.T) {
	s := newSite(t, WithMaxSessions(3))
	m := s.dial(pki.KindClient, "app")
	var sessions []hsm.Session
	for range 3 {
		sessions = append(sessions, open(t, m))
	}
	if _, err := m.Session(t.Context()); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), "3 sessions") {
		t.Errorf("one too many: %v", err)
	}
	open(t, s.dial(pki.KindHSM, hsm.NewHSMID().String())) // members are let in all the same
	sessions[0].Close()
	sessions[1].Close()
	if _, err := m.Session(t.Context()); err != nil {
		t.Errorf("after two were closed: %v", err)
	}
}

func TestCancelledLoginLeavesNoSession(t *testing.T) {
	s := newSite(t)
	s.users("bob")
	m := s.dial(pki.KindClient, "app")
	before := s.sessions()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*500*time.Microsecond)
			defer cancel()
			one, _, err := m.Login(ctx, hsm.RoleCryptoUser, "bob", secretPassword())
			if err == nil {
				one.Close()
			} else if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v, want DeadlineExceeded", err)
			}
		})
	}
	wg.Wait()
	eventually(t.Context(), t, "all sessions are closed", func() bool { return s.server.open() == 0 })
	if after := s.sessions(); after > before+1 {
		t.Errorf("%d sessions, before %d", after, before)
	}
}

func TestNotAdmitted(t *testing.T) {
	s := &site{t: t, cluster: hsm.NewClusterID(), id: hsm.NewHSMID()}
	s.serve(func(pki.Identity) hsm.Module { return nil })
	if _, err := s.dial(pki.KindClient, "app").Session(t.Context()); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("%v, want ErrDenied", err)
	}
}

func TestOversized(t *testing.T) {
	s := newSite(t)
	remote := open(t, s.dial(pki.KindAppliance, "app"))
	_, err := remote.Sign(t.Context(), hsm.PurposeManifest, make([]byte, MaxMessage+1))
	if !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("message of more than 4 MiB: %v, want ErrInvalid", err)
	}
	if _, err := remote.Sign(t.Context(), hsm.PurposeManifest, make([]byte, MaxMessage-1024)); err != nil {
		t.Errorf("message of almost 4 MiB: %v", err)
	}
	if _, err := remote.Use(t.Context(), hsm.Use{Kind: hsm.UseRandom, Length: maxLength + 1}); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("too much randomness: %v, want ErrInvalid", err)
	}
	if err := remote.Prepare(t.Context(), newOp(), time.Minute, make([]hsm.MaskedObject, maxObjects+1)); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("too many objects: %v, want ErrInvalid", err)
	}
	if _, err := remote.Users(t.Context()); err != nil && errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("the connection is gone: %v", err)
	}
}

func TestNamesThatAreNotUTF8(t *testing.T) {
	s := newSite(t)
	remote := open(t, s.dial(pki.KindHSM, hsm.NewHSMID().String()))
	_, err := remote.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserCreate, User: "b\xffb", Role: hsm.RoleAdmin, Password: secretPassword()})
	if !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", err)
	}
}

func TestObserver(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	s := newSite(t, WithObserver(func(op string, took time.Duration, code string) {
		mu.Lock()
		defer mu.Unlock()
		if took <= 0 {
			t.Errorf("%s took %s", op, took)
		}
		seen[op+" "+code]++
	}))
	m := s.dial(pki.KindClient, "app")
	remote := open(t, m)
	remote.Info(t.Context())
	remote.Key(t.Context(), 5)
	m.Login(t.Context(), hsm.RoleAdmin, "nobody", secretPassword())
	remote.Close()
	s.server.Stop()
	mu.Lock()
	defer mu.Unlock()
	for _, want := range []string{"Ping ok", "Session ok", "Info ok", "Login login"} {
		if seen[want] == 0 {
			t.Errorf("%q was not observed: %v", want, seen)
		}
	}
}
