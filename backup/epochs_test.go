package backup

import (
	"slices"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestTheEnvelopeHoldsEveryMaskingKey: an object that came from a clone may be sealed
// under an adopted key which is older than the newest, and newer than the
// parent's envelope.
func TestTheEnvelopeHoldsEveryMaskingKey(t *testing.T) {
	c := newTestCluster(t, 0)
	c.cheap(t)
	secret, masking := c.keyring.Export()
	masking[5] = hsm.NewSecret(slices.Repeat([]byte{5}, hsm.KeySize))
	open := func() *hsm.Keyring {
		k, err := hsm.OpenKeyring(secret, masking)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	c.keyring = open()
	c.addHSM().NewKey("under 5")
	store := newStore(t)
	mustTake(t, c, store, c.options())
	masking[3] = hsm.NewSecret(slices.Repeat([]byte{3}, hsm.KeySize))
	low, err := open().Sealing(3)
	if err != nil {
		t.Fatal(err)
	}
	c.keyring = low
	c.addHSM().NewKey("under 3")
	mustTake(t, c, store, c.options())
	s := c.open(t, store, "")
	e, err := loadEnvelope(t.Context(), store, s.manifest.Envelope)
	if err != nil || !slices.Equal(e.Epochs, []uint64{1, 3, 5}) {
		t.Fatalf("the envelope holds epochs %v, want 1, 3 and 5: %v", e.Epochs, err)
	}
}
