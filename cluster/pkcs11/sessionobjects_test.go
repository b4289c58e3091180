package pkcs11

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// An HSM holds so many session keys of a login and no more: the device is full, say the
// calls that make keys, until one is destroyed.
func TestTooManySessionKeys(t *testing.T) {
	w := newWorld(t, 1, cluster.Policy{MinCopies: 1})
	a := w.app()
	s := a.session(bobPIN)
	var key uint64
	generate := func() (rv ck.RV) {
		out, err := a.Call(t.Context(), rpc.GenerateKey, []any{s, mech(ck.GenericSecretGen), []rpc.Attribute{attr(ck.ValueLen, 16)}})
		switch {
		case err == nil:
			key = out[0].(uint64)
		case !errors.As(err, &rv):
			t.Fatal(err)
		}
		return rv
	}
	made, rv := 0, ck.OK
	for ; rv == ck.OK && made <= 20_000; made++ {
		rv = generate()
	}
	if rv != ck.DeviceMemory || made < 16_000 {
		t.Fatalf("%v after %d session keys, want %v", rv, made, ck.DeviceMemory)
	}
	a.want(ck.DeviceMemory, rpc.GenerateKeyPair, s, mech(ck.ECKeyPairGen), []rpc.Attribute{attr(ck.ECParams, curveDER("secp256r1"))}, []rpc.Attribute{attr(ck.Sign, true)})
	a.want(ck.DeviceMemory, rpc.CopyObject, s, key, []rpc.Attribute{})
	a.want(ck.DeviceMemory, rpc.CreateObject, s, []rpc.Attribute{attr(ck.Class, ck.ObjectSecretKey), attr(ck.KeyType, ck.KeyGeneric), attr(ck.Value, make([]byte, 16))})
	a.call(rpc.DestroyObject, s, key)
	if rv := generate(); rv != ck.OK {
		t.Errorf("%v after one was destroyed", rv)
	}
}

// The session objects of a session are destroyed with it, however many they are, and
// those of others stay; C_Logout destroys the rest.
func TestManySessionObjectsEnd(t *testing.T) {
	w := newWorld(t, 2, cluster.Policy{MinCopies: 1})
	a := w.app()
	s := a.session(bobPIN)
	other := a.open(ck.SessionRW)
	kept := a.aes(s, attr(ck.Label, "kept"))
	for range 10 * discarding {
		a.aes(other)
	}
	if n := len(a.find(s)); n != 100 { // as many as find asks for
		t.Errorf("%d objects are found", n)
	}
	a.call(rpc.CloseSession, other)
	if found := a.find(s); len(found) != 1 || found[0] != kept {
		t.Errorf("%d objects are found after the other session, want the one", len(found))
	}
	a.call(rpc.Logout, s)
	a.call(rpc.Login, s, ck.UserUser, []byte(bobPIN))
	if n := len(a.find(s)); n != 0 {
		t.Errorf("%d objects are found after the logout", n)
	}
}

// An application destroys its session objects one by one while others use its login. The
// last one leaves them to the end of the login, however it ends.
func TestSessionObjectsEndWithTheLogin(t *testing.T) {
	for name, end := range map[string]func(a *app, s uint64){
		"C_CloseSession":     func(a *app, s uint64) { a.call(rpc.CloseSession, s) },
		"C_CloseAllSessions": func(a *app, _ uint64) { a.call(rpc.CloseAllSessions, uint64(0)) },
		"C_Logout":           func(a *app, s uint64) { a.call(rpc.Logout, s) },
		"C_Finalize":         func(a *app, _ uint64) { a.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			w, destroyed := countingWorld(t)
			first, last := w.app(), w.app()
			s, stays := first.session(bobPIN), last.session(bobPIN)
			for range 3 {
				first.aes(s)
			}
			key := last.aes(stays, attr(ck.Encrypt, true))
			end(first, s)
			if n := destroyed.Load(); n != 3 {
				t.Errorf("%d keys were destroyed for an application that is not the last, want its 3", n)
			}
			last.call(rpc.EncryptInit, stays, mech(ck.AESECB), key)
			end(last, stays)
			if n := destroyed.Load(); n != 3 {
				t.Errorf("%d more were for the last one, whose login has ended", n-3)
			}
			eventually(t, "no session of a user on an HSM, and no key in it", func() bool { return w.sessionsOfUsers() == 0 })
		})
	}
}

// A session object that becomes a token object stays, whatever ends meanwhile: the session
// that made it, or the login, which another application has too.
func TestAPromotedKeyOutlivesItsSession(t *testing.T) {
	for name, end := range map[string]func(a *app, s uint64) error{
		"C_CloseSession": func(a *app, s uint64) error { _, err := a.Call(t.Context(), rpc.CloseSession, []any{s}); return err },
		"C_Logout":       func(a *app, s uint64) error { _, err := a.Call(t.Context(), rpc.Logout, []any{s}); return err },
	} {
		t.Run(name, func(t *testing.T) {
			var commits atomic.Int64
			var a *app
			var s uint64
			w := newWorldWith(t, 2, cluster.Policy{MinCopies: 2}, func(_ context.Context, event string, _ hsm.Principal, _ hsm.KeyRef, _ string, _ error) {
				if event == "commit" && commits.Add(1) == 2 { // on both HSMs; nobody has heard of it
					if err := end(a, s); err != nil {
						t.Error(err)
					}
				}
			})
			stays := w.app()
			with := stays.session(bobPIN)
			a = w.app()
			s = a.session(bobPIN)
			other := a.open(ck.SessionRW)
			key := a.aes(s, attr(ck.Label, "kept"))
			a.call(rpc.SetAttributeValue, other, key, []rpc.Attribute{attr(ck.Token, true)})
			if n := commits.Load(); n != 2 {
				t.Fatalf("%d commits, want one on each HSM", n)
			}
			if n := len(stays.find(with, attr(ck.Label, "kept"))); n != 1 {
				t.Errorf("%d token keys, want the one", n)
			}
		})
	}
}

// A promotion that comes to nothing after its session has ended leaves no key behind.
func TestAPromotionThatFailsEndsWithItsSession(t *testing.T) {
	for name, end := range map[string]struct {
		call      func(a *app, s uint64)
		destroyed int64
	}{
		"C_CloseSession": {func(a *app, s uint64) { a.call(rpc.CloseSession, s) }, 1},
		"C_Logout":       {func(a *app, s uint64) { a.call(rpc.Logout, s) }, 1},
		"nothing":        {func(*app, uint64) {}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w, destroyed := countingWorld(t)
			stays, a := w.app(), w.app()
			stays.session(bobPIN)
			s := a.session(bobPIN)
			a.open(ck.SessionRW)
			o := a.objects.get(a.aes(s))
			token := a.objects.promote(o)
			if a.objects.promote(o) != nil {
				t.Error("it is promoted twice at once")
			}
			end.call(a, s)
			if n := destroyed.Load(); n != 0 {
				t.Errorf("%d keys were destroyed that were about to be kept", n)
			}
			a.demote(token, o)
			if n := destroyed.Load(); n != end.destroyed {
				t.Errorf("%d keys were destroyed, want %d", n, end.destroyed)
			}
		})
	}
}

// The objects of a session are destroyed under the login that has made them, whoever is
// logged in when it ends.
func TestObjectsEndUnderTheirOwnLogin(t *testing.T) {
	w, destroyed := countingWorld(t)
	stays, a := w.app(), w.app()
	stays.session(bobPIN)
	s := a.session(bobPIN)
	other := a.open(ck.SessionRW)
	a.aes(s)
	session, err := a.App.session(s)
	if err != nil {
		t.Fatal(err)
	}
	taken := a.take(session) // C_CloseAllSessions of one thread is here
	a.call(rpc.Logout, other)
	a.discard(taken)
	if n := destroyed.Load(); n != 1 {
		t.Errorf("%d keys were destroyed, want the one", n)
	}
}

// countingWorld counts the keys that its HSMs are asked to destroy.
func countingWorld(t *testing.T) (*world, *atomic.Int64) {
	destroyed := &atomic.Int64{}
	return newWorldWith(t, 2, cluster.Policy{MinCopies: 1}, func(_ context.Context, event string, _ hsm.Principal, _ hsm.KeyRef, _ string, _ error) {
		if event == string(hsm.ChangeDestroy) {
			destroyed.Add(1)
		}
	}), destroyed
}
