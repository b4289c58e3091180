package hsm

import (
	"bytes"
	"crypto/ed25519"
	"slices"
	"testing"
	"time"
)

func TestKeyringExportOpen(t *testing.T) {
	k := NewKeyring()
	secret, masking := k.Export()
	again := result(OpenKeyring(secret, masking))(t)
	if again.Lineage() != k.Lineage() || again.Epoch() != 1 || again.FingerprintKeys() != k.FingerprintKeys() || !again.TicketKey(1).Equal(k.TicketKey(1)) {
		t.Error("an exported keyring opens as another")
	}
	equal(t, "epochs", testKeyring(t, 2, 1).Epochs(), []uint64{1, 2})
	if NewKeyring().Lineage() == k.Lineage() {
		t.Error("two lineages have one name")
	}
}

// A keyring shares no bytes with what it was opened from or exported to.
func TestKeyringIsImmutable(t *testing.T) {
	raw, rawMasking := sequence(0, KeySize), sequence(0x20, KeySize)
	in := map[uint64]Secret{1: NewSecret(rawMasking)}
	k := result(OpenKeyring(NewSecret(raw), in))(t)
	m := mask(t, k, aesRecord(t, k))
	clear(raw)
	clear(rawMasking)
	delete(in, 1)
	secret, masking := k.Export()
	secret.Wipe()
	masking[1].Wipe()
	clear(k.Sign(PurposeManifest, nil).Public)
	k.TicketKey(1).Wipe()
	if again := mask(t, k, aesRecord(t, k)); !bytes.Equal(again.Bytes, m.Bytes) || LineageOf(k.Sign(PurposeReport, nil).Public) != k.Lineage() {
		t.Error("the keyring changed")
	}
}

func TestOpenKeyringRefuses(t *testing.T) {
	good, short := NewSecret(make([]byte, KeySize)), NewSecret(make([]byte, KeySize-1))
	for name, c := range map[string]struct {
		secret  Secret
		masking map[uint64]Secret
	}{
		"no secret":           {Secret{}, map[uint64]Secret{1: good}},
		"a short secret":      {short, map[uint64]Secret{1: good}},
		"no masking key":      {good, nil},
		"a short masking key": {good, map[uint64]Secret{1: good, 2: short}},
		"epoch 0":             {good, map[uint64]Secret{0: good}},
	} {
		_, err := OpenKeyring(c.secret, c.masking)
		wantErr(t, name, err, ErrInvalid)
	}
}

func TestLineageSignature(t *testing.T) {
	k, other := testKeyring(t, 1), NewKeyring()
	msg := []byte("root and time")
	purposes := []Purpose{PurposeManifest, PurposeChallenge, PurposeReport, "manifest2", "mani"}
	for _, p := range purposes {
		s := k.Sign(p, msg)
		for _, q := range purposes {
			if err := s.Verify(k.Lineage(), q, msg); (err == nil) != (p == q) {
				t.Errorf("a signature for %s verifies for %s: %v", p, q, err)
			}
		}
		wantErr(t, "another lineage", s.Verify(other.Lineage(), p, msg), ErrLineage)
		wantErr(t, "another message", s.Verify(k.Lineage(), p, msg[1:]), ErrSignature)
	}
	for name, change := range map[string]func(*LineageSignature){
		"a flipped bit":     func(s *LineageSignature) { s.Signature[9] ^= 1 },
		"a short signature": func(s *LineageSignature) { s.Signature = s.Signature[:63] },
		"no signature":      func(s *LineageSignature) { s.Signature = nil },
		"a short key":       func(s *LineageSignature) { s.Public = s.Public[:31] },
		"no key":            func(s *LineageSignature) { s.Public = nil },
	} {
		s := k.Sign(PurposeManifest, msg)
		change(&s)
		wantErr(t, name, s.Verify(k.Lineage(), PurposeManifest, msg), ErrSignature)
	}
	s := k.Sign(PurposeManifest, msg)
	s.Public = other.Sign(PurposeManifest, msg).Public
	wantErr(t, "a foreign key", s.Verify(k.Lineage(), PurposeManifest, msg), ErrLineage)
}

// A purpose cannot be stretched into the message, nor be left out.
func TestPurposeEndsAtNUL(t *testing.T) {
	k := testKeyring(t, 1)
	for _, p := range []Purpose{"manifest\x00a", ""} {
		s := k.Sign(p, []byte("b"))
		wantErr(t, "signing for "+string(p), s.Verify(k.Lineage(), p, []byte("b")), ErrSignature)
	}
	s := k.Sign("manifest", []byte("a\x00b"))
	wantErr(t, "verifying for a stretched purpose", s.Verify(k.Lineage(), "manifest\x00a", []byte("b")), ErrSignature)
	if !ed25519.Verify(s.Public, []byte("hsmbackup v1 manifest\x00a\x00b"), s.Signature) {
		t.Error("what is signed is not what FORMAT.md says")
	}
}

func TestBirth(t *testing.T) {
	k := testKeyring(t, 1)
	want := aesRecord(t, k).Birth
	same := aesRecord(t, k)
	same.Set("attr/label", []byte("other"), at(9))
	same.Hidden["x"] = Register{Value: []byte{1}}
	same.Incarnation = 4
	if got := result(k.Birth(same))(t); got != want {
		t.Error("what may change enters the birth")
	}
	for name, change := range map[string]func(*Record){
		"reference": func(r *Record) { r.Ref++ }, "kind": func(r *Record) { r.Kind = KindPolicy }, "owner": func(r *Record) { r.Core.Owner = "bob" },
		"created": func(r *Record) { r.Core.Created.Time++ }, "material": func(r *Record) { r.Material.Reveal()[0] ^= 1 },
		"size": func(r *Record) { r.Core.Size = 16 }, "sensitive": func(r *Record) { r.Core.SensitiveAtBirth = false },
	} {
		r := aesRecord(t, k)
		change(r)
		if got := result(k.Birth(r))(t); got == want {
			t.Errorf("%s does not enter the birth", name)
		}
	}
	if got := result(NewKeyring().Birth(aesRecord(t, k)))(t); got == want {
		t.Error("two lineages have one birth")
	}
	_, err := k.Birth(&Record{})
	wantErr(t, "the birth of nothing", err, ErrInvalid)
}

// TestEpochsEnd: no epoch is so high that rotation wraps around to the one that
// tombstones have.
func TestEpochsEnd(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	secret, masking := testKeyring(t, 1).Export()
	for _, epoch := range []uint64{0, MaxEpoch + 1, 1<<64 - 1} {
		_, err := OpenKeyring(secret, map[uint64]Secret{epoch: masking[1]})
		wantErr(t, "an epoch out of bounds", err, ErrInvalid)
	}
	last := result(OpenKeyring(secret, map[uint64]Secret{MaxEpoch: masking[1]}))(t)
	_, err := last.Rotated(now)
	wantErr(t, "rotation after the last epoch", err, ErrInvalid)
	wantErr(t, "the last epoch", last.CheckEpochs(now), ErrFuture)
	_, err = testKeyring(t, 1).Rotated(time.Unix(1<<40, 0))
	wantErr(t, "rotation by a clock far off", err, ErrInvalid)
	k := testKeyring(t, 1)
	for range 3 {
		k = result(k.Rotated(now))(t)
		wantErr(t, "an epoch of this second", k.CheckEpochs(now), nil)
	}
	if n := len(k.Epochs()); n != 4 || slices.Max(k.Epochs()) > MaxEpoch {
		t.Errorf("epochs %v", k.Epochs())
	}
}
