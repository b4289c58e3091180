package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func (w *world) rotate(b *box) error {
	w.t.Helper()
	_, err := b.root().Change(w.t.Context(), hsm.Change{Kind: hsm.ChangeRotate})
	return err
}

// sealing waits until all HSMs that are up seal with the newest masking key of the
// first one, and returns its epoch.
func (w *world) sealing(held int) (epoch uint64) {
	w.t.Helper()
	w.eventually("the new masking key does not seal", func() bool {
		var infos []hsm.Info
		for _, b := range w.up() {
			info, err := b.self().Info(w.t.Context())
			if err != nil {
				w.t.Fatal(err)
			}
			infos = append(infos, info)
		}
		epoch = slices.Max(infos[0].Epochs)
		return !slices.ContainsFunc(infos, func(i hsm.Info) bool { return i.Sealing != epoch || len(i.Epochs) != held })
	})
	return epoch
}

func (w *world) epochOf(b *box, ref hsm.KeyRef) uint64 {
	w.t.Helper()
	for m, err := range b.self().Extract(w.t.Context(), slices.Values([]hsm.KeyRef{ref})) {
		if err != nil {
			w.t.Fatal(err)
		}
		_, epoch, _, _, err := hsm.PeekColumns(nil, m.Bytes)
		if err != nil {
			w.t.Fatal(err)
		}
		return epoch
	}
	w.t.Fatalf("%s is not there", ref)
	return 0
}

// TestRotationReachesEveryHSM: a masking key seals only once all HSMs hold it;
// old objects keep bytes and digests, new ones are sealed under the new key and
// open everywhere; and all of it survives restarts.
func TestRotationReachesEveryHSM(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.createAlice()
	before := w.createKey(w.boxes[0].alice(), "before")
	w.converge()
	root := w.boxes[0].info().Root

	if err := w.boxes[2].stop(); err != nil {
		t.Fatal(err)
	}
	w.eventually("the HSM that is away is not missed", func() bool { return w.boxes[0].server.everyMember() != nil })
	if err := w.rotate(w.boxes[0]); !errors.Is(err, hsm.ErrUnavailable) {
		t.Fatalf("a rotation while an HSM is away: %v, want ErrUnavailable", err)
	}
	if n := len(w.boxes[0].info().Epochs); n != 1 {
		t.Fatalf("a refused rotation made a key: %d", n)
	}
	w.boxes[2].start()
	if _, err := w.boxes[0].alice().Change(t.Context(), hsm.Change{Kind: hsm.ChangeRotate}); !errors.Is(err, hsm.ErrDenied) {
		t.Fatalf("a crypto user: %v", err)
	}
	w.eventually("no rotation", func() bool { return w.rotate(w.boxes[1]) == nil })
	epoch := w.sealing(2)
	if got := w.boxes[0].info().Root; got != root || w.epochOf(w.boxes[0], before) != 1 {
		t.Fatal("rotation changed what was there")
	}
	after := w.createKey(w.boxes[0].alice(), "after")
	w.change(w.boxes[2].alice(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: before, Name: "label", Value: "changed"})
	w.converge()
	for i, b := range w.boxes {
		if w.epochOf(b, after) != epoch || w.epochOf(b, before) != epoch {
			t.Errorf("HSM %d: what is new is not sealed under the new key", i+1)
		}
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range w.boxes {
		b.start()
	}
	if again := w.sealing(2); again != epoch {
		t.Fatalf("after a restart: %d, was %d", again, epoch)
	}
	if _, err := w.boxes[1].alice().Key(t.Context(), after); err != nil {
		t.Fatal(err)
	}
}

// TestAnUnfinishedRotationDoesNotSeal: a key that not every HSM holds stays
// unused over a restart, another rotation is refused, and it is finished once
// all are there.
func TestAnUnfinishedRotationDoesNotSeal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	old := filepath.Join(t.TempDir(), "old")
	if err := w.boxes[1].stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(old, os.DirFS(w.boxes[1].folder)); err != nil {
		t.Fatal(err)
	}
	if err := w.boxes[0].stop(); err != nil {
		t.Fatal(err)
	}
	// As if it had died between making the key and bringing it to the other.
	s, err := Open(t.Context(), w.boxes[0].folder, w.boxes[0].options())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.changeKeyring(func(k *hsm.Keyring) (*hsm.Keyring, error) { return k.Rotated(s.options.Now()) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	w.boxes[0].start()
	if i := w.boxes[0].info(); len(i.Epochs) != 2 || i.Sealing != 1 {
		t.Fatalf("epochs %v, sealing %d", i.Epochs, i.Sealing)
	}
	if err := w.rotate(w.boxes[0]); !errors.Is(err, hsm.ErrUnavailable) {
		t.Fatalf("with a member away: %v", err)
	}
	// Nobody joins meanwhile: the rotation would wait for who cannot get the keys.
	if _, err := Join(t.Context(), w.joinSpec(w.invite(time.Hour, w.boxes[0]), "new")); !errors.Is(err, hsm.ErrUnavailable) {
		t.Fatalf("a join: %v", err)
	}
	w.boxes[1].start()
	epoch := w.sealing(2)
	// The other's folder as it was before the rotation: it gets the key first.
	if err := w.boxes[1].stop(); err != nil {
		t.Fatal(err)
	}
	w.boxes[1].folder = old
	w.boxes[1].start()
	if again := w.sealing(2); again != epoch {
		t.Fatalf("an old folder: %d, want %d", again, epoch)
	}
}

// TestMaskingKeysOfStrangersAreRefused: neither another lineage's keys, nor
// another key for an epoch there is, nor garbage.
func TestMaskingKeysOfStrangersAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	secret, masking := w.boxes[0].server.keyring().Export()
	masking[1] = hsm.NewSecret(make([]byte, hsm.KeySize))
	twin, err := hsm.OpenKeyring(secret, masking)
	if err != nil {
		t.Fatal(err)
	}
	withEpoch := func(epoch uint64) *hsm.Keyring {
		secret, masking := w.boxes[0].server.keyring().Export()
		masking[epoch] = hsm.NewSecret(make([]byte, hsm.KeySize))
		k, err := hsm.OpenKeyring(secret, masking)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	send := func(s hsm.Session, recovery hsm.Secret) error {
		_, err := s.Change(context.Background(), hsm.Change{Kind: hsm.ChangeMaskingKeys, Recovery: recovery})
		return err
	}
	for name, c := range map[string]struct {
		recovery hsm.Secret
		want     error
	}{
		"an epoch without a successor": {hsm.EncodeRecovery(withEpoch(hsm.MaxEpoch), hsm.Secret{}), hsm.ErrFuture},
		"an epoch of 2100":             {hsm.EncodeRecovery(withEpoch(4102444800<<20), hsm.Secret{}), hsm.ErrFuture},
		"another lineage":              {hsm.EncodeRecovery(hsm.NewKeyring(), hsm.Secret{}), hsm.ErrLineage},
		"another key":                  {hsm.EncodeRecovery(twin, hsm.Secret{}), hsm.ErrConflict},
		"garbage":                      {hsm.NewSecret([]byte("garbage")), hsm.ErrCorrupt},
		"nothing":                      {hsm.Secret{}, hsm.ErrCorrupt},
	} {
		if err := send(w.boxes[0].root(), c.recovery); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	rotated, err := w.boxes[0].server.keyring().Rotated(w.boxes[0].server.options.Now())
	if err != nil {
		t.Fatal(err)
	}
	good := hsm.EncodeRecovery(rotated, hsm.Secret{})
	if err := send(w.boxes[0].appliance(), good); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("an appliance: %v", err)
	}
	if err := send(w.boxes[0].root(), good); err != nil {
		t.Error(err)
	}
	w.sealing(2) // alone, it holds whatever every member holds
}
