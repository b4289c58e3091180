package mech

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestOpenSSL compares with answers of another implementation; testdata/openssl.sh made them.
func TestOpenSSL(t *testing.T) {
	f, err := os.Open("testdata/openssl/vectors.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	count := 0
	for in := bufio.NewScanner(f); in.Scan(); {
		if line := in.Text(); !strings.HasPrefix(line, "#") {
			checkVector(t, strings.Fields(line))
			count++
		}
	}
	if count < 200 {
		t.Errorf("%d vectors, some are missing", count)
	}
}

func checkVector(t *testing.T, f []string) {
	t.Helper()
	what := strings.Join(f[:min(4, len(f))], " ")
	switch f[0] {
	case "kcv":
		equal(t, what, kcvOf(t, f[1]), unhex(t, f[2]))
	case "sign":
		checkSignature(t, what, f)
	case "mac":
		raw := unhex(t, strings.TrimPrefix(f[1], "aes:"))
		equal(t, what, must(secret(t, AES, raw).MAC(SignParams{Mechanism: f[2]}, unhex(t, f[4])))(t), unhex(t, f[5]))
	case "decrypt", "unwrap":
		checkOpens(t, what, f)
	case "ecdh":
		peer := private(t, f[2])
		equal(t, what, must(private(t, f[1]).ECDH(peer.Public()))(t), unhex(t, f[3]))
		equal(t, what+" reversed", must(peer.ECDH(private(t, f[1]).PublicKey().Bits()))(t), unhex(t, f[3]))
		equal(t, what+" with a DER point", must(private(t, f[1]).ECDH(peer.PublicKey().PointDER()))(t), unhex(t, f[3]))
	case "x963":
		n, _ := strconv.Atoi(f[4])
		equal(t, what, must(X963KDF(f[2], unhex(t, f[1]), unhex(t, f[3]), n))(t), unhex(t, f[5]))
	case "sp800-108":
		n, _ := strconv.Atoi(f[5])
		equal(t, what, must(SP800108Counter(f[2], unhex(t, f[1]), unhex(t, f[3]), unhex(t, f[4]), n))(t), unhex(t, f[6]))
	default:
		t.Errorf("unknown vector %s", what)
	}
}

func kcvOf(t *testing.T, key string) []byte {
	if raw, ok := strings.CutPrefix(key, "aes:"); ok {
		return secret(t, AES, unhex(t, raw)).KCV()
	}
	return private(t, key).KCV()
}

func checkSignature(t *testing.T, what string, f []string) {
	t.Helper()
	salt, _ := strconv.Atoi(f[4])
	p := SignParams{Mechanism: f[2], Hash: strings.Trim(f[3], "-"), SaltLength: salt}
	k := private(t, f[1])
	msg, sig := unhex(t, f[5]), unhex(t, f[6])
	if err := k.PublicKey().Verify(p, msg, sig); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	// Two mechanisms have exactly one signature.
	if (p.Mechanism == RSAPKCS && p.Hash != "sha1") || p.Mechanism == EdDSA {
		equal(t, what, must(k.Sign(nil, p, msg))(t), sig)
	}
}

func checkOpens(t *testing.T, what string, f []string) {
	t.Helper()
	p := CryptParams{Mechanism: f[2], Hash: strings.Trim(f[3], "-")}
	want, sealed := unhex(t, f[4]), unhex(t, f[5])
	raw, isAES := strings.CutPrefix(f[1], "aes:")
	switch {
	case isAES && f[0] == "decrypt":
		equal(t, what, must(secret(t, AES, unhex(t, raw)).Decrypt(nil, p, sealed))(t), want)
	case isAES:
		k := secret(t, AES, unhex(t, raw))
		equal(t, what, must(k.Unwrap(nil, p, sealed))(t), want)
		equal(t, what+" wrapped", must(k.Wrap(nil, p, want))(t), sealed)
	case f[0] == "decrypt":
		equal(t, what, must(private(t, f[1]).Decrypt(nil, p, sealed))(t), want)
	default:
		equal(t, what, must(private(t, f[1]).Unwrap(nil, p, sealed))(t), want)
	}
}
