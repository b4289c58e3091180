package pkcs11

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// A key that takes approvals is there, and not used here: CKR_FUNCTION_REJECTED.
func TestKeysWithQuorumAreRejected(t *testing.T) {
	w := newWorld(t, 1, cluster.Policy{MinCopies: 1})
	session, _, err := w.hsms[0].Module(hsm.Principal{}).Login(t.Context(), hsm.RoleCryptoUser, "bob", hsm.NewSecret([]byte("bob-password")))
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	op := hsm.OpID{1}
	request := hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32, Attributes: map[string]string{
		"label": "guarded", "encrypt": "true", "wrap": "true", "unwrap": "true", "use-key-quorum-value": "1", "manage-key-quorum-value": "1"}}
	if _, err := session.Create(t.Context(), op, request); err != nil {
		t.Fatal(err)
	}
	if err := session.Commit(t.Context(), op); err != nil {
		t.Fatal(err)
	}
	a := w.app()
	s := a.session(bobPIN)
	found := a.find(s, attr(ck.Label, "guarded"))
	if len(found) != 1 {
		t.Fatalf("%d keys", len(found))
	}
	a.call(rpc.EncryptInit, s, mech(ck.AESECB), found[0])
	a.want(ck.FunctionRejected, rpc.Encrypt, s, make([]byte, 16), room)
	free := a.aes(s, attr(ck.Token, true), attr(ck.Extractable, true))
	a.want(ck.FunctionRejected, rpc.WrapKey, s, mech(ck.AESKeyWrapPad), found[0], free, room)
	a.want(ck.FunctionRejected, rpc.UnwrapKey, s, mech(ck.AESKeyWrapPad), found[0], make([]byte, 40), []rpc.Attribute{attr(ck.Class, ck.ObjectSecretKey), attr(ck.KeyType, ck.KeyAES)})
	a.want(ck.FunctionRejected, rpc.SetAttributeValue, s, found[0], []rpc.Attribute{attr(ck.Label, "free")})
	a.want(ck.FunctionRejected, rpc.CopyObject, s, found[0], []rpc.Attribute{attr(ck.Label, "copy")})
}

// A user who has a key for logins does not log in here: CKR_PIN_INCORRECT.
func TestUsersWithMFAAreRefused(t *testing.T) {
	w := newWorld(t, 1, cluster.Policy{MinCopies: 1})
	session, _, err := w.hsms[0].Module(hsm.Principal{}).Login(t.Context(), hsm.RoleCryptoUser, "bob", hsm.NewSecret([]byte("bob-password")))
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	proof, err := hsm.SignWith(key, hsm.RegistrationMessage(hsm.SignLogin, session.Lineage(), "bob", spki))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := session.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserMFA, User: "bob", Public: spki, Proof: proof}); err != nil {
		t.Fatal(err)
	}
	a := w.app()
	a.want(ck.PinIncorrect, rpc.Login, a.open(ck.SessionRW), ck.UserUser, []byte(bobPIN))
}
