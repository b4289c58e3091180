package pkcs11

import (
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"

	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
)

// Between the numbers of PKCS #11's attributes and the encodings that an HSM takes and
// gives: SubjectPublicKeyInfo and PKCS #8.

var (
	oidRSA     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidEC      = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}
)

type spki struct {
	Algorithm pkix.AlgorithmIdentifier
	Key       asn1.BitString
}

type pkcs8 struct {
	Version   int
	Algorithm pkix.AlgorithmIdentifier
	Key       []byte
	Rest      []asn1.RawValue `asn1:"optional,omitempty"`
}

type sec1 struct {
	Version int
	Key     []byte
	Curve   asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
	Point   asn1.BitString        `asn1:"optional,explicit,tag:1"`
}

func marshal(v any) ([]byte, error) {
	b, err := asn1.Marshal(v)
	if err != nil {
		return nil, ck.AttributeValueInvalid
	}
	return b, nil
}

func bits(b []byte) asn1.BitString { return asn1.BitString{Bytes: b, BitLength: 8 * len(b)} }

func rsaPublic(n, e []byte) ([]byte, error) {
	exponent := new(big.Int).SetBytes(e)
	if !exponent.IsInt64() || len(n) > 1024 || exponent.Int64() > 1<<31-1 {
		return nil, ck.AttributeValueInvalid
	}
	key, err := marshal(struct {
		N *big.Int
		E int
	}{new(big.Int).SetBytes(n), int(exponent.Int64())})
	if err != nil {
		return nil, err
	}
	return marshal(spki{pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue}, bits(key)})
}

// ecPublic takes a point as DER octet string, as v2.40 wants it, or as it is.
func ecPublic(curve string, point []byte) ([]byte, error) {
	var inner []byte
	if rest, err := asn1.Unmarshal(point, &inner); err == nil && len(rest) == 0 {
		point = inner
	}
	algorithm := pkix.AlgorithmIdentifier{Algorithm: oidEC, Parameters: asn1.RawValue{FullBytes: curveDER(curve)}}
	if curve == "ed25519" {
		algorithm = pkix.AlgorithmIdentifier{Algorithm: oidEd25519}
	}
	return marshal(spki{algorithm, bits(point)})
}

// rsaPrivate needs all numbers; those that follow from others may be missing.
func rsaPrivate(get func(ck.Attr) []byte) ([]byte, error) {
	number := func(t ck.Attr) *big.Int { return new(big.Int).SetBytes(get(t)) }
	for _, t := range []ck.Attr{ck.Modulus, ck.PrivateExponent} {
		if len(get(t)) == 0 {
			return nil, ck.TemplateIncomplete
		}
	}
	// Without the factors they would have to be found from the exponents.
	for _, t := range []ck.Attr{ck.PublicExponent, ck.Prime1, ck.Prime2} {
		if len(get(t)) == 0 {
			return nil, ck.TemplateIncomplete
		}
	}
	e := number(ck.PublicExponent)
	if !e.IsInt64() || e.Int64() > 1<<31-1 || len(get(ck.Modulus)) > 1024 {
		return nil, ck.AttributeValueInvalid
	}
	key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: number(ck.Modulus), E: int(e.Int64())}, D: number(ck.PrivateExponent),
		Primes: []*big.Int{number(ck.Prime1), number(ck.Prime2)}}
	if key.Validate() != nil {
		return nil, ck.AttributeValueInvalid
	}
	key.Precompute()
	return pkcs8Of(pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue}, x509.MarshalPKCS1PrivateKey(key))
}

func pkcs8Of(algorithm pkix.AlgorithmIdentifier, inner []byte) ([]byte, error) {
	return marshal(struct {
		Version   int
		Algorithm pkix.AlgorithmIdentifier
		Key       []byte
	}{0, algorithm, inner})
}

// sizes are the bytes of a private number of each curve.
var sizes = map[string]int{"secp224r1": 28, "secp256r1": 32, "secp384r1": 48, "secp521r1": 66, "secp256k1": 32, "ed25519": 32}

// ecPrivate makes PKCS #8 of a private number. The HSM works its point out.
func ecPrivate(curve string, value []byte) ([]byte, error) {
	n := sizes[curve]
	for len(value) > n && value[0] == 0 {
		value = value[1:]
	}
	if len(value) > n || len(value) == 0 {
		return nil, ck.AttributeValueInvalid
	}
	fixed := make([]byte, n)
	defer clear(fixed)
	copy(fixed[n-len(value):], value)
	if curve == "ed25519" {
		inner, err := marshal(fixed)
		if err != nil {
			return nil, err
		}
		return pkcs8Of(pkix.AlgorithmIdentifier{Algorithm: oidEd25519}, inner)
	}
	inner, err := marshal(struct {
		Version int
		Key     []byte
	}{1, fixed})
	if err != nil {
		return nil, err
	}
	return pkcs8Of(pkix.AlgorithmIdentifier{Algorithm: oidEC, Parameters: asn1.RawValue{FullBytes: curveDER(curve)}}, inner)
}

// privatePart takes one attribute out of PKCS #8.
func privatePart(der []byte, t ck.Attr) ([]byte, error) {
	var outer pkcs8
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		return nil, err
	}
	switch {
	case outer.Algorithm.Algorithm.Equal(oidRSA):
		key, err := x509.ParsePKCS1PrivateKey(outer.Key)
		if err != nil {
			return nil, err
		}
		return map[ck.Attr]*big.Int{
			ck.PrivateExponent: key.D, ck.Prime1: key.Primes[0], ck.Prime2: key.Primes[1],
			ck.Exponent1: key.Precomputed.Dp, ck.Exponent2: key.Precomputed.Dq, ck.Coefficient: key.Precomputed.Qinv,
		}[t].Bytes(), nil
	case outer.Algorithm.Algorithm.Equal(oidEd25519):
		var seed []byte
		_, err := asn1.Unmarshal(outer.Key, &seed)
		return seed, err
	case t == ck.Seed:
		var seed asn1.RawValue
		_, err := asn1.Unmarshal(outer.Key, &seed)
		return seed.Bytes, err
	}
	var inner sec1
	if _, err := asn1.Unmarshal(outer.Key, &inner); err != nil {
		return nil, err
	}
	return inner.Key, nil
}
