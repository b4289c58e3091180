package mech

import (
	"fmt"
	"io"
)

// Mechanisms that only wrap.
const (
	AESKW          = "aes-kw"  // RFC 3394
	AESKWP         = "aes-kwp" // RFC 5649
	AESKWPKCS5     = "aes-pkcs5-pad"
	RSAAES         = "rsa-aes" // CKM_RSA_AES_KEY_WRAP
	ephemeralBytes = 32
)

// Wrap seals key material (raw bytes or PKCS #8) under an aes key.
//
// aes-kwp takes 1 byte and more; aes-kw a multiple of 8, at least 16; aes-pkcs5-pad, which
// is CloudHSM's and CKM_AES_KEY_WRAP_PKCS7, pads as in PKCS #5, with 1 to 8 bytes, and
// is aes-kw then, so that it takes 8 bytes and more. aes-gcm returns nonce||ciphertext||tag.
// The others are deterministic. Lengths that a mechanism does not take are [ErrDataLen].
func (k *SecretKey) Wrap(random io.Reader, p CryptParams, payload []byte) ([]byte, error) {
	name, err := k.k().checkWrap(p)
	if err != nil {
		return nil, err
	}
	switch name {
	case AESKW:
		return wrapKW(k.k().block, payload)
	case AESKWP:
		return wrapKWP(k.k().block, payload)
	case AESKWPKCS5:
		return wrapKWPKCS5(k.k().block, payload)
	}
	if len(payload) == 0 {
		return nil, refuse(ErrDataLen, "nothing to wrap")
	}
	return k.k().sealGCM(p, payload)
}

// Unwrap reverses [SecretKey.Wrap] and returns the payload, which still has to be parsed.
// Whatever is wrong with the wrapped bytes, the AAD or the key, the answer
// is [ErrUnwrap] and no more.
func (k *SecretKey) Unwrap(_ io.Reader, p CryptParams, wrapped []byte) ([]byte, error) {
	name, err := k.k().checkWrap(p)
	if err != nil {
		return nil, err
	}
	switch name {
	case AESKW:
		return unwrapKW(k.k().block, wrapped)
	case AESKWP:
		return unwrapKWP(k.k().block, wrapped)
	case AESKWPKCS5:
		return unwrapKWPKCS5(k.k().block, wrapped)
	}
	if len(wrapped) == gcmOverhead {
		return nil, ErrUnwrap
	}
	return k.k().openGCM(p, wrapped, ErrUnwrap)
}

func (k *secretKey) checkWrap(p CryptParams) (name string, err error) {
	name = p.name()
	if name != AESKW && name != AESKWP && name != AESKWPKCS5 && name != AESGCM {
		return "", refuse(ErrMechanism, "%.40q does not wrap under %s keys; there are %s, %s, %s and %s", p.Mechanism, k.spec.Type, AESKWP, AESKW, AESKWPKCS5, AESGCM)
	}
	if err := k.needAES(name); err != nil {
		return "", err
	}
	if name != AESGCM && len(p.AAD) > 0 {
		return "", refuse(ErrParam, "%s has no additional authenticated data", name)
	}
	return name, noHash(p)
}

// Wrap seals key material (raw bytes or PKCS #8) under an rsa key.
//
// rsa-oaep and rsa-pkcs take as much as [PublicKey.Encrypt]. rsa-aes takes any length: it makes an AES-256
// key for this one use, wraps it with rsa-oaep, wraps the payload under it with
// aes-kwp, and returns the one after the other.
func (k *PublicKey) Wrap(random io.Reader, p CryptParams, payload []byte) ([]byte, error) {
	if err := checkRSAWrap(p); err != nil {
		return nil, err
	}
	if len(payload) == 0 {
		return nil, refuse(ErrDataLen, "nothing to wrap")
	}
	switch p.name() {
	case RSAOAEP:
		return k.k().encryptOAEP(random, p, payload)
	case RSAPKCS:
		return k.k().encryptPKCS1(random, p, payload)
	}
	kek, err := randomBytes(random, ephemeralBytes)
	if err != nil {
		return nil, err
	}
	defer clear(kek)
	head, err := k.k().encryptOAEP(random, p, kek)
	if err != nil {
		return nil, err
	}
	ephemeral, err := ParseSecret(AES, kek)
	if err != nil {
		return nil, fmt.Errorf("wrapping with %s: %w", RSAAES, err)
	}
	body, err := wrapKWP(ephemeral.k().block, payload)
	if err != nil {
		return nil, err
	}
	return append(head, body...), nil
}

// Unwrap reverses [PublicKey.Wrap] and returns the payload, which still has to be parsed.
// Whatever is wrong with the wrapped bytes, the label or the key, the answer
// is [ErrUnwrap] and no more. Ephemeral keys of 16 and 24 bytes are taken too.
func (k *PrivateKey) Unwrap(_ io.Reader, p CryptParams, wrapped []byte) ([]byte, error) {
	if err := checkRSAWrap(p); err != nil {
		return nil, err
	}
	if name := p.name(); name == RSAOAEP || name == RSAPKCS {
		return k.k().unwrapPadded(p, wrapped)
	}
	n := min(k.k().pub.spec.Size/8, len(wrapped)) // 0 for a key that is not rsa, which decryptOAEP refuses
	kek, err := k.k().decryptOAEP(p, wrapped[:n], ErrUnwrap)
	if err != nil {
		return nil, err
	}
	defer clear(kek)
	ephemeral, err := ParseSecret(AES, kek)
	if err != nil {
		return nil, ErrUnwrap
	}
	return unwrapKWP(ephemeral.k().block, wrapped[n:])
}

// unwrapPadded is rsa-oaep and rsa-pkcs.
func (k *privateKey) unwrapPadded(p CryptParams, wrapped []byte) (payload []byte, err error) {
	if p.name() == RSAOAEP {
		payload, err = k.decryptOAEP(p, wrapped, ErrUnwrap)
	} else {
		payload, err = k.decryptPKCS1(p, wrapped, ErrUnwrap)
	}
	if err == nil && len(payload) == 0 {
		return nil, ErrUnwrap
	}
	return payload, err
}

func checkRSAWrap(p CryptParams) error {
	if name := p.name(); name != RSAOAEP && name != RSAAES && name != RSAPKCS {
		return refuse(ErrMechanism, "%.40q does not wrap under asymmetric keys; there are %s, %s and %s", p.Mechanism, RSAOAEP, RSAAES, RSAPKCS)
	}
	return nil
}
