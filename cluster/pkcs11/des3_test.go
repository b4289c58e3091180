package pkcs11

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

func fromHex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// des3 makes a key of known bytes.
func (a *app) des3(s uint64, value []byte, attributes ...rpc.Attribute) uint64 {
	a.t.Helper()
	return a.call(rpc.CreateObject, s, append([]rpc.Attribute{attr(ck.Class, ck.ObjectSecretKey), attr(ck.KeyType, ck.KeyDES3), attr(ck.Value, value)}, attributes...))[0].(uint64)
}

// TestDES3 has the examples of NIST: SP 800-67, appendix B, and TCBCMMT3.rsp, count 9.
func TestDES3(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	key := a.des3(s, fromHex(t, "0123456789abcdef23456789abcdef01456789abcdef0123"))
	if got := a.crypt(rpc.EncryptInit, s, mech(ck.DES3ECB), key, []byte("The qufck brown fox jump")); hex.EncodeToString(got) != "a826fd8ce53b855fcce21c8112256fe668d5c05dd9b6b900" {
		t.Errorf("ECB: %x", got)
	}
	key = a.des3(s, fromHex(t, "9b162a0df8ad9b61c88676e3d586434570b902f12a2046e0"))
	plain := fromHex(t, "f4c1c918e77355c8156f0fd778da52bff121ae5f2f44eaf4d2754946d0e10d1f18ce3a0176e69c18b7d20b6e0d0bee5eb5edfe4bd60e4d92adcd86bce72e76f94ee5cbcaa8b01cfddcea2ade575e66ac")
	sealed := fromHex(t, "1ff3c8709f403a8eff291aedf50c010df5c5ff64a8b205f1fce68564798897a390db16ee0d053856b75898009731da290fcc119dad987277aacef694872e880c4bb41471063fae05c89f25e4bd0cad6a")
	cbc := rpc.Mechanism{Type: ck.DES3CBC, Has: true, Bufs: [][]byte{fromHex(t, "ebd6fefe029ad54b")}}
	pad := cbc
	pad.Type = ck.DES3CBCPad
	for _, step := range []int{1, 7, 8, 9, 100} {
		if got := a.inParts(s, rpc.EncryptInit, cbc, key, plain, step); !bytes.Equal(got, sealed) {
			t.Errorf("CBC in parts of %d: %x", step, got)
		}
		if got := a.inParts(s, rpc.DecryptInit, cbc, key, sealed, step); !bytes.Equal(got, plain) {
			t.Errorf("CBC back in parts of %d: %x", step, got)
		}
		padded := a.inParts(s, rpc.EncryptInit, pad, key, plain[:77], step)
		if !bytes.Equal(padded[:72], sealed[:72]) || len(padded) != 80 {
			t.Errorf("CBC_PAD in parts of %d: %x", step, padded)
		}
		if got := a.inParts(s, rpc.DecryptInit, pad, key, padded, step); !bytes.Equal(got, plain[:77]) {
			t.Errorf("CBC_PAD back in parts of %d: %x", step, got)
		}
	}
	a.call(rpc.EncryptInit, s, pad, key)
	if got := a.call(rpc.Encrypt, s, plain, rpc.Room{Query: true})[0]; got != rpc.Size(len(plain)+8) {
		t.Errorf("size %v", got)
	}
	a.call(rpc.Encrypt, s, plain, room)
	a.want(ck.MechanismParamInvalid, rpc.EncryptInit, s, iv(ck.DES3CBC), key) // of 16 bytes
	a.want(ck.KeyTypeInconsistent, rpc.EncryptInit, s, mech(ck.AESECB), key)
	a.want(ck.KeyTypeInconsistent, rpc.EncryptInit, s, mech(ck.DES3ECB), a.known(s))
}

func TestDES3Keys(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	key := a.call(rpc.GenerateKey, s, mech(ck.DES3KeyGen), []rpc.Attribute{attr(ck.Sensitive, false)})[0].(uint64)
	a.want(ck.AttributeValueInvalid, rpc.GenerateKey, s, mech(ck.DES3KeyGen), []rpc.Attribute{attr(ck.ValueLen, 16)})
	for at, want := range map[ck.Attr]uint64{ck.KeyType: ck.KeyDES3, ck.KeyGenMechanism: uint64(ck.DES3KeyGen), ck.Encrypt: 1, ck.Decrypt: 1, ck.Sign: 0} {
		if v, rv := a.value(s, key, at); rv != ck.OK || v.Num != want {
			t.Errorf("attribute 0x%x: %+v %v, want %d", uint32(at), v, rv, want)
		}
	}
	value, _ := a.value(s, key, ck.Value)
	check, _ := a.value(s, key, ck.CheckValue)
	if zero := a.crypt(rpc.EncryptInit, s, mech(ck.DES3ECB), key, make([]byte, 8)); len(value.Bytes) != 24 || !bytes.Equal(check.Bytes, zero[:3]) {
		t.Errorf("%d bytes, check value %x, a block of zeros becomes %x", len(value.Bytes), check.Bytes, zero)
	}
	for name, bad := range map[string][]byte{"parity": make([]byte, 24), "two parts": bytes.Repeat([]byte("1234567\x08"), 3), "length": value.Bytes[:16]} {
		t.Run(name, func(t *testing.T) {
			a.want(ck.AttributeValueInvalid, rpc.CreateObject, s, []rpc.Attribute{attr(ck.Class, ck.ObjectSecretKey), attr(ck.KeyType, ck.KeyDES3), attr(ck.Value, bad)})
		})
	}
	// It is wrapped, unwrapped and derived like others.
	kek := a.aes(s, attr(ck.Wrap, true), attr(ck.Unwrap, true))
	template := []rpc.Attribute{attr(ck.Class, ck.ObjectSecretKey), attr(ck.KeyType, ck.KeyDES3), attr(ck.Sensitive, false)}
	for _, m := range []ck.Mech{ck.AESKeyWrap, ck.AESKeyWrapKWP, ck.CloudHSMAESKWNoPad, ck.CloudHSMAESKWPKCS5} {
		wrapped := a.call(rpc.WrapKey, s, mech(m), kek, key, room)[0].([]byte)
		back := a.call(rpc.UnwrapKey, s, mech(m), kek, wrapped, template)[0].(uint64)
		if v, _ := a.value(s, back, ck.Value); !bytes.Equal(v.Bytes, value.Bytes) {
			t.Errorf("mechanism 0x%x: another key", uint32(m))
		}
	}
	aes := a.aes(s, attr(ck.Wrap, true))
	wrapped := a.call(rpc.WrapKey, s, mech(ck.AESKeyWrapKWP), kek, aes, room)[0].([]byte)
	a.want(ck.WrappedKeyInvalid, rpc.UnwrapKey, s, mech(ck.AESKeyWrapKWP), kek, wrapped, template)
	_, priv := a.pair(s, ck.ECKeyPairGen, []rpc.Attribute{attr(ck.ECParams, curveDER("secp256r1"))}, []rpc.Attribute{attr(ck.Derive, true)})
	peer, _ := a.pair(s, ck.ECKeyPairGen, []rpc.Attribute{attr(ck.ECParams, curveDER("secp256r1"))}, []rpc.Attribute{attr(ck.Derive, true)})
	point, _ := a.value(s, peer, ck.ECPoint)
	ecdh := rpc.Mechanism{Type: ck.ECDH1Derive, Has: true, Nums: []uint64{ck.KDFSHA256}, Bufs: [][]byte{nil, point.Bytes}}
	derived := a.call(rpc.DeriveKey, s, ecdh, priv, template)[0].(uint64)
	if v, _ := a.value(s, derived, ck.Value); len(v.Bytes) != 24 {
		t.Errorf("derived %d bytes", len(v.Bytes))
	}
}
