package mech

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"math/big"
	"slices"

	"filippo.io/mldsa"
	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

// PublicKey is a parsed public key. It is immutable, may be copied, and may be
// used by many goroutines at the same time. The zero value is not a key.
type PublicKey struct{ k func() *publicKey }

// publicKey has exactly one of rsa, ec, k1, ed, dsa and kem.
type publicKey struct {
	spec Spec
	spki []byte // canonical
	bits []byte // the subjectPublicKey inside spki
	rsa  *rsa.PublicKey
	ec   *ecdsa.PublicKey
	k1   *secp256k1.PublicKey
	ed   ed25519.PublicKey
	dsa  *mldsa.PublicKey
	kem  encapsulator
}

// ParsePublic reads a public key, SPKI DER, of any type in this package. It is
// as strict as [ParsePrivate] and answers with the same errors. EC points must
// be uncompressed and on their curve. Ed25519 points are not decoded here: a key that is no
// point verifies nothing. spki is not retained.
func ParsePublic(spki []byte) (*PublicKey, error) {
	if info, point, ok := canonicalPoint(spki); ok {
		k, err := parsePoint(info, point)
		if err != nil {
			return nil, err
		}
		return &PublicKey{hide(k)}, nil
	}
	info, err := unmarshal[spkiInfo](spki)
	if err != nil {
		return nil, err
	}
	spec, err := parseAlgorithm(info.Algorithm)
	if err != nil {
		return nil, err
	}
	bits, err := octets(info.PublicKey)
	if err != nil {
		return nil, err
	}
	var k *publicKey
	switch spec.Type {
	case RSA:
		k, err = parseRSAPublic(bits)
	case Ed25519:
		k, err = parseEd25519Public(bits)
	case MLDSA, MLKEM:
		k, err = parsePQPublic(spec, bits)
	default:
		k, err = parsePoint(infoOf(spec.Curve), bits)
	}
	if err != nil {
		return nil, err
	}
	return &PublicKey{hide(k)}, nil
}

func newPublic(spec Spec, bits []byte) *publicKey {
	var spki []byte
	if spec.Type == EC {
		spki = slices.Concat(formOf(spec.Curve).spki, bits)
	} else {
		spki = marshal(spkiInfo{algorithmFor(spec), bitString(bits)})
	}
	return &publicKey{spec: spec, spki: spki, bits: bits}
}

func parseRSAPublic(der []byte) (*publicKey, error) {
	v, err := unmarshal[pkcs1Public](der)
	if err != nil {
		return nil, err
	}
	if err := checkRSAPublic(v.N, v.E); err != nil {
		return nil, err
	}
	return newRSAPublic(&rsa.PublicKey{N: v.N, E: v.E}), nil
}

func checkRSAPublic(n *big.Int, e int) error {
	if n.Sign() <= 0 || n.Bit(0) == 0 {
		return refuse(ErrKey, "the rsa modulus must be positive and odd")
	}
	if err := (Spec{Type: RSA, Size: n.BitLen()}).Validate(); err != nil {
		return err
	}
	if e < minRSAExponent || e > 1<<31-1 || e%2 == 0 {
		return refuse(ErrKey, "the rsa public exponent must be odd and between %d and 2147483647", minRSAExponent)
	}
	return nil
}

func newRSAPublic(key *rsa.PublicKey) *publicKey {
	k := newPublic(Spec{Type: RSA, Size: key.N.BitLen()}, x509.MarshalPKCS1PublicKey(key))
	k.rsa = key
	return k
}

func parseEd25519Public(b []byte) (*publicKey, error) {
	if len(b) != ed25519.PublicKeySize {
		return nil, refuse(ErrKey, "ed25519 public key of %d bytes, want %d", len(b), ed25519.PublicKeySize)
	}
	return newEd25519Public(bytes.Clone(b)), nil
}

func newEd25519Public(key ed25519.PublicKey) *publicKey {
	k := newPublic(Spec{Type: Ed25519, Curve: CurveEd25519}, key)
	k.ed = key
	return k
}

// parsePoint reads an uncompressed point and checks that it is on the curve and not
// at infinity. All curves here have cofactor 1.
func parsePoint(info curveInfo, point []byte) (*publicKey, error) {
	if len(point) != 1+2*info.size || point[0] != 4 {
		return nil, refuse(ErrKey, "%s public key is not an uncompressed point of %d bytes", info.name, 1+2*info.size)
	}
	if info.std == nil {
		key, err := secp256k1.ParsePubKey(point)
		if err != nil {
			return nil, refuse(ErrKey, "the point is not on %s", info.name)
		}
		return newK1Public(key), nil
	}
	key, err := ecdsa.ParseUncompressedPublicKey(info.std, point)
	if err != nil {
		return nil, refuse(ErrKey, "the point is not on %s", info.name)
	}
	k := newPublic(Spec{Type: EC, Curve: info.name}, bytes.Clone(point))
	k.ec = key
	return k, nil
}

func newK1Public(key *secp256k1.PublicKey) *publicKey {
	k := newPublic(Spec{Type: EC, Curve: Secp256k1}, key.SerializeUncompressed())
	k.k1 = key
	return k
}

func newStdECPublic(info curveInfo, key *ecdsa.PublicKey) (*publicKey, error) {
	point, err := key.Bytes()
	if err != nil {
		return nil, refuse(ErrKey, "the point is not on %s", info.name)
	}
	k := newPublic(Spec{Type: EC, Curve: info.name}, point)
	k.ec = key
	return k, nil
}

// matches returns nil if the public key that came beside a private one, if any, belongs to it.
func (k *publicKey) matches(beside asn1.BitString) error {
	if beside.Bytes == nil && beside.BitLength == 0 {
		return nil
	}
	got, err := octets(beside)
	if err != nil {
		return err
	}
	if bytes.Equal(got, k.bits) || (k.spec.Type == EC && bytes.Equal(got, compress(k.bits))) {
		return nil
	}
	return refuse(ErrKey, "the public half does not belong to the private key")
}

// compress returns an uncompressed point in compressed form.
func compress(point []byte) []byte {
	half := 1 + (len(point)-1)/2
	c := bytes.Clone(point[:half])
	c[0] = 2 + point[len(point)-1]&1
	return c
}

// Spec says what the key is.
func (k PublicKey) Spec() Spec {
	if k.k == nil {
		return Spec{}
	}
	return k.k().spec
}

// SPKI returns the key in canonical encoding, in a slice of its own.
func (k *PublicKey) SPKI() []byte { return bytes.Clone(k.k().spki) }

// Bits returns the subjectPublicKey: PKCS #1 for rsa, the uncompressed point for
// ec, the bytes of the key itself for ed25519, ml-dsa and ml-kem. The slice is the caller's own.
func (k *PublicKey) Bits() []byte { return bytes.Clone(k.k().bits) }

// RSA returns modulus and exponent, big-endian, of an rsa key; ok is false for other keys.
func (k *PublicKey) RSA() (modulus, exponent []byte, ok bool) {
	if k.k().rsa == nil {
		return nil, nil, false
	}
	return k.k().rsa.N.Bytes(), big.NewInt(int64(k.k().rsa.E)).Bytes(), true
}

// KCV returns the check value, see [CheckValuePublic].
func (k *PublicKey) KCV() []byte { return k.k().kcv() }
