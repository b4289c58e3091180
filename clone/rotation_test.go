package clone

import (
	"errors"
	"testing"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/synckey"
)

// TestRotationKeepsEverySnapshotRestorable rotates the masking key and changes
// the custodians between snapshots: the custodians of the end restore all of
// them, each to its root, with every key usable; and a clone made before the
// rotation is told what it lacks, and takes it over with custodians' consent.
func TestRotationKeepsEverySnapshotRestorable(t *testing.T) {
	v := newVault(t)
	east := v.newCluster(t, "east", 2)
	refs := []hsm.KeyRef{east.key("alice", "one")}
	snapshots := []*backup.Snapshot{east.snapshot(v)}
	west := v.restoreAndStart(t, snapshots[0], 1)
	for _, label := range []string{"two", "three"} {
		if m, err := east.as("root").RotateMaskingKey(t.Context()); err != nil || !m.Done() {
			t.Fatalf("%+v, %v", m, err)
		}
		refs = append(refs, east.key("alice", label))
		snapshots = append(snapshots, east.snapshot(v))
	}
	keys, err := east.auto.MaskingKeys(t.Context())
	if err != nil || len(keys.Common) != 3 || keys.Sealing != keys.Newest {
		t.Fatalf("%+v, %v", keys, err)
	}
	for i, s := range snapshots {
		clone := v.restoreAndStart(t, v.open(t, s.ID()), 1)
		root, err := clone.auto.Root(t.Context())
		if want, _ := s.Root(t.Context()); err != nil || root != want {
			t.Fatalf("snapshot %s: another root, %v", s.ID(), err)
		}
		for _, ref := range refs[:i+1] {
			if _, err := clone.as("alice").Use(t.Context(), hsm.Use{Kind: hsm.UseMAC, Key: ref, Data: []byte("x"), Params: hsm.Params{Mechanism: "aes-cmac"}}); err != nil {
				t.Errorf("snapshot %s: key %s: %v", s.ID(), ref, err)
			}
		}
	}
	// The clone from before cannot take what is sealed under keys it lacks …
	_, err = RestoreInto(t.Context(), snapshots[2], west.auto, IntoOptions{})
	if !errors.Is(err, hsm.ErrMaskingKey) {
		t.Fatalf("without the masking keys: %v", err)
	}
	r, err := synckey.Run(t.Context(), east.auto, west.auto, synckey.Options{})
	if !errors.Is(err, hsm.ErrMaskingKey) || r.Applied != 0 {
		t.Fatalf("synckey without the masking keys: %+v, %v", r, err)
	}
	if r, err := synckey.Run(t.Context(), west.auto, east.auto, synckey.Options{}); err != nil || r.Applied != 0 {
		t.Fatalf("the other way round: %+v, %v", r, err)
	}
	// … until custodians hand them over.
	keyring, ca, err := snapshots[2].Recovery(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := west.auto.AdoptMaskingKeys(t.Context(), hsm.EncodeRecovery(keyring, ca)); !errors.Is(err, hsm.ErrDenied) {
		t.Fatalf("an appliance: %v", err)
	}
	if m, err := west.as("root").AdoptMaskingKeys(t.Context(), hsm.EncodeRecovery(keyring, ca)); err != nil || !m.Done() || m.Newest != keys.Newest {
		t.Fatalf("%+v, %v", m, err)
	}
	if r, err := RestoreInto(t.Context(), snapshots[2], west.auto, IntoOptions{Filter: hsm.Filter{Refs: refs[1:2]}}); err != nil || r.Applied != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err := synckey.Run(t.Context(), east.auto, west.auto, synckey.Options{}); err != nil || r.Applied != 1 || !r.RootsEqual {
		t.Fatalf("%+v, %v", r, err)
	}
}
