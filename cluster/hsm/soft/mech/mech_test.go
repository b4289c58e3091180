package mech

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatalf("bad hex in the test: %v", err)
	}
	return b
}

// file reads openssl/name.pem.
func file(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/openssl/" + name + ".pem")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// der returns the last PEM block of openssl/name.pem.
func der(t testing.TB, name string) []byte {
	t.Helper()
	var last *pem.Block
	for rest := file(t, name); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		last = b
	}
	return last.Bytes
}

// private parses the key openssl/name.pem.
func private(t testing.TB, name string) *PrivateKey {
	t.Helper()
	k, err := LoadPrivate(der(t, name))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return k
}

func secret(t testing.TB, kt KeyType, raw []byte) *SecretKey {
	t.Helper()
	k, err := ParseSecret(kt, raw)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func aesKey(t testing.TB, n int) *SecretKey { return secret(t, AES, fresh(n)) }

func fresh(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func equal(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s = %x, want %x", what, got, want)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

// flips calls f with copies of b that differ in one bit, at most about limit of them.
func flips(b []byte, limit int, f func(bit int, flipped []byte)) {
	step := max(1, 8*len(b)/limit)
	for bit := 0; bit < 8*len(b); bit += step {
		c := bytes.Clone(b)
		c[bit/8] ^= 1 << (bit % 8)
		f(bit, c)
	}
}

var allAsymmetric = []string{"rsa2048", "secp224r1", "prime256v1", "secp384r1", "secp521r1", "secp256k1", "ed25519"}

func TestSpecValidate(t *testing.T) {
	for _, c := range []struct {
		spec Spec
		want error
	}{
		{Spec{Type: AES, Size: 16}, nil},
		{Spec{Type: AES, Size: 24}, nil},
		{Spec{Type: AES, Size: 32}, nil},
		{Spec{Type: AES}, ErrKeySize},
		{Spec{Type: AES, Size: 128}, ErrKeySize},
		{Spec{Type: AES, Size: 32, Curve: Secp256r1}, ErrCurve},
		{Spec{Type: GenericSecret, Size: 1}, nil},
		{Spec{Type: GenericSecret, Size: 800}, nil},
		{Spec{Type: GenericSecret, Size: 0}, ErrKeySize},
		{Spec{Type: GenericSecret, Size: -1}, ErrKeySize},
		{Spec{Type: GenericSecret, Size: 801}, ErrKeySize},
		{Spec{Type: RSA, Size: 2048}, nil},
		{Spec{Type: RSA, Size: 2304}, nil},
		{Spec{Type: RSA, Size: 4096}, nil},
		{Spec{Type: RSA, Size: 1024}, ErrKeySize},
		{Spec{Type: RSA, Size: 2049}, ErrKeySize},
		{Spec{Type: RSA, Size: 4352}, ErrKeySize},
		{Spec{Type: RSA, Size: 8192}, ErrKeySize},
		{Spec{Type: EC, Curve: Secp256r1}, nil},
		{Spec{Type: EC, Curve: "prime256v1"}, nil},
		{Spec{Type: EC, Curve: "P-521"}, nil},
		{Spec{Type: EC}, ErrCurve},
		{Spec{Type: EC, Curve: "brainpoolP256r1"}, ErrCurve},
		{Spec{Type: EC, Curve: CurveEd25519}, ErrCurve},
		{Spec{Type: EC, Curve: Secp256r1, Size: 256}, ErrKeySize},
		{Spec{Type: Ed25519}, nil},
		{Spec{Type: Ed25519, Curve: CurveEd25519}, nil},
		{Spec{Type: Ed25519, Curve: Secp256r1}, ErrCurve},
		{Spec{Type: Ed25519, Size: 32}, ErrKeySize},
		{Spec{Type: "rc4", Size: 16}, ErrKeyType},
		{Spec{}, ErrKeyType},
	} {
		err := c.spec.Validate()
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("Validate(%+v) = %v, want %v", c.spec, err, c.want)
		}
		if c.want != nil {
			_, err := Generate(nil, c.spec)
			wantErr(t, "Generate", err, c.want)
		}
	}
}

func TestParseCurve(t *testing.T) {
	for name, want := range map[string]Curve{
		"secp256r1": Secp256r1, "prime256v1": Secp256r1, "p-256": Secp256r1, "P-256": Secp256r1,
		"P-224": Secp224r1, "p-384": Secp384r1, "SECP521R1": Secp521r1, "secp256k1": Secp256k1, "ed25519": CurveEd25519,
	} {
		if got, err := ParseCurve(name); got != want || err != nil {
			t.Errorf("ParseCurve(%q) = %q, %v", name, got, err)
		}
	}
	_, err := ParseCurve("curve448")
	wantErr(t, "unknown curve", err, ErrCurve)
	for _, c := range curves {
		if !strings.Contains(err.Error(), string(c)) {
			t.Errorf("%q does not list %s", err, c)
		}
	}
	_, err = ParseKeyType("idea")
	wantErr(t, "unknown key type", err, ErrKeyType)
}

func TestGenerateEveryType(t *testing.T) {
	specs := []Spec{{Type: AES, Size: 16}, {Type: AES, Size: 24}, {Type: AES, Size: 32}, {Type: GenericSecret, Size: 1},
		{Type: GenericSecret, Size: 800}, {Type: RSA, Size: 2048}, {Type: Ed25519}, {Type: EC, Curve: "P-256"}}
	for _, c := range curveInfos {
		specs = append(specs, Spec{Type: EC, Curve: c.name})
	}
	for _, s := range specs {
		g, err := Generate(nil, s)
		if err != nil {
			t.Fatalf("%+v: %v", s, err)
		}
		if g.Spec != s.canonical() {
			t.Errorf("%+v: generated %+v", s, g.Spec)
		}
		if s.Type.Secret() {
			equal(t, "secret key", must(ParseSecret(s.Type, g.Secret))(t).Raw(), g.Secret)
			continue
		}
		k := must(ParsePrivate(g.Secret))(t)
		p := must(ParsePublic(g.Public))(t)
		equal(t, "private key written again", k.PKCS8(), g.Secret)
		equal(t, "its public key", k.Public(), g.Public)
		equal(t, "public key written again", p.SPKI(), g.Public)
		if k.Spec() != g.Spec || p.Spec() != g.Spec {
			t.Errorf("%+v: parsed as %+v and %+v", g.Spec, k.Spec(), p.Spec())
		}
		equal(t, "check value", k.KCV(), must(CheckValuePublic(g.Public))(t))
		again := must(Generate(nil, s))(t)
		if bytes.Equal(again.Secret, g.Secret) {
			t.Errorf("%+v: the same key twice", s)
		}
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("no entropy") }

func TestRandomSourceFails(t *testing.T) {
	for _, s := range []Spec{{Type: AES, Size: 32}, {Type: GenericSecret, Size: 5}, {Type: EC, Curve: Secp256k1}} {
		g, err := Generate(brokenReader{}, s)
		wantErr(t, "Generate", err, errRandom)
		if g.Secret != nil {
			t.Errorf("%+v: a key without entropy", s)
		}
	}
	_, err := aesKey(t, 32).Encrypt(brokenReader{}, CryptParams{Mechanism: AESCBCPad}, nil)
	wantErr(t, "cbc", err, errRandom)
	_, err = private(t, "rsa2048").PublicKey().Wrap(brokenReader{}, CryptParams{Mechanism: RSAAES}, []byte("key"))
	wantErr(t, "rsa-aes", err, errRandom)
	_, err = private(t, "secp256k1").Sign(brokenReader{}, SignParams{Mechanism: ECDSA, Hash: "sha256"}, nil)
	wantErr(t, "secp256k1", err, errRandom)
	_, err = randomScalar(zeroReader{})
	wantErr(t, "a source of zeros", err, errRandom)
}

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestParseSecretRefuses(t *testing.T) {
	for _, c := range []struct {
		kt   KeyType
		n    int
		want error
	}{
		{AES, 0, ErrKeySize}, {AES, 15, ErrKeySize}, {AES, 33, ErrKeySize}, {GenericSecret, 0, ErrKeySize}, {GenericSecret, 801, ErrKeySize},
		{RSA, 256, ErrKeyType}, {Ed25519, 32, ErrKeyType}, {"", 16, ErrKeyType}, {"des", 8, ErrKeyType},
	} {
		_, err := ParseSecret(c.kt, make([]byte, c.n))
		wantErr(t, string(c.kt), err, c.want)
	}
}

func TestSecretKeyKeepsItsOwnCopy(t *testing.T) {
	raw := fresh(32)
	k := secret(t, AES, raw)
	before := k.KCV()
	clear(raw)
	k.Raw()[0] ^= 1
	equal(t, "check value after the caller cleared its bytes", must(CheckValueSecret(AES, k.Raw()))(t), before)
	if !k.Equal(secret(t, AES, k.Raw())) || k.Equal(aesKey(t, 32)) || k.Equal(secret(t, GenericSecret, k.Raw())) {
		t.Error("Equal is wrong")
	}
}
