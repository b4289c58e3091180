package mech

import (
	"crypto/ecdh"
	"crypto/elliptic"
	"crypto/hmac"
	"encoding/asn1"
	"encoding/binary"
	"math"
)

// maxDerived bounds what one derivation returns; far above any key.
const maxDerived = 1 << 20

// ECDH returns the x coordinate of the shared point, as long as the curve's
// coordinates. The peer's public key is SPKI, an uncompressed point, or
// such a point as a DER OCTET STRING (PKCS #11's form). A peer that is malformed or off the
// curve is [ErrKey], one on another curve is [ErrCurve], a key that is not ec is [ErrMechanism]. The
// result is not uniform: derive keys from it, do not use it as one.
func (k *PrivateKey) ECDH(peerSPKIOrPoint []byte) ([]byte, error) {
	if k.k().pub.spec.Type != EC {
		return nil, refuse(ErrMechanism, "ecdh needs an ec key, this is %s", k.k().pub.spec.Type)
	}
	info := infoOf(k.k().pub.spec.Curve)
	peer, err := parsePeer(info, peerSPKIOrPoint)
	if err != nil {
		return nil, err
	}
	switch {
	case k.k().k1 != nil:
		return k.k().k1.ecdh(peer.k1)
	case info.name == Secp224r1:
		return k.k().ecdhP224(peer)
	}
	return k.k().ecdhStd(peer)
}

func parsePeer(info curveInfo, b []byte) (*publicKey, error) {
	pointLen := 1 + 2*info.size
	if len(b) == pointLen {
		return parsePoint(info, b)
	}
	if point, err := unmarshal[[]byte](b); err == nil {
		return parsePoint(info, point)
	}
	k, err := ParsePublic(b)
	if err != nil {
		return nil, err
	}
	if k.k().spec.Curve != info.name {
		return nil, refuse(ErrCurve, "the peer's key is %s %s, this key is on %s", k.k().spec.Type, k.k().spec.Curve, info.name)
	}
	return k.k(), nil
}

func (k *privateKey) ecdhStd(peer *publicKey) ([]byte, error) {
	mine, err := k.ecdh()
	if err != nil {
		return nil, refuse(ErrMechanism, "ecdh is not available on %s", k.pub.spec.Curve)
	}
	var theirs *ecdh.PublicKey
	if theirs, err = peer.ec.ECDH(); err != nil {
		return nil, refuse(ErrKey, "the peer's point is not on %s", k.pub.spec.Curve)
	}
	z, err := mine.ECDH(theirs)
	if err != nil {
		return nil, refuse(ErrKey, "the peer's point gives no shared secret")
	}
	return z, nil
}

// ecdhP224 exists because crypto/ecdh leaves P-224 out. The point was checked when it was
// parsed, and elliptic.P224 multiplies in constant time.
func (k *privateKey) ecdhP224(peer *publicKey) ([]byte, error) {
	scalar := k.scalar()
	defer clear(scalar)
	//lint:ignore SA1019 crypto/ecdh has no P-224
	x, y := elliptic.Unmarshal(elliptic.P224(), peer.bits)
	//lint:ignore SA1019 crypto/ecdh has no P-224
	z, _ := elliptic.P224().ScalarMult(x, y, scalar)
	return z.FillBytes(make([]byte, infoOf(Secp224r1).size)), nil
}

// PointDER returns an uncompressed point as the DER OCTET STRING that PKCS #11's CKA_EC_POINT and
// the attribute ec-point hold; nil for keys that are not ec or ed25519.
func (k *PublicKey) PointDER() []byte {
	if k.k().spec.Curve == "" {
		return nil
	}
	return marshal(k.k().bits)
}

// CurveDER returns the object identifier of the key's curve in DER, PKCS #11's CKA_EC_PARAMS; nil for keys without a curve.
func (k *PublicKey) CurveDER() []byte {
	var oid asn1.ObjectIdentifier
	switch k.k().spec.Type {
	case RSA, MLDSA, MLKEM:
		return nil
	case Ed25519:
		oid = oidEd25519
	default:
		oid = infoOf(k.k().spec.Curve).oid
	}
	return marshal(oid)
}

// X963KDF derives n bytes from a shared secret with the key derivation function of ANSI X9.63
// (SEC 1, section 3.6.1): hash(z || counter || sharedInfo), counter from 1 in 32 bits.
// No secret and lengths below 1 or above 1 MiB are [ErrDataLen].
func X963KDF(hash string, z, sharedInfo []byte, n int) ([]byte, error) {
	h, err := parseHash(hash)
	if err != nil {
		return nil, err
	}
	if err := checkDerive(z, n); err != nil {
		return nil, err
	}
	out := make([]byte, 0, n+h.Size())
	d := h.New()
	for counter := uint32(1); len(out) < n; counter++ {
		d.Reset()
		d.Write(z)
		d.Write(binary.BigEndian.AppendUint32(nil, counter))
		d.Write(sharedInfo)
		out = d.Sum(out)
	}
	return out[:n:n], nil
}

// SP800108Counter derives n bytes with the counter mode of NIST SP 800-108 over HMAC:
// HMAC(key, counter || label || 0 || context || length), counter from 1 and length
// in bits, both in 32 bits. No key and lengths below 1 or above 1 MiB are [ErrDataLen].
func SP800108Counter(hash string, key, label, context []byte, n int) ([]byte, error) {
	h, err := parseHash(hash)
	if err != nil {
		return nil, err
	}
	if err := checkDerive(key, n); err != nil {
		return nil, err
	}
	out := make([]byte, 0, n+h.Size())
	m := hmac.New(h.New, key)
	for counter := uint32(1); len(out) < n; counter++ {
		m.Reset()
		m.Write(binary.BigEndian.AppendUint32(nil, counter))
		m.Write(label)
		m.Write([]byte{0})
		m.Write(context)
		m.Write(binary.BigEndian.AppendUint32(nil, uint32(8*n)))
		out = m.Sum(out)
	}
	return out[:n:n], nil
}

func checkDerive(secret []byte, n int) error {
	if len(secret) == 0 {
		return refuse(ErrDataLen, "no secret to derive from")
	}
	if n < 1 || n > maxDerived || n > math.MaxUint32/8 {
		return refuse(ErrDataLen, "%d bytes to derive; there are 1 to %d", n, maxDerived)
	}
	return nil
}
