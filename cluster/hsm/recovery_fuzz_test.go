package hsm

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzDecodeRecovery: what decodes is encoded in no other way.
func FuzzDecodeRecovery(f *testing.F) {
	whole := EncodeRecovery(NewKeyring(), NewSecret([]byte("CA"))).Reveal()
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, b []byte) {
		k, ca, err := DecodeRecovery(NewSecret(bytes.Clone(b)))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%v is not ErrCorrupt", err)
			}
			return
		}
		if !bytes.Equal(EncodeRecovery(k, ca).Reveal(), b) {
			t.Error("a second encoding is accepted")
		}
	})
}

// FuzzAttributes: values of attributes as users write them, user names, and
// public keys as they come from a peer.
func FuzzAttributes(f *testing.F) {
	f.Add("label", "a key", []byte{})
	f.Add("id", "0x0102", []byte{0x30})
	f.Add("sign", "true", []byte("alice"))
	f.Fuzz(func(t *testing.T, name, value string, b []byte) {
		for _, a := range attributes {
			if a.Name != name {
				continue
			}
			stored, err := ParseAttribute(a, value)
			if err != nil {
				if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrAttribute) {
					t.Errorf("%s=%q: %v", name, value, err)
				}
				continue
			}
			again, err := ParseAttribute(a, FormatAttribute(a, stored))
			if err != nil || !bytes.Equal(again, stored) {
				t.Errorf("%s=%q is stored as %x and read again as %x, %v", name, value, stored, again, err)
			}
		}
		if user, err := CanonicalUserName(value); err == nil {
			if again, err := CanonicalUserName(user); err != nil || again != user {
				t.Errorf("user %q is %q and then %q, %v", value, user, again, err)
			}
		}
		publicAttributes(b)
	})
}
