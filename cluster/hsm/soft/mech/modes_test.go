package mech

import (
	"bytes"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"math/big"
	"testing"
)

func mustHex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The examples of NIST SP 800-38A, appendix F, with AES-128: two blocks each.
func TestBlockModesOfSP80038A(t *testing.T) {
	key, err := ParseSecret(AES, mustHex(t, "2b7e151628aed2a6abf7158809cf4f3c"))
	if err != nil {
		t.Fatal(err)
	}
	plain := mustHex(t, "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
	for _, v := range []struct{ mechanism, iv, want string }{
		{AESECB, "", "3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf"},
		{AESCBC, "000102030405060708090a0b0c0d0e0f", "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2"},
		{AESCTR, "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"},
	} {
		p := CryptParams{Mechanism: v.mechanism, IV: mustHex(t, v.iv)}
		got, err := key.Encrypt(nil, p, plain)
		if err != nil || hex.EncodeToString(got) != v.want {
			t.Errorf("%s: %x, %v", v.mechanism, got, err)
		}
		back, err := key.Decrypt(nil, p, got)
		if err != nil || !bytes.Equal(back, plain) {
			t.Errorf("%s: back: %x, %v", v.mechanism, back, err)
		}
		if _, err := key.Encrypt(nil, CryptParams{Mechanism: v.mechanism, IV: make([]byte, 15)}, plain); !errors.Is(err, ErrParam) {
			t.Errorf("%s with an IV of 15 bytes: %v", v.mechanism, err)
		}
		if _, err := key.Encrypt(nil, p, plain[1:]); v.mechanism != AESCTR && !errors.Is(err, ErrDataLen) {
			t.Errorf("%s of 31 bytes: %v", v.mechanism, err)
		}
	}
}

func TestCounterDoesNotRepeat(t *testing.T) {
	key, _ := ParseSecret(AES, make([]byte, 32))
	iv := make([]byte, 16)
	iv[15] = 0xfe
	for _, v := range []struct {
		bits, bytes int
		want        error
	}{{8, 32, nil}, {8, 33, ErrDataLen}, {9, 33, nil}, {127, 1 << 16, nil}, {128, 48, nil}, {0, 48, nil}, {129, 16, ErrParam}, {-1, 16, ErrParam}} {
		_, err := key.Encrypt(nil, CryptParams{Mechanism: AESCTR, IV: iv, CounterBits: v.bits}, make([]byte, v.bytes))
		if !errors.Is(err, v.want) {
			t.Errorf("%d bits, %d bytes: %v, want %v", v.bits, v.bytes, err, v.want)
		}
	}
}

// Test case 4 of the GCM specification (McGrew and Viega), and its tag cut to 12 bytes.
func TestGCMWithNonceOfTheCaller(t *testing.T) {
	key, _ := ParseSecret(AES, mustHex(t, "feffe9928665731c6d6a8f9467308308"))
	p := CryptParams{Mechanism: AESGCM, IV: mustHex(t, "cafebabefacedbaddecaf888"), AAD: mustHex(t, "feedfacedeadbeeffeedfacedeadbeefabaddad2")}
	plain := mustHex(t, "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39")
	want := "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091" +
		"5bc94fbc3221a5db94fae95ae7121a47"
	got, err := key.Encrypt(nil, p, plain)
	if err != nil || hex.EncodeToString(got) != want {
		t.Fatalf("%x, %v", got, err)
	}
	p.TagLength = 12
	short, err := key.Encrypt(nil, p, plain)
	if err != nil || hex.EncodeToString(short) != want[:len(want)-8] {
		t.Errorf("tag of 12: %x, %v", short, err)
	}
	if back, err := key.Decrypt(nil, p, short); err != nil || !bytes.Equal(back, plain) {
		t.Errorf("back: %x, %v", back, err)
	}
	short[0] ^= 1
	if _, err := key.Decrypt(nil, p, short); !errors.Is(err, ErrDecrypt) {
		t.Errorf("altered: %v", err)
	}
	for _, bad := range []CryptParams{{IV: make([]byte, 13), TagLength: 12}, {IV: make([]byte, 12), TagLength: 4}, {IV: make([]byte, 257)}} {
		bad.Mechanism = AESGCM
		if _, err := key.Encrypt(nil, bad, plain); !errors.Is(err, ErrParam) {
			t.Errorf("nonce of %d, tag of %d: %v", len(bad.IV), bad.TagLength, err)
		}
	}
}

func TestCBCPadWithIVOfTheCaller(t *testing.T) {
	key, _ := ParseSecret(AES, make([]byte, 16))
	iv := bytes.Repeat([]byte{7}, 16)
	p := CryptParams{Mechanism: AESCBCPad, IV: iv}
	for n := range 33 {
		sealed, err := key.Encrypt(nil, p, make([]byte, n))
		if err != nil || len(sealed) != n/16*16+16 {
			t.Fatalf("%d bytes: %d, %v", n, len(sealed), err)
		}
		back, err := key.Decrypt(nil, p, sealed)
		if err != nil || len(back) != n {
			t.Errorf("%d bytes: back %d, %v", n, len(back), err)
		}
		if old, err := key.Decrypt(nil, CryptParams{Mechanism: AESCBCPad}, append(bytes.Clone(iv), sealed...)); err != nil || len(old) != n {
			t.Errorf("%d bytes, IV before them: %d, %v", n, len(old), err)
		}
	}
}

func rsaPair(t *testing.T) (*PrivateKey, *PublicKey) {
	t.Helper()
	g, err := Generate(nil, Spec{Type: RSA, Size: 2048})
	if err != nil {
		t.Fatal(err)
	}
	private, err := ParsePrivate(g.Secret)
	if err != nil {
		t.Fatal(err)
	}
	public, err := ParsePublic(g.Public)
	if err != nil {
		t.Fatal(err)
	}
	return private, public
}

func TestRawRSA(t *testing.T) {
	private, public := rsaPair(t)
	p, raw := SignParams{Mechanism: RSAX509}, CryptParams{Mechanism: RSAX509}
	data := append([]byte{0}, bytes.Repeat([]byte{0xa5}, 255)...)
	sig, err := private.Sign(nil, p, data)
	if err != nil || len(sig) != 256 {
		t.Fatalf("%d bytes, %v", len(sig), err)
	}
	key := private.k().rsa
	if want := new(big.Int).Exp(new(big.Int).SetBytes(data), key.D, key.N); want.Cmp(new(big.Int).SetBytes(sig)) != 0 {
		t.Error("not m^d mod n")
	}
	if err := public.Verify(p, data, sig); err != nil {
		t.Error(err)
	}
	if err := public.Verify(p, data[:255], sig); !errors.Is(err, ErrSignature) {
		t.Error(err)
	}
	if back, err := public.Encrypt(nil, raw, sig); err != nil || !bytes.Equal(back, data) {
		t.Errorf("%x, %v", back, err)
	}
	if out, err := private.Decrypt(nil, raw, data); err != nil || !bytes.Equal(out, sig) {
		t.Errorf("%x, %v", out, err)
	}
	for _, bad := range [][]byte{bytes.Repeat([]byte{0xff}, 256), make([]byte, 257)} {
		if _, err := private.Sign(nil, p, bad); !errors.Is(err, ErrDataLen) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}

func TestSignatureOfDataAsItIs(t *testing.T) {
	private, public := rsaPair(t)
	data := bytes.Repeat([]byte{7}, 245)
	sig, err := private.Sign(nil, SignParams{Mechanism: RSAPKCSData}, data)
	if err != nil {
		t.Fatal(err)
	}
	if err := rsa.VerifyPKCS1v15(public.k().rsa, 0, data, sig); err != nil {
		t.Error(err)
	}
	if err := public.Verify(SignParams{Mechanism: RSAPKCSData}, data, sig); err != nil {
		t.Error(err)
	}
	if _, err := private.Sign(nil, SignParams{Mechanism: RSAPKCSData}, append(data, 1)); !errors.Is(err, ErrDataLen) {
		t.Error(err)
	}
	if _, err := private.Sign(nil, SignParams{Mechanism: RSAPKCSData, Hash: "sha256"}, data); !errors.Is(err, ErrParam) {
		t.Error(err)
	}
	for _, curve := range []Curve{Secp224r1, Secp256r1, Secp521r1, Secp256k1} {
		g, err := Generate(nil, Spec{Type: EC, Curve: curve})
		if err != nil {
			t.Fatal(err)
		}
		private, _ := ParsePrivate(g.Secret)
		public, _ := ParsePublic(g.Public)
		for _, n := range []int{1, 20, 32, 64, 100} {
			p, data := SignParams{Mechanism: ECDSAData}, bytes.Repeat([]byte{9}, n)
			sig, err := private.Sign(nil, p, data)
			if err != nil {
				t.Fatal(err)
			}
			if err := public.Verify(p, data, sig); err != nil {
				t.Errorf("%s, %d bytes: %v", curve, n, err)
			}
			data[0]++
			if err := public.Verify(p, data, sig); !errors.Is(err, ErrSignature) {
				t.Errorf("%s, %d other bytes: %v", curve, n, err)
			}
		}
	}
}

func TestEncryptPKCS1(t *testing.T) {
	private, public := rsaPair(t)
	p := CryptParams{Mechanism: RSAPKCS}
	for _, n := range []int{0, 1, 245} {
		sealed, err := public.Encrypt(nil, p, make([]byte, n))
		if err != nil {
			t.Fatal(err)
		}
		if back, err := private.Decrypt(nil, p, sealed); err != nil || len(back) != n {
			t.Errorf("%d bytes: %d, %v", n, len(back), err)
		}
		back, err := private.Unwrap(nil, p, sealed)
		if n == 0 && !errors.Is(err, ErrUnwrap) || n > 0 && (err != nil || len(back) != n) {
			t.Errorf("unwrap %d bytes: %d, %v", n, len(back), err)
		}
	}
	if _, err := public.Encrypt(nil, p, make([]byte, 246)); !errors.Is(err, ErrDataLen) {
		t.Error(err)
	}
	if _, err := private.Decrypt(nil, p, make([]byte, 256)); !errors.Is(err, ErrDecrypt) {
		t.Error(err)
	}
}
