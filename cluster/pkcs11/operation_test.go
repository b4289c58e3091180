package pkcs11

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

var onlyOne = cluster.Policy{MinCopies: 1}

func iv(m ck.Mech) rpc.Mechanism {
	return rpc.Mechanism{Type: m, Has: true, Bufs: [][]byte{bytes.Repeat([]byte{7}, 16)}}
}

func ctr(bits uint64) rpc.Mechanism {
	m := iv(ck.AESCTR)
	m.Nums = []uint64{bits}
	return m
}

func gcm(tag uint64) rpc.Mechanism {
	return rpc.Mechanism{Type: ck.AESGCM, Has: true, Nums: []uint64{96, tag}, Bufs: [][]byte{make([]byte, 12), []byte("aad")}}
}

// known makes an AES key of known bytes.
func (a *app) known(s uint64, attributes ...rpc.Attribute) uint64 {
	a.t.Helper()
	return a.call(rpc.CreateObject, s, append([]rpc.Attribute{attr(ck.Class, ck.ObjectSecretKey), attr(ck.KeyType, ck.KeyAES), attr(ck.Value, make([]byte, 16))}, attributes...))[0].(uint64)
}

// Whatever the parts that data comes in, what comes out is what the standard library
// makes of it in one go.
func TestCiphersInParts(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	key := a.known(s)
	b, _ := aes.NewCipher(make([]byte, 16))
	vector := bytes.Repeat([]byte{7}, 16)
	data := make([]byte, 100)
	for i := range data {
		data[i] = byte(i)
	}
	padded := append(bytes.Clone(data), bytes.Repeat([]byte{12}, 12)...)
	want := map[ck.Mech][]byte{ck.AESCBCPad: make([]byte, 112), ck.AESCBC: make([]byte, 96), ck.AESECB: make([]byte, 96), ck.AESCTR: make([]byte, 100)}
	cipher.NewCBCEncrypter(b, vector).CryptBlocks(want[ck.AESCBCPad], padded)
	cipher.NewCBCEncrypter(b, vector).CryptBlocks(want[ck.AESCBC], data[:96])
	for i := 0; i < 96; i += 16 {
		b.Encrypt(want[ck.AESECB][i:], data[i:])
	}
	cipher.NewCTR(b, vector).XORKeyStream(want[ck.AESCTR], data)
	for _, m := range []rpc.Mechanism{iv(ck.AESCBCPad), iv(ck.AESCBC), mech(ck.AESECB), ctr(128)} {
		plain := data
		if m.Type == ck.AESCBC || m.Type == ck.AESECB {
			plain = data[:96]
		}
		for _, step := range []int{1, 7, 16, 17, 100} {
			got := a.inParts(s, rpc.EncryptInit, m, key, plain, step)
			if !bytes.Equal(got, want[m.Type]) {
				t.Errorf("%x in steps of %d: %x", m.Type, step, got)
			}
			if back := a.inParts(s, rpc.DecryptInit, m, key, got, step); !bytes.Equal(back, plain) {
				t.Errorf("%x in steps of %d: back %x", m.Type, step, back)
			}
		}
		if got := a.crypt(rpc.EncryptInit, s, m, key, plain); !bytes.Equal(got, want[m.Type]) {
			t.Errorf("%x at once: %x", m.Type, got)
		}
		if got := a.crypt(rpc.DecryptInit, s, m, key, want[m.Type]); !bytes.Equal(got, plain) {
			t.Errorf("%x at once: back %x", m.Type, got)
		}
	}
}

func (a *app) inParts(s uint64, init rpc.Call, m rpc.Mechanism, key uint64, data []byte, step int) (out []byte) {
	a.t.Helper()
	a.call(init, s, m, key)
	for len(data) > 0 {
		n := min(step, len(data))
		out = append(out, a.call(init+2, s, data[:n], room)[0].([]byte)...)
		data = data[n:]
	}
	return append(out, a.call(init+3, s, room)[0].([]byte)...)
}

func TestGCM(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	key := a.known(s)
	b, _ := aes.NewCipher(make([]byte, 16))
	aead, _ := cipher.NewGCM(b)
	want := aead.Seal(nil, make([]byte, 12), []byte("data"), []byte("aad"))
	if got := a.crypt(rpc.EncryptInit, s, gcm(128), key, []byte("data")); !bytes.Equal(got, want) {
		t.Errorf("%x", got)
	}
	if got := a.inParts(s, rpc.DecryptInit, gcm(128), key, want, 3); string(got) != "data" {
		t.Errorf("%q", got)
	}
	if got := a.crypt(rpc.EncryptInit, s, gcm(96), key, []byte("data")); !bytes.Equal(got, want[:16]) {
		t.Errorf("tag of 12: %x", got)
	}
	want[0]++
	a.call(rpc.DecryptInit, s, gcm(128), key)
	a.want(ck.EncryptedDataInvalid, rpc.Decrypt, s, want, room)
	a.want(ck.OperationNotInitialized, rpc.Decrypt, s, want, room)
	a.want(ck.MechanismParamInvalid, rpc.EncryptInit, s, gcm(8), key)
	inside := gcm(128)
	inside.Type = ck.CloudHSMAESGCM
	sealed := a.crypt(rpc.EncryptInit, s, inside, key, []byte("data"))
	if len(sealed) != 12+4+16 {
		t.Errorf("%d bytes", len(sealed))
	}
	if got := a.crypt(rpc.DecryptInit, s, inside, key, sealed); string(got) != "data" {
		t.Errorf("%q", got)
	}
}

// TestIVOfZeros: who leaves the IV to the HSM and is served by the stock client would
// seal everything under one IV.
func TestIVOfZeros(t *testing.T) {
	w := newWorld(t, 1, onlyOne)
	other := gcm(128)
	other.Bufs = [][]byte{bytes.Repeat([]byte{1}, 12), nil}
	for _, c := range []struct {
		form rpc.Form
		want ck.RV
	}{{rpc.FormOld, ck.MechanismParamInvalid}, {rpc.FormNew, ck.MechanismParamInvalid}, {rpc.FormModule, 0}} {
		a := w.appOf(c.form)
		s := a.session(bobPIN)
		key := a.known(s, attr(ck.Wrap, true), attr(ck.Encrypt, true), attr(ck.Decrypt, true))
		if c.want != 0 {
			a.want(c.want, rpc.EncryptInit, s, gcm(128), key)
			a.want(c.want, rpc.WrapKey, s, gcm(128), key, key, room)
		} else {
			a.crypt(rpc.EncryptInit, s, gcm(128), key, []byte("data"))
			a.call(rpc.WrapKey, s, gcm(128), key, key, room)
		}
		a.crypt(rpc.EncryptInit, s, other, key, []byte("data"))
		a.call(rpc.DecryptInit, s, gcm(128), key)
	}
}

// A buffer that is too small costs nothing: its caller is told the size and tries
// again.
func TestSizesOfBuffers(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	key := a.known(s)
	generic := a.call(rpc.GenerateKey, s, mech(ck.GenericSecretGen), []rpc.Attribute{attr(ck.ValueLen, 32)})[0].(uint64)
	a.call(rpc.SignInit, s, mech(ck.SHA256HMAC), generic)
	for _, r := range []rpc.Room{{Query: true}, {}, {N: 31}} {
		if got := a.call(rpc.Sign, s, []byte("x"), r)[0]; got != rpc.Size(32) {
			t.Errorf("%+v: %v", r, got)
		}
	}
	if got := a.call(rpc.Sign, s, []byte("x"), rpc.Room{N: 32})[0].([]byte); len(got) != 32 {
		t.Errorf("%d bytes", len(got))
	}
	a.want(ck.OperationNotInitialized, rpc.Sign, s, []byte("x"), room)

	a.call(rpc.EncryptInit, s, iv(ck.AESCBCPad), key)
	if got := a.call(rpc.EncryptUpdate, s, make([]byte, 20), rpc.Room{N: 15})[0]; got != rpc.Size(16) {
		t.Errorf("update: %v", got)
	}
	first := a.call(rpc.EncryptUpdate, s, make([]byte, 20), rpc.Room{N: 16})[0].([]byte)
	if got := a.call(rpc.EncryptFinal, s, rpc.Room{N: 1})[0]; got != rpc.Size(16) {
		t.Errorf("final: %v", got)
	}
	sealed := append(first, a.call(rpc.EncryptFinal, s, rpc.Room{N: 16})[0].([]byte)...)
	a.call(rpc.DecryptInit, s, iv(ck.AESCBCPad), key)
	if got := a.call(rpc.Decrypt, s, sealed, rpc.Room{Query: true})[0]; got != rpc.Size(32) {
		t.Errorf("decrypt: at most %v", got)
	}
	if got := a.call(rpc.Decrypt, s, sealed, rpc.Room{N: 19})[0]; got != rpc.Size(20) {
		t.Errorf("decrypt: %v", got)
	}
	if got := a.call(rpc.Decrypt, s, sealed, rpc.Room{N: 20})[0].([]byte); !bytes.Equal(got, make([]byte, 20)) {
		t.Errorf("decrypt: %x", got)
	}
}

// A client of 0.24 finishes with what looks like a question for the size.
func TestOldClientsReplaceOperations(t *testing.T) {
	w := newWorld(t, 1, onlyOne)
	a := w.appOf(rpc.FormOld)
	s := a.session(bobPIN)
	key := a.known(s)
	a.call(rpc.EncryptInit, s, mech(ck.AESECB), key)
	a.call(rpc.EncryptUpdate, s, make([]byte, 16), room)
	if got := a.call(rpc.EncryptFinal, s, rpc.Room{Query: true})[0].([]byte); len(got) != 0 {
		t.Errorf("%x", got)
	}
	a.call(rpc.EncryptInit, s, mech(ck.AESECB), key)
	newer := w.appOf(rpc.FormNew)
	s = newer.session(bobPIN)
	key = newer.known(s)
	newer.call(rpc.EncryptInit, s, mech(ck.AESECB), key)
	newer.want(ck.OperationActive, rpc.EncryptInit, s, mech(ck.AESECB), key)
	newer.call(rpc.EncryptInit, s, rpc.Mechanism{Type: ck.NoMechanism}, uint64(0))
	newer.call(rpc.EncryptInit, s, mech(ck.AESECB), key)
	newer.call(rpc.SessionCancel, s, ck.MechEncrypt)
	newer.want(ck.OperationNotInitialized, rpc.EncryptFinal, s, room)
}

func TestCounterEnds(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	key := a.known(s)
	a.call(rpc.EncryptInit, s, ctr(3), key) // begins at 7 of 8
	a.call(rpc.EncryptUpdate, s, make([]byte, 16), room)
	a.want(ck.DataLenRange, rpc.EncryptUpdate, s, make([]byte, 1), room)
}

func (a *app) rsa(s uint64) (pub, priv uint64) {
	return a.pair(s, ck.RSAPKCSKeyPairGen, []rpc.Attribute{attr(ck.ModulusBits, 2048), attr(ck.PublicExponent, []byte{1, 0, 1}), attr(ck.Verify, true), attr(ck.Encrypt, true), attr(ck.Wrap, true)},
		[]rpc.Attribute{attr(ck.Sign, true), attr(ck.Decrypt, true), attr(ck.Unwrap, true)})
}

func pss(m ck.Mech, hash ck.Mech, mgf, salt uint64) rpc.Mechanism {
	return rpc.Mechanism{Type: m, Has: true, Nums: []uint64{uint64(hash), mgf, salt}}
}

func TestRSA(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	pub, priv := a.rsa(s)
	data := []byte("what is signed")
	sum, short := sha256.Sum256(data), sha1.Sum(data)
	for _, v := range []struct {
		m    rpc.Mechanism
		data []byte
	}{
		{mech(ck.RSAPKCS), data}, {mech(ck.RSAX509), data}, {mech(ck.SHA1RSAPKCS), data}, {mech(ck.SHA224RSAPKCS), data}, {mech(ck.SHA256RSAPKCS), data},
		{mech(ck.SHA384RSAPKCS), data}, {mech(ck.SHA512RSAPKCS), data}, {pss(ck.RSAPKCSPSS, ck.SHA256, ck.MGF1SHA256, 32), sum[:]},
		{pss(ck.SHA384RSAPSS, ck.SHA384, ck.MGF1SHA384, 20), data},
	} {
		sig := a.crypt(rpc.SignInit, s, v.m, priv, v.data)
		a.call(rpc.VerifyInit, s, v.m, pub)
		a.call(rpc.Verify, s, v.data, sig)
		a.call(rpc.VerifyInit, s, v.m, pub)
		a.call(rpc.VerifyUpdate, s, v.data[:3])
		a.call(rpc.VerifyUpdate, s, v.data[3:])
		a.call(rpc.VerifyFinal, s, sig)
		sig[7]++
		a.call(rpc.VerifyInit, s, v.m, pub)
		a.want(ck.SignatureInvalid, rpc.Verify, s, v.data, sig)
		a.call(rpc.VerifyInit, s, v.m, pub)
		a.want(ck.SignatureLenRange, rpc.Verify, s, v.data, sig[1:])
	}
	// CKM_SHA1_RSA_PKCS is CKM_RSA_PKCS of the DigestInfo.
	sig := a.crypt(rpc.SignInit, s, mech(ck.SHA1RSAPKCS), priv, data)
	a.call(rpc.VerifyInit, s, mech(ck.RSAPKCS), pub)
	a.call(rpc.Verify, s, append(bytes.Clone(sha1Info), short[:]...), sig)
	for _, m := range []rpc.Mechanism{mech(ck.RSAPKCS), mech(ck.RSAX509)} {
		sig := a.crypt(rpc.SignRecoverInit, s, m, priv, data)
		a.call(rpc.VerifyRecoverInit, s, m, pub)
		if got := a.call(rpc.VerifyRecover, s, sig, room)[0].([]byte); !bytes.HasSuffix(got, data) {
			t.Errorf("recovered %x", got)
		}
		sealed := a.crypt(rpc.EncryptInit, s, m, pub, data)
		if got := a.crypt(rpc.DecryptInit, s, m, priv, sealed); !bytes.HasSuffix(got, data) {
			t.Errorf("decrypted %x", got)
		}
	}
	oaep := rpc.Mechanism{Type: ck.RSAPKCSOAEP, Has: true, Nums: []uint64{uint64(ck.SHA1), ck.MGF1SHA1, ck.OAEPSourceSpecified}, Bufs: [][]byte{[]byte("label")}}
	if got := a.crypt(rpc.DecryptInit, s, oaep, priv, a.crypt(rpc.EncryptInit, s, oaep, pub, data)); !bytes.Equal(got, data) {
		t.Errorf("decrypted %x", got)
	}
	for _, bad := range []rpc.Mechanism{pss(ck.RSAPKCSPSS, ck.SHA1, ck.MGF1SHA1, 20), pss(ck.RSAPKCSPSS, ck.SHA256, ck.MGF1SHA384, 32),
		pss(ck.SHA256RSAPSS, ck.SHA384, ck.MGF1SHA384, 32), pss(ck.RSAPKCSPSS, ck.SHA256, ck.MGF1SHA256, 0), mech(ck.RSAPKCSPSS)} {
		a.want(ck.MechanismParamInvalid, rpc.SignInit, s, bad, priv)
	}
	a.want(ck.KeyTypeInconsistent, rpc.SignInit, s, mech(ck.ECDSA), priv)
	a.want(ck.KeyTypeInconsistent, rpc.SignInit, s, mech(ck.RSAPKCS), pub)
	a.want(ck.MechanismInvalid, rpc.SignInit, s, mech(ck.AESECB), priv)
	a.want(ck.MechanismInvalid, rpc.SignInit, s, mech(0x12345), priv)
	a.call(rpc.SignInit, s, mech(ck.RSAPKCS), priv)
	a.want(ck.DataLenRange, rpc.Sign, s, make([]byte, 246), room)
}

func TestECAndEdwards(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	for curve := range curves {
		m, signers := ck.ECKeyPairGen, []ck.Mech{ck.ECDSA, ck.ECDSASHA1, ck.ECDSASHA256, ck.ECDSASHA512}
		if curve == "ed25519" {
			m, signers = ck.ECEdwardsPairGen, []ck.Mech{ck.EDDSA}
		}
		pub, priv := a.pair(s, m, []rpc.Attribute{attr(ck.ECParams, curveDER(curve))}, nil)
		for _, m := range signers {
			data := bytes.Repeat([]byte{5}, 20)
			sig := a.crypt(rpc.SignInit, s, mech(m), priv, data)
			a.call(rpc.VerifyInit, s, mech(m), pub)
			a.call(rpc.Verify, s, data, sig)
			sig[3]++
			a.call(rpc.VerifyInit, s, mech(m), pub)
			a.want(ck.SignatureInvalid, rpc.Verify, s, data, sig)
		}
	}
	a.want(ck.CurveNotSupported, rpc.GenerateKeyPair, s, mech(ck.ECKeyPairGen), []rpc.Attribute{attr(ck.ECParams, []byte{6, 1, 42})}, []rpc.Attribute{})
	for _, der := range [][]byte{{1, 2, 3}, append(curveDER("secp256r1"), 0)} {
		a.want(ck.DomainParamsInvalid, rpc.GenerateKeyPair, s, mech(ck.ECKeyPairGen), []rpc.Attribute{attr(ck.ECParams, der)}, []rpc.Attribute{})
	}
	a.want(ck.TemplateIncomplete, rpc.GenerateKeyPair, s, mech(ck.ECKeyPairGen), []rpc.Attribute{}, []rpc.Attribute{})
}

func TestDeriveByECDH(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	p256 := []rpc.Attribute{attr(ck.ECParams, curveDER("secp256r1"))}
	pub1, priv1 := a.pair(s, ck.ECKeyPairGen, p256, []rpc.Attribute{attr(ck.Derive, true)})
	pub2, priv2 := a.pair(s, ck.ECKeyPairGen, p256, []rpc.Attribute{attr(ck.Derive, true)})
	derive := func(priv, pub uint64, kdf uint64) []byte {
		point, _ := a.value(s, pub, ck.ECPoint)
		m := rpc.Mechanism{Type: ck.ECDH1Derive, Has: true, Nums: []uint64{kdf}, Bufs: [][]byte{nil, point.Bytes}}
		o := a.call(rpc.DeriveKey, s, m, priv, []rpc.Attribute{attr(ck.Sensitive, false), attr(ck.ValueLen, 24)})[0].(uint64)
		v, rv := a.value(s, o, ck.Value)
		if rv != ck.OK || len(v.Bytes) != 24 {
			t.Fatalf("%v, %d bytes", rv, len(v.Bytes))
		}
		return v.Bytes
	}
	point, _ := a.value(s, pub2, ck.ECPoint)
	m := rpc.Mechanism{Type: ck.ECDH1Derive, Has: true, Nums: []uint64{ck.KDFNull}, Bufs: [][]byte{nil, point.Bytes}}
	a.want(ck.KeySizeRange, rpc.DeriveKey, s, m, priv1, []rpc.Attribute{attr(ck.ValueLen, 33)})
	for _, kdf := range []uint64{ck.KDFNull, ck.KDFSHA1, ck.KDFSHA256, ck.KDFSHA512} {
		if !bytes.Equal(derive(priv1, pub2, kdf), derive(priv2, pub1, kdf)) {
			t.Errorf("kdf %d: the two sides differ", kdf)
		}
	}
}

func TestDigests(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	want := sha256.Sum256([]byte("ab"))
	a.call(rpc.DigestInit, s, mech(ck.SHA256))
	if got := a.call(rpc.Digest, s, []byte("ab"), room)[0].([]byte); !bytes.Equal(got, want[:]) {
		t.Errorf("%x", got)
	}
	a.call(rpc.DigestInit, s, mech(ck.SHA256))
	a.call(rpc.DigestUpdate, s, []byte("a"))
	a.want(ck.OperationActive, rpc.Digest, s, []byte("b"), room)
	a.call(rpc.DigestUpdate, s, []byte("b"))
	if got := a.call(rpc.DigestFinal, s, room)[0].([]byte); !bytes.Equal(got, want[:]) {
		t.Errorf("%x", got)
	}
	zeros := sha256.Sum256(make([]byte, 16))
	a.call(rpc.DigestInit, s, mech(ck.SHA256))
	a.want(ck.KeyIndigestible, rpc.DigestKey, s, a.known(s))
	a.call(rpc.DigestKey, s, a.known(s, attr(ck.Sensitive, false)))
	if got := a.call(rpc.DigestFinal, s, room)[0].([]byte); !bytes.Equal(got, zeros[:]) {
		t.Errorf("%x", got)
	}
}

func TestTwoThingsAtOnce(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	key := a.known(s)
	data := bytes.Repeat([]byte{3}, 32)
	want := sha256.Sum256(data)
	a.call(rpc.DigestInit, s, mech(ck.SHA256))
	a.call(rpc.EncryptInit, s, mech(ck.AESECB), key)
	if got := a.call(rpc.DigestEncryptUpdate, s, data, rpc.Room{N: 31})[0]; got != rpc.Size(32) {
		t.Errorf("%v", got)
	}
	sealed := a.call(rpc.DigestEncryptUpdate, s, data, room)[0].([]byte)
	a.call(rpc.EncryptFinal, s, room)
	if got := a.call(rpc.DigestFinal, s, room)[0].([]byte); !bytes.Equal(got, want[:]) {
		t.Errorf("%x", got)
	}
	a.call(rpc.DigestInit, s, mech(ck.SHA256))
	a.call(rpc.DecryptInit, s, mech(ck.AESECB), key)
	a.call(rpc.DecryptDigestUpdate, s, sealed, room)
	if got := a.call(rpc.DigestFinal, s, room)[0].([]byte); !bytes.Equal(got, want[:]) {
		t.Errorf("%x", got)
	}
}

func TestAlwaysAuthenticate(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	_, priv := a.pair(s, ck.ECKeyPairGen, []rpc.Attribute{attr(ck.ECParams, curveDER("secp256r1"))}, []rpc.Attribute{attr(ck.Sign, true), attr(ck.AlwaysAuthenticate, true)})
	again := func(pin string) []any { return []any{s, ck.UserContextSpecific, []byte(pin)} }
	a.want(ck.OperationNotInitialized, rpc.Login, again(bobPIN)...)
	a.call(rpc.SignInit, s, mech(ck.ECDSA), priv)
	a.want(ck.UserNotLoggedIn, rpc.Sign, s, make([]byte, 32), room)
	a.want(ck.PinIncorrect, rpc.Login, again("bob:bob-passwore")...)
	a.want(ck.OperationNotInitialized, rpc.Sign, s, make([]byte, 32), room)
	a.call(rpc.SignInit, s, mech(ck.ECDSA), priv)
	a.call(rpc.Login, again(bobPIN)...)
	a.call(rpc.Sign, s, make([]byte, 32), room)
	a.call(rpc.SignInit, s, mech(ck.ECDSA), priv)
	a.want(ck.UserNotLoggedIn, rpc.Sign, s, make([]byte, 32), room)
}

func TestAllowedMechanisms(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	key := a.aes(s, attr(ck.Encrypt, true), attr(ck.AllowedMechanisms, []ck.Mech{ck.AESECB}))
	a.call(rpc.EncryptInit, s, mech(ck.AESECB), key)
	a.call(rpc.SessionCancel, s, ck.MechEncrypt)
	a.want(ck.MechanismInvalid, rpc.EncryptInit, s, iv(ck.AESCBC), key)
	if v, rv := a.value(s, key, ck.AllowedMechanisms); rv != ck.OK || len(v.Mechs) != 1 || v.Mechs[0] != ck.AESECB {
		t.Errorf("%+v %v", v, rv)
	}
}

func TestRandom(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.open(0)
	for range 2 { // without a login, and with one
		one, two := a.call(rpc.GenerateRandom, s, rpc.Room{N: 32})[0].([]byte), a.call(rpc.GenerateRandom, s, rpc.Room{N: 32})[0].([]byte)
		if len(one) != 32 || bytes.Equal(one, two) {
			t.Errorf("%x %x", one, two)
		}
		if got := a.call(rpc.GenerateRandom, s, rpc.Room{Query: true})[0].([]byte); len(got) != 0 {
			t.Errorf("%x", got)
		}
		if s2 := a.open(0); s2 != 0 && a.App.logins[a.d.slots[0]] == nil {
			a.call(rpc.Login, s2, ck.UserUser, []byte(bobPIN))
		}
	}
	a.want(ck.RandomSeedNotSupported, rpc.SeedRandom, s, []byte("seed"))
}

// The KDF of SP 800-108 in counter mode, beside HMAC by hand.
func TestDeriveBySP800108(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	base := a.call(rpc.CreateObject, s, []rpc.Attribute{attr(ck.Class, ck.ObjectSecretKey), attr(ck.KeyType, ck.KeyGeneric), attr(ck.Value, make([]byte, 32)), attr(ck.Derive, true)})[0].(uint64)
	items := [][]byte{ulongs(0, 32), []byte("label"), {0}, []byte("context"), ulongs(1, 0, 32)}
	m := rpc.Mechanism{Type: ck.SP800108Counter, Has: true, Nums: []uint64{uint64(ck.SHA256HMAC), 5, 1, 4, 4, 4, 3}, Bufs: items}
	key := a.call(rpc.DeriveKey, s, m, base, []rpc.Attribute{attr(ck.KeyType, ck.KeyAES), attr(ck.ValueLen, 32), attr(ck.Sensitive, false)})[0].(uint64)
	h := hmac.New(sha256.New, make([]byte, 32))
	h.Write([]byte("\x00\x00\x00\x01label\x00context\x00\x00\x01\x00"))
	if v, rv := a.value(s, key, ck.Value); rv != ck.OK || !bytes.Equal(v.Bytes, h.Sum(nil)) {
		t.Errorf("%x %v, want %x", v.Bytes, rv, h.Sum(nil))
	}
	for name, bad := range map[string]rpc.Mechanism{
		"another width":     {Type: m.Type, Has: true, Nums: m.Nums, Bufs: [][]byte{ulongs(0, 16), items[1], items[2], items[3], items[4]}},
		"little-endian":     {Type: m.Type, Has: true, Nums: m.Nums, Bufs: [][]byte{ulongs(1, 32), items[1], items[2], items[3], items[4]}},
		"no separator":      {Type: m.Type, Has: true, Nums: []uint64{uint64(ck.SHA256HMAC), 4, 1, 4, 4, 3}, Bufs: [][]byte{items[0], items[1], items[3], items[4]}},
		"another prf":       {Type: m.Type, Has: true, Nums: []uint64{uint64(ck.AESCMAC), 5, 1, 4, 4, 4, 3}, Bufs: items},
		"a count that lies": {Type: m.Type, Has: true, Nums: []uint64{uint64(ck.SHA256HMAC), 6, 1, 4, 4, 4, 3}, Bufs: items},
		"nothing":           {Type: m.Type},
	} {
		t.Run(name, func(t *testing.T) {
			(&app{t, a.App}).want(ck.MechanismParamInvalid, rpc.DeriveKey, s, bad, base, []rpc.Attribute{attr(ck.ValueLen, 32)})
		})
	}
}
