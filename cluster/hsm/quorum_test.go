package hsm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func testToken(s Service) QuorumToken {
	t := QuorumToken{Service: s, Requester: "alice", HSM: 7, Cluster: 8, Lineage: Lineage{9}, Issued: time.UnixMilli(1000).UTC(), Expires: time.UnixMilli(601_000).UTC(), Nonce: [16]byte{1}}
	if s.OfKey() {
		t.Key = 0x2e06bf
	}
	return t
}

func TestQuorumTokenRoundTrip(t *testing.T) {
	for _, s := range []Service{ServiceUser, ServiceQuorum, ServiceKeyManagement, ServiceKeyUsage} {
		want := testToken(s)
		got, err := ParseQuorumToken(want.Encode())
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(diff, err)
		}
	}
	longest := testToken(ServiceKeyManagement)
	longest.Requester = strings.Repeat("x", MaxUserName)
	if n := len(longest.Encode()); n > maxToken {
		t.Errorf("the longest token has %d bytes", n)
	}
}

func TestQuorumTokenRefuses(t *testing.T) {
	good := testToken(ServiceUser).Encode()
	mutate := func(change func(*QuorumToken)) []byte {
		q := testToken(ServiceUser)
		change(&q)
		return q.Encode()
	}
	for what, b := range map[string][]byte{
		"nothing": nil, "short": good[:len(good)-1], "long": append(bytes.Clone(good), 0), "magic": append([]byte{1}, good[1:]...),
		"a service that does not exist": mutate(func(q *QuorumToken) { q.Service = "no-service" }),
		"a key where there is none":     mutate(func(q *QuorumToken) { q.Key = 1 }),
		"no key where there is one":     mutate(func(q *QuorumToken) { q.Service = ServiceKeyUsage }),
		"a key of 64 bits":              mutate(func(q *QuorumToken) { q.Service, q.Key = ServiceKeyUsage, 1<<63 }),
		"a name in upper case":          mutate(func(q *QuorumToken) { q.Requester = "Alice" }),
		"no name":                       mutate(func(q *QuorumToken) { q.Requester = "" }),
	} {
		if _, err := ParseQuorumToken(b); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzParseQuorumToken(f *testing.F) {
	f.Add(testToken(ServiceUser).Encode())
	f.Add(testToken(ServiceKeyUsage).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := ParseQuorumToken(b)
		if err == nil && !bytes.Equal(q.Encode(), b) {
			t.Fatal("two encodings of one token")
		}
	})
}

func TestApprovalFile(t *testing.T) {
	for _, s := range []Service{ServiceUser, ServiceKeyUsage} {
		want := Approval{Token: testToken(s).Encode(), Signatures: []ApprovalSignature{{"alice", []byte{1}}, {"bob", []byte{2}}}}
		b := result(EncodeApprovalFile(want))(t)
		if diff := cmp.Diff(want, result(ParseApprovalFile(b))(t)); diff != "" {
			t.Error(diff)
		}
		other := testToken(s)
		other.Nonce[0]++
		for what, change := range map[string][2]string{
			"version":         {`"2.0"`, `"3.0"`},
			"another service": {`"` + string(s) + `"`, `"quorum"`},
			"unknown field":   {`"version"`, `"more": 1, "version"`},
			"another key":     {`0x00000000002e06bf`, `0x00000000002e06be`},
			"no token":        {`"token": "`, `"token": "AAAA`},
		} {
			if broken := strings.Replace(string(b), change[0], change[1], 1); broken != string(b) {
				if _, err := ParseApprovalFile([]byte(broken)); !errors.Is(err, ErrInvalid) {
					t.Errorf("%s: %v", what, err)
				}
			}
		}
		if _, err := ParseApprovalFile(append(bytes.Clone(b), '{')); !errors.Is(err, ErrInvalid) {
			t.Errorf("trailing bytes: %v", err)
		}
	}
	many := Approval{Token: testToken(ServiceUser).Encode(), Signatures: make([]ApprovalSignature, MaxSignatures+1)}
	if _, err := ParseApprovalFile(result(EncodeApprovalFile(many))(t)); !errors.Is(err, ErrInvalid) {
		t.Errorf("too many signatures: %v", err)
	}
	if _, err := ParseApprovalFile(bytes.Repeat([]byte(" "), MaxApprovalFile+1)); !errors.Is(err, ErrInvalid) {
		t.Errorf("too long: %v", err)
	}
}

func FuzzParseApprovalFile(f *testing.F) {
	a := Approval{Token: testToken(ServiceKeyUsage).Encode(), Signatures: []ApprovalSignature{{"alice", []byte{1}}}}
	f.Add(result(EncodeApprovalFile(a))(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseApprovalFile(b)
		if err != nil {
			return
		}
		again := result(ParseApprovalFile(result(EncodeApprovalFile(a))(t)))(t)
		if !bytes.Equal(again.Token, a.Token) || len(again.Signatures) != len(a.Signatures) {
			t.Fatal("what was read is not what is written")
		}
	})
}

func TestRegistrationFile(t *testing.T) {
	message := RegistrationMessage(SignQuorum, Lineage{1}, "alice", []byte("key"))
	if len(message) > maxToken {
		t.Errorf("the message has %d bytes", len(message))
	}
	b := result(EncodeRegistrationFile(message, []byte{5}))(t)
	m, signature, err := ParseRegistrationFile(b)
	if err != nil || !bytes.Equal(m, message) || !bytes.Equal(signature, []byte{5}) {
		t.Error(m, signature, err)
	}
	// A token must never be signed as a registration, nor the other way round.
	token := result(EncodeRegistrationFile(testToken(ServiceUser).Encode(), nil))(t)
	for _, bad := range [][]byte{token, nil, b[:len(b)-5], bytes.Replace(b, []byte("unsigned"), []byte("unsignet"), 1)} {
		if _, _, err := ParseRegistrationFile(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.40q: %v", bad, err)
		}
	}
}

func FuzzParseRegistrationFile(f *testing.F) {
	f.Add(result(EncodeRegistrationFile(RegistrationMessage(SignLogin, Lineage{1}, "alice", []byte("key")), []byte{5}))(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, _, err := ParseRegistrationFile(b); err == nil && !bytes.HasPrefix(m, []byte(registrationMagic)) {
			t.Fatal("another message")
		}
	})
}

func spkiOf(t testing.TB, key any) []byte { return result(x509.MarshalPKIXPublicKey(key))(t) }

func TestSignerKeys(t *testing.T) {
	rsaKey := result(rsa.GenerateKey(rand.Reader, 2048))(t)
	keys := map[string]crypto.Signer{"rsa": rsaKey}
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		keys[c.Params().Name] = result(ecdsa.GenerateKey(c, rand.Reader))(t)
	}
	for name, key := range keys {
		public := result(ParseSignerKey(spkiOf(t, key.Public())))(t)
		signature := result(SignWith(key, []byte("message")))(t)
		if err := public.Verify([]byte("message"), signature); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, bad := range [][]byte{nil, signature[1:], append(bytes.Clone(signature), 0), make([]byte, 4096)} {
			if err := public.Verify([]byte("message"), bad); !errors.Is(err, ErrSignature) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := public.Verify([]byte("another"), signature); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := spkiOf(t, rsaKey.Public())
	small := rsaKey.PublicKey
	small.E = 3
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	for what, b := range map[string][]byte{
		"nothing": nil, "cut": good[:50], "more": append(bytes.Clone(good), 0), "ed25519": spkiOf(t, ed.Public()), "exponent 3": spkiOf(t, &small),
		"P-224": spkiOf(t, result(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t).Public()), "long": make([]byte, 5000),
	} {
		if _, err := ParseSignerKey(b); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzParseSignerKey(f *testing.F) {
	f.Add(spkiOf(f, result(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(f).Public()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if key, err := ParseSignerKey(b); err == nil && !bytes.Equal(spkiOf(t, key.public), b) {
			t.Fatal("two encodings of one key")
		}
	})
}

// TestOpenSSLSigns: what QUORUM.md says of openssl.
func TestOpenSSLSigns(t *testing.T) {
	dir := t.TempDir()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.Command("openssl", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %s: %v\n%s", args, err, out)
		}
	}
	token := testToken(ServiceUser).Encode()
	if err := os.WriteFile(filepath.Join(dir, "token.bin"), token, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, kind := range [][]string{{"RSA", "rsa_keygen_bits:2048"}, {"EC", "ec_paramgen_curve:P-256"}} {
		run("genpkey", "-algorithm", kind[0], "-pkeyopt", kind[1], "-out", "key.pem")
		run("pkey", "-in", "key.pem", "-pubout", "-outform", "DER", "-out", "public.der")
		run("dgst", "-sha256", "-sign", "key.pem", "-out", "signature", "token.bin")
		key := result(ParseSignerKey(result(os.ReadFile(filepath.Join(dir, "public.der")))(t)))(t)
		if err := key.Verify(token, result(os.ReadFile(filepath.Join(dir, "signature")))(t)); err != nil {
			t.Errorf("%s: %v", kind[0], err)
		}
	}
}
