package mech

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"testing"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	k1ecdsa "github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
)

// both runs f alone and on all processors.
func both(b *testing.B, name string, bytes int64, f func() error) {
	b.Run(name+"/one", func(b *testing.B) {
		b.SetBytes(bytes)
		b.ReportAllocs()
		for b.Loop() {
			if err := f(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run(name+"/parallel", func(b *testing.B) {
		b.SetBytes(bytes)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := f(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

func BenchmarkSign(b *testing.B) {
	msg := fresh(100)
	for _, c := range []struct{ key, mechanism, hash string }{
		{"rsa2048", RSAPKCS, "sha256"}, {"rsa4096", RSAPKCS, "sha256"}, {"rsa2048", RSAPSS, "sha256"}, {"prime256v1", ECDSA, "sha256"},
		{"secp384r1", ECDSA, "sha384"}, {"secp256k1", ECDSA, "sha256"}, {"ed25519", EdDSA, ""},
	} {
		k, p := private(b, c.key), SignParams{Mechanism: c.mechanism, Hash: c.hash}
		both(b, c.key+"-"+c.mechanism+"/mech", 0, func() error { _, err := k.Sign(nil, p, msg); return err })
	}
	rsaKey, ecKey := private(b, "rsa2048").k().rsa, private(b, "prime256v1").k().ec
	both(b, "rsa2048-rsa-pkcs/raw", 0, func() error {
		sum := sha256.Sum256(msg)
		_, err := rsa.SignPKCS1v15(nil, rsaKey, crypto.SHA256, sum[:])
		return err
	})
	both(b, "prime256v1-ecdsa/raw", 0, func() error {
		sum := sha256.Sum256(msg)
		_, err := ecdsa.SignASN1(rand.Reader, ecKey, sum[:])
		return err
	})
	k1 := secp256k1.NewPrivateKey(&private(b, "secp256k1").k().k1.d)
	both(b, "secp256k1-ecdsa/raw-not-split", 0, func() error {
		sum := sha256.Sum256(msg)
		k1ecdsa.Sign(k1, sum[:])
		return nil
	})
}

func BenchmarkVerify(b *testing.B) {
	msg := fresh(100)
	for _, c := range []struct{ key, mechanism string }{{"rsa2048", RSAPKCS}, {"prime256v1", ECDSA}, {"secp256k1", ECDSA}} {
		k, p := private(b, c.key), SignParams{Mechanism: c.mechanism, Hash: "sha256"}
		sig := must(k.Sign(nil, p, msg))(b)
		pub := k.PublicKey()
		both(b, c.key, 0, func() error { return pub.Verify(p, msg, sig) })
	}
}

func BenchmarkEncrypt1KiB(b *testing.B) {
	k, data := aesKey(b, 32), fresh(1024)
	both(b, "aes-gcm/mech", 1024, func() error { _, err := k.Encrypt(nil, CryptParams{Mechanism: AESGCM}, data); return err })
	block, _ := aes.NewCipher(k.k().raw)
	raw, _ := cipher.NewGCMWithRandomNonce(block)
	both(b, "aes-gcm/raw", 1024, func() error { raw.Seal(nil, nil, data, nil); return nil })
	both(b, "aes-cbc-pad/mech", 1024, func() error { _, err := k.Encrypt(nil, CryptParams{Mechanism: AESCBCPad}, data); return err })
	both(b, "aes-cmac/mech", 1024, func() error { _, err := k.MAC(SignParams{Mechanism: AESCMAC}, data); return err })
	h := secret(b, GenericSecret, fresh(32))
	both(b, "hmac/mech", 1024, func() error { _, err := h.MAC(SignParams{Mechanism: HMAC, Hash: "sha256"}, data); return err })
}

func BenchmarkWrap(b *testing.B) {
	k, payload := aesKey(b, 32), private(b, "rsa2048").PKCS8()
	wrapped := must(k.Wrap(nil, CryptParams{Mechanism: AESKWP}, payload))(b)
	both(b, "aes-kwp-rsa2048/wrap", 0, func() error { _, err := k.Wrap(nil, CryptParams{Mechanism: AESKWP}, payload); return err })
	both(b, "aes-kwp-rsa2048/unwrap", 0, func() error { _, err := k.Unwrap(nil, CryptParams{Mechanism: AESKWP}, wrapped); return err })
}

func BenchmarkGenerate(b *testing.B) {
	for name, s := range map[string]Spec{"aes256": {Type: AES, Size: 32}, "p256": {Type: EC, Curve: Secp256r1}, "secp256k1": {Type: EC, Curve: Secp256k1},
		"ed25519": {Type: Ed25519}, "rsa2048": {Type: RSA, Size: 2048}} {
		both(b, name+"/mech", 0, func() error { _, err := Generate(nil, s); return err })
	}
	both(b, "p256/raw", 0, func() error { _, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader); return err })
	both(b, "rsa2048/raw", 0, func() error { _, err := rsa.GenerateKey(rand.Reader, 2048); return err })
}

func BenchmarkParse(b *testing.B) {
	for _, name := range []string{"rsa2048", "rsa4096", "prime256v1", "secp256k1", "ed25519"} {
		pkcs8 := der(b, name)
		both(b, name+"/parse", 0, func() error { _, err := ParsePrivate(pkcs8); return err })
		both(b, name+"/load", 0, func() error { _, err := LoadPrivate(pkcs8); return err })
	}
}
