package mech

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
)

// SecretKey is a parsed secret key. It is immutable, may be copied, and may be
// used by many goroutines at the same time. The zero value is not a key.
type SecretKey struct{ k func() *secretKey }

type secretKey struct {
	spec  Spec
	raw   []byte
	block cipher.Block // aes and des3
	gcm   cipher.AEAD  // aes only, like the rest; nonces made inside
	cmac  cmacSubkeys
}

// ParseSecret makes a key of raw bytes. Types other than aes, des3 and generic-secret are
// [ErrKeyType], sizes that do not exist are [ErrKeySize], bytes that are no des3 key
// [ErrKey]. raw is not retained.
func ParseSecret(t KeyType, raw []byte) (*SecretKey, error) {
	if t.Asymmetric() {
		return nil, refuse(ErrKeyType, "%s keys are not secret keys", t)
	}
	spec := Spec{Type: t, Size: len(raw)}
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	k := &secretKey{spec: spec, raw: bytes.Clone(raw)}
	if err := k.expand(); err != nil {
		return nil, err
	}
	return &SecretKey{hide(k)}, nil
}

// expand computes what every use of the key needs.
func (k *secretKey) expand() error {
	switch k.spec.Type {
	case AES:
		return k.expandAES()
	case DES3:
		return k.expandDES3()
	}
	return nil
}

func (k *secretKey) expandAES() (err error) {
	if k.block, err = aes.NewCipher(k.raw); err != nil {
		return refuse(ErrKeySize, "aes key of %d bytes", len(k.raw))
	}
	if k.gcm, err = cipher.NewGCMWithRandomNonce(k.block); err != nil {
		return refuse(ErrMechanism, "aes-gcm is not available: %v", err)
	}
	k.cmac = newCMACSubkeys(k.block)
	return nil
}

// Spec says what the key is.
func (k SecretKey) Spec() Spec {
	if k.k == nil {
		return Spec{}
	}
	return k.k().spec
}

// KCV returns the check value, see [CheckValueSecret].
func (k *SecretKey) KCV() []byte { return k.k().kcv() }

// Raw returns the key's bytes in a slice of its own. This is the secret itself: it
// belongs in a masked object or under a wrapping key, nowhere else.
func (k *SecretKey) Raw() []byte { return bytes.Clone(k.k().raw) }

// Equal reports in constant time whether two keys are of one type and the same bytes.
func (k *SecretKey) Equal(other *SecretKey) bool {
	return k.k().spec == other.k().spec && subtle.ConstantTimeCompare(k.k().raw, other.k().raw) == 1
}

// needAES returns nil for aes keys and otherwise says which mechanism wanted one.
func (k *secretKey) needAES(mechanism string) error { return k.need(AES, mechanism) }

func (k *secretKey) need(t KeyType, mechanism string) error {
	if k.spec.Type != t {
		return refuse(ErrMechanism, "%s needs an %s key, this is %s", mechanism, t, k.spec.Type)
	}
	return nil
}
