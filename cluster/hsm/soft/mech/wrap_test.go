package mech

import (
	"bytes"
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// wrapper is one way to wrap and its reverse.
type wrapper struct {
	name         string
	wrap, unwrap func([]byte) ([]byte, error)
}

func wrappers(t testing.TB, sk *SecretKey, pk *PrivateKey) []wrapper {
	var ws []wrapper
	for _, m := range []string{AESKW, AESKWP, AESGCM} {
		p := CryptParams{Mechanism: m}
		ws = append(ws, wrapper{m, func(b []byte) ([]byte, error) { return sk.Wrap(nil, p, b) },
			func(b []byte) ([]byte, error) { return sk.Unwrap(nil, p, b) }})
	}
	for _, p := range []CryptParams{{Mechanism: RSAOAEP}, {Mechanism: RSAAES}, {Mechanism: RSAAES, Hash: "sha1"}} {
		ws = append(ws, wrapper{p.Mechanism + " " + p.Hash, func(b []byte) ([]byte, error) { return pk.PublicKey().Wrap(nil, p, b) },
			func(b []byte) ([]byte, error) { return pk.Unwrap(nil, p, b) }})
	}
	return ws
}

// TestWrapEveryKey wraps a key of every type in every way and uses what comes back.
func TestWrapEveryKey(t *testing.T) {
	payloads := map[string][]byte{"aes": fresh(32), "generic": fresh(7), "long generic": fresh(800)}
	for _, name := range append([]string{"rsa4096"}, allAsymmetric...) {
		payloads[name] = private(t, name).PKCS8()
	}
	ws := wrappers(t, aesKey(t, 32), private(t, "rsa2048"))
	others := wrappers(t, aesKey(t, 32), private(t, "rsa2048.other"))
	for i, w := range ws {
		for name, payload := range payloads {
			wrapped, err := w.wrap(payload)
			if fits := wrapFits(w.name, len(payload)); !fits {
				wantErr(t, w.name+" "+name, err, ErrDataLen)
				continue
			}
			if err != nil {
				t.Fatalf("%s %s: %v", w.name, name, err)
			}
			if len(payload) > 8 && bytes.Contains(wrapped, payload[:8]) {
				t.Errorf("%s %s: the payload shows", w.name, name)
			}
			equal(t, w.name+" "+name, must(w.unwrap(wrapped))(t), payload)
			_, err = others[i].unwrap(wrapped)
			wantErr(t, w.name+" "+name+" other key", err, ErrUnwrap)
			if name == "prime256v1" {
				must(ParsePrivate(must(w.unwrap(wrapped))(t)))(t)
			}
		}
	}
}

func wrapFits(mechanism string, n int) bool {
	switch mechanism {
	case AESKW:
		return n >= 16 && n%8 == 0
	case RSAOAEP + " ":
		return n <= 256-2-64
	}
	return n > 0
}

func TestUnwrapRefuses(t *testing.T) {
	for _, w := range wrappers(t, aesKey(t, 16), private(t, "rsa2048")) {
		wrapped := must(w.wrap(fresh(32)))(t)
		flips(wrapped, 60, func(bit int, flipped []byte) {
			got, err := w.unwrap(flipped)
			wantErr(t, w.name+" flipped bit", err, ErrUnwrap)
			if got != nil {
				t.Errorf("%s: bytes beside an error", w.name)
			}
		})
		for n := range len(wrapped) {
			_, err := w.unwrap(wrapped[:n])
			wantErr(t, w.name+" truncated", err, ErrUnwrap)
		}
		_, err := w.unwrap(append(wrapped, make([]byte, 8)...))
		wantErr(t, w.name+" extended", err, ErrUnwrap)
		_, err = w.wrap(nil)
		wantErr(t, w.name+" nothing", err, ErrDataLen)
	}
}

// A payload of nothing, which we do not wrap, is not unwrapped either.
func TestUnwrapNothing(t *testing.T) {
	sk, pk := aesKey(t, 32), private(t, "rsa2048")
	_, err := sk.Unwrap(nil, CryptParams{Mechanism: AESGCM}, must(sk.Encrypt(nil, CryptParams{Mechanism: AESGCM}, nil))(t))
	wantErr(t, "gcm", err, ErrUnwrap)
	oaep := CryptParams{Mechanism: RSAOAEP}
	_, err = pk.Unwrap(nil, oaep, must(pk.PublicKey().Encrypt(nil, oaep, nil))(t))
	wantErr(t, "oaep", err, ErrUnwrap)
	notAES := must(pk.PublicKey().Encrypt(nil, oaep, fresh(20)))(t)
	_, err = pk.Unwrap(nil, CryptParams{Mechanism: RSAAES}, append(notAES, make([]byte, 24)...))
	wantErr(t, "rsa-aes with a key of 20 bytes inside", err, ErrUnwrap)
}

// TestKWPHeaders makes blocks with every length and padding byte, right and wrong, and compares with
// the plain reading of RFC 5649, section 3.
func TestKWPHeaders(t *testing.T) {
	k := aesKey(t, 16)
	for _, room := range []int{8, 16, 40} {
		for length := -1; length <= room+9; length++ {
			for dirty := -1; dirty < 8; dirty++ {
				buf := make([]byte, semiblock+room)
				copy(buf, kwpPrefix[:])
				binary.BigEndian.PutUint32(buf[4:], uint32(length))
				if dirty >= 0 {
					buf[len(buf)-1-dirty] = 1
				}
				want, ok := plainKWP(buf)
				got, err := k.Unwrap(nil, CryptParams{Mechanism: AESKWP}, kwpSeal(k, buf))
				if ok && (err != nil || !bytes.Equal(got, want)) {
					t.Errorf("room %d, length %d: %v", room, length, err)
				}
				if !ok {
					wantErr(t, "bad header", err, ErrUnwrap)
				}
			}
		}
	}
	for bit := range 32 {
		buf := append(bytes.Clone(kwpPrefix[:]), 0, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8)
		buf[bit/8] ^= 1 << (bit % 8)
		_, err := k.Unwrap(nil, CryptParams{Mechanism: AESKWP}, kwpSeal(k, buf))
		wantErr(t, "bad prefix", err, ErrUnwrap)
	}
}

func kwpSeal(k *SecretKey, buf []byte) []byte {
	sealed := bytes.Clone(buf)
	if len(sealed) == 2*semiblock {
		k.k().block.Encrypt(sealed, sealed)
	} else {
		kwForward(k.k().block, sealed)
	}
	return sealed
}

func plainKWP(buf []byte) ([]byte, bool) {
	n, body := int(binary.BigEndian.Uint32(buf[4:8])), buf[8:]
	if n <= len(body)-8 || n > len(body) || len(bytes.Trim(body[n:], "\x00")) > 0 {
		return nil, false
	}
	return body[:n], true
}

func TestKeyWrapIsPermutation(t *testing.T) {
	k := aesKey(t, 32)
	rapid.Check(t, func(t *rapid.T) {
		buf := rapid.SliceOfN(rapid.Byte(), 24, 24+8*40).Draw(t, "buf")
		buf = buf[:len(buf)/8*8]
		work := bytes.Clone(buf)
		kwForward(k.k().block, work)
		kwBackward(k.k().block, work)
		if !bytes.Equal(work, buf) {
			t.Fatal("forward and backward is not the identity")
		}
	})
}

func TestWrapMisuse(t *testing.T) {
	sk, gen := aesKey(t, 32), secret(t, GenericSecret, fresh(32))
	for _, c := range []struct {
		what string
		k    *SecretKey
		p    CryptParams
		want error
	}{
		{"cbc", sk, CryptParams{Mechanism: AESCBCPad}, ErrMechanism},
		{"rsa-aes under aes", sk, CryptParams{Mechanism: RSAAES}, ErrMechanism},
		{"none", sk, CryptParams{}, ErrMechanism},
		{"under generic", gen, CryptParams{Mechanism: AESKWP}, ErrMechanism},
		{"kwp with AAD", sk, CryptParams{Mechanism: AESKWP, AAD: []byte{1}}, ErrParam},
		{"kw with AAD", sk, CryptParams{Mechanism: AESKW, AAD: []byte{1}}, ErrParam},
		{"kwp with a hash", sk, CryptParams{Mechanism: AESKWP, Hash: "sha256"}, ErrHash},
	} {
		_, err := c.k.Wrap(nil, c.p, fresh(32))
		wantErr(t, c.what, err, c.want)
		_, err = c.k.Unwrap(nil, c.p, fresh(64))
		wantErr(t, c.what, err, c.want)
	}
	for _, c := range []struct {
		what, key string
		p         CryptParams
		want      error
	}{
		{"kwp under rsa", "rsa2048", CryptParams{Mechanism: AESKWP}, ErrMechanism},
		{"oaep under ec", "prime256v1", CryptParams{Mechanism: RSAOAEP}, ErrMechanism},
		{"rsa-aes under ed25519", "ed25519", CryptParams{Mechanism: RSAAES}, ErrMechanism},
		{"unknown hash", "rsa2048", CryptParams{Mechanism: RSAAES, Hash: "md5"}, ErrHash},
	} {
		_, err := private(t, c.key).PublicKey().Wrap(nil, c.p, fresh(32))
		wantErr(t, c.what, err, c.want)
		_, err = private(t, c.key).Unwrap(nil, c.p, fresh(300))
		wantErr(t, c.what, err, c.want)
	}
}

func TestDeriveRefuses(t *testing.T) {
	ec := private(t, "prime256v1")
	point := ec.PublicKey().Bits()
	off := bytes.Clone(point)
	off[64] ^= 1
	for what, c := range map[string]struct {
		k    *PrivateKey
		peer []byte
		want error
	}{
		"rsa":               {private(t, "rsa2048"), point, ErrMechanism},
		"ed25519":           {private(t, "ed25519"), point, ErrMechanism},
		"nothing":           {ec, nil, ErrKey},
		"garbage":           {ec, fresh(100), ErrKey},
		"off the curve":     {ec, off, ErrKey},
		"off, in DER":       {ec, append([]byte{4, 65}, off...), ErrKey},
		"compressed":        {ec, compress(point), ErrKey},
		"infinity":          {ec, []byte{0}, ErrKey},
		"other curve":       {ec, private(t, "secp384r1").Public(), ErrCurve},
		"secp256k1 SPKI":    {ec, private(t, "secp256k1").Public(), ErrCurve},
		"secp256k1 point":   {ec, private(t, "secp256k1").PublicKey().Bits(), ErrKey},
		"ed25519 peer":      {ec, private(t, "ed25519").Public(), ErrCurve},
		"off P-224":         {private(t, "secp224r1"), append([]byte{4}, make([]byte, 56)...), ErrKey},
		"off secp256k1":     {private(t, "secp256k1"), point, ErrKey},
		"a private key":     {ec, ec.PKCS8(), ErrKey},
		"trailing after it": {ec, append(ec.Public(), 0), ErrKey},
	} {
		_, err := c.k.ECDH(c.peer)
		wantErr(t, what, err, c.want)
	}
	for _, n := range []int{-1, 0, maxDerived + 1} {
		_, err := X963KDF("sha256", []byte{1}, nil, n)
		wantErr(t, "x9.63 length", err, ErrDataLen)
		_, err = SP800108Counter("sha256", []byte{1}, nil, nil, n)
		wantErr(t, "sp800-108 length", err, ErrDataLen)
	}
	_, err := X963KDF("sha256", nil, nil, 16)
	wantErr(t, "x9.63 without a secret", err, ErrDataLen)
	_, err = SP800108Counter("", []byte{1}, nil, nil, 16)
	wantErr(t, "sp800-108 without a hash", err, ErrHash)
	_, err = X963KDF("md5", []byte{1}, nil, 16)
	wantErr(t, "x9.63 with md5", err, ErrHash)
}

// TestECDHLeadingZeros: shared secrets keep their length. One in 256 starts with a zero byte.
func TestECDHLeadingZeros(t *testing.T) {
	for _, c := range []Curve{Secp224r1, Secp256k1, Secp256r1} {
		info := infoOf(c)
		a := must(newECPrivate(info, fixed(info.size, 3)))(t)
		seen := false
		for i := 2; i < 3000 && !seen; i++ {
			b := must(newECPrivate(info, fixed(info.size, i)))(t)
			z := must(a.ECDH(b.PublicKey().Bits()))(t)
			if len(z) != info.size {
				t.Fatalf("%s: shared secret of %d bytes", c, len(z))
			}
			if seen = z[0] == 0; seen {
				equal(t, "the other way", must(b.ECDH(a.PublicKey().Bits()))(t), z)
			}
		}
		if !seen {
			t.Errorf("%s: no shared secret begins with a zero", c)
		}
	}
}

func fixed(size, n int) []byte {
	b := make([]byte, size)
	binary.BigEndian.PutUint32(b[size-4:], uint32(n))
	return b
}

// TestPKCS5Pad: aes-pkcs5-pad is aes-kw of the padded payload, and padding that is wrong
// does not open.
func TestPKCS5Pad(t *testing.T) {
	k := secret(t, AES, fresh(32))
	p, plain := CryptParams{Mechanism: AESKWPKCS5}, CryptParams{Mechanism: AESKW}
	for n := 8; n < 40; n++ {
		payload := fresh(n)
		wrapped := must(k.Wrap(nil, p, payload))(t)
		equal(t, "unwrapped", must(k.Unwrap(nil, p, wrapped))(t), payload)
		pad := 8 - n%8
		equal(t, "padded", must(k.Unwrap(nil, plain, wrapped))(t), append(payload, bytes.Repeat([]byte{byte(pad)}, pad)...))
	}
	for _, tail := range [][]byte{{0}, {9}, {2, 3, 3}, {1, 2}, {255}} {
		payload := append(fresh(24-len(tail)), tail...)
		if len(tail) == 2 { // a pad of two whose first byte is wrong
			payload[22] = 1
		}
		_, err := k.Unwrap(nil, p, must(k.Wrap(nil, plain, payload))(t))
		wantErr(t, "bad padding", err, ErrUnwrap)
	}
	_, err := k.Wrap(nil, p, fresh(7))
	wantErr(t, "7 bytes", err, ErrDataLen)
}
