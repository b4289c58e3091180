package mech

import (
	"crypto/aes"
	"crypto/sha1"
)

const kcvLen = 3

// CheckValueSecret returns the key check value of a secret key: for aes and des3 the first
// three bytes of an encrypted block of zeros, for generic-secret nothing (nil). The
// errors are those of [ParseSecret].
func CheckValueSecret(t KeyType, raw []byte) ([]byte, error) {
	if t == AES && (Spec{Type: t, Size: len(raw)}).Validate() == nil {
		block, err := aes.NewCipher(raw) // ParseSecret computes more than this takes
		return (&secretKey{block: block}).kcv(), err
	}
	k, err := ParseSecret(t, raw)
	if err != nil {
		return nil, err
	}
	return k.KCV(), nil
}

// CheckValuePublic returns the key check value of a key pair, the first three
// bytes of SHA-1 over the public key. The public key is what the BIT STRING
// subjectPublicKey of its SPKI holds: RSAPublicKey DER (PKCS #1) for rsa, the
// uncompressed point for ec, the key itself for ed25519, ml-dsa and ml-kem. Private and public key of a
// pair have the same value. The errors are those of [ParsePublic].
func CheckValuePublic(spki []byte) ([]byte, error) {
	k, err := ParsePublic(spki)
	if err != nil {
		return nil, err
	}
	return k.KCV(), nil
}

func (k *secretKey) kcv() []byte {
	if k.block == nil {
		return nil
	}
	b := make([]byte, k.block.BlockSize())
	k.block.Encrypt(b, b)
	return b[:kcvLen:kcvLen]
}

func (k *publicKey) kcv() []byte {
	sum := sha1.Sum(k.bits)
	return sum[:kcvLen:kcvLen]
}
