package hsm

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func testChallenge() LoginChallenge {
	return LoginChallenge{User: "alice", HSM: 1, Cluster: 2, Lineage: Lineage{3}, Expires: time.UnixMilli(1000).UTC(), Nonce: [32]byte{4}}
}

func TestLoginChallenge(t *testing.T) {
	want := testChallenge()
	b := want.Encode()
	got, err := ParseLoginChallenge(b)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	upper := want
	upper.User = "Alice"
	for _, bad := range [][]byte{nil, b[:len(b)-1], append(bytes.Clone(b), 'x'), upper.Encode(), testToken(ServiceUser).Encode(), b[:40], RegistrationMessage(SignLogin, Lineage{}, "alice", nil)} {
		if _, err := ParseLoginChallenge(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseLoginChallenge(f *testing.F) {
	f.Add(testChallenge().Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseLoginChallenge(b); err == nil && !bytes.Equal(c.Encode(), b) {
			t.Fatal("two encodings of one challenge")
		}
	})
}
