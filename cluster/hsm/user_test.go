package hsm

import (
	"fmt"
	"strings"
	"testing"
)

func TestCanonicalUserName(t *testing.T) {
	for s, want := range map[string]string{"alice": "alice", "Alice_B": "alice_b", "_": "_", "42": "42", strings.Repeat("Z", 31): strings.Repeat("z", 31)} {
		if got, err := CanonicalUserName(s); err != nil || got != want {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	for _, s := range []string{"", strings.Repeat("a", 32), "a b", "a-b", "a.b", "a:b", "é", "\u212aate", "a\x00", "a\n", "ſ", "\xff", strings.Repeat("é", 5000)} {
		_, err := CanonicalUserName(s)
		wantErr(t, s, err, ErrInvalid)
		if len(fmt.Sprint(err)) > 500 {
			t.Error("the error repeats it all")
		}
	}
}

func TestCheckPassword(t *testing.T) {
	for _, s := range []string{"12345678", strings.Repeat("x", 32), "with space", "pässwörd", "\x00\x01\x02\x03\x04\x05\x06\x07"} {
		if err := CheckPassword(NewSecret([]byte(s))); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", "1234567", strings.Repeat("x", 33), "user:pass", ":1234567"} {
		err := CheckPassword(NewSecret([]byte(s)))
		wantErr(t, s, err, ErrInvalid)
		if s != "" && strings.Contains(fmt.Sprint(err), s) {
			t.Error("the error shows the password")
		}
	}
	wantErr(t, "the zero secret", CheckPassword(Secret{}), ErrInvalid)
}

func TestParseRole(t *testing.T) {
	for s, want := range map[string]Role{"admin": RoleAdmin, "CO": RoleAdmin, "co": RoleAdmin, "crypto-user": RoleCryptoUser, "CU": RoleCryptoUser, "Crypto-User": RoleCryptoUser} {
		if got, err := ParseRole(s); err != nil || got != want {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "appliance", "AU", "hsm", "root", " admin"} {
		_, err := ParseRole(s)
		wantErr(t, s, err, ErrInvalid)
	}
}
