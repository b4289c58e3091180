package mech

import (
	"bytes"
	"crypto/x509/pkix"
	"slices"
)

// pointForm is what the keys of one curve of ec look like in canonical encoding: all
// bytes but those of scalar and point are the same in each, so that they are written
// and recognised without asking what they mean. What does not look like this is read
// the long way.
type pointForm struct {
	info  curveInfo
	spki  []byte // what comes before the point, which ends an SPKI
	pkcs8 []byte // a whole key, with a scalar and a point of zeros
	at    int    // where in it the scalar begins
}

// pointForms has a form for each curve.
var pointForms = func() (forms []pointForm) {
	for _, info := range curveInfos {
		algorithm, point := algorithmFor(Spec{Type: EC, Curve: info.name}), make([]byte, 1+2*info.size)
		spki := marshal(spkiInfo{algorithm, bitString(point)})
		whole := wholePKCS8(algorithm, make([]byte, info.size), point)
		marked := wholePKCS8(algorithm, bytes.Repeat([]byte{1}, info.size), point)
		at := 0
		for whole[at] == marked[at] {
			at++
		}
		forms = append(forms, pointForm{info: info, spki: spki[:len(spki)-len(point)], pkcs8: whole, at: at})
	}
	return forms
}()

// wholePKCS8 is how private keys of ec are encoded.
func wholePKCS8(algorithm pkix.AlgorithmIdentifier, scalar, point []byte) []byte {
	inner := marshal(sec1Private{Version: 1, PrivateKey: scalar, PublicKey: bitString(point)})
	defer clear(inner)
	return marshal(pkcs8Info{Algorithm: algorithm, PrivateKey: inner})
}

// formOf returns the form of a canonical EC curve, which must exist.
func formOf(c Curve) pointForm {
	return pointForms[slices.IndexFunc(pointForms, func(f pointForm) bool { return f.info.name == c })]
}

// write encodes a private key.
func (f pointForm) write(scalar, point []byte) []byte {
	b := bytes.Clone(f.pkcs8)
	copy(b[f.at:], scalar)
	copy(b[len(b)-len(point):], point)
	return b
}

// read tells scalar and point of a private key that looks like this.
func (f pointForm) read(pkcs8 []byte) (scalar, point []byte, ok bool) {
	if len(pkcs8) != len(f.pkcs8) {
		return nil, nil, false
	}
	behind, end := f.at+f.info.size, len(pkcs8)-1-2*f.info.size
	ok = bytes.Equal(pkcs8[:f.at], f.pkcs8[:f.at]) && bytes.Equal(pkcs8[behind:end], f.pkcs8[behind:end])
	return pkcs8[f.at:behind], pkcs8[end:], ok
}

// canonicalPoint finds the point in an SPKI that looks like those written here; it is
// in spki itself, and need not be on the curve.
func canonicalPoint(spki []byte) (info curveInfo, point []byte, ok bool) {
	for _, f := range pointForms {
		if n := 1 + 2*f.info.size; len(spki) == len(f.spki)+n && bytes.HasPrefix(spki, f.spki) {
			return f.info, spki[len(f.spki):], true
		}
	}
	return info, nil, false
}

// PointOf is [PublicKey.PointDER] of an SPKI that [Generate] or [ParsePublic] has let
// through, without checking it again. ok is false for what is no key of ec; of others
// nothing is said.
func PointOf(spki []byte) (der []byte, ok bool) {
	_, point, ok := canonicalPoint(spki)
	if !ok {
		return nil, false
	}
	return octetString(point), true
}

// octetString is DER of at most 255 bytes.
func octetString(b []byte) []byte {
	head := []byte{4, byte(len(b))}
	if len(b) > 127 {
		head = []byte{4, 0x81, byte(len(b))}
	}
	return append(head, b...)
}
