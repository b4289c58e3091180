package mech

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"sync"

	"filippo.io/mldsa"
)

// PrivateKey is a parsed private key. It is immutable, may be copied, and may be
// used by many goroutines at the same time. The zero value is not a key.
type PrivateKey struct{ k func() *privateKey }

// privateKey has exactly one of rsa, ec, k1, ed, dsa and kem.
type privateKey struct {
	pub  *publicKey
	rsa  *rsa.PrivateKey
	ec   *ecdsa.PrivateKey
	k1   *k1Private
	ed   ed25519.PrivateKey
	dsa  *mldsa.PrivateKey
	kem  decapsulator
	ecdh func() (*ecdh.PrivateKey, error) // of ec, converted at the first use
}

// ParsePrivate reads a PKCS #8 private key of any type in this package.
//
// It is made for hostile input. [ErrKey], [ErrKeyType], [ErrKeySize] and [ErrCurve]
// tell what is wrong: anything that is not DER, bytes after the key, an unknown
// algorithm, RSA of a size that does not exist here, with more than two primes,
// with factors that are composite or of unequal length, with a public exponent below 65537 or above 2³¹-1,
// scalars out of range, and a public half that does not belong to the private one.
// pkcs8 is not retained.
func ParsePrivate(pkcs8 []byte) (*PrivateKey, error) {
	return checked(LoadPrivate(pkcs8))
}

// LoadPrivate is [ParsePrivate] without the test that RSA factors are prime, which takes
// most of its time. It is for keys that have passed ParsePrivate or Generate
// before and were authenticated since, as those in a masked object are.
func LoadPrivate(pkcs8 []byte) (*PrivateKey, error) {
	for _, f := range pointForms {
		if scalar, point, ok := f.read(pkcs8); ok {
			return loadPoint(f.info, scalar, point)
		}
	}
	info, err := unmarshal[pkcs8Info](pkcs8)
	if err != nil {
		return nil, err
	}
	if info.Version < 0 || info.Version > 1 || (info.Version == 0 && info.PublicKey.Bytes != nil) {
		return nil, refuse(ErrKey, "PKCS #8 version %d does not fit its contents", info.Version)
	}
	spec, err := parseAlgorithm(info.Algorithm)
	if err != nil {
		return nil, err
	}
	k, err := parseInner(spec, info.PrivateKey)
	if err != nil {
		return nil, err
	}
	if err := k.k().pub.matches(info.PublicKey); err != nil {
		return nil, err
	}
	return k, nil
}

// loadPoint makes a key of a scalar and the point that came beside it.
func loadPoint(info curveInfo, scalar, point []byte) (*PrivateKey, error) {
	k, err := newECPrivate(info, scalar)
	if err != nil {
		return nil, err
	}
	if err := k.k().pub.matches(bitString(point)); err != nil {
		return nil, err
	}
	return k, nil
}

// parseInner reads the part of PKCS #8 that depends on the algorithm.
func parseInner(spec Spec, inner []byte) (*PrivateKey, error) {
	switch spec.Type {
	case RSA:
		return parseRSAPrivate(inner)
	case Ed25519:
		return parseEd25519Private(inner)
	case MLDSA, MLKEM:
		return parsePQPrivate(spec, inner)
	}
	return parseSEC1(inner, &spec.Curve)
}

// parseRSAPrivate reads PKCS #1. The standard library checks that the numbers
// belong together, but not that the factors are prime.
func parseRSAPrivate(der []byte) (*PrivateKey, error) {
	v, err := unmarshal[pkcs1Private](der)
	if err != nil {
		return nil, err
	}
	if v.Version != 0 {
		return nil, refuse(ErrKey, "rsa keys must have two primes")
	}
	if err := checkRSAPublic(v.N, v.E); err != nil {
		return nil, err
	}
	if v.P.BitLen() != v.Q.BitLen() {
		return nil, refuse(ErrKey, "the factors of the rsa key differ in length")
	}
	key, err := x509.ParsePKCS1PrivateKey(der)
	if err != nil {
		return nil, refuse(ErrKey, "the numbers of the rsa key do not belong together")
	}
	return newRSAPrivate(key), nil
}

// checked adds to a parsed key the test that RSA factors are prime: Baillie-PSW, which
// no composite number is known to pass. It is here against damaged and carelessly made
// keys; who makes a key on purpose can weaken it in ways that nobody sees.
func checked(k *PrivateKey, err error) (*PrivateKey, error) {
	if err != nil || k.k().rsa == nil {
		return k, err
	}
	for _, p := range k.k().rsa.Primes {
		if !p.ProbablyPrime(0) {
			return nil, refuse(ErrKey, "the factors of the rsa key are not prime")
		}
	}
	return k, nil
}

func newRSAPrivate(key *rsa.PrivateKey) *PrivateKey {
	return &PrivateKey{hide(&privateKey{pub: newRSAPublic(&key.PublicKey), rsa: key})}
}

func parseEd25519Private(der []byte) (*PrivateKey, error) {
	seed, err := unmarshal[[]byte](der)
	if err != nil {
		return nil, err
	}
	if len(seed) != ed25519.SeedSize {
		return nil, refuse(ErrKey, "ed25519 private key of %d bytes, want %d", len(seed), ed25519.SeedSize)
	}
	return newEd25519Private(ed25519.NewKeyFromSeed(seed)), nil
}

func newEd25519Private(key ed25519.PrivateKey) *PrivateKey {
	return &PrivateKey{hide(&privateKey{pub: newEd25519Public(key.Public().(ed25519.PublicKey)), ed: key})}
}

// parseSEC1 reads an ECPrivateKey. The curve is known from the PKCS #8 envelope,
// or nil, and then the structure itself must name it.
func parseSEC1(der []byte, outer *Curve) (*PrivateKey, error) {
	v, err := unmarshal[sec1Private](der)
	if err != nil {
		return nil, err
	}
	if v.Version != 1 {
		return nil, refuse(ErrKey, "ec private key version %d, want 1", v.Version)
	}
	info, err := sec1Curve(v.Curve, outer)
	if err != nil {
		return nil, err
	}
	scalar, err := fixedScalar(v.PrivateKey, info.size)
	if err != nil {
		return nil, err
	}
	defer clear(scalar)
	k, err := newECPrivate(info, scalar)
	if err != nil {
		return nil, err
	}
	if err := k.k().pub.matches(v.PublicKey); err != nil {
		return nil, err
	}
	return k, nil
}

// sec1Curve settles between the curve named inside and outside of an ECPrivateKey.
func sec1Curve(inner asn1.ObjectIdentifier, outer *Curve) (curveInfo, error) {
	if inner == nil && outer == nil {
		return curveInfo{}, refuse(ErrCurve, "the ec key does not name its curve; there are %s", list(curves))
	}
	if inner == nil {
		return infoOf(*outer), nil
	}
	info, err := infoByOID(inner)
	if err == nil && outer != nil && info.name != *outer {
		err = refuse(ErrKey, "the ec key names two curves, %s and %s", *outer, info.name)
	}
	return info, err
}

// fixedScalar returns a big-endian scalar in exactly size bytes. Some writers drop
// leading zeros or add them; both are unambiguous.
func fixedScalar(b []byte, size int) ([]byte, error) {
	for len(b) > size && b[0] == 0 {
		b = b[1:]
	}
	if len(b) > size {
		return nil, refuse(ErrKey, "ec private key of %d bytes, want %d", len(b), size)
	}
	fixed := make([]byte, size)
	copy(fixed[size-len(b):], b)
	return fixed, nil
}

// newECPrivate makes a key of a scalar of info.size bytes, which it does not retain.
func newECPrivate(info curveInfo, scalar []byte) (*PrivateKey, error) {
	if info.std == nil {
		k1, err := newK1Private(scalar)
		if err != nil {
			return nil, err
		}
		return &PrivateKey{hide(&privateKey{pub: newK1Public(k1.pub), k1: k1})}, nil
	}
	key, err := ecdsa.ParseRawPrivateKey(info.std, scalar)
	if err != nil {
		return nil, refuse(ErrKey, "ec private key out of range for %s", info.name)
	}
	return newStdECPrivate(info, key)
}

func newStdECPrivate(info curveInfo, key *ecdsa.PrivateKey) (*PrivateKey, error) {
	pub, err := newStdECPublic(info, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	return &PrivateKey{hide(&privateKey{pub: pub, ec: key, ecdh: sync.OnceValues(key.ECDH)})}, nil
}

// Spec says what the key is.
func (k PrivateKey) Spec() Spec {
	if k.k == nil {
		return Spec{}
	}
	return k.k().pub.spec
}

// Public returns the public half as SPKI DER, in a slice of its own.
func (k *PrivateKey) Public() []byte { return bytes.Clone(k.k().pub.spki) }

// PublicKey returns the public half, parsed.
func (k *PrivateKey) PublicKey() *PublicKey { return &PublicKey{hide(k.k().pub)} }

// KCV returns the check value of the public half, see [CheckValuePublic].
func (k *PrivateKey) KCV() []byte { return k.k().pub.kcv() }

// Equal reports in constant time whether two keys are the same.
func (k *PrivateKey) Equal(other *PrivateKey) bool {
	a, b := k.PKCS8(), other.PKCS8()
	defer clear(a)
	defer clear(b)
	return subtle.ConstantTimeCompare(a, b) == 1
}

// PKCS8 returns the private key in canonical encoding, in a slice of its own. This is
// the secret itself: it belongs in a masked object or under a wrapping key, nowhere else.
func (k *PrivateKey) PKCS8() []byte {
	spec := k.k().pub.spec
	if spec.Type == EC {
		scalar := k.k().scalar()
		defer clear(scalar)
		return formOf(spec.Curve).write(scalar, k.k().pub.bits)
	}
	inner := k.k().inner()
	defer clear(inner)
	return marshal(pkcs8Info{Algorithm: algorithmFor(spec), PrivateKey: inner})
}

// inner is the part of PKCS #8 that depends on the algorithm, for keys other than ec.
func (k *privateKey) inner() []byte {
	switch {
	case k.rsa != nil:
		return x509.MarshalPKCS1PrivateKey(k.rsa)
	case k.ed != nil:
		return marshal(k.ed.Seed())
	}
	seed := k.pqSeed()
	defer clear(seed)
	return pqInner(seed)
}

// scalar returns the private number of an ec key in fixed length, in a slice of its own:
// callers clear it. [ecdsa.PrivateKey.Bytes] hands out the very bytes that Sign reads
// (its cached internal key), and clearing those spoils a signature made at that moment.
func (k *privateKey) scalar() []byte {
	if k.k1 != nil {
		b := k.k1.d.Bytes()
		return b[:]
	}
	b, err := k.ec.Bytes()
	if err != nil {
		panic("mech: an ec key that was valid is valid no more")
	}
	return bytes.Clone(b)
}
