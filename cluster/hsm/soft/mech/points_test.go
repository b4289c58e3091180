package mech

import (
	"bytes"
	"testing"
)

// TestPointForms: what is written without encoding/asn1 is what it writes, and is
// recognised; where a byte differs it is not, and the long way decides.
func TestPointForms(t *testing.T) {
	for _, info := range curveInfos {
		g, err := Generate(nil, Spec{Type: EC, Curve: info.name})
		if err != nil {
			t.Fatal(err)
		}
		k, err := LoadPrivate(g.Secret)
		if err != nil {
			t.Fatal(err)
		}
		scalar, bits := k.k().scalar(), k.PublicKey().Bits()
		algorithm := algorithmFor(g.Spec)
		if want := wholePKCS8(algorithm, scalar, bits); !bytes.Equal(g.Secret, want) {
			t.Errorf("%s: private key %x, want %x", info.name, g.Secret, want)
		}
		if want := marshal(spkiInfo{algorithm, bitString(bits)}); !bytes.Equal(g.Public, want) {
			t.Errorf("%s: public key %x, want %x", info.name, g.Public, want)
		}
		if der, ok := PointOf(g.Public); !ok || !bytes.Equal(der, marshal(bits)) || !bytes.Equal(der, k.PublicKey().PointDER()) {
			t.Errorf("%s: point %x %t, want %x", info.name, der, ok, marshal(bits))
		}
		if !bytes.Equal(g.Check, k.KCV()) {
			t.Errorf("%s: check value %x, want %x", info.name, g.Check, k.KCV())
		}
		for _, f := range pointForms {
			gotScalar, gotBits, ok := f.read(g.Secret)
			if ok != (f.info.name == info.name) || ok && (!bytes.Equal(gotScalar, scalar) || !bytes.Equal(gotBits, bits)) {
				t.Errorf("%s read as %s: %t", info.name, f.info.name, ok)
			}
		}
	}
}

// TestPointFormsDamaged: a byte changed anywhere in a key is refused; or it is its
// version, which may be another.
func TestPointFormsDamaged(t *testing.T) {
	for _, info := range curveInfos {
		g, err := Generate(nil, Spec{Type: EC, Curve: info.name})
		if err != nil {
			t.Fatal(err)
		}
		k, err := LoadPrivate(g.Secret)
		if err != nil {
			t.Fatal(err)
		}
		for i := range g.Secret {
			bad := bytes.Clone(g.Secret)
			bad[i] ^= 1
			if other, err := ParsePrivate(bad); err == nil && !other.Equal(k) {
				t.Errorf("%s: a private key with byte %d changed is read", info.name, i)
			}
		}
		for i := range g.Public {
			bad := bytes.Clone(g.Public)
			bad[i] ^= 1
			if _, err := ParsePublic(bad); err == nil {
				t.Errorf("%s: a public key with byte %d changed is read", info.name, i)
			}
		}
		for _, b := range [][]byte{g.Public[:len(g.Public)-1], append(bytes.Clone(g.Public), 0)} {
			if _, err := ParsePublic(b); err == nil {
				t.Errorf("%s: a public key of %d bytes is read", info.name, len(b))
			}
		}
	}
	if _, ok := PointOf([]byte("no key")); ok {
		t.Error("a text has a point")
	}
}

// TestCheckValueSecret: the quick way for AES gives what a parsed key gives.
func TestCheckValueSecret(t *testing.T) {
	for _, size := range []int{16, 24, 32} {
		raw := bytes.Repeat([]byte{7}, size)
		k, err := ParseSecret(AES, raw)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := CheckValueSecret(AES, raw); err != nil || !bytes.Equal(got, k.KCV()) {
			t.Errorf("check value %x %v, want %x", got, err, k.KCV())
		}
	}
	if _, err := CheckValueSecret(AES, make([]byte, 17)); err == nil {
		t.Error("an AES key of 17 bytes has a check value")
	}
}
