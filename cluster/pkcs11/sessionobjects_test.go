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
			var destroyed atomic.Int64
			w := newWorldWith(t, 2, cluster.Policy{MinCopies: 1}, func(_ context.Context, event string, _ hsm.Principal, _ hsm.KeyRef, _ string, _ error) {
				if event == string(hsm.ChangeDestroy) {
					destroyed.Add(1)
				}
			})
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
