package mech

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

// TestCanonicalAgreesWithX509: what crypto/x509 can write, we write the same.
func TestCanonicalAgreesWithX509(t *testing.T) {
	for _, name := range allAsymmetric {
		if name == "secp256k1" {
			continue // x509 does not know it; TestOpenSSLKeys does
		}
		k := private(t, name)
		parsed := must(x509.ParsePKCS8PrivateKey(k.PKCS8()))(t)
		equal(t, name+" PKCS #8", k.PKCS8(), must(x509.MarshalPKCS8PrivateKey(parsed))(t))
		var public any
		switch key := parsed.(type) {
		case *rsa.PrivateKey:
			public = &key.PublicKey
		case *ecdsa.PrivateKey:
			public = &key.PublicKey
		case ed25519.PrivateKey:
			public = key.Public()
		}
		equal(t, name+" SPKI", k.Public(), must(x509.MarshalPKIXPublicKey(public))(t))
	}
}

// TestOpenSSLKeys: every form in which OpenSSL writes a key gives the same canonical bytes.
func TestOpenSSLKeys(t *testing.T) {
	for _, name := range append([]string{"rsa2304", "rsa3072", "rsa4096"}, allAsymmetric...) {
		k := must(ParsePrivate(der(t, name)))(t)
		equal(t, name, k.PKCS8(), der(t, name))
		equal(t, name+" public", k.Public(), der(t, name+".pub"))
		equal(t, name+" public alone", must(ParsePublic(der(t, name+".pub")))(t).SPKI(), der(t, name+".pub"))
		if !k.Equal(private(t, name)) || k.Equal(private(t, "ed25519.other")) {
			t.Errorf("%s: Equal is wrong", name)
		}
		for _, form := range []string{".trad", ".nopub", ".comp", ".pub.trad"} {
			if k.Spec().Type == Ed25519 || (k.Spec().Type == RSA) != (form == ".pub.trad") && form != ".trad" {
				continue
			}
			got := must(ParseImport(k.Spec().Type, file(t, name+form)))(t)
			equal(t, name+form+" public", got.Public, k.Public())
			if got.Class == ClassPrivate {
				equal(t, name+form, got.Secret, k.PKCS8())
			}
		}
	}
}

func TestParsePrivateRefuses(t *testing.T) {
	for name, want := range map[string]error{
		"refuse-brainpool": ErrCurve, "refuse-explicit-curve": ErrCurve, "refuse-rsa1024": ErrKeySize, "refuse-rsa2176": ErrKeySize,
		"refuse-exponent3": ErrKey, "refuse-three-primes": ErrKey, "refuse-rsa-pss-key": ErrKeyType, "refuse-ed448": ErrKeyType,
		"refuse-x25519": ErrKeyType, "refuse-encrypted": ErrKey, "refuse-certificate": ErrKey, "prime256v1.pub": ErrKey,
	} {
		_, err := ParsePrivate(der(t, name))
		wantErr(t, name, err, want)
	}
	for _, name := range allAsymmetric {
		good := der(t, name)
		_, err := ParsePrivate(append(bytes.Clone(good), 0))
		wantErr(t, name+" with a trailing byte", err, ErrKey)
		for n := range len(good) {
			if _, err := ParsePrivate(good[:n]); err == nil {
				t.Errorf("%s truncated to %d bytes was accepted", name, n)
			}
		}
	}
	_, err := ParsePrivate(make([]byte, maxDER+1))
	wantErr(t, "too long", err, ErrKey)
}

// edit decodes a PKCS #8 key and its inner structure, lets f change them, and encodes both.
func edit[T any](t *testing.T, name string, f func(*pkcs8Info, *T)) []byte {
	t.Helper()
	outer := must(unmarshal[pkcs8Info](der(t, name)))(t)
	inner := must(unmarshal[T](outer.PrivateKey))(t)
	f(&outer, &inner)
	outer.PrivateKey = marshal(inner)
	return marshal(outer)
}

func editEC(t *testing.T, f func(*sec1Private)) []byte {
	return edit(t, "prime256v1", func(_ *pkcs8Info, k *sec1Private) { f(k) })
}

func editRSA(t *testing.T, f func(*pkcs1Private)) []byte {
	return edit(t, "rsa2048", func(_ *pkcs8Info, k *pkcs1Private) { f(k) })
}

func TestParsePrivateHostileEC(t *testing.T) {
	order := elliptic.P256().Params().N.Bytes()
	foreign := private(t, "prime256v1.peer").PublicKey().Bits()
	p384 := infoOf(Secp384r1).oid
	for what, bad := range map[string][]byte{
		"zero scalar":             editEC(t, func(k *sec1Private) { clear(k.PrivateKey) }),
		"empty scalar":            editEC(t, func(k *sec1Private) { k.PrivateKey = nil }),
		"scalar is the order":     editEC(t, func(k *sec1Private) { k.PrivateKey = order }),
		"scalar too long":         editEC(t, func(k *sec1Private) { k.PrivateKey = append([]byte{1}, k.PrivateKey...) }),
		"other public key inside": editEC(t, func(k *sec1Private) { k.PublicKey = bitString(foreign) }),
		"public key of odd bits":  editEC(t, func(k *sec1Private) { k.PublicKey.BitLength -= 3; k.PublicKey.Bytes[64] = 0 }),
		"no bytes at all":         nil,
		"version 2":               editEC(t, func(k *sec1Private) { k.Version = 2 }),
		"other curve inside":      editEC(t, func(k *sec1Private) { k.Curve = p384 }),
	} {
		_, err := ParsePrivate(bad)
		wantErr(t, what, err, ErrKey)
	}
	_, err := newK1Private(secp256k1.Params().N.Bytes())
	wantErr(t, "secp256k1 order", err, ErrKey)
	_, err = newK1Private(make([]byte, 32))
	wantErr(t, "secp256k1 zero", err, ErrKey)
}

// Forms other software writes that mean one key only.
func TestParsePrivateTolerates(t *testing.T) {
	for _, name := range []string{"prime256v1", "secp256k1", "secp521r1"} {
		k := private(t, name)
		info := infoOf(k.Spec().Curve)
		for what, form := range map[string][]byte{
			"curve inside too":      edit(t, name, func(_ *pkcs8Info, v *sec1Private) { v.Curve = info.oid }),
			"no public key":         edit(t, name, func(_ *pkcs8Info, v *sec1Private) { v.PublicKey = asn1.BitString{} }),
			"leading zeros":         edit(t, name, func(_ *pkcs8Info, v *sec1Private) { v.PrivateKey = append([]byte{0, 0}, v.PrivateKey...) }),
			"minimal scalar":        edit(t, name, func(_ *pkcs8Info, v *sec1Private) { v.PrivateKey = bytes.TrimLeft(v.PrivateKey, "\x00") }),
			"compressed public key": edit(t, name, func(_ *pkcs8Info, v *sec1Private) { v.PublicKey = bitString(compress(v.PublicKey.Bytes)) }),
			"public key outside":    edit(t, name, func(o *pkcs8Info, v *sec1Private) { o.Version, o.PublicKey = 1, v.PublicKey }),
			"attributes (RFC 5208)": edit(t, name, func(o *pkcs8Info, _ *sec1Private) {
				o.Attributes.FullBytes = unhex(t, "a00d300b0603551d0f310403020007")
			}),
		} {
			got, err := ParsePrivate(form)
			if err != nil {
				t.Errorf("%s, %s: %v", name, what, err)
				continue
			}
			equal(t, name+", "+what, got.PKCS8(), k.PKCS8())
		}
	}
}

func TestParsePrivateHostileRSA(t *testing.T) {
	other := must(unmarshal[pkcs1Private](must(unmarshal[pkcs8Info](der(t, "rsa2048.other")))(t).PrivateKey))(t)
	one := big.NewInt(1)
	for what, bad := range map[string][]byte{
		"version 1":          editRSA(t, func(k *pkcs1Private) { k.Version = 1 }),
		"other modulus":      editRSA(t, func(k *pkcs1Private) { k.N = other.N }),
		"other exponent":     editRSA(t, func(k *pkcs1Private) { k.E = 65539 }),
		"even exponent":      editRSA(t, func(k *pkcs1Private) { k.E = 65538 }),
		"large exponent":     editRSA(t, func(k *pkcs1Private) { k.E = 1<<31 + 1 }),
		"exponent 1":         editRSA(t, func(k *pkcs1Private) { k.E = 1 }),
		"negative exponent":  editRSA(t, func(k *pkcs1Private) { k.E = -65537 }),
		"other d":            editRSA(t, func(k *pkcs1Private) { k.D = other.D }),
		"d of one":           editRSA(t, func(k *pkcs1Private) { k.D = one }),
		"negative d":         editRSA(t, func(k *pkcs1Private) { k.D.Neg(k.D) }),
		"negative modulus":   editRSA(t, func(k *pkcs1Private) { k.N.Neg(k.N) }),
		"zero p":             editRSA(t, func(k *pkcs1Private) { k.P = new(big.Int) }),
		"p of one":           editRSA(t, func(k *pkcs1Private) { k.P, k.Q = one, k.N }),
		"p is q":             editRSA(t, func(k *pkcs1Private) { k.P = k.Q }),
		"other p":            editRSA(t, func(k *pkcs1Private) { k.P = other.P }),
		"other dp":           editRSA(t, func(k *pkcs1Private) { k.Dp = other.Dp }),
		"other dq":           editRSA(t, func(k *pkcs1Private) { k.Dq = other.Dq }),
		"other coefficient":  editRSA(t, func(k *pkcs1Private) { k.Coefficient = other.Coefficient }),
		"dp not reduced":     editRSA(t, func(k *pkcs1Private) { k.Dp.Add(k.Dp, new(big.Int).Sub(k.P, one)) }),
		"composite factors":  compositeRSA(t),
		"even modulus":       editRSA(t, func(k *pkcs1Private) { k.N.SetBit(k.N, 0, 0) }),
		"d that is enormous": editRSA(t, func(k *pkcs1Private) { k.D.Lsh(one, 8*7000) }),
	} {
		_, err := ParsePrivate(bad)
		wantErr(t, what, err, ErrKey)
	}
	_, err := ParsePrivate(editRSA(t, func(k *pkcs1Private) { k.N.Rsh(k.N, 8).SetBit(k.N, 0, 1) }))
	wantErr(t, "short modulus", err, ErrKeySize)
}

// TestUnbalancedRSA: a key whose numbers are all right, with factors of 1500 and 548 bits.
func TestUnbalancedRSA(t *testing.T) {
	one, e := big.NewInt(1), big.NewInt(65537)
	var p, q, n *big.Int
	for n == nil || n.BitLen() != 2048 {
		p, q = prime(t, 1500), prime(t, 548)
		n = new(big.Int).Mul(p, q)
	}
	d := new(big.Int).ModInverse(e, new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one)))
	key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n, E: 65537}, D: d, Primes: []*big.Int{p, q}}
	if err := key.Validate(); err != nil {
		t.Fatalf("the library refuses it by itself: %v", err)
	}
	_, err := LoadPrivate(must(x509.MarshalPKCS8PrivateKey(key))(t))
	wantErr(t, "unbalanced", err, ErrKey)
}

// compositeRSA makes a key that is consistent in every equation but has a composite factor. Of a key with
// primes p and q the product of two primes a·b takes the place of p, with d made for p-1 and q-1 as if they were prime.
func compositeRSA(t *testing.T) []byte {
	t.Helper()
	one, e := big.NewInt(1), big.NewInt(65537)
	for {
		a, b := prime(t, 512), prime(t, 512)
		p, q := new(big.Int).Mul(a, b), prime(t, 1024)
		n := new(big.Int).Mul(p, q)
		p1, q1 := new(big.Int).Sub(p, one), new(big.Int).Sub(q, one)
		phi := new(big.Int).Mul(p1, q1)
		d := new(big.Int).ModInverse(e, phi)
		if d == nil || n.BitLen() != 2048 || p.BitLen() != 1024 {
			continue
		}
		inner := marshal(pkcs1Private{N: n, E: 65537, D: d, P: p, Q: q,
			Dp: new(big.Int).Mod(d, p1), Dq: new(big.Int).Mod(d, q1), Coefficient: new(big.Int).ModInverse(q, p)})
		bad := marshal(pkcs8Info{Algorithm: algorithmFor(Spec{Type: RSA}), PrivateKey: inner})
		if _, err := LoadPrivate(bad); err == nil { // the library's own checks pass it
			return bad
		}
	}
}

func TestParseEd25519Hostile(t *testing.T) {
	for what, bad := range map[string][]byte{
		"short seed": edit(t, "ed25519", func(_ *pkcs8Info, b *[]byte) { *b = (*b)[:31] }),
		"long seed":  edit(t, "ed25519", func(_ *pkcs8Info, b *[]byte) { *b = append(*b, 0) }),
		"no seed":    edit(t, "ed25519", func(_ *pkcs8Info, b *[]byte) { *b = nil }),
		"foreign public": edit(t, "ed25519", func(o *pkcs8Info, _ *[]byte) {
			o.Version, o.PublicKey = 1, bitString(private(t, "ed25519.other").PublicKey().Bits())
		}),
		"version 0 with":  edit(t, "ed25519", func(o *pkcs8Info, _ *[]byte) { o.PublicKey = bitString(private(t, "ed25519").PublicKey().Bits()) }),
		"version 2":       edit(t, "ed25519", func(o *pkcs8Info, _ *[]byte) { o.Version = 2 }),
		"with parameters": edit(t, "ed25519", func(o *pkcs8Info, _ *[]byte) { o.Algorithm.Parameters = asn1.NullRawValue }),
	} {
		_, err := ParsePrivate(bad)
		wantErr(t, what, err, ErrKey)
	}
	k := private(t, "ed25519")
	v1 := edit(t, "ed25519", func(o *pkcs8Info, _ *[]byte) { o.Version, o.PublicKey = 1, bitString(k.PublicKey().Bits()) })
	equal(t, "RFC 5958 version 1", must(ParsePrivate(v1))(t).PKCS8(), k.PKCS8())
}

func spkiWith(a pkix.AlgorithmIdentifier, bits []byte) []byte {
	return marshal(spkiInfo{a, bitString(bits)})
}

func TestParsePublicRefuses(t *testing.T) {
	p256, k1 := private(t, "prime256v1").PublicKey(), private(t, "secp256k1").PublicKey()
	ec, onK1 := algorithmFor(p256.Spec()), algorithmFor(k1.Spec())
	rsaAlg, edAlg := algorithmFor(Spec{Type: RSA}), algorithmFor(Spec{Type: Ed25519})
	off := func(k *PublicKey) []byte { b := k.Bits(); b[len(b)-1] ^= 1; return b }
	hybrid := func(k *PublicKey) []byte { b := k.Bits(); b[0] = 6 + b[len(b)-1]&1; return b }
	n := private(t, "rsa2048").k().rsa.N
	for what, c := range map[string]struct {
		spki []byte
		want error
	}{
		"empty":                 {nil, ErrKey},
		"private key":           {der(t, "prime256v1"), ErrKey},
		"certificate":           {der(t, "refuse-certificate"), ErrKey},
		"trailing":              {append(p256.SPKI(), 0), ErrKey},
		"point off the curve":   {spkiWith(ec, off(p256)), ErrKey},
		"point off secp256k1":   {spkiWith(onK1, off(k1)), ErrKey},
		"point of other curve":  {spkiWith(ec, k1.Bits()), ErrKey},
		"compressed":            {spkiWith(ec, compress(p256.Bits())), ErrKey},
		"compressed, secp256k1": {spkiWith(onK1, compress(k1.Bits())), ErrKey},
		"hybrid":                {spkiWith(ec, hybrid(p256)), ErrKey},
		"hybrid, secp256k1":     {spkiWith(onK1, hybrid(k1)), ErrKey},
		"infinity":              {spkiWith(ec, []byte{0}), ErrKey},
		"zeros":                 {spkiWith(onK1, append([]byte{4}, make([]byte, 64)...)), ErrKey},
		"unknown curve":         {spkiWith(pkix.AlgorithmIdentifier{Algorithm: oidEC, Parameters: asn1.RawValue{FullBytes: marshal(oidRSA)}}, p256.Bits()), ErrCurve},
		"no curve":              {spkiWith(pkix.AlgorithmIdentifier{Algorithm: oidEC}, p256.Bits()), ErrCurve},
		"unknown algorithm":     {spkiWith(pkix.AlgorithmIdentifier{Algorithm: infoOf(Secp256r1).oid}, p256.Bits()), ErrKeyType},
		"rsa without NULL":      {spkiWith(pkix.AlgorithmIdentifier{Algorithm: oidRSA}, private(t, "rsa2048").PublicKey().Bits()), ErrKey},
		"rsa 1024":              {spkiWith(rsaAlg, marshal(pkcs1Public{new(big.Int).Rsh(n, 1024).SetBit(new(big.Int).Rsh(n, 1024), 0, 1), 65537})), ErrKeySize},
		"rsa even":              {spkiWith(rsaAlg, marshal(pkcs1Public{new(big.Int).SetBit(n, 0, 0), 65537})), ErrKey},
		"rsa exponent 3":        {spkiWith(rsaAlg, marshal(pkcs1Public{n, 3})), ErrKey},
		"rsa exponent 2³¹+1":    {spkiWith(rsaAlg, marshal(pkcs1Public{n, 1<<31 + 1})), ErrKey},
		"rsa trailing inside":   {spkiWith(rsaAlg, append(marshal(pkcs1Public{n, 65537}), 0)), ErrKey},
		"rsa too large":         {spkiWith(rsaAlg, marshal(pkcs1Public{new(big.Int).SetBit(big.NewInt(1), 50000, 1), 65537})), ErrKeySize},
		"ed25519 short":         {spkiWith(edAlg, make([]byte, 31)), ErrKey},
		"half a byte":           {marshal(spkiInfo{ec, asn1.BitString{Bytes: make([]byte, 65), BitLength: 8*65 - 4}}), ErrKey},
	} {
		_, err := ParsePublic(c.spki)
		wantErr(t, what, err, c.want)
	}
}

// BER, which means the same to a lax reader, is refused.
func TestNotDistinguishedEncoding(t *testing.T) {
	good := private(t, "ed25519").Public() // 30 2a …
	longLength := append([]byte{0x30, 0x81, 0x2a}, good[2:]...)
	_, err := ParsePublic(longLength)
	wantErr(t, "long form of a short length", err, ErrKey)
	extra := append(bytes.Clone(good), 5, 0)
	extra[1] += 2
	_, err = ParsePublic(extra)
	wantErr(t, "unknown element at the end of the sequence", err, ErrKey)
}

func TestPublicKeyParts(t *testing.T) {
	k := private(t, "rsa2048").PublicKey()
	n, e, ok := k.RSA()
	if !ok || len(n) != 256 || !bytes.Equal(e, []byte{1, 0, 1}) || k.PointDER() != nil || k.CurveDER() != nil {
		t.Errorf("rsa: %d bytes of modulus, exponent %x", len(n), e)
	}
	ec := private(t, "prime256v1").PublicKey()
	if _, _, ok := ec.RSA(); ok {
		t.Error("an ec key with a modulus")
	}
	equal(t, "CKA_EC_POINT", ec.PointDER(), append([]byte{4, 65}, ec.Bits()...))
	equal(t, "CKA_EC_PARAMS", ec.CurveDER(), unhex(t, "06082a8648ce3d030107"))
	equal(t, "CKA_EC_PARAMS of ed25519", private(t, "ed25519").PublicKey().CurveDER(), unhex(t, "06032b6570"))
	ec.Bits()[0], ec.SPKI()[0] = 0, 0
	equal(t, "bits after a caller changed its copy", ec.Bits(), private(t, "prime256v1").PublicKey().Bits())
}

func prime(t *testing.T, bits int) *big.Int {
	t.Helper()
	return must(rand.Prime(rand.Reader, bits))(t)
}
