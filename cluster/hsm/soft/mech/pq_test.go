package mech

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"testing"
)

type pqVector struct {
	Type                    KeyType
	Size                    int
	Seed, Public, Expanded  string
	Msg, Context, Signature string
	Ciphertext, Shared      string
}

func pqVectors(t *testing.T) (v struct{ Keygen, Sign, Decaps, Expanded []pqVector }) {
	t.Helper()
	b, err := os.ReadFile("testdata/pq.json")
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Keygen) != 25 || len(v.Sign) != 24 || len(v.Decaps) < 2 || len(v.Expanded) != 5 {
		t.Fatalf("%d, %d, %d and %d vectors", len(v.Keygen), len(v.Sign), len(v.Decaps), len(v.Expanded))
	}
	return v
}

func sha(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

func pqKey(t *testing.T, kt KeyType, size int, seed string) *PrivateKey {
	t.Helper()
	return must(newPQPrivate(Spec{Type: kt, Size: size}, unhex(t, seed)))(t)
}

// TestPQKeygenVectors: NIST's ACVP vectors; and what is written is read again.
func TestPQKeygenVectors(t *testing.T) {
	for _, v := range pqVectors(t).Keygen {
		k := pqKey(t, v.Type, v.Size, v.Seed)
		if got := sha(k.PublicKey().Bits()); got != v.Public {
			t.Errorf("%s-%d of seed %s: %s, want %s", v.Type, v.Size, v.Seed, got, v.Public)
		}
		again := must(ParsePrivate(k.PKCS8()))(t)
		public := must(ParsePublic(k.Public()))(t)
		equal(t, "private key", again.PKCS8(), k.PKCS8())
		equal(t, "public key", public.SPKI(), k.Public())
		equal(t, "check value", public.KCV(), k.KCV())
		if again.Spec() != (Spec{Type: v.Type, Size: v.Size}) || public.PointDER() != nil || public.CurveDER() != nil {
			t.Errorf("read as %+v", again.Spec())
		}
	}
}

// TestMLDSAVectors: Wycheproof's, deterministic; hedged ones differ and verify.
func TestMLDSAVectors(t *testing.T) {
	for _, v := range pqVectors(t).Sign {
		k := pqKey(t, MLDSA, v.Size, v.Seed)
		p := SignParams{Mechanism: MLDSADeterministic, Context: unhex(t, v.Context)}
		msg := unhex(t, v.Msg)
		sig := must(k.Sign(nil, p, msg))(t)
		if sha(sig) != v.Signature {
			t.Errorf("ml-dsa-%d of %s: another signature", v.Size, v.Msg)
		}
		p.Mechanism = MLDSASign
		hedged := must(k.Sign(nil, p, msg))(t)
		if bytes.Equal(hedged, sig) {
			t.Error("the hedged signature is the deterministic one")
		}
		for _, s := range [][]byte{sig, hedged} {
			if err := k.PublicKey().Verify(p, msg, s); err != nil {
				t.Errorf("ml-dsa-%d: %v", v.Size, err)
			}
		}
		wantErr(t, "another context", k.PublicKey().Verify(SignParams{Mechanism: MLDSASign, Context: []byte("other")}, msg, sig), ErrSignature)
		sig[len(sig)/2] ^= 1
		wantErr(t, "a flipped bit", k.PublicKey().Verify(p, msg, sig), ErrSignature)
		wantErr(t, "cut", k.PublicKey().Verify(p, msg, sig[:100]), ErrSignature)
		wantErr(t, "nothing", k.PublicKey().Verify(p, msg, nil), ErrSignature)
	}
}

func TestMLKEMVectors(t *testing.T) {
	for _, v := range pqVectors(t).Decaps {
		k := pqKey(t, MLKEM, v.Size, v.Seed)
		equal(t, "shared secret", must(k.Decapsulate(unhex(t, v.Ciphertext)))(t), unhex(t, v.Shared))
	}
}

func TestMLKEMAgrees(t *testing.T) {
	for _, size := range []int{768, 1024} {
		k := must(ParsePrivate(must(Generate(nil, Spec{Type: MLKEM, Size: size}))(t).Secret))(t)
		shared, ct, err := k.PublicKey().Encapsulate()
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "shared secret", must(k.Decapsulate(ct))(t), shared)
		ct[7] ^= 1
		if got := must(k.Decapsulate(ct))(t); bytes.Equal(got, shared) {
			t.Error("a changed ciphertext gives the same secret")
		}
		_, err = k.Decapsulate(ct[1:])
		wantErr(t, "a short ciphertext", err, ErrDataLen)
	}
}

// inside puts the part that depends on the algorithm into PKCS #8.
func inside(s Spec, inner []byte) []byte {
	return marshal(pkcs8Info{Algorithm: algorithmFor(s), PrivateKey: inner})
}

// TestPQExpanded: the form "both" is read if its halves belong together, and becomes the seed.
func TestPQExpanded(t *testing.T) {
	for _, v := range pqVectors(t).Expanded {
		s := Spec{Type: v.Type, Size: v.Size}
		k := pqKey(t, v.Type, v.Size, v.Seed)
		seed, long := unhex(t, v.Seed), unhex(t, v.Expanded)
		got := must(ParsePrivate(inside(s, marshal(pqBoth{seed, long}))))(t)
		equal(t, "private key", got.PKCS8(), k.PKCS8())
		for what, inner := range map[string][]byte{
			"the expanded key alone":  marshal(long),
			"of another seed":         marshal(pqBoth{append([]byte{seed[0] ^ 1}, seed[1:]...), long}),
			"cut":                     marshal(pqBoth{seed, long[1:]}),
			"a short seed":            pqInner(seed[1:]),
			"no seed":                 pqInner(nil),
			"the seed alone":          seed,
			"an octet string of it":   marshal(seed),
			"a byte after the seed":   append(pqInner(seed), 0),
			"a long form of its size": append([]byte{0x80, 0x81, byte(len(seed))}, seed...),
		} {
			_, err := ParsePrivate(inside(s, inner))
			wantErr(t, string(v.Type)+": "+what, err, ErrKey)
		}
	}
}

func TestPQRefuses(t *testing.T) {
	dsa := must(ParsePrivate(must(Generate(nil, Spec{Type: MLDSA, Size: 44}))(t).Secret))(t)
	kem := must(ParsePrivate(must(Generate(nil, Spec{Type: MLKEM, Size: 768}))(t).Secret))(t)
	for what, c := range map[string]struct {
		k    *PrivateKey
		p    SignParams
		want error
	}{
		"a hash":            {dsa, SignParams{Mechanism: MLDSASign, Hash: "sha256"}, ErrHash},
		"a digest":          {dsa, SignParams{Mechanism: MLDSASign, Digest: true}, ErrParam},
		"a salt":            {dsa, SignParams{Mechanism: MLDSASign, SaltLength: 3}, ErrParam},
		"a long context":    {dsa, SignParams{Mechanism: MLDSASign, Context: make([]byte, 256)}, ErrParam},
		"ecdsa":             {dsa, SignParams{Mechanism: ECDSA, Hash: "sha256"}, ErrMechanism},
		"with ml-kem":       {kem, SignParams{Mechanism: MLDSASign}, ErrMechanism},
		"rsa with ml-kem":   {kem, SignParams{Mechanism: RSAPKCSData}, ErrMechanism},
		"context for ecdsa": {private(t, "prime256v1"), SignParams{Mechanism: ECDSA, Hash: "sha256", Context: []byte{1}}, ErrParam},
	} {
		_, err := c.k.Sign(nil, c.p, []byte("data"))
		wantErr(t, what, err, c.want)
		wantErr(t, what, c.k.PublicKey().Verify(c.p, []byte("data"), make([]byte, 2420)), c.want)
	}
	for _, k := range []*PrivateKey{dsa, kem} {
		_, err := k.ECDH(must(Generate(nil, Spec{Type: EC, Curve: Secp256r1}))(t).Public)
		wantErr(t, "ecdh", err, ErrMechanism)
		for _, m := range []string{RSAOAEP, RSAPKCS, RSAX509} {
			_, err = k.Decrypt(nil, CryptParams{Mechanism: m}, make([]byte, 256))
			wantErr(t, m, err, ErrMechanism)
			_, err = k.PublicKey().Encrypt(nil, CryptParams{Mechanism: m}, make([]byte, 16))
			wantErr(t, m, err, ErrMechanism)
		}
		spki := k.Public()
		_, err = ParsePublic(marshal(spkiInfo{algorithmFor(k.Spec()), bitString(k.PublicKey().Bits()[1:])}))
		wantErr(t, "a short public key", err, ErrKey)
		_, err = ParsePublic(append(spki, 0))
		wantErr(t, "a byte after it", err, ErrKey)
	}
	_, err := dsa.Decapsulate(make([]byte, 1088))
	wantErr(t, "decapsulation with ml-dsa", err, ErrMechanism)
	_, _, err = dsa.PublicKey().Encapsulate()
	wantErr(t, "encapsulation with ml-dsa", err, ErrMechanism)
	_, err = ParsePublic(marshal(spkiInfo{algorithmFor(kem.Spec()), bitString(bytes.Repeat([]byte{0xff}, 1184))}))
	wantErr(t, "coefficients that are not reduced", err, ErrKey)
	for _, s := range []Spec{{Type: MLDSA}, {Type: MLDSA, Size: 768}, {Type: MLKEM, Size: 512}, {Type: MLKEM, Size: 44}} {
		wantErr(t, hex.EncodeToString([]byte(s.Type)), s.Validate(), ErrKeySize)
	}
	wantErr(t, "a curve", Spec{Type: MLDSA, Size: 44, Curve: Secp256r1}.Validate(), ErrCurve)
}

// TestPQFromPEM imports both halves of the first key of each set from PEM, and the
// example of RFC 9881 (appendix C.1) for a private key that is its seed.
func TestPQFromPEM(t *testing.T) {
	seen := map[string]bool{}
	for _, v := range pqVectors(t).Keygen {
		if name := fmt.Sprint(v.Type, v.Size); seen[name] {
			continue
		} else {
			seen[name] = true
		}
		k := pqKey(t, v.Type, v.Size, v.Seed)
		private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k.PKCS8()})
		public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.Public()})
		for _, kt := range []KeyType{"", v.Type} {
			one, two := must(ParseImport(kt, private))(t), must(ParseImport(kt, public))(t)
			equal(t, "private key", one.Secret, k.PKCS8())
			equal(t, "its public half", one.Public, k.Public())
			equal(t, "public key", two.Public, k.Public())
			if one.Class != ClassPrivate || two.Class != ClassPublic || one.Spec != k.Spec() || two.Spec != k.Spec() {
				t.Errorf("read as %s %+v and %s %+v", one.Class, one.Spec, two.Class, two.Spec)
			}
		}
		for name, bad := range map[string][]byte{"another type": private, "two keys": append(bytes.Clone(private), public...)} {
			if _, err := ParseImport(RSA, bad); err == nil {
				t.Errorf("%s is read as rsa", name)
			}
		}
	}
	if len(seen) != 5 {
		t.Errorf("keys of %d sets", len(seen))
	}
	rfc := "-----BEGIN PRIVATE KEY-----\nMDQCAQAwCwYJYIZIAWUDBAMRBCKAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZ\nGhscHR4f\n-----END PRIVATE KEY-----\n"
	k := must(ParseImport("", []byte(rfc)))(t)
	want := pqKey(t, MLDSA, 44, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	equal(t, "the key of RFC 9881", k.Secret, want.PKCS8())
}
