package pkcs11

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

func set(n uint64) rpc.Attribute {
	return attr(ck.ParameterSet, binary.NativeEndian.AppendUint64(nil, n))
}

func TestMLDSA(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	with := func(hedge uint64, context string) rpc.Mechanism {
		return rpc.Mechanism{Type: ck.MLDSA, Has: true, Nums: []uint64{hedge}, Bufs: [][]byte{[]byte(context)}}
	}
	for number, size := range map[uint64]int{1: 2420, 2: 3309, 3: 4627} {
		pub, priv := a.pair(s, ck.MLDSAKeyPairGen, []rpc.Attribute{set(number)}, []rpc.Attribute{attr(ck.Sensitive, false)})
		for _, m := range []rpc.Mechanism{mech(ck.MLDSA), with(ck.HedgePreferred, ""), with(ck.HedgeRequired, "context"), with(ck.Deterministic, "context")} {
			sig := a.crypt(rpc.SignInit, s, m, priv, []byte("data"))
			if again := a.crypt(rpc.SignInit, s, m, priv, []byte("data")); len(sig) != size || bytes.Equal(sig, again) != (m.Has && m.Nums[0] == ck.Deterministic) {
				t.Errorf("%d bytes, want %d; again the same: %t", len(sig), size, bytes.Equal(sig, again))
			}
			a.call(rpc.VerifyInit, s, m, pub)
			a.call(rpc.VerifyUpdate, s, []byte("da"))
			a.call(rpc.VerifyUpdate, s, []byte("ta"))
			a.call(rpc.VerifyFinal, s, sig)
			a.call(rpc.VerifyInit, s, with(0, "other"), pub)
			a.want(ck.SignatureInvalid, rpc.Verify, s, []byte("data"), sig)
			a.call(rpc.VerifyInit, s, m, pub)
			a.want(ck.SignatureLenRange, rpc.Verify, s, []byte("data"), sig[1:])
		}
		a.call(rpc.SignInit, s, mech(ck.MLDSA), priv)
		if got := a.call(rpc.Sign, s, []byte("data"), rpc.Room{Query: true})[0]; got != rpc.Size(size) {
			t.Errorf("size %v, want %d", got, size)
		}
		a.call(rpc.Sign, s, []byte("data"), room)
		a.pqCopies(s, ck.KeyMLDSA, pub, priv)
	}
	pub, priv := a.pair(s, ck.MLDSAKeyPairGen, []rpc.Attribute{set(1)}, nil)
	for _, m := range []rpc.Mechanism{with(3, ""), with(0, string(make([]byte, 256))), {Type: ck.MLDSA, Has: true, Raw: []byte("raw")}} {
		a.want(ck.MechanismParamInvalid, rpc.SignInit, s, m, priv)
	}
	a.want(ck.KeyTypeInconsistent, rpc.SignInit, s, mech(ck.MLDSA), pub)
	a.want(ck.KeyTypeInconsistent, rpc.SignInit, s, mech(ck.ECDSA), priv)
	if _, rv := a.value(s, priv, ck.Seed); rv != ck.AttributeSensitive {
		t.Errorf("the seed of a sensitive key: %v", rv)
	}
	if _, rv := a.value(s, priv, ck.Value); rv != ck.AttributeTypeInvalid {
		t.Errorf("the expanded key: %v", rv)
	}
}

// pqCopies imports both halves from their attributes and looks for the keys by their set.
func (a *app) pqCopies(s uint64, keyType uint64, pub, priv uint64) {
	a.t.Helper()
	number, rv := a.value(s, pub, ck.ParameterSet)
	public, rv2 := a.value(s, pub, ck.Value)
	seed, rv3 := a.value(s, priv, ck.Seed)
	if rv|rv2|rv3 != ck.OK || len(number.Bytes) != 8 || len(public.Bytes) < 1000 || len(seed.Bytes) < 32 {
		a.t.Fatalf("%v %v %v: %d, %d, %d bytes", rv, rv2, rv3, len(number.Bytes), len(public.Bytes), len(seed.Bytes))
	}
	if n := len(a.find(s, attr(ck.KeyType, keyType), number, attr(ck.Class, ck.ObjectPrivateKey))); n != 1 {
		a.t.Errorf("%d private keys of the set, want 1", n)
	}
	private := []rpc.Attribute{attr(ck.Class, ck.ObjectPrivateKey), attr(ck.KeyType, keyType), number, attr(ck.Seed, seed.Bytes)}
	p := a.call(rpc.CreateObject, s, append(private, attr(ck.Sensitive, false)))[0].(uint64)
	if got, _ := a.value(s, p, ck.Seed); !bytes.Equal(got.Bytes, seed.Bytes) {
		a.t.Error("another seed")
	}
	one, _ := a.value(s, pub, ck.PublicKeyInfo)
	two, rv := a.value(s, p, ck.PublicKeyInfo)
	if rv != ck.OK || !bytes.Equal(one.Bytes, two.Bytes) {
		a.t.Errorf("%v, the imported key has another public half", rv)
	}
	a.call(rpc.DestroyObject, s, p)
	q := a.call(rpc.CreateObject, s, []rpc.Attribute{attr(ck.Class, ck.ObjectPublicKey), attr(ck.KeyType, keyType), number, attr(ck.Value, public.Bytes)})[0].(uint64)
	if got, _ := a.value(s, q, ck.Value); !bytes.Equal(got.Bytes, public.Bytes) {
		a.t.Error("another public key")
	}
	a.want(ck.TemplateIncomplete, rpc.CreateObject, s, private[:3])
	a.want(ck.TemplateIncomplete, rpc.CreateObject, s, append(append([]rpc.Attribute{}, private[:2]...), private[3]))
	a.want(ck.AttributeValueInvalid, rpc.CreateObject, s, append(append([]rpc.Attribute{}, private[:3]...), attr(ck.Seed, seed.Bytes[1:])))
	a.want(ck.AttributeValueInvalid, rpc.CreateObject, s, append(private, attr(ck.Value, []byte("another expanded key"))))
}

func TestMLKEM(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	clear := []rpc.Attribute{attr(ck.Sensitive, false), attr(ck.Extractable, true)}
	secret := func(o uint64) []byte {
		t.Helper()
		v, rv := a.value(s, o, ck.Value)
		if rv != ck.OK {
			t.Fatal(rv)
		}
		return v.Bytes
	}
	for number, size := range map[uint64]int{2: 1088, 3: 1568} {
		pub, priv := a.pair(s, ck.MLKEMKeyPairGen, []rpc.Attribute{set(number), attr(ck.Encapsulate, []byte{1})}, []rpc.Attribute{attr(ck.Decapsulate, []byte{1}), attr(ck.Sensitive, false)})
		for at, o := range map[ck.Attr]uint64{ck.Encapsulate: pub, ck.Decapsulate: priv} {
			if v, rv := a.value(s, o, at); rv != ck.OK || !bytes.Equal(v.Bytes, []byte{1}) {
				t.Errorf("attribute %x: %v %x", at, rv, v.Bytes)
			}
		}
		for _, more := range [][]rpc.Attribute{nil, {attr(ck.KeyType, ck.KeyAES)}, {attr(ck.KeyType, ck.KeyAES), attr(ck.ValueLen, 16)}} {
			template := append(append([]rpc.Attribute{}, clear...), more...)
			if out := a.call(rpc.EncapsulateKey, s, mech(ck.MLKEM), pub, template, rpc.Room{Query: true}); out[0] != rpc.Size(size) || out[1] != uint64(0) {
				t.Errorf("size %v", out)
			}
			out := a.call(rpc.EncapsulateKey, s, mech(ck.MLKEM), pub, template, room)
			ciphertext := out[0].([]byte)
			got := a.call(rpc.DecapsulateKey, s, mech(ck.MLKEM), priv, template, ciphertext)[0].(uint64)
			if one, two := secret(out[1].(uint64)), secret(got); !bytes.Equal(one, two) || len(one) < 16 {
				t.Errorf("%x and %x", one, two)
			}
			a.want(ck.WrappedKeyLenRange, rpc.DecapsulateKey, s, mech(ck.MLKEM), priv, template, ciphertext[1:])
			ciphertext[0] ^= 1
			other := a.call(rpc.DecapsulateKey, s, mech(ck.MLKEM), priv, template, ciphertext)[0].(uint64)
			if bytes.Equal(secret(got), secret(other)) {
				t.Error("a changed ciphertext gives the same key")
			}
		}
		a.want(ck.KeyTypeInconsistent, rpc.EncapsulateKey, s, mech(ck.MLKEM), priv, clear, room)
		a.want(ck.KeyTypeInconsistent, rpc.DecapsulateKey, s, mech(ck.MLKEM), pub, clear, make([]byte, size))
		a.want(ck.AttributeValueInvalid, rpc.DecapsulateKey, s, mech(ck.MLKEM), priv, append(clear, attr(ck.ValueLen, 33)), make([]byte, size))
		a.want(ck.MechanismInvalid, rpc.DecapsulateKey, s, mech(ck.ECDH1Derive), priv, clear, make([]byte, size))
		a.want(ck.MechanismInvalid, rpc.DeriveKey, s, mech(ck.MLKEM), priv, clear)
		a.pqCopies(s, ck.KeyMLKEM, pub, priv)
	}
	_, mute := a.pair(s, ck.MLKEMKeyPairGen, []rpc.Attribute{set(2)}, []rpc.Attribute{attr(ck.Decapsulate, []byte{0})})
	a.want(ck.KeyFunctionNotPermitted, rpc.DecapsulateKey, s, mech(ck.MLKEM), mute, clear, make([]byte, 1088))
	for rv, public := range map[ck.RV][]rpc.Attribute{
		ck.TemplateIncomplete: {}, ck.AttributeValueInvalid: {set(1)}, ck.TemplateInconsistent: {set(2), attr(ck.Encapsulate, []byte{0})},
	} {
		a.want(rv, rpc.GenerateKeyPair, s, mech(ck.MLKEMKeyPairGen), public, []rpc.Attribute{})
	}
	a.want(ck.TemplateInconsistent, rpc.GenerateKeyPair, s, mech(ck.MLKEMKeyPairGen), []rpc.Attribute{set(2)}, []rpc.Attribute{set(3)})
}

// TestWrappedPostQuantumKeys: private keys of ML-DSA and ML-KEM leave wrapped, and what
// is unwrapped signs and decapsulates for the public key of before.
func TestWrappedPostQuantumKeys(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	kek := a.aes(s, attr(ck.Wrap, true), attr(ck.Unwrap, true))
	rsaPub, rsaPriv := a.rsa(s)
	rsaAES := rpc.Mechanism{Type: ck.RSAAESKeyWrap, Has: true, Nums: []uint64{256, uint64(ck.SHA256), ck.MGF1SHA256, 1}, Bufs: [][]byte{nil}}
	ways := []struct {
		m          rpc.Mechanism
		wrap, open uint64
	}{{mech(ck.AESKeyWrapKWP), kek, kek}, {mech(ck.CloudHSMAESKWPKCS5), kek, kek}, {gcm(128), kek, kek}, {rsaAES, rsaPub, rsaPriv}}
	pub, priv := a.pair(s, ck.MLDSAKeyPairGen, []rpc.Attribute{set(2)}, nil)
	dsa := []rpc.Attribute{attr(ck.Class, ck.ObjectPrivateKey), attr(ck.KeyType, ck.KeyMLDSA)}
	for _, w := range ways {
		wrapped := a.call(rpc.WrapKey, s, w.m, w.wrap, priv, room)[0].([]byte)
		back := a.call(rpc.UnwrapKey, s, w.m, w.open, wrapped, dsa)[0].(uint64)
		sig := a.crypt(rpc.SignInit, s, mech(ck.MLDSA), back, []byte("data"))
		a.call(rpc.VerifyInit, s, mech(ck.MLDSA), pub)
		a.call(rpc.Verify, s, []byte("data"), sig)
		a.want(ck.WrappedKeyInvalid, rpc.UnwrapKey, s, w.m, w.open, wrapped, []rpc.Attribute{attr(ck.Class, ck.ObjectPrivateKey), attr(ck.KeyType, ck.KeyMLKEM)})
	}
	pub, priv = a.pair(s, ck.MLKEMKeyPairGen, []rpc.Attribute{set(2)}, nil)
	kem := []rpc.Attribute{attr(ck.Class, ck.ObjectPrivateKey), attr(ck.KeyType, ck.KeyMLKEM)}
	clear := []rpc.Attribute{attr(ck.Sensitive, false), attr(ck.Extractable, true)}
	out := a.call(rpc.EncapsulateKey, s, mech(ck.MLKEM), pub, clear, room)
	want, _ := a.value(s, out[1].(uint64), ck.Value)
	for _, w := range ways {
		wrapped := a.call(rpc.WrapKey, s, w.m, w.wrap, priv, room)[0].([]byte)
		back := a.call(rpc.UnwrapKey, s, w.m, w.open, wrapped, kem)[0].(uint64)
		shared := a.call(rpc.DecapsulateKey, s, mech(ck.MLKEM), back, clear, out[0])[0].(uint64)
		if got, _ := a.value(s, shared, ck.Value); len(got.Bytes) != 32 || !bytes.Equal(got.Bytes, want.Bytes) {
			t.Errorf("mechanism 0x%x: another secret", uint32(w.m.Type))
		}
	}
}

func TestHMACGeneral(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	key := a.call(rpc.GenerateKey, s, mech(ck.GenericSecretGen), []rpc.Attribute{attr(ck.ValueLen, 32), attr(ck.Sign, true), attr(ck.Verify, true)})[0].(uint64)
	whole := a.crypt(rpc.SignInit, s, mech(ck.SHA256HMAC), key, []byte("data"))
	cut := func(n uint64) rpc.Mechanism {
		return rpc.Mechanism{Type: ck.SHA256HMACGeneral, Has: true, Nums: []uint64{n}}
	}
	for _, n := range []uint64{1, 12, 32} {
		got := a.crypt(rpc.SignInit, s, cut(n), key, []byte("data"))
		if !bytes.Equal(got, whole[:n]) {
			t.Errorf("%x is not the beginning of %x", got, whole)
		}
		a.call(rpc.VerifyInit, s, cut(n), key)
		a.call(rpc.Verify, s, []byte("data"), got)
		got[0] ^= 1
		a.call(rpc.VerifyInit, s, cut(n), key)
		a.want(ck.SignatureInvalid, rpc.Verify, s, []byte("data"), got)
		a.call(rpc.VerifyInit, s, cut(n), key)
		a.want(ck.SignatureLenRange, rpc.Verify, s, []byte("data"), whole[:n-1])
	}
	for _, m := range []rpc.Mechanism{cut(0), cut(33), mech(ck.SHA256HMACGeneral)} {
		a.want(ck.MechanismParamInvalid, rpc.SignInit, s, m, key)
	}
}
