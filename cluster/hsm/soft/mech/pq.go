package mech

import (
	"bytes"
	"crypto/mlkem"
	"crypto/sha3"
	"encoding/asn1"
	"slices"

	"filippo.io/mldsa"
)

// Signatures with ML-DSA (FIPS 204) and key agreement with ML-KEM (FIPS 203). A private
// key is its seed, in the form "seed" of RFC 9881 and RFC 9935; whoever imports
// the form "both" has the expanded key compared, as far as its public parts go. Expanded
// keys without a seed are refused: nothing leads back from them to a seed, and
// what does not leave as it came cannot be compared between HSMs.

// Mechanisms of ML-DSA. The first is hedged, with fresh randomness in each signature; the
// second gives the same signature every time. Both take data whole, and make
// signatures that verify under either name.
const (
	MLDSASign          = "ml-dsa"
	MLDSADeterministic = "ml-dsa-deterministic"
	maxMLDSAContext    = 255
	mldsaSeed          = mldsa.PrivateKeySize
)

// pqInfo is what there is to know of a parameter set.
type pqInfo struct {
	spec   Spec
	oid    asn1.ObjectIdentifier
	seed   int // bytes of the private seed
	public int // bytes of the public key
	long   int // bytes of the expanded private key
}

func nistOID(arc, n int) asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, arc, n}
}

var pqInfos = []pqInfo{
	{Spec{Type: MLDSA, Size: 44}, nistOID(3, 17), mldsaSeed, mldsa.MLDSA44PublicKeySize, 2560},
	{Spec{Type: MLDSA, Size: 65}, nistOID(3, 18), mldsaSeed, mldsa.MLDSA65PublicKeySize, 4032},
	{Spec{Type: MLDSA, Size: 87}, nistOID(3, 19), mldsaSeed, mldsa.MLDSA87PublicKeySize, 4896},
	{Spec{Type: MLKEM, Size: 768}, nistOID(4, 2), mlkem.SeedSize, mlkem.EncapsulationKeySize768, 2400},
	{Spec{Type: MLKEM, Size: 1024}, nistOID(4, 3), mlkem.SeedSize, mlkem.EncapsulationKeySize1024, 3168},
}

func pqOf(s Spec) (pqInfo, bool) {
	i := slices.IndexFunc(pqInfos, func(p pqInfo) bool { return p.spec == s })
	if i < 0 {
		return pqInfo{}, false
	}
	return pqInfos[i], true
}

func pqByOID(oid asn1.ObjectIdentifier) (Spec, bool) {
	i := slices.IndexFunc(pqInfos, func(p pqInfo) bool { return p.oid.Equal(oid) })
	if i < 0 {
		return Spec{}, false
	}
	return pqInfos[i].spec, true
}

func mldsaParams(size int) mldsa.Parameters {
	switch size {
	case 44:
		return mldsa.MLDSA44()
	case 65:
		return mldsa.MLDSA65()
	}
	return mldsa.MLDSA87()
}

// decapsulator is a private key of ML-KEM, of either size.
type decapsulator interface {
	Bytes() []byte
	Decapsulate(ciphertext []byte) (shared []byte, err error)
}

// encapsulator is a public key of ML-KEM, of either size.
type encapsulator interface {
	Bytes() []byte
	Encapsulate() (shared, ciphertext []byte)
}

// newPQPrivate makes a key of its seed, which it does not retain.
func newPQPrivate(s Spec, seed []byte) (*PrivateKey, error) {
	if info, ok := pqOf(s); !ok || len(seed) != info.seed {
		return nil, refuse(ErrKey, "a seed of %d bytes for an %s key", len(seed), s.Type)
	}
	k := &privateKey{}
	var public []byte
	switch {
	case s.Type == MLDSA:
		key, err := mldsa.NewPrivateKey(mldsaParams(s.Size), seed)
		if err != nil {
			return nil, refuse(ErrKey, "the seed makes no %s key", s.Type)
		}
		k.dsa, public = key, key.PublicKey().Bytes()
	case s.Size == 768:
		key, err := mlkem.NewDecapsulationKey768(seed)
		if err != nil {
			return nil, refuse(ErrKey, "the seed makes no %s key", s.Type)
		}
		k.kem, public = key, key.EncapsulationKey().Bytes()
	default:
		key, err := mlkem.NewDecapsulationKey1024(seed)
		if err != nil {
			return nil, refuse(ErrKey, "the seed makes no %s key", s.Type)
		}
		k.kem, public = key, key.EncapsulationKey().Bytes()
	}
	var err error
	if k.pub, err = parsePQPublic(s, public); err != nil {
		return nil, err
	}
	return &PrivateKey{hide(k)}, nil
}

// parsePQPublic checks what FIPS 203, section 7.2, and FIPS 204 ask for: the length, and
// of ML-KEM that all coefficients are reduced.
func parsePQPublic(s Spec, b []byte) (*publicKey, error) {
	info, _ := pqOf(s)
	if len(b) != info.public {
		return nil, refuse(ErrKey, "%s-%d public key of %d bytes, want %d", s.Type, s.Size, len(b), info.public)
	}
	k := newPublic(s, bytes.Clone(b))
	var err error
	switch {
	case s.Type == MLDSA:
		k.dsa, err = mldsa.NewPublicKey(mldsaParams(s.Size), b)
	case s.Size == 768:
		k.kem, err = mlkem.NewEncapsulationKey768(b)
	default:
		k.kem, err = mlkem.NewEncapsulationKey1024(b)
	}
	if err != nil {
		return nil, refuse(ErrKey, "not an %s-%d public key", s.Type, s.Size)
	}
	return k, nil
}

// pqBoth is the form "both" of RFC 9881 and RFC 9935.
type pqBoth struct{ Seed, Expanded []byte }

// parsePQPrivate reads the CHOICE inside PKCS #8: [0] seed, or both.
func parsePQPrivate(s Spec, der []byte) (*PrivateKey, error) {
	var v asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &v); err != nil || len(rest) > 0 {
		return nil, refuse(ErrKey, "not an %s private key", s.Type)
	}
	switch {
	case v.Class == asn1.ClassContextSpecific && v.Tag == 0 && !v.IsCompound:
		if !bytes.Equal(der, pqInner(v.Bytes)) {
			return nil, refuse(ErrKey, "not in distinguished encoding")
		}
		return newPQPrivate(s, v.Bytes)
	case v.Class == asn1.ClassUniversal && v.Tag == asn1.TagSequence:
		both, err := unmarshal[pqBoth](der)
		if err != nil {
			return nil, err
		}
		k, err := newPQPrivate(s, both.Seed)
		if err == nil && !k.k().expandsTo(both.Expanded) {
			return nil, refuse(ErrKey, "the expanded key does not belong to the seed")
		}
		return k, err
	}
	return nil, refuse(ErrKey, "an %s private key without its seed; export it with the seed (openssl: -provparam %s.output_formats=seed-priv)", s.Type, s.Type)
}

// expandsTo compares the public parts of an expanded private key, which is not used
// otherwise: of ML-DSA ρ and tr, of ML-KEM the encapsulation key, its hash and z.
func (k *privateKey) expandsTo(long []byte) bool {
	info, _ := pqOf(k.pub.spec)
	if len(long) != info.long {
		return false
	}
	if k.dsa != nil {
		return bytes.Equal(long[:32], k.pub.bits[:32]) && bytes.Equal(long[64:128], sha3.SumSHAKE256(k.pub.bits, 64))
	}
	n := len(k.pub.bits)
	seed, hash := k.kem.Bytes(), sha3.Sum256(k.pub.bits)
	defer clear(seed)
	tail := long[len(long)-n-64:]
	return bytes.Equal(tail[:n], k.pub.bits) && bytes.Equal(tail[n:n+32], hash[:]) && bytes.Equal(tail[n+32:], seed[32:])
}

// pqInner is the seed with tag [0], short or long.
func pqInner(seed []byte) []byte {
	return marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, Bytes: seed})
}

// pqSeed returns the seed, in a slice of its own.
func (k *privateKey) pqSeed() []byte {
	if k.dsa != nil {
		return bytes.Clone(k.dsa.Bytes())
	}
	return bytes.Clone(k.kem.Bytes())
}

// prepareMLDSA checks parameters: a context of up to 255 bytes, and no hash.
func prepareMLDSA(p SignParams, data []byte) (message, error) {
	switch {
	case p.Hash != "":
		return message{}, refuse(ErrHash, "%s takes no hash, %.40q was given", p.Mechanism, p.Hash)
	case p.Digest:
		return message{}, refuse(ErrParam, "%s signs data, not digests", p.Mechanism)
	case len(p.Context) > maxMLDSAContext:
		return message{}, refuse(ErrParam, "a context of %d bytes, at most %d", len(p.Context), maxMLDSAContext)
	}
	return message{digest: data}, nil
}

func (k *privateKey) signMLDSA(p SignParams, data []byte) ([]byte, error) {
	o := &mldsa.Options{Context: string(p.Context)}
	if p.Mechanism == MLDSADeterministic {
		return k.dsa.SignDeterministic(data, o)
	}
	return k.dsa.Sign(nil, data, o)
}

// Encapsulate makes a shared secret of 32 bytes with an ml-kem key, and the ciphertext
// from which the owner of the private key gets it. Other keys are [ErrMechanism].
func (k *PublicKey) Encapsulate() (shared, ciphertext []byte, err error) {
	if k.k().kem == nil {
		return nil, nil, refuse(ErrMechanism, "%s needs an %s key, this is %s", MLKEM, MLKEM, k.k().spec.Type)
	}
	shared, ciphertext = k.k().kem.Encapsulate()
	return shared, ciphertext, nil
}

// Decapsulate returns the shared secret of a ciphertext. One of the wrong length is
// [ErrDataLen]; one that was tampered with gives, as FIPS 203 has it, another
// secret and no error.
func (k *PrivateKey) Decapsulate(ciphertext []byte) ([]byte, error) {
	if k.k().kem == nil {
		return nil, refuse(ErrMechanism, "%s needs an %s key, this is %s", MLKEM, MLKEM, k.k().pub.spec.Type)
	}
	shared, err := k.k().kem.Decapsulate(ciphertext)
	if err != nil {
		return nil, refuse(ErrDataLen, "a ciphertext of %d bytes is none of %s-%d", len(ciphertext), MLKEM, k.k().pub.spec.Size)
	}
	return shared, nil
}
