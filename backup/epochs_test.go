package backup

import (
	"slices"
	"testing"

	"github.com/hsmbackup/hsmbackup/backup/format"
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

// TestRecoveryFindsEveryMaskingKey: the snapshot's own envelope is gone, and no single
// other one holds every masking key that its objects need. The newest epoch alone
// would be found in one that lacks an older key.
func TestRecoveryFindsEveryMaskingKey(t *testing.T) {
	c, store := newTestCluster(t, 0), newStore(t)
	c.cheap(t)
	secret, _ := c.keyring.Export()
	ring := func(epochs ...uint64) *hsm.Keyring {
		masking := map[uint64]hsm.Secret{}
		for _, e := range epochs {
			masking[e] = hsm.NewSecret(slices.Repeat([]byte{byte(e)}, hsm.KeySize))
		}
		k, err := hsm.OpenKeyring(secret, masking)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	o := c.options()
	o.Full = true
	for i, epoch := range []uint64{5, 3} {
		c.keyring = ring(1, epoch)
		c.addHSM().NewKey("one more")
		mustTake(t, c, store, o)
		c.setDown(i, true)
	}
	c.keyring = ring(1, 3, 5)
	c.setDown(0, false)
	c.setDown(1, false)
	r := mustTake(t, c, store, o)
	s := c.open(t, store, r.ID)
	if err := store.Delete(t.Context(), format.EnvelopePath(s.manifest.Envelope)); err != nil {
		t.Fatal(err)
	}
	if k, _, err := s.Recovery(t.Context()); err != nil || !slices.Equal(k.Epochs(), []uint64{1, 3, 5}) {
		t.Fatalf("%v", err)
	}
	if rootOf(t, restore(t, s)) != r.Root {
		t.Fatal("it restores to another root")
	}
}

// TestEnvelopeLacksWhatItNames: an envelope opens and holds less than it says in clear.
func TestEnvelopeLacksWhatItNames(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	keys(c.hsm(0), 3)
	mustTake(t, c, store, c.options())
	f := &thief{c.custodian, c, store}
	forged := f.envelope(t, func(e *format.Envelope) { e.Epochs = append(e.Epochs, 9) })
	f.sign(t, func(m *format.Manifest) { m.Envelope = forged })
	_, _, err := c.open(t, store, "2").Recovery(t.Context())
	wantErr(t, err, ErrCorrupt)
}
