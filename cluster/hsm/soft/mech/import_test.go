package mech

import (
	"bytes"
	"encoding/pem"
	"strings"
	"testing"
)

func TestParseImport(t *testing.T) {
	raw := fresh(32)
	for _, c := range []struct {
		what  string
		kt    KeyType
		data  []byte
		class Class
		spec  Spec
	}{
		{"raw aes", AES, raw, ClassSecret, Spec{Type: AES, Size: 32}},
		{"raw generic", GenericSecret, raw[:5], ClassSecret, Spec{Type: GenericSecret, Size: 5}},
		{"PKCS #8 PEM", "", file(t, "rsa3072"), ClassPrivate, Spec{Type: RSA, Size: 3072}},
		{"PKCS #8 DER", "", der(t, "rsa3072"), ClassPrivate, Spec{Type: RSA, Size: 3072}},
		{"PKCS #1 PEM", RSA, file(t, "rsa3072.trad"), ClassPrivate, Spec{Type: RSA, Size: 3072}},
		{"PKCS #1 public PEM", RSA, file(t, "rsa3072.pub.trad"), ClassPublic, Spec{Type: RSA, Size: 3072}},
		{"SEC 1 PEM after EC PARAMETERS", EC, file(t, "secp256k1.trad"), ClassPrivate, Spec{Type: EC, Curve: Secp256k1}},
		{"SEC 1 PEM without public key", "", file(t, "secp384r1.nopub"), ClassPrivate, Spec{Type: EC, Curve: Secp384r1}},
		{"SEC 1 PEM, compressed", "", file(t, "secp521r1.comp"), ClassPrivate, Spec{Type: EC, Curve: Secp521r1}},
		{"SPKI PEM", EC, file(t, "prime256v1.pub"), ClassPublic, Spec{Type: EC, Curve: Secp256r1}},
		{"SPKI DER", "", der(t, "secp256k1.pub"), ClassPublic, Spec{Type: EC, Curve: Secp256k1}},
		{"ed25519 PEM", Ed25519, file(t, "ed25519"), ClassPrivate, Spec{Type: Ed25519, Curve: CurveEd25519}},
		{"ed25519 SPKI", "", der(t, "ed25519.pub"), ClassPublic, Spec{Type: Ed25519, Curve: CurveEd25519}},
		{"text before and after", "", append([]byte("Bag Attributes\n  friendlyName: x\n"), append(file(t, "ed25519"), "\nbye\n"...)...), ClassPrivate, Spec{Type: Ed25519, Curve: CurveEd25519}},
		{"Windows line ends", "", bytes.ReplaceAll(file(t, "ed25519"), []byte("\n"), []byte("\r\n")), ClassPrivate, Spec{Type: Ed25519, Curve: CurveEd25519}},
	} {
		got, err := ParseImport(c.kt, c.data)
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		if got.Class != c.class || got.Spec != c.spec || (got.Secret == nil) != (c.class == ClassPublic) || (got.Public == nil) != (c.class == ClassSecret) {
			t.Errorf("%s: %s %+v, %d and %d bytes", c.what, got.Class, got.Spec, len(got.Secret), len(got.Public))
		}
	}
	equal(t, "raw", must(ParseImport(AES, raw))(t).Secret, raw)
	equal(t, "private", must(ParseImport("", file(t, "rsa3072.trad")))(t).Secret, der(t, "rsa3072"))
	equal(t, "public", must(ParseImport("", file(t, "rsa3072.pub.trad")))(t).Public, der(t, "rsa3072.pub"))
}

func TestParseImportRefuses(t *testing.T) {
	ed := file(t, "ed25519")
	asPEM := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	for _, c := range []struct {
		what string
		kt   KeyType
		data []byte
		want error
		hint string
	}{
		{"unknown type", "idea", ed, ErrKeyType, "there are"},
		{"other type", RSA, ed, ErrKeyType, "ed25519"},
		{"aes of wrong size", AES, make([]byte, 20), ErrKeySize, "16, 24 and 32"},
		{"generic, nothing", GenericSecret, nil, ErrKeySize, ""},
		{"PEM as aes", AES, ed, ErrKey, "raw bytes"},
		{"raw without a type", "", make([]byte, 32), ErrKey, "key type aes"},
		{"nothing", "", nil, ErrKey, ""},
		{"text", "", []byte("hello, I am a key"), ErrKey, ""},
		{"two keys", "", append(bytes.Clone(ed), ed...), ErrKey, "one by one"},
		{"a key and a damaged one", "", append(bytes.Clone(ed), "-----BEGIN PRIVATE KEY-----\n!!!\n"...), ErrKey, "damaged"},
		{"parameters only", "", []byte("-----BEGIN EC PARAMETERS-----\nBgUrgQQAIg==\n-----END EC PARAMETERS-----\n"), ErrKey, ""},
		{"encrypted", "", file(t, "refuse-encrypted"), ErrKey, "decrypt it first"},
		{"encrypted, old form", "", file(t, "refuse-encrypted-trad"), ErrKey, "decrypt it first"},
		{"certificate", "", file(t, "refuse-certificate"), ErrKey, "openssl x509"},
		{"other PEM", "", asPEM("OPENSSH PRIVATE KEY", []byte{1}), ErrKey, "OPENSSH"},
		{"brainpool", "", file(t, "refuse-brainpool"), ErrCurve, ""},
		{"explicit curve", "", file(t, "refuse-explicit-curve"), ErrCurve, ""},
		{"rsa 1024", "", file(t, "refuse-rsa1024"), ErrKeySize, "2048"},
		{"rsa 2176", "", file(t, "refuse-rsa2176"), ErrKeySize, "steps of 256"},
		{"three primes", "", file(t, "refuse-three-primes"), ErrKey, ""},
		{"exponent 3", "", file(t, "refuse-exponent3"), ErrKey, "65537"},
		{"ed448", "", file(t, "refuse-ed448"), ErrKeyType, ""},
		{"composite rsa", "", compositeRSA(t), ErrKey, "not prime"},
		{"SEC 1 without a curve", "", asPEM("EC PRIVATE KEY", must(unmarshal[pkcs8Info](der(t, "prime256v1")))(t).PrivateKey), ErrCurve, "name its curve"},
		{"SPKI as private", "", asPEM("PRIVATE KEY", der(t, "ed25519.pub")), ErrKey, ""},
		{"private as SPKI", "", asPEM("PUBLIC KEY", der(t, "ed25519")), ErrKey, ""},
		{"garbage as PKCS #1", "", asPEM("RSA PUBLIC KEY", fresh(50)), ErrKey, ""},
		{"DER and more", "", append(der(t, "ed25519"), 0), ErrKey, ""},
		{"too long", "", make([]byte, maxImport+1), ErrKey, "at most"},
	} {
		got, err := ParseImport(c.kt, c.data)
		wantErr(t, c.what, err, c.want)
		if err != nil && !strings.Contains(err.Error(), c.hint) {
			t.Errorf("%s: %q lacks %q", c.what, err, c.hint)
		}
		if got.Secret != nil || got.Public != nil {
			t.Errorf("%s: a key beside an error", c.what)
		}
	}
}
