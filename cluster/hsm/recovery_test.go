package hsm

import (
	"errors"
	"testing"
)

func TestRecoveryRoundTrip(t *testing.T) {
	k, ca := NewKeyring(), NewSecret([]byte("certificate and key"))
	b := EncodeRecovery(k, ca)
	if again := EncodeRecovery(k, ca); !again.Equal(b) {
		t.Error("equal inputs, other bytes")
	}
	k2, ca2, err := DecodeRecovery(b)
	if err != nil {
		t.Fatal(err)
	}
	if k2.Lineage() != k.Lineage() || k2.Epoch() != k.Epoch() || !ca2.Equal(ca) {
		t.Error("decoded recovery envelope differs")
	}
}

func TestRecoveryRefusesDamage(t *testing.T) {
	good := EncodeRecovery(NewKeyring(), NewSecret([]byte("ca"))).Reveal()
	for name, b := range map[string][]byte{
		"empty": nil, "truncated": good[:len(good)-1], "trailing": append(append([]byte{}, good...), 0), "no keys": {0xa0},
	} {
		if _, _, err := DecodeRecovery(NewSecret(b)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
}
