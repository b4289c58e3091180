package pkcs11

import (
	"bytes"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

func TestSlotsAndTokens(t *testing.T) {
	w := newWorld(t, 1, cluster.Policy{MinCopies: 1})
	a := w.app()
	if got := a.call(rpc.GetSlotList, byte(1), rpc.Room{N: 4})[0].([]uint64); len(got) != 1 || got[0] != 0 {
		t.Errorf("slots %v", got)
	}
	if got := a.call(rpc.GetSlotList, byte(1), rpc.Room{Query: true})[0]; got != rpc.Size(1) {
		t.Errorf("number of slots %v", got)
	}
	info := a.call(rpc.GetTokenInfo, uint64(0))
	for i, n := range []int{32, 32, 16, 16} {
		if len(info[i].(string)) != n {
			t.Errorf("field %d is %q, want %d characters", i, info[i], n)
		}
	}
	a.want(ck.SlotIDInvalid, rpc.GetTokenInfo, uint64(1))
	a.want(ck.NoEvent, rpc.WaitForSlotEvent, ck.DontBlock)
	list := a.call(rpc.GetMechanismList, uint64(0), rpc.Room{N: 1000})[0].([]uint64)
	old := w.appOf(rpc.FormOld).call(rpc.GetMechanismList, uint64(0), rpc.Room{N: 1000})[0].([]uint64)
	if len(list) != len(mechanisms) || len(old) >= len(list) {
		t.Errorf("%d mechanisms, %d for a client that filters", len(list), len(old))
	}
}

func TestSessionsAndLogin(t *testing.T) {
	w := newWorld(t, 1, cluster.Policy{MinCopies: 1})
	a := w.app()
	a.want(ck.SessionParallelNotSupported, rpc.OpenSession, uint64(0), ck.SessionRW)
	ro, rw := a.open(0), a.open(ck.SessionRW)
	state := func(s uint64) uint64 { return a.call(rpc.GetSessionInfo, s)[1].(uint64) }
	if state(ro) != ck.StateROPublic || state(rw) != ck.StateRWPublic {
		t.Errorf("states %d %d", state(ro), state(rw))
	}
	a.want(ck.SessionReadOnlyExists, rpc.Login, rw, ck.UserSO, []byte(bobPIN))
	a.want(ck.UserTypeInvalid, rpc.Login, ro, uint64(7), []byte(bobPIN))
	a.want(ck.OperationNotInitialized, rpc.Login, ro, ck.UserContextSpecific, []byte(bobPIN))
	a.want(ck.PinIncorrect, rpc.Login, ro, ck.UserUser, []byte("bob:wrong-password"))
	a.want(ck.PinIncorrect, rpc.Login, ro, ck.UserUser, []byte("no colon"))
	a.want(ck.PinIncorrect, rpc.Login, ro, ck.UserUser, []byte("root:root-password")) // an admin uses no keys
	a.want(ck.UserNotLoggedIn, rpc.Logout, ro)
	a.call(rpc.Login, ro, ck.UserUser, []byte(bobPIN))
	a.want(ck.UserAlreadyLoggedIn, rpc.Login, rw, ck.UserUser, []byte(bobPIN))
	a.want(ck.UserAnotherAlreadyLoggedIn, rpc.Login, rw, ck.UserSO, []byte(bobPIN))
	if state(ro) != ck.StateROUser || state(rw) != ck.StateRWUser {
		t.Errorf("states %d %d", state(ro), state(rw))
	}
	other := w.app()
	if s := other.open(0); other.call(rpc.GetSessionInfo, s)[1].(uint64) != ck.StateROPublic {
		t.Error("another application is logged in too")
	}
	a.want(ck.SessionReadOnly, rpc.GenerateKey, ro, mech(ck.AESKeyGen), []rpc.Attribute{attr(ck.ValueLen, 16), attr(ck.Token, true)})
	a.call(rpc.Logout, rw)
	if state(ro) != ck.StateROPublic {
		t.Error("still logged in")
	}
	a.call(rpc.Login, ro, ck.UserUser, []byte(bobPIN))
	a.call(rpc.CloseAllSessions, uint64(0))
	a.want(ck.SessionHandleInvalid, rpc.GetSessionInfo, ro)
	a.want(ck.UserTypeInvalid, rpc.Login, a.open(ck.SessionRW), ck.UserSO, []byte(bobPIN))
	if s := a.open(0); state(s) != ck.StateROPublic {
		t.Error("the last session did not log out")
	}
	if text := w.log.String(); bytes.Contains([]byte(text), []byte("password")) && bytes.Contains([]byte(text), []byte("bob-password")) {
		t.Error("the log names a password")
	}
}

func TestSessionsAreBounded(t *testing.T) {
	a := newWorld(t, 1, cluster.Policy{MinCopies: 1}).app()
	for range MaxSessions {
		a.open(0)
	}
	a.want(ck.SessionCount, rpc.OpenSession, uint64(0), ck.SessionSerial)
}

// Session objects are their session's, handles their application's.
func TestObjectsAreOfTheirApplication(t *testing.T) {
	w := newWorld(t, 2, cluster.Policy{MinCopies: 2, CheckOnUse: true})
	one, two := w.app(), w.app()
	s1, s2 := one.session(bobPIN), two.session(bobPIN)
	mine := one.aes(s1, attr(ck.Label, "mine"))
	shared := one.aes(s1, attr(ck.Label, "shared"), attr(ck.Token, true))
	if got := one.find(s1); len(got) != 2 {
		t.Errorf("one finds %v", got)
	}
	found := two.find(s2)
	if len(found) != 1 {
		t.Fatalf("two finds %v", found)
	}
	two.want(ck.ObjectHandleInvalid, rpc.GetAttributeValue, s2, found[0]+1, []rpc.AttributeRoom{{Type: ck.Label}})
	third := w.app()
	if got := third.find(third.session(alicePIN)); len(got) != 0 {
		t.Errorf("alice finds %v of bob's", got)
	}
	second := one.open(0)
	one.call(rpc.CloseSession, s1)
	one.want(ck.KeyHandleInvalid, rpc.EncryptInit, second, mech(ck.AESECB), mine+100)
	one.want(ck.KeyHandleInvalid, rpc.EncryptInit, second, mech(ck.AESECB), mine)
	one.call(rpc.EncryptInit, second, mech(ck.AESECB), shared)
}

// What is under way in any session ends with the login, and nobody goes on with it after
// the next one.
func TestOperationsEndWithTheLogin(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	other := a.open(0)
	_, priv := a.pair(s, ck.ECKeyPairGen, []rpc.Attribute{attr(ck.ECParams, curveDER("secp256r1")), attr(ck.Token, true)},
		[]rpc.Attribute{attr(ck.Sign, true), attr(ck.AlwaysAuthenticate, true), attr(ck.Token, true)})
	begin := func() {
		t.Helper()
		a.call(rpc.SignInit, other, mech(ck.ECDSA), priv)
		a.call(rpc.Login, other, ck.UserContextSpecific, []byte(bobPIN))
		a.call(rpc.DigestInit, other, mech(ck.SHA256))
		a.call(rpc.Logout, s)
	}
	begin()
	a.want(ck.OperationNotInitialized, rpc.Sign, other, make([]byte, 32), room)
	a.call(rpc.Digest, other, []byte("abc"), room) // it needs nobody
	a.call(rpc.Login, s, ck.UserUser, []byte(bobPIN))
	priv = a.find(s, attr(ck.Class, ck.ObjectPrivateKey))[0]
	begin()
	a.call(rpc.Login, s, ck.UserUser, []byte(bobPIN))
	a.want(ck.OperationNotInitialized, rpc.Sign, other, make([]byte, 32), room)
	priv = a.find(s, attr(ck.Class, ck.ObjectPrivateKey))[0]
	a.call(rpc.Logout, s)
	a.call(rpc.Login, s, ck.UserUser, []byte(bobPIN))
	a.want(ck.OperationNotInitialized, rpc.Login, other, ck.UserContextSpecific, []byte(bobPIN))
	a.call(rpc.SignInit, other, mech(ck.ECDSA), a.find(s, attr(ck.Class, ck.ObjectPrivateKey))[0])
	a.call(rpc.Logout, s)
	a.call(rpc.Login, s, ck.UserUser, []byte(bobPIN))
	a.call(rpc.SignInit, other, mech(ck.ECDSA), a.find(s, attr(ck.Class, ck.ObjectPrivateKey))[0]) // the one before is not under way
}
