package backup

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
)

// thief is whoever got hold of an appliance's credential once: they can have the
// lineage sign any manifest, and have no key.
type thief struct {
	identity
	c     *testCluster
	store storage.Store
}

// sign adds a snapshot after the newest one that is like it but for change.
func (f *thief) sign(t *testing.T, change func(*format.Manifest)) {
	t.Helper()
	m, _, err := loadManifest(t.Context(), f.store, 1)
	if err != nil {
		t.Fatal(err)
	}
	m.Sequence = 2
	change(m)
	body, err := format.EncodeManifestBody(m)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := format.EncodeManifest(body, f.c.keyring.Sign(hsm.PurposeManifest, body))
	if err != nil {
		t.Fatal(err)
	}
	if err := put(t.Context(), f.store, format.ManifestPath(2), stored); err != nil {
		t.Fatal(err)
	}
}

// envelope stores what the genuine envelope becomes by change.
func (f *thief) envelope(t *testing.T, change func(*format.Envelope)) format.Name {
	t.Helper()
	m, _, err := loadManifest(t.Context(), f.store, 1)
	if err != nil {
		t.Fatal(err)
	}
	e, err := loadEnvelope(t.Context(), f.store, m.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	change(&e)
	stored, err := format.EncodeEnvelope(e)
	if err != nil {
		t.Fatal(err)
	}
	name := format.NameOf(stored)
	if err := put(t.Context(), f.store, format.EnvelopePath(name), stored); err != nil {
		t.Fatal(err)
	}
	return name
}

// resign signs an envelope with the key of some lineage.
func resign(e *format.Envelope, k *hsm.Keyring) {
	part, err := e.SignedPart()
	if err != nil {
		panic(err)
	}
	e.Signature = k.Sign(hsm.PurposeEnvelope, part)
}

// TestStolenCredentialRedirectsNothing: a manifest that the lineage signed, for
// somebody who had an appliance's credential once, names an envelope that no HSM
// sealed. The next snapshot is full, says so, names an envelope of an HSM, and
// nothing of it is encrypted to the thief.
func TestStolenCredentialRedirectsNothing(t *testing.T) {
	for name, change := range map[string]func(f *thief, e *format.Envelope){
		"their recipient, signature kept": func(f *thief, e *format.Envelope) { e.PackRecipients = []string{f.recipient} },
		"their recipient, no signature": func(f *thief, e *format.Envelope) {
			e.PackRecipients, e.Signature = []string{f.recipient}, hsm.LineageSignature{}
		},
		"their recipient, their signature": func(f *thief, e *format.Envelope) {
			e.PackRecipients = []string{f.recipient}
			resign(e, hsm.NewKeyring())
		},
		"sealed to nobody": func(_ *thief, e *format.Envelope) { e.Sealed = []byte{1} },
	} {
		for _, claim := range []string{"recipients of theirs", "the right recipients"} {
			t.Run(name+", "+claim, func(t *testing.T) {
				c, store := newTestCluster(t, 1), newStore(t)
				o := c.options()
				o.Recipients = nil
				keys(c.hsm(0), 5)
				mustTake(t, c, store, o)
				f := &thief{newIdentity(t), c, store}
				forged := f.envelope(t, func(e *format.Envelope) { change(f, e) })
				f.sign(t, func(m *format.Manifest) {
					m.Envelope = forged
					if claim == "recipients of theirs" {
						m.Recipients = fingerprint([]string{f.recipient}, 1)
					}
				})
				keys(c.hsm(0), 3)
				r := mustTake(t, c, store, o)
				if r.ID != fmtID(3) || r.Parent != "" || !strings.Contains(r.FullReason, "no HSM of the lineage sealed") || len(r.Notes) == 0 {
					t.Fatalf("%+v", r)
				}
				f.readsNothing(t, r.ID, forged)
				if r := mustTake(t, c, store, o); !r.Unchanged {
					t.Fatalf("%+v", r)
				}
			})
		}
	}
}

// readsNothing checks that a snapshot names none of the thief's envelope, and that
// its packs are the custodians' to read and not the thief's.
func (f *thief) readsNothing(t *testing.T, id string, forged format.Name) {
	t.Helper()
	s, err := Open(t.Context(), f.store, id, OpenOptions{Identities: []Identity{f.Identity}})
	if err != nil {
		t.Fatal(err)
	}
	if s.manifest.Envelope == forged {
		t.Error("the snapshot names the thief's envelope")
	}
	for _, p := range s.manifest.Packs {
		stored, err := storage.ReadAll(t.Context(), f.store, format.PackPath(p.Pack), format.MaxStoredPack)
		if err != nil {
			t.Fatal(err)
		}
		if err := eachBlock(stored, []Identity{f.Identity}, func(int, *format.BlockData) error { return nil }); !errors.Is(err, ErrIdentity) {
			t.Errorf("the thief reads pack %s: %v", p.Pack, err)
		}
	}
	whole, err := Open(t.Context(), f.store, id, OpenOptions{Identities: []Identity{f.c.custodian.Identity}})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := drain(t.Context(), whole); err != nil || n != int(whole.manifest.Root.Count) {
		t.Errorf("the custodian reads %d of %d objects: %v", n, whole.manifest.Root.Count, err)
	}
}

// TestStolenCredentialReplaysAnEnvelope: the envelope is genuine and of other
// custodians than the manifest says.
func TestStolenCredentialReplaysAnEnvelope(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	keys(c.hsm(0), 5)
	mustTake(t, c, store, c.options())
	f := &thief{c.custodian, c, store} // was a custodian
	c.custodian = newIdentity(t)
	c.custodians = []string{c.custodian.recipient}
	f.sign(t, func(m *format.Manifest) { m.Custody = fingerprint(c.custodians, 1) })
	r := mustTake(t, c, store, c.options())
	if r.Parent != "" || !strings.Contains(r.FullReason, "other custodians") || len(r.Notes) == 0 {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, c, store, r.ID)
}

// TestSeriesIsNotRedirected: a series follows what others write, and asks as much
// of it.
func TestSeriesIsNotRedirected(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	o := c.options()
	o.Recipients = nil
	keys(c.hsm(0), 5)
	series := NewSeries(c, store, o)
	if _, err := series.Take(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := &thief{newIdentity(t), c, store}
	forged := f.envelope(t, func(e *format.Envelope) { e.PackRecipients = []string{f.recipient} })
	f.sign(t, func(m *format.Manifest) { m.Envelope, m.Recipients = forged, fingerprint([]string{f.recipient}, 1) })
	keys(c.hsm(0), 3)
	r, err := series.Take(t.Context())
	if err != nil || r.Parent != "" || r.ID != fmtID(3) || r.FullReason == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	f.readsNothing(t, r.ID, forged)
}

// TestEnvelopesOfOldSoftware: HSMs that do not sign envelopes yet. An increment is
// one, and each names an envelope that an HSM sealed for it; HSMs that sign take over.
func TestEnvelopesOfOldSoftware(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	c.reseal = func(stored []byte) []byte {
		e, err := format.DecodeEnvelope(stored)
		if err != nil {
			t.Fatal(err)
		}
		e.Signature, e.Custody = hsm.LineageSignature{}, [32]byte{}
		if stored, err = format.EncodeEnvelope(e); err != nil {
			t.Fatal(err)
		}
		return stored
	}
	for i, want := range []int{1, 2, 3, 3} { // the last but one by an HSM that signs
		if i == 2 {
			c.reseal = nil
		}
		keys(c.hsm(0), 3)
		if r := mustTake(t, c, store, c.options()); (r.Parent == "") != (i == 0) || len(r.Notes) > 0 || c.sealed != want {
			t.Fatalf("%d: %+v, sealed %d times", i, r, c.sealed)
		}
		mustVerify(t, c, store, "")
	}
}

// TestSealedForSomebodyElse: what the HSM sealed is not what was asked for.
func TestSealedForSomebodyElse(t *testing.T) {
	for name, change := range map[string]func(*testCluster, *format.Envelope){
		"another lineage": func(_ *testCluster, e *format.Envelope) { resign(e, hsm.NewKeyring()) },
		"other custodians": func(c *testCluster, e *format.Envelope) {
			e.Custody[0] ^= 1
			resign(e, c.keyring)
		},
	} {
		c, store := newTestCluster(t, 1), newStore(t)
		c.reseal = func(stored []byte) []byte {
			e, err := format.DecodeEnvelope(stored)
			if err != nil {
				t.Fatal(err)
			}
			change(c, &e)
			out, err := format.EncodeEnvelope(e)
			if err != nil || bytes.Equal(out, stored) {
				t.Fatal(err)
			}
			return out
		}
		if r, err := Take(t.Context(), c, store, c.options()); err == nil || len(names(t, store)) > 0 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
