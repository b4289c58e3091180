package hsm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
)

// SignerKey is the public half of a key that a user signs with outside the HSM: quorum
// tokens, or the challenges of a login. RSA of 2048 to 4096 bits (PKCS #1 v1.5) or
// ECDSA on P-256, P-384 or P-521 (ASN.1), always over SHA-256.
type SignerKey struct {
	public crypto.PublicKey
}

// maxSignerKey bounds the SPKI of a signer: RSA-4096 has 550 bytes.
const maxSignerKey = 1 << 10

// maxSignerSignature bounds a signature: RSA-4096.
const maxSignerSignature = 512

// ParseSignerKey reads a public key, SPKI in DER, in its one encoding. ErrInvalid.
func ParseSignerKey(spki []byte) (SignerKey, error) {
	refuse := func(why string) (SignerKey, error) {
		return SignerKey{}, fmt.Errorf("%w: key of a signer: %s; want RSA of 2048 to 4096 bits, or EC on P-256, P-384 or P-521", ErrInvalid, why)
	}
	if len(spki) > maxSignerKey {
		return refuse("it is too long")
	}
	public, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return refuse("it is not a public key in DER")
	}
	switch k := public.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 4096 || k.E < 65537 {
			return refuse(fmt.Sprintf("RSA of %d bits, exponent %d", n, k.E))
		}
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return refuse("EC on another curve")
		}
	default:
		return refuse("it is neither RSA nor EC")
	}
	if again, err := x509.MarshalPKIXPublicKey(public); err != nil || !bytes.Equal(again, spki) {
		return refuse("it is encoded in an unusual way")
	}
	return SignerKey{public}, nil
}

// Verify checks a signature over message. ErrSignature.
func (k SignerKey) Verify(message, signature []byte) error {
	digest, good := sha256.Sum256(message), false
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		good = rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature) == nil
	case *ecdsa.PublicKey:
		good = len(signature) <= maxSignerSignature && ecdsa.VerifyASN1(public, digest[:], signature)
	}
	if !good {
		return ErrSignature
	}
	return nil
}

// SignWith signs message as a SignerKey verifies it, with the private half.
func SignWith(key crypto.Signer, message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	return key.Sign(rand.Reader, digest[:], crypto.SHA256)
}

// SignerUse is what a registered key is good for.
type SignerUse string

// The uses.
const (
	SignQuorum SignerUse = "quorum" // approvals
	SignLogin  SignerUse = "mfa"    // the second factor of a login
)

const registrationMagic = "hsmbackup signer registration v1\x00"

// RegistrationMessage is what a user signs to show possession of a key that is to be
// registered for a use (QUORUM.md, section 4). user must be canonical.
func RegistrationMessage(use SignerUse, lineage Lineage, user string, spki []byte) []byte {
	digest := sha256.Sum256(spki)
	b := append([]byte(registrationMagic), lineage[:]...)
	for _, part := range []string{string(use), user} {
		b = append(append(b, byte(len(part))), part...)
	}
	return append(b, digest[:]...)
}
