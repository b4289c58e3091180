package mech

import (
	"fmt"
	"io"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	k1ecdsa "github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
)

// The standard library has no secp256k1. The library used here multiplies points
// and inverts scalars in variable time, so nothing below hands it a secret as
// it is: a scalar k becomes a + (k-a) for a fresh random a, and an inverse of k
// is b·(k·b)⁻¹ for a fresh random b. Each number it sees is by itself uniform.
// Signing follows FIPS 186-5 with a nonce from RFC 6979, section 3.6: private key,
// digest and 32 fresh random bytes. A broken random source
// therefore does not repeat nonces, and equal messages do not repeat computations.

// k1Private is a private key on secp256k1.
type k1Private struct {
	d   secp256k1.ModNScalar
	pub *secp256k1.PublicKey
}

// newK1Private makes a key of 32 bytes; zero and numbers not below the order are ErrKey.
func newK1Private(scalar []byte) (*k1Private, error) {
	var k k1Private
	if overflow := k.d.SetByteSlice(scalar); overflow || k.d.IsZero() {
		return nil, refuse(ErrKey, "ec private key out of range for %s", Secp256k1)
	}
	p, err := splitMult(nil, &k.d, nil)
	if err != nil {
		return nil, err
	}
	k.pub = secp256k1.NewPublicKey(&p.X, &p.Y)
	return &k, nil
}

func generateK1(random io.Reader) (*PrivateKey, error) {
	d, err := randomScalar(random)
	if err != nil {
		return nil, err
	}
	b := d.Bytes()
	defer clear(b[:])
	return newECPrivate(infoOf(Secp256k1), b[:])
}

// randomScalar draws uniformly from 1 to the order less 1. One draw in 2¹²⁸ is out of
// range, so a second one means that the source is broken.
func randomScalar(random io.Reader) (*secp256k1.ModNScalar, error) {
	for range 2 {
		b, err := randomBytes(random, 32)
		if err != nil {
			return nil, err
		}
		var s secp256k1.ModNScalar
		overflow := s.SetByteSlice(b)
		clear(b)
		if !overflow && !s.IsZero() {
			return &s, nil
		}
	}
	return nil, fmt.Errorf("%w: it repeats numbers out of range", errRandom)
}

// splitMult returns k·P in affine coordinates, or k·G for a nil P, without
// multiplying by k itself.
func splitMult(random io.Reader, k *secp256k1.ModNScalar, p *secp256k1.JacobianPoint) (*secp256k1.JacobianPoint, error) {
	a, err := randomScalar(random)
	if err != nil {
		return nil, err
	}
	var rest secp256k1.ModNScalar
	rest.NegateVal(a).Add(k)
	var first, second, sum secp256k1.JacobianPoint
	mult(a, p, &first)
	mult(&rest, p, &second)
	secp256k1.AddNonConst(&first, &second, &sum)
	sum.ToAffine()
	a.Zero()
	rest.Zero()
	return &sum, nil
}

func mult(k *secp256k1.ModNScalar, p, result *secp256k1.JacobianPoint) {
	if p == nil {
		secp256k1.ScalarBaseMultNonConst(k, result)
		return
	}
	secp256k1.ScalarMultNonConst(k, p, result)
}

// blindInverse returns 1/k modulo the order.
func blindInverse(random io.Reader, k *secp256k1.ModNScalar) (*secp256k1.ModNScalar, error) {
	b, err := randomScalar(random)
	if err != nil {
		return nil, err
	}
	var product secp256k1.ModNScalar
	product.Mul2(k, b)
	return product.InverseNonConst().Mul(b), nil
}

// sign returns r||s over a digest of at least one byte; s is the smaller of the
// two that verify.
func (k *k1Private) sign(random io.Reader, digest []byte) ([]byte, error) {
	digest = digest[:min(len(digest), 32)]
	extra, err := randomBytes(random, 32)
	if err != nil {
		return nil, err
	}
	d := k.d.Bytes()
	defer clear(d[:])
	for i := uint32(0); ; i++ {
		nonce := secp256k1.NonceRFC6979(d[:], digest, extra, nil, i)
		r, s, err := k.signWith(random, nonce, digest)
		nonce.Zero()
		if err != nil {
			return nil, err
		}
		if r.IsZero() || s.IsZero() {
			continue // happens once in 2²⁵⁵ signatures
		}
		rb, sb := r.Bytes(), s.Bytes()
		return append(rb[:], sb[:]...), nil
	}
}

// signWith computes r = (nonce·G).x and s = (digest + r·d)/nonce modulo the order.
func (k *k1Private) signWith(random io.Reader, nonce *secp256k1.ModNScalar, digest []byte) (r, s secp256k1.ModNScalar, err error) {
	point, err := splitMult(random, nonce, nil)
	if err != nil {
		return r, s, err
	}
	r.SetBytes(point.X.Bytes())
	inverse, err := blindInverse(random, nonce)
	if err != nil {
		return r, s, err
	}
	var e secp256k1.ModNScalar
	e.SetByteSlice(digest)
	s.Mul2(&r, &k.d).Add(&e).Mul(inverse)
	inverse.Zero()
	if s.IsOverHalfOrder() {
		s.Negate()
	}
	return r, s, nil
}

// verifyK1 takes both values of s.
func verifyK1(pub *secp256k1.PublicKey, digest, sig []byte) bool {
	if len(sig) != 64 {
		return false
	}
	var r, s secp256k1.ModNScalar
	if r.SetByteSlice(sig[:32]) || s.SetByteSlice(sig[32:]) {
		return false
	}
	return k1ecdsa.NewSignature(&r, &s).Verify(digest[:min(len(digest), 32)], pub)
}

// ecdh returns the x coordinate of d·peer.
func (k *k1Private) ecdh(peer *secp256k1.PublicKey) ([]byte, error) {
	var p secp256k1.JacobianPoint
	peer.AsJacobian(&p)
	shared, err := splitMult(nil, &k.d, &p)
	if err != nil {
		return nil, err
	}
	x := shared.X.Bytes()
	return x[:], nil
}
