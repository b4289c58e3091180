package mech

import (
	"crypto/elliptic"
	"crypto/subtle"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
)

// maxDER bounds every DER input before anything is parsed. The largest key
// here, RSA-4096 in PKCS #8, takes about 2,400 bytes.
const maxDER = 8 << 10

// pkcs8Info is PrivateKeyInfo (RFC 5208) and OneAsymmetricKey (RFC 5958).
type pkcs8Info struct {
	Version    int
	Algorithm  pkix.AlgorithmIdentifier
	PrivateKey []byte
	Attributes asn1.RawValue  `asn1:"optional,tag:0"`
	PublicKey  asn1.BitString `asn1:"optional,tag:1"`
}

// spkiInfo is SubjectPublicKeyInfo (RFC 5280).
type spkiInfo struct {
	Algorithm pkix.AlgorithmIdentifier
	PublicKey asn1.BitString
}

// sec1Private is ECPrivateKey (RFC 5915).
type sec1Private struct {
	Version    int
	PrivateKey []byte
	Curve      asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
	PublicKey  asn1.BitString        `asn1:"optional,explicit,tag:1"`
}

// pkcs1Private is RSAPrivateKey (RFC 8017) with two primes.
type pkcs1Private struct {
	Version                      int
	N                            *big.Int
	E                            int
	D, P, Q, Dp, Dq, Coefficient *big.Int
}

// pkcs1Public is RSAPublicKey (RFC 8017).
type pkcs1Public struct {
	N *big.Int
	E int
}

var (
	oidRSA     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidEC      = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}
)

// curveInfo is what the encodings need to know of a curve. The coordinates and
// the private scalar of each of these curves have the same length.
type curveInfo struct {
	name Curve
	oid  asn1.ObjectIdentifier
	std  elliptic.Curve // nil for secp256k1
	size int            // bytes in a coordinate
}

var curveInfos = []curveInfo{
	{Secp224r1, asn1.ObjectIdentifier{1, 3, 132, 0, 33}, elliptic.P224(), 28},
	{Secp256r1, asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, elliptic.P256(), 32},
	{Secp384r1, asn1.ObjectIdentifier{1, 3, 132, 0, 34}, elliptic.P384(), 48},
	{Secp521r1, asn1.ObjectIdentifier{1, 3, 132, 0, 35}, elliptic.P521(), 66},
	{Secp256k1, asn1.ObjectIdentifier{1, 3, 132, 0, 10}, nil, 32},
}

// infoOf returns the facts about a canonical EC curve, which must exist.
func infoOf(c Curve) curveInfo {
	for _, info := range curveInfos {
		if info.name == c {
			return info
		}
	}
	panic("mech: no facts about curve " + string(c))
}

func infoByOID(oid asn1.ObjectIdentifier) (curveInfo, error) {
	for _, info := range curveInfos {
		if info.oid.Equal(oid) {
			return info, nil
		}
	}
	return curveInfo{}, refuse(ErrCurve, "object identifier %v; there are %s", oid, list(curves))
}

// unmarshal reads one DER value and nothing else. The value is written again
// and compared, which refuses BER, unknown fields and trailing bytes
// at any depth that T describes.
func unmarshal[T any](der []byte) (T, error) {
	var v T
	if len(der) > maxDER {
		return v, refuse(ErrKey, "%d bytes of DER, at most %d are read", len(der), maxDER)
	}
	rest, err := asn1.Unmarshal(der, &v)
	if err != nil {
		return v, refuse(ErrKey, "not the expected DER structure (%s)", describe(err))
	}
	if len(rest) > 0 {
		return v, refuse(ErrKey, "%d bytes after the end of the key", len(rest))
	}
	again, err := asn1.Marshal(v)
	if err != nil || subtle.ConstantTimeCompare(again, der) != 1 {
		return v, refuse(ErrKey, "not in distinguished encoding")
	}
	clear(again)
	return v, nil
}

// describe keeps of an asn1 error only its kind, so that no input can get into a message.
func describe(err error) string {
	switch err.(type) {
	case asn1.SyntaxError:
		return "syntax"
	case asn1.StructuralError:
		return "structure"
	}
	return "truncated or oversized"
}

// marshal writes DER of the fixed structures above, which cannot fail.
func marshal(v any) []byte {
	der, err := asn1.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("mech: marshalling %T failed", v))
	}
	return der
}

func bitString(b []byte) asn1.BitString { return asn1.BitString{Bytes: b, BitLength: 8 * len(b)} }

// octets returns the bytes of a bit string of whole bytes.
func octets(b asn1.BitString) ([]byte, error) {
	if b.BitLength != 8*len(b.Bytes) {
		return nil, refuse(ErrKey, "the public key is not a whole number of bytes")
	}
	return b.Bytes, nil
}

// algorithmFor returns the algorithm identifier that keys of a canonical spec carry.
func algorithmFor(s Spec) pkix.AlgorithmIdentifier {
	switch s.Type {
	case RSA:
		return pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue}
	case Ed25519:
		return pkix.AlgorithmIdentifier{Algorithm: oidEd25519}
	case MLDSA, MLKEM:
		info, _ := pqOf(s)
		return pkix.AlgorithmIdentifier{Algorithm: info.oid}
	}
	return pkix.AlgorithmIdentifier{Algorithm: oidEC, Parameters: asn1.RawValue{FullBytes: marshal(infoOf(s.Curve).oid)}}
}

// parseAlgorithm reads an algorithm identifier to a spec, of rsa without its size.
func parseAlgorithm(a pkix.AlgorithmIdentifier) (Spec, error) {
	params := a.Parameters.FullBytes
	switch {
	case a.Algorithm.Equal(oidRSA):
		if string(params) != string(asn1.NullBytes) {
			return Spec{}, refuse(ErrKey, "rsa algorithm parameters must be NULL")
		}
		return Spec{Type: RSA}, nil
	case a.Algorithm.Equal(oidEd25519):
		if len(params) != 0 {
			return Spec{}, refuse(ErrKey, "ed25519 algorithm parameters must be absent")
		}
		return Spec{Type: Ed25519, Curve: CurveEd25519}, nil
	case a.Algorithm.Equal(oidEC):
		oid, err := unmarshal[asn1.ObjectIdentifier](params)
		if err != nil {
			return Spec{}, refuse(ErrCurve, "ec keys must name their curve; there are %s", list(curves))
		}
		info, err := infoByOID(oid)
		return Spec{Type: EC, Curve: info.name}, err
	}
	if spec, ok := pqByOID(a.Algorithm); ok {
		if len(params) != 0 {
			return Spec{}, refuse(ErrKey, "%s algorithm parameters must be absent", spec.Type)
		}
		return spec, nil
	}
	return Spec{}, refuse(ErrKeyType, "algorithm identifier %v; there are %s", a.Algorithm, list(keyTypes))
}
