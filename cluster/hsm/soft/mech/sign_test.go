package mech

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/asn1"
	"math/big"
	"sync"
	"testing"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	k1ecdsa "github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
)

// signers lists for each mechanism a key that has it, another of its kind, and one that has it not.
var signers = []struct{ mechanism, key, other, wrong string }{
	{RSAPKCS, "rsa2048", "rsa2048.other", "prime256v1"},
	{RSAPSS, "rsa2048", "rsa2048.other", "ed25519"},
	{ECDSA, "secp224r1", "secp224r1.peer", "rsa2048"},
	{ECDSA, "prime256v1", "prime256v1.peer", "ed25519"},
	{ECDSA, "secp384r1", "secp384r1.peer", "ed25519"},
	{ECDSA, "secp521r1", "secp521r1.peer", "ed25519"},
	{ECDSA, "secp256k1", "secp256k1.peer", "ed25519"},
	{EdDSA, "ed25519", "ed25519.other", "prime256v1"},
	{EdDSAph, "ed25519", "ed25519.other", "rsa2048"},
}

// hashesOf lists the hashes a mechanism signs with.
func hashesOf(mechanism string) []string {
	if mechanism == EdDSA || mechanism == EdDSAph {
		return []string{""}
	}
	return hashNames[1:]
}

func TestSignVerify(t *testing.T) {
	msg := []byte("a message of some length")
	for _, c := range signers {
		k, other := private(t, c.key), private(t, c.other).PublicKey()
		for _, h := range hashesOf(c.mechanism) {
			p := SignParams{Mechanism: c.mechanism, Hash: h}
			what := c.key + " " + c.mechanism + " " + h
			sig := must(k.Sign(nil, p, msg))(t)
			if err := k.PublicKey().Verify(p, msg, sig); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if want := sigLen(k.Spec()); len(sig) != want {
				t.Errorf("%s: signature of %d bytes, want %d", what, len(sig), want)
			}
			wantErr(t, what+" other key", other.Verify(p, msg, sig), ErrSignature)
			wantErr(t, what+" other message", k.PublicKey().Verify(p, append(msg, 0), sig), ErrSignature)
			for _, bad := range [][]byte{nil, {}, sig[:len(sig)-1], append(bytes.Clone(sig), 0), make([]byte, len(sig)), bytes.Repeat([]byte{0xff}, len(sig))} {
				wantErr(t, what+" bad signature", k.PublicKey().Verify(p, msg, bad), ErrSignature)
			}
			flips(sig, 24, func(bit int, flipped []byte) {
				wantErr(t, what+" flipped bit", k.PublicKey().Verify(p, msg, flipped), ErrSignature)
			})
		}
		_, err := private(t, c.wrong).Sign(nil, SignParams{Mechanism: c.mechanism, Hash: "sha256"}, msg)
		wantErr(t, c.wrong+" "+c.mechanism, err, ErrMechanism)
		wantErr(t, c.wrong+" "+c.mechanism, private(t, c.wrong).PublicKey().Verify(SignParams{Mechanism: c.mechanism}, msg, nil), ErrMechanism)
	}
}

func sigLen(s Spec) int {
	switch s.Type {
	case RSA:
		return s.Size / 8
	case Ed25519:
		return 64
	}
	return 2 * infoOf(s.Curve).size
}

// TestDigest: signing a digest is signing the data, with the hash named or, where that is possible, not.
func TestDigest(t *testing.T) {
	msg := []byte("hash me elsewhere")
	for _, c := range signers {
		if c.mechanism == EdDSA {
			continue
		}
		k := private(t, c.key)
		for _, h := range hashesOf(c.mechanism) {
			p := SignParams{Mechanism: c.mechanism, Hash: h}
			hash := crypto.SHA512
			if h != "" {
				hash = hashes[h]
			}
			sum := digest(hash, msg)
			pd := p
			pd.Digest = true
			sig := must(k.Sign(nil, pd, sum))(t)
			if err := k.PublicKey().Verify(p, msg, sig); err != nil {
				t.Errorf("%s %s %s: %v", c.key, c.mechanism, h, err)
			}
			sig = must(k.Sign(nil, p, msg))(t)
			if err := k.PublicKey().Verify(pd, sum, sig); err != nil {
				t.Errorf("%s %s %s: %v", c.key, c.mechanism, h, err)
			}
			_, err := k.Sign(nil, pd, sum[1:])
			wantErr(t, "short digest", err, ErrParam)
			checkUnnamed(t, k, c.mechanism, hash, sum, sig)
		}
	}
}

func checkUnnamed(t *testing.T, k *PrivateKey, mechanism string, h crypto.Hash, sum, sig []byte) {
	t.Helper()
	if mechanism == EdDSAph {
		return
	}
	p := SignParams{Mechanism: mechanism, Digest: true}
	data := sum
	if mechanism == RSAPKCS {
		data = append([]byte(digestInfoPrefix[h]), sum...)
	}
	if mechanism == RSAPSS {
		_, err := k.Sign(nil, p, data)
		wantErr(t, "pss without a hash", err, ErrHash)
		return
	}
	if err := k.PublicKey().Verify(p, data, sig); err != nil {
		t.Errorf("%s with an unnamed hash: %v", mechanism, err)
	}
	sig = must(k.Sign(nil, p, data))(t)
	if err := k.PublicKey().Verify(p, data, sig); err != nil {
		t.Errorf("%s with an unnamed hash: %v", mechanism, err)
	}
}

// TestDigestInfoPrefix builds the prefixes from their ASN.1.
func TestDigestInfoPrefix(t *testing.T) {
	oids := map[crypto.Hash]asn1.ObjectIdentifier{crypto.SHA1: {1, 3, 14, 3, 2, 26}, crypto.SHA224: {2, 16, 840, 1, 101, 3, 4, 2, 4},
		crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1}, crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2}, crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3}}
	for h, oid := range oids {
		type algorithm struct {
			OID    asn1.ObjectIdentifier
			Params asn1.RawValue
		}
		info := marshal(struct {
			Algorithm algorithm
			Digest    []byte
		}{algorithm{oid, asn1.NullRawValue}, make([]byte, h.Size())})
		equal(t, h.String(), []byte(digestInfoPrefix[h]), info[:len(info)-h.Size()])
	}
}

func TestSignRefuses(t *testing.T) {
	msg := []byte("message")
	sha1info := append([]byte(digestInfoPrefix[crypto.SHA1]), make([]byte, 20)...)
	for _, c := range []struct {
		what, key string
		p         SignParams
		data      []byte
		want      error
	}{
		{"unknown mechanism", "rsa2048", SignParams{Mechanism: "dsa", Hash: "sha256"}, msg, ErrMechanism},
		{"no mechanism", "rsa2048", SignParams{}, msg, ErrMechanism},
		{"hmac with a private key", "rsa2048", SignParams{Mechanism: HMAC, Hash: "sha256"}, msg, ErrMechanism},
		{"unknown hash", "rsa2048", SignParams{Mechanism: RSAPKCS, Hash: "md5"}, msg, ErrHash},
		{"no hash", "prime256v1", SignParams{Mechanism: ECDSA}, msg, ErrHash},
		{"sha1 rsa", "rsa2048", SignParams{Mechanism: RSAPKCS, Hash: "sha1"}, msg, ErrHash},
		{"sha1 pss", "rsa2048", SignParams{Mechanism: RSAPSS, Hash: "sha1"}, msg, ErrHash},
		{"sha1 ecdsa", "prime256v1", SignParams{Mechanism: ECDSA, Hash: "sha1"}, msg, ErrHash},
		{"sha1 by its length", "prime256v1", SignParams{Mechanism: ECDSA, Digest: true}, make([]byte, 20), ErrHash},
		{"sha1 by its DigestInfo", "rsa2048", SignParams{Mechanism: RSAPKCS, Digest: true}, sha1info, ErrHash},
		{"odd digest", "prime256v1", SignParams{Mechanism: ECDSA, Digest: true}, make([]byte, 33), ErrParam},
		{"empty digest", "secp256k1", SignParams{Mechanism: ECDSA, Digest: true}, nil, ErrParam},
		{"no DigestInfo", "rsa2048", SignParams{Mechanism: RSAPKCS, Digest: true}, make([]byte, 51), ErrParam},
		{"TLS 1.0 digest", "rsa2048", SignParams{Mechanism: RSAPKCS, Digest: true}, make([]byte, 36), ErrParam},
		{"negative salt", "rsa2048", SignParams{Mechanism: RSAPSS, Hash: "sha256", SaltLength: -1}, msg, ErrParam},
		{"salt too long", "rsa2048", SignParams{Mechanism: RSAPSS, Hash: "sha256", SaltLength: 223}, msg, ErrParam},
		{"salt without pss", "rsa2048", SignParams{Mechanism: RSAPKCS, Hash: "sha256", SaltLength: 32}, msg, ErrParam},
		{"ed25519 with a hash", "ed25519", SignParams{Mechanism: EdDSA, Hash: "sha512"}, msg, ErrHash},
		{"ed25519 of a digest", "ed25519", SignParams{Mechanism: EdDSA, Digest: true}, msg, ErrParam},
		{"ed25519ph with sha256", "ed25519", SignParams{Mechanism: EdDSAph, Hash: "sha256"}, msg, ErrHash},
		{"ed25519ph of no digest", "ed25519", SignParams{Mechanism: EdDSAph, Digest: true}, msg, ErrParam},
	} {
		sig, err := private(t, c.key).Sign(nil, c.p, c.data)
		wantErr(t, c.what, err, c.want)
		if sig != nil {
			t.Errorf("%s: a signature beside an error", c.what)
		}
	}
	wantErr(t, "verify pss with sha1", private(t, "rsa2048").PublicKey().Verify(SignParams{Mechanism: RSAPSS, Hash: "sha1"}, msg, nil), ErrHash)
}

func TestPSSSalts(t *testing.T) {
	k := private(t, "rsa2048")
	msg := []byte("salted")
	for _, salt := range []int{1, 20, 32, 222} {
		p := SignParams{Mechanism: RSAPSS, Hash: "sha256", SaltLength: salt}
		sig := must(k.Sign(nil, p, msg))(t)
		if err := k.PublicKey().Verify(p, msg, sig); err != nil {
			t.Errorf("salt %d: %v", salt, err)
		}
		p.SaltLength = 33
		wantErr(t, "other salt length", k.PublicKey().Verify(p, msg, sig), ErrSignature)
	}
	sig := must(k.Sign(nil, SignParams{Mechanism: RSAPSS, Hash: "sha256"}, msg))(t)
	sum := sha256.Sum256(msg)
	if err := rsa.VerifyPSS(&k.k().rsa.PublicKey, crypto.SHA256, sum[:], sig, &rsa.PSSOptions{SaltLength: 32}); err != nil {
		t.Errorf("salt 0 is not the hash length: %v", err)
	}
}

// TestECDSAFixedWidth: numbers with leading zeros keep their place.
func TestECDSAFixedWidth(t *testing.T) {
	k := private(t, "prime256v1")
	msg := []byte("message")
	sum := sha256.Sum256(msg)
	p := SignParams{Mechanism: ECDSA, Hash: "sha256"}
	short := 0
	for range 2000 {
		sig := must(k.Sign(nil, p, msg))(t)
		if len(sig) != 64 {
			t.Fatalf("signature of %d bytes", len(sig))
		}
		if sig[0] != 0 && sig[32] != 0 {
			continue
		}
		short++
		v := struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])}
		if !ecdsa.VerifyASN1(&k.k().ec.PublicKey, sum[:], marshal(v)) {
			t.Error("a signature with a leading zero does not verify")
		}
		if err := k.PublicKey().Verify(p, msg, sig); err != nil {
			t.Error(err)
		}
	}
	if short == 0 {
		t.Error("2000 signatures without a leading zero")
	}
}

// TestSecp256k1AgainstItsLibrary: our signatures verify there, theirs here, with either s.
func TestSecp256k1AgainstItsLibrary(t *testing.T) {
	p := SignParams{Mechanism: ECDSA, Hash: "sha256", Digest: true}
	for range 50 {
		g := must(Generate(nil, Spec{Type: EC, Curve: Secp256k1}))(t)
		k := must(ParsePrivate(g.Secret))(t)
		theirs := secp256k1.NewPrivateKey(&k.k().k1.d)
		equal(t, "public key", k.PublicKey().Bits(), theirs.PubKey().SerializeUncompressed())
		sum := sha256.Sum256(fresh(20))

		sig := must(k.Sign(nil, p, sum[:]))(t)
		var r, s secp256k1.ModNScalar
		r.SetByteSlice(sig[:32])
		s.SetByteSlice(sig[32:])
		if s.IsOverHalfOrder() || !k1ecdsa.NewSignature(&r, &s).Verify(sum[:], theirs.PubKey()) {
			t.Fatal("our signature does not verify there, or is not the canonical one")
		}
		if again := must(k.Sign(nil, p, sum[:]))(t); bytes.Equal(sig, again) {
			t.Error("two signatures are equal: the nonce has no fresh part")
		}
		s.Negate()
		high := s.Bytes()
		if err := k.PublicKey().Verify(p, sum[:], append(sig[:32:32], high[:]...)); err != nil {
			t.Errorf("the other s: %v", err)
		}
		ts := k1ecdsa.Sign(theirs, sum[:])
		tr, tss := ts.R(), ts.S()
		rb, sb := tr.Bytes(), tss.Bytes()
		if err := k.PublicKey().Verify(p, sum[:], append(rb[:], sb[:]...)); err != nil {
			t.Errorf("their signature: %v", err)
		}
		peer := must(ParsePrivate(must(Generate(nil, Spec{Type: EC, Curve: Secp256k1}))(t).Secret))(t)
		equal(t, "shared secret", must(k.ECDH(peer.Public()))(t), secp256k1.GenerateSharedSecret(theirs, peer.k().k1.pub))
	}
}

// With a source that repeats itself the nonce still depends on key and message, as RFC 6979 has it.
func TestSecp256k1BrokenRandomness(t *testing.T) {
	k := private(t, "secp256k1")
	p := SignParams{Mechanism: ECDSA, Hash: "sha256"}
	one := func(msg string) []byte { return must(k.Sign(sameReader{}, p, []byte(msg)))(t) }
	if a, b := one("a"), one("b"); bytes.Equal(a[:32], b[:32]) {
		t.Error("two messages share a nonce")
	}
	equal(t, "the same message", one("a"), one("a"))
}

type sameReader struct{}

func (sameReader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 7
	}
	return len(b), nil
}

// TestDigestTruncation: hashes longer than the curve's order are cut on the left side, FIPS 186-5, section 6.4.1.
func TestDigestTruncation(t *testing.T) {
	for _, name := range []string{"prime256v1", "secp256k1"} {
		k := private(t, name)
		sum := fresh(64)
		long := SignParams{Mechanism: ECDSA, Digest: true, Hash: "sha512"}
		cut := SignParams{Mechanism: ECDSA, Digest: true, Hash: "sha256"}
		if err := k.PublicKey().Verify(cut, sum[:32], must(k.Sign(nil, long, sum))(t)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMAC(t *testing.T) {
	data := []byte("authenticate this")
	keys := map[string]*SecretKey{HMAC: secret(t, GenericSecret, fresh(40)), AESCMAC: aesKey(t, 24)}
	for mechanism, k := range keys {
		p := SignParams{Mechanism: mechanism}
		if mechanism == HMAC {
			p.Hash = "sha384"
		}
		mac := must(k.MAC(p, data))(t)
		if err := k.VerifyMAC(p, data, mac); err != nil {
			t.Errorf("%s: %v", mechanism, err)
		}
		flips(mac, 1000, func(_ int, flipped []byte) {
			wantErr(t, mechanism+" flipped bit", k.VerifyMAC(p, data, flipped), ErrSignature)
		})
		for _, bad := range [][]byte{nil, mac[:len(mac)-1], append(bytes.Clone(mac), 0)} {
			wantErr(t, mechanism+" bad length", k.VerifyMAC(p, data, bad), ErrSignature)
		}
		wantErr(t, mechanism+" other data", k.VerifyMAC(p, data[1:], mac), ErrSignature)
		other := must(ParseSecret(k.Spec().Type, fresh(k.Spec().Size)))(t)
		wantErr(t, mechanism+" other key", other.VerifyMAC(p, data, mac), ErrSignature)
	}
	for what, c := range map[string]struct {
		k    *SecretKey
		p    SignParams
		want error
	}{
		"hmac with aes":         {keys[AESCMAC], SignParams{Mechanism: HMAC, Hash: "sha256"}, ErrMechanism},
		"cmac with generic":     {keys[HMAC], SignParams{Mechanism: AESCMAC}, ErrMechanism},
		"cmac with a hash":      {keys[AESCMAC], SignParams{Mechanism: AESCMAC, Hash: "sha256"}, ErrHash},
		"hmac without a hash":   {keys[HMAC], SignParams{Mechanism: HMAC}, ErrHash},
		"hmac with md5":         {keys[HMAC], SignParams{Mechanism: HMAC, Hash: "md5"}, ErrHash},
		"a digest":              {keys[HMAC], SignParams{Mechanism: HMAC, Hash: "sha256", Digest: true}, ErrParam},
		"a salt":                {keys[HMAC], SignParams{Mechanism: HMAC, Hash: "sha256", SaltLength: 1}, ErrParam},
		"rsa with a secret key": {keys[HMAC], SignParams{Mechanism: RSAPKCS, Hash: "sha256"}, ErrMechanism},
	} {
		_, err := c.k.MAC(c.p, data)
		wantErr(t, what, err, c.want)
		wantErr(t, what, c.k.VerifyMAC(c.p, data, nil), c.want)
	}
}

// TestScalarsAreCopies clears what scalar returns, as its callers do, and looks whether
// the key that signs was cleared with it.
func TestScalarsAreCopies(t *testing.T) {
	for _, name := range []string{"secp224r1", "prime256v1", "secp384r1", "secp521r1", "secp256k1"} {
		k := private(t, name)
		want := k.k().scalar()
		kept := bytes.Clone(want)
		clear(k.k().scalar())
		if got := k.k().scalar(); !bytes.Equal(want, kept) || !bytes.Equal(got, kept) {
			t.Errorf("%s: clearing a copy of the private number cleared the key", name)
		}
	}
}

// TestKeysAreShared uses each key from many goroutines, for the race detector.
func TestKeysAreShared(t *testing.T) {
	var wg sync.WaitGroup
	msg := []byte("shared")
	for _, c := range signers {
		k := private(t, c.key)
		p := SignParams{Mechanism: c.mechanism, Hash: hashesOf(c.mechanism)[0]}
		for range 4 {
			wg.Go(func() {
				sig, err := k.Sign(nil, p, msg)
				if err == nil {
					err = k.PublicKey().Verify(p, msg, sig)
				}
				if err == nil && k.Spec().Type == EC {
					_, err = k.ECDH(k.Public())
					k.PKCS8()
				}
				if err != nil {
					t.Errorf("%s with %s: %v", c.key, c.mechanism, err)
				}
			})
		}
	}
	k := aesKey(t, 32)
	for range 4 {
		wg.Go(func() {
			ct, err := k.Encrypt(nil, CryptParams{Mechanism: AESGCM}, msg)
			if err == nil {
				_, err = k.Decrypt(nil, CryptParams{Mechanism: AESGCM}, ct)
			}
			if err == nil {
				_, err = k.MAC(SignParams{Mechanism: AESCMAC}, msg)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
