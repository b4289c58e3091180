package backup

import (
	"crypto/elliptic"
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// testRecovery is the content of an envelope.
func testRecovery() hsm.Secret {
	return hsm.EncodeRecovery(hsm.NewKeyring(), hsm.NewSecret([]byte("the authority")))
}

func TestEnvelopeThresholds(t *testing.T) {
	secret := testRecovery()
	for n := 1; n <= 4; n++ {
		ids := make([]Identity, n)
		var custodians []string
		for i := range ids {
			id := newX25519(t)
			ids[i], custodians = id.Identity, append(custodians, id.recipient)
		}
		for threshold := 1; threshold <= n; threshold++ {
			b, err := SealEnvelope(t.Context(), secret, custodians, threshold)
			if err != nil {
				t.Fatal(err)
			}
			for set := range 1 << n { // every set of custodians
				var some []Identity
				for i, id := range ids {
					if set>>i&1 == 1 {
						some = append(some, id)
					}
				}
				got, err := OpenEnvelope(b, some)
				if len(some) >= threshold {
					if err != nil || !got.Equal(secret) {
						t.Fatalf("%d of %d, set %b: %v", threshold, n, set, err)
					}
					continue
				}
				if !errors.Is(err, ErrIdentity) || got.Len() != 0 || !strings.Contains(err.Error(), fmt.Sprintf("%d of the %d", len(some), n)) && !strings.Contains(err.Error(), fmt.Sprintf("%d of %d", len(some), n)) {
					t.Fatalf("%d of %d, set %b: %v", threshold, n, set, err)
				}
			}
		}
	}
}

func TestEnvelopeMixesKindsAboveThresholdOne(t *testing.T) {
	hybrid, classic := newIdentity(t), newX25519(t)
	custodians := []string{hybrid.recipient, classic.recipient}
	secret := testRecovery()
	_, err := SealEnvelope(t.Context(), secret, custodians, 1)
	wantErr(t, err, ErrRecipient)
	b, err := SealEnvelope(t.Context(), secret, custodians, 2)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenEnvelope(b, []Identity{hybrid.Identity, classic.Identity}); err != nil || !got.Equal(secret) {
		t.Fatal(err)
	}
}

func TestEnvelopeRefusesWhatCouldNotBeOpened(t *testing.T) {
	r := newX25519(t).recipient
	secret := testRecovery()
	for name, bad := range map[string]struct {
		custodians []string
		threshold  int
	}{
		"none": {nil, 1}, "zero": {[]string{r}, 0}, "too high": {[]string{r}, 2}, "twice": {[]string{r, " " + r}, 2}, "malformed": {[]string{"bob"}, 1},
	} {
		if _, err := SealEnvelope(t.Context(), secret, bad.custodians, bad.threshold); !errors.Is(err, ErrRecipient) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := SealEnvelope(t.Context(), hsm.Secret{}, []string{r}, 1); err == nil {
		t.Error("an empty envelope is sealed")
	}
}

// TestSharesLaws: any threshold of shares give the secret back, in any order,
// and a different share gives another.
func TestSharesLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "n")
		threshold := rapid.IntRange(1, n).Draw(t, "threshold")
		secret, shares, err := splitSecret(threshold, n)
		if err != nil {
			t.Fatal(err)
		}
		some := rapid.Permutation(shares).Draw(t, "shares")[:threshold]
		got, err := combineShares(some)
		if err != nil || got != secret {
			t.Fatalf("%v", err)
		}
		some[0].Value[31] ^= 1
		if got, err := combineShares(some); err == nil && got == secret {
			t.Fatal("a forged share gives the secret")
		}
	})
	s := share{ID: 1}
	if _, err := combineShares([]share{s, s}); err == nil {
		t.Error("one share serves twice")
	}
	if _, err := combineShares([]share{{ID: 0}}); err == nil {
		t.Error("share 0 would be the secret itself")
	}
	if _, err := combineShares([]share{{ID: 1, Value: [32]byte(elliptic.P256().Params().N.Bytes())}}); err == nil {
		t.Error("a share out of range is accepted")
	}
}

func TestParseRecipient(t *testing.T) {
	hybrid, classic := newIdentity(t), newX25519(t)
	for _, s := range []string{hybrid.recipient, classic.recipient, "  " + classic.recipient + "\n"} {
		if _, err := ParseRecipient(s); err != nil {
			t.Errorf("%.20s: %v", s, err)
		}
	}
	for _, s := range []string{"", "age1", "age1pq1", "bob", "AGE-SECRET-KEY-1XXXX", strings.Repeat("age1", 5000), classic.recipient + "x"} {
		_, err := ParseRecipient(s)
		wantErr(t, err, ErrRecipient)
	}
	if _, err := ParseRecipient(classic.text()); err == nil || strings.Contains(err.Error(), classic.text()[:24]) {
		t.Errorf("an identity as recipient: %v", err)
	}
}

func TestParseIdentityFile(t *testing.T) {
	hybrid, classic := newIdentity(t), newX25519(t)
	good := "# created: today\n# public key: x\n\n" + hybrid.text() + "\r\n  " + classic.text() + "  \n"
	ids, err := ParseIdentityFile([]byte(good))
	if err != nil || len(ids) != 2 {
		t.Fatalf("%d identities, %v", len(ids), err)
	}
	secret := classic.text()
	for _, bad := range []string{"", "# nothing\n", "bob", secret[:60], secret + "Q", strings.ToLower(secret), "-----BEGIN X-----", strings.Repeat("\x00", 1000), strings.Repeat("A", 2<<20)} {
		_, err := ParseIdentityFile([]byte(bad))
		wantErr(t, err, ErrRecipient)
		if strings.Contains(err.Error(), secret[20:40]) {
			t.Error("the error shows the secret")
		}
	}
}

func FuzzParseIdentityFile(f *testing.F) {
	f.Add([]byte("# x\nAGE-SECRET-KEY-1QQQ\n"))
	f.Add([]byte("-----BEGIN OPENSSH PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ids, err := ParseIdentityFile(b)
		if (err == nil) == (len(ids) == 0) {
			t.Fatalf("%d identities, %v", len(ids), err)
		}
	})
}

func FuzzParseRecipient(f *testing.F) {
	f.Add(x25519Recipient)
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ParseRecipient(s); (err == nil) == (r == nil) {
			t.Fatal(err)
		}
	})
}
