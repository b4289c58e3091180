package mech

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha512"
	"encoding/asn1"
	"fmt"
	"io"
	"math/big"

	"filippo.io/mldsa"
)

// Mechanisms that sign and verify.
const (
	RSAPKCS = "rsa-pkcs"
	RSAPSS  = "rsa-pkcs-pss"
	ECDSA   = "ecdsa"
	EdDSA   = "ed25519"
	EdDSAph = "ed25519ph"
	HMAC    = "hmac"
	AESCMAC = "aes-cmac"
	// Mechanisms that sign data of the caller's making: rsa-pkcs-data pads it as PKCS #1
	// v1.5 does, ecdsa-data takes its leading bits.
	RSAPKCSData = "rsa-pkcs-data"
	ECDSAData   = "ecdsa-data"
	sigNames    = RSAPKCS + ", " + RSAPSS + ", " + ECDSA + ", " + EdDSA + ", " + EdDSAph + ", " + MLDSASign + ", " + MLDSADeterministic + ", " + RSAX509 + ", " + RSAPKCSData + " and " + ECDSAData
	macNames    = HMAC + " and " + AESCMAC
)

// SignParams chooses how to sign, verify or authenticate.
//
// Hash is required, except by ed25519, ed25519ph (SHA-512, may be named), ml-dsa and aes-cmac,
// which take none. Context is for ml-dsa: up to 255 bytes, the same on both sides.
//
// Digest says that the data is already hashed, and its length must then be that of
// Hash. Two mechanisms take a digest without a named hash, as PKCS #11
// callers do: ecdsa (a digest of 28, 32, 48 or 64 bytes; 20 too when verifying) and
// rsa-pkcs (a DER DigestInfo of a supported hash, which is read and checked). ed25519,
// hmac and aes-cmac take no digest.
//
// rsa-x-509, rsa-pkcs-data and ecdsa-data take data as it is, and no hash: they are
// what PKCS #11's mechanisms without a hash do, and the caller answers for what is signed.
//
// SaltLength is for rsa-pkcs-pss, when signing and when verifying; 0 means as long as the
// hash. The mask generation function is MGF1 with the same hash.
type SignParams struct {
	Mechanism  string
	Hash       string
	Digest     bool
	SaltLength int
	Context    []byte
	MACLength  int // of hmac; 0: all of it
}

// Sign signs data. Signatures of ecdsa are r||s, each as long as the curve's
// coordinates. SHA-1 is [ErrHash]. A mechanism that is not for this type of key is
// [ErrMechanism], parameters that contradict the data are [ErrParam].
func (k *PrivateKey) Sign(random io.Reader, p SignParams, data []byte) ([]byte, error) {
	m, err := k.k().pub.prepare(p, data)
	if err != nil {
		return nil, err
	}
	if m.hash == crypto.SHA1 {
		return nil, refuse(ErrHash, "sha1 does not sign; there are %s", list(hashNames[1:]))
	}
	sig, err := k.k().sign(source(random), p, m)
	if err != nil {
		return nil, fmt.Errorf("signing with %s: %w", p.Mechanism, err)
	}
	return sig, nil
}

func (k *privateKey) sign(random io.Reader, p SignParams, m message) ([]byte, error) {
	switch p.Mechanism {
	case RSAPKCS, RSAPKCSData:
		return rsa.SignPKCS1v15(random, k.rsa, m.hash, m.digest)
	case RSAX509:
		return k.rawRSA(m.digest)
	case RSAPSS:
		return rsa.SignPSS(random, k.rsa, m.hash, m.digest, m.pss)
	case ECDSA, ECDSAData:
		if k.k1 != nil {
			return k.k1.sign(random, m.digest)
		}
		return k.signECDSA(random, m.digest)
	case MLDSASign, MLDSADeterministic:
		return k.signMLDSA(p, m.digest)
	}
	return k.ed.Sign(random, m.digest, &ed25519.Options{Hash: m.hash})
}

func (k *privateKey) signECDSA(random io.Reader, digest []byte) ([]byte, error) {
	der, err := ecdsa.SignASN1(random, k.ec, digest)
	if err != nil {
		return nil, err
	}
	var v struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &v); err != nil {
		return nil, err
	}
	n := infoOf(k.pub.spec.Curve).size
	sig := make([]byte, 2*n)
	v.R.FillBytes(sig[:n])
	v.S.FillBytes(sig[n:])
	return sig, nil
}

// Verify returns nil if sig is a signature of data under this key, [ErrSignature]
// if it is not, and the errors of [PrivateKey.Sign] if the question makes no sense.
// Signatures of secp256k1 are accepted with either of the two values of s.
func (k *PublicKey) Verify(p SignParams, data, sig []byte) error {
	m, err := k.k().prepare(p, data)
	if err != nil {
		return err
	}
	if m.hash == crypto.SHA1 && p.Mechanism == RSAPSS {
		return refuse(ErrHash, "sha1 is not for %s; there are %s", RSAPSS, list(hashNames[1:]))
	}
	if !k.k().verify(p, m, sig) {
		return ErrSignature
	}
	return nil
}

func (k *publicKey) verify(p SignParams, m message, sig []byte) bool {
	switch p.Mechanism {
	case RSAPKCS, RSAPKCSData:
		return rsa.VerifyPKCS1v15(k.rsa, m.hash, m.digest, sig) == nil
	case RSAX509:
		return k.verifyRaw(m.digest, sig)
	case RSAPSS:
		return rsa.VerifyPSS(k.rsa, m.hash, m.digest, sig, m.pss) == nil
	case ECDSA, ECDSAData:
		if k.k1 != nil {
			return verifyK1(k.k1, m.digest, sig)
		}
		return k.verifyECDSA(m.digest, sig)
	case MLDSASign, MLDSADeterministic:
		return mldsa.Verify(k.dsa, m.digest, sig, &mldsa.Options{Context: string(p.Context)}) == nil
	}
	return ed25519.VerifyWithOptions(k.ed, m.digest, sig, &ed25519.Options{Hash: m.hash}) == nil
}

func (k *publicKey) verifyECDSA(digest, sig []byte) bool {
	n := infoOf(k.spec.Curve).size
	if len(sig) != 2*n {
		return false
	}
	v := struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:])}
	return ecdsa.VerifyASN1(k.ec, digest, marshal(v))
}

// message is what is signed, after hashing. For plain ed25519 the hash is
// zero and the digest is the data itself.
type message struct {
	hash   crypto.Hash
	digest []byte
	pss    *rsa.PSSOptions
}

// prepare checks the parameters against the key and hashes the data.
func (k *publicKey) prepare(p SignParams, data []byte) (message, error) {
	if err := k.checkMechanism(p.Mechanism); err != nil {
		return message{}, err
	}
	if p.Mechanism != RSAPSS && p.SaltLength != 0 {
		return message{}, refuse(ErrParam, "a salt length is for %s only", RSAPSS)
	}
	isMLDSA := p.Mechanism == MLDSASign || p.Mechanism == MLDSADeterministic
	if !isMLDSA && len(p.Context) > 0 {
		return message{}, refuse(ErrParam, "a context is for %s only", MLDSASign)
	}
	switch p.Mechanism {
	case MLDSASign, MLDSADeterministic:
		return prepareMLDSA(p, data)
	case EdDSA:
		return prepareEdDSA(p, data)
	case EdDSAph:
		return prepareEdDSAph(p, data)
	case RSAX509, RSAPKCSData, ECDSAData:
		return k.prepareData(p, data)
	}
	m, err := hashMessage(p, data)
	if err == nil && p.Mechanism == RSAPSS {
		m.pss, err = k.pssOptions(p, m.hash)
	}
	return m, err
}

func (k *publicKey) checkMechanism(name string) error {
	want := map[string]KeyType{
		RSAPKCS: RSA, RSAPSS: RSA, ECDSA: EC, EdDSA: Ed25519, EdDSAph: Ed25519, RSAX509: RSA, RSAPKCSData: RSA, ECDSAData: EC,
		MLDSASign: MLDSA, MLDSADeterministic: MLDSA,
	}[name]
	if want == "" {
		return refuse(ErrMechanism, "%.40q does not sign; there are %s", name, sigNames)
	}
	if want != k.spec.Type {
		return refuse(ErrMechanism, "%s needs an %s key, this is %s", name, want, k.spec.Type)
	}
	return nil
}

// prepareData is for the mechanisms that take data as it is.
func (k *publicKey) prepareData(p SignParams, data []byte) (message, error) {
	if p.Hash != "" || p.Digest {
		return message{}, refuse(ErrParam, "%s takes data as it is, neither hash nor digest", p.Mechanism)
	}
	limit := k.spec.Size / 8
	switch p.Mechanism {
	case RSAPKCSData:
		limit -= pkcs1Overhead
	case ECDSAData:
		limit = maxECDSAData
		if len(data) == 0 {
			return message{}, refuse(ErrDataLen, "nothing to sign")
		}
	}
	if len(data) > limit {
		return message{}, refuse(ErrDataLen, "%d bytes of data; %s with this key takes up to %d", len(data), p.Mechanism, limit)
	}
	return message{digest: data}, nil
}

// maxECDSAData is far above any hash; what is longer was not hashed.
const maxECDSAData = 512

func prepareEdDSA(p SignParams, data []byte) (message, error) {
	if p.Hash != "" {
		return message{}, refuse(ErrHash, "%s takes no hash, %.40q was given", EdDSA, p.Hash)
	}
	if p.Digest {
		return message{}, refuse(ErrParam, "%s signs data, not digests; %s signs digests", EdDSA, EdDSAph)
	}
	return message{digest: data}, nil
}

func prepareEdDSAph(p SignParams, data []byte) (message, error) {
	if p.Hash != "" && p.Hash != "sha512" {
		return message{}, refuse(ErrHash, "%s uses sha512, %.40q was given", EdDSAph, p.Hash)
	}
	if !p.Digest {
		sum := sha512.Sum512(data)
		return message{hash: crypto.SHA512, digest: sum[:]}, nil
	}
	return message{hash: crypto.SHA512, digest: data}, checkDigestLen(crypto.SHA512, data)
}

// hashMessage hashes data, or checks a digest.
func hashMessage(p SignParams, data []byte) (message, error) {
	if p.Digest && p.Hash == "" {
		return inferHash(p.Mechanism, data)
	}
	h, err := parseHash(p.Hash)
	if err != nil {
		return message{}, err
	}
	if p.Digest {
		return message{hash: h, digest: data}, checkDigestLen(h, data)
	}
	return message{hash: h, digest: digest(h, data)}, nil
}

func checkDigestLen(h crypto.Hash, data []byte) error {
	if len(data) != h.Size() {
		return refuse(ErrParam, "the digest has %d bytes, this hash makes %d", len(data), h.Size())
	}
	return nil
}

// inferHash finds the hash of a digest that comes without its name.
func inferHash(mechanism string, data []byte) (message, error) {
	switch mechanism {
	case ECDSA:
		for _, name := range hashNames {
			if h := hashes[name]; h.Size() == len(data) {
				return message{hash: h, digest: data}, nil
			}
		}
		return message{}, refuse(ErrParam, "a digest of %d bytes; it has 20, 28, 32, 48 or 64", len(data))
	case RSAPKCS:
		return parseDigestInfo(data)
	}
	return message{}, refuse(ErrHash, "%s needs the name of the hash; there are %s", mechanism, list(hashNames))
}

// digestInfoPrefix is DER of a DigestInfo up to the digest (RFC 8017, section 9.2, note 1).
var digestInfoPrefix = map[crypto.Hash]string{
	crypto.SHA1:   "\x30\x21\x30\x09\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00\x04\x14",
	crypto.SHA224: "\x30\x2d\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x04\x05\x00\x04\x1c",
	crypto.SHA256: "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
	crypto.SHA384: "\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30",
	crypto.SHA512: "\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40",
}

// parseDigestInfo splits a DigestInfo. Signing only well-formed ones keeps a
// caller from choosing what stands in the padded block.
func parseDigestInfo(data []byte) (message, error) {
	for h, prefix := range digestInfoPrefix {
		if n := len(prefix); len(data) == n+h.Size() && string(data[:n]) == prefix {
			return message{hash: h, digest: data[n:]}, nil
		}
	}
	return message{}, refuse(ErrParam, "the data is not a DigestInfo; name the hash, or send one of %s", list(hashNames))
}

// pssOptions refuses salts that do not fit into the key: emLen ≥ hash + salt + 2.
func (k *publicKey) pssOptions(p SignParams, h crypto.Hash) (*rsa.PSSOptions, error) {
	salt := p.SaltLength
	if salt == 0 {
		salt = h.Size()
	}
	if limit := k.spec.Size/8 - h.Size() - 2; salt < 0 || salt > limit {
		return nil, refuse(ErrParam, "salt of %d bytes; with this key and hash there are 1 to %d", salt, limit)
	}
	return &rsa.PSSOptions{SaltLength: salt, Hash: h}, nil
}
