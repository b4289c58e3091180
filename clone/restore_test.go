package clone

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft/mech"
	"github.com/hsmbackup/hsmbackup/cluster/keytest"
	"github.com/hsmbackup/hsmbackup/cluster/server"
)

// TestARestoredClusterIsTheSameAndAnother: same lineage, users, keys and root;
// another cluster, to which the source's certificates mean nothing.
func TestARestoredClusterIsTheSameAndAnother(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	east := v.newCluster(t, "east", 2)
	ref := east.key("alice", "hers", "bob")
	gone := east.key("alice", "gone")
	east.destroy("alice", gone)
	sealed, err := east.as("alice").Use(t.Context(), hsm.Use{Kind: hsm.UseEncrypt, Key: ref, Data: keytest.Question, Params: hsm.Params{Mechanism: "aes-gcm"}})
	if err != nil {
		t.Fatal(err)
	}
	s := east.snapshot(v)
	want, err := s.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, hsms := range []int{1, 5} {
		t.Run(fmt.Sprint(hsms), func(t *testing.T) {
			t.Parallel()
			var last, total int64
			r, err := Restore(t.Context(), s, v.spec(t, "west", hsms), func(done, of, bytes int64) { last, total = done, of })
			if err != nil {
				t.Fatal(err)
			}
			if !r.RootEqual || r.Root != hex.EncodeToString(want.Sum[:]) || uint64(r.Objects) != want.Count || last != total || total != int64(want.Count) {
				t.Errorf("restored %+v, progress %d of %d; want root %x of %d objects", r, last, total, want.Sum, want.Count)
			}
			if r.Profile.ID == east.profile.ID || r.Profile.Lineage != east.profile.Lineage || r.Profile.CA != east.profile.CA || len(r.Profile.HSMs) != hsms {
				t.Errorf("profile %+v of a clone of %+v", r.Profile, east.profile)
			}
			west := start(t, r.Profile)
			sources, missing, err := west.auto.Sources(t.Context())
			if err != nil || len(sources) != hsms || len(missing) != 0 {
				t.Fatalf("%d HSMs, missing %v, %v", len(sources), missing, err)
			}
			for _, h := range sources {
				if root, err := h.Root(t.Context()); err != nil || root != want {
					t.Errorf("%s has root %x, %v; want %x", h.ID, root.Sum, err, want.Sum)
				}
			}
			for _, user := range []string{"alice", "bob"} {
				got, err := west.as(user).Use(t.Context(), hsm.Use{Kind: hsm.UseDecrypt, Key: ref, Data: sealed, Params: hsm.Params{Mechanism: "aes-gcm"}})
				if err != nil || string(got) != string(keytest.Question) {
					t.Errorf("%s uses the key: %q, %v", user, got, err)
				}
			}
			if _, err := west.as("alice").Key(t.Context(), gone); !errors.Is(err, hsm.ErrDestroyed) {
				t.Errorf("the destroyed key: %v", err)
			}
			west.as("root")
			for name, path := range map[string]string{"appliance": east.profile.AppliancePath(), "client": east.profile.ClientPath()} {
				c, err := cluster.Open(t.Context(), west.profile, cluster.Credential{Identity: path})
				if err == nil {
					c.Close()
					t.Errorf("the clone admits the source's %s", name)
				}
			}
		})
	}
}

// mustBeEmpty demands that a refused restore left nothing, beside the folder
// either.
func mustBeEmpty(t *testing.T, spec server.Spec) {
	t.Helper()
	if entries, err := os.ReadDir(filepath.Dir(spec.Dir)); err != nil || len(entries) != 0 {
		t.Errorf("it left %v, %v", entries, err)
	}
}

// TestASmallCloneCanMakeKeys: a policy that asks for more HSMs or zones than the
// clone has is lowered in the clone's profile, and in no place that the lineage
// shares.
func TestASmallCloneCanMakeKeys(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	east := v.newCluster(t, "east", 1)
	wanted := hsm.Settings{MinCopies: 3, MinZones: 3, CheckOnUse: true}
	settings := wanted
	settings.Custodians, settings.Threshold = []string{v.identity.Recipient().String()}, 1
	east.change("root", hsm.Change{Kind: hsm.ChangeSettings, Settings: &settings})
	spec := v.spec(t, "west", 2)
	spec.Zones = []string{"one"}
	r, err := Restore(t.Context(), east.snapshot(v), spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := r.Profile; p.MinCopies != 2 || p.MinZones != 1 || !p.CheckOnUse {
		t.Errorf("profile: %d copies in %d zones, checked %t; want 2 in 1, checked", p.MinCopies, p.MinZones, p.CheckOnUse)
	}
	west := start(t, r.Profile)
	west.key("alice", "made-in-west")
	if s, err := west.auto.Settings(t.Context()); err != nil || s.MinCopies != wanted.MinCopies || s.MinZones != wanted.MinZones {
		t.Errorf("settings of the clone: %+v, %v; want the source's", s, err)
	}
}

func TestRestoreRefusesAndLeavesNothing(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	m := newMemory(t, v, 1)
	m.everyKey(t)
	s := v.take(t, m)
	open := func(o backup.OpenOptions) *backup.Snapshot {
		s, err := backup.Open(t.Context(), v.store, s.ID(), o)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	stranger := newVault(t).identity
	t.Run("no identity", func(t *testing.T) {
		spec := v.spec(t, "west", 1)
		if _, err := Restore(t.Context(), open(backup.OpenOptions{}), spec, nil); !errors.Is(err, backup.ErrIdentity) {
			t.Errorf("got %v, want ErrIdentity", err)
		}
		mustBeEmpty(t, spec)
	})
	t.Run("a stranger's identity", func(t *testing.T) {
		spec := v.spec(t, "west", 1)
		if _, err := Restore(t.Context(), open(backup.OpenOptions{Identities: []backup.Identity{stranger}}), spec, nil); !errors.Is(err, backup.ErrIdentity) {
			t.Errorf("got %v, want ErrIdentity", err)
		}
		mustBeEmpty(t, spec)
	})
	t.Run("a folder that is not empty", func(t *testing.T) {
		spec := v.spec(t, "west", 1)
		if err := os.MkdirAll(filepath.Join(spec.Dir, "precious"), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(t.Context(), s, spec, nil); !errors.Is(err, server.ErrFolder) {
			t.Errorf("got %v, want ErrFolder", err)
		}
		if _, err := os.Stat(filepath.Join(spec.Dir, "precious")); err != nil {
			t.Error(err)
		}
	})
	t.Run("a damaged pack", func(t *testing.T) {
		flipPack(t, v)
		spec := v.spec(t, "west", 1)
		if _, err := Restore(t.Context(), v.open(t, s.ID()), spec, nil); !errors.Is(err, backup.ErrCorrupt) {
			t.Errorf("got %v, want ErrCorrupt", err)
		}
		mustBeEmpty(t, spec)
	})
}

// flipPack flips a bit in the first pack of the vault's folder.
func flipPack(t *testing.T, v *vault) {
	t.Helper()
	root := fmt.Sprint(v.store)
	var packs []string
	err := filepath.WalkDir(filepath.Join(root, "packs"), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			packs = append(packs, path)
		}
		return err
	})
	if err != nil || len(packs) == 0 {
		t.Fatalf("packs %v, %v", packs, err)
	}
	b, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := errors.Join(os.Chmod(packs[0], 0o600), os.WriteFile(packs[0], b, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// TestAnInterruptedRestoreStartsOver: whatever stopped it, the same call does it.
func TestAnInterruptedRestoreStartsOver(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	m := newMemory(t, v, 1)
	m.everyKey(t)
	s := v.take(t, m)
	spec := v.spec(t, "west", 2)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Restore(ctx, s, spec, func(int64, int64, int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v, want Canceled", err)
	}
	mustBeEmpty(t, spec)
	r, err := Restore(t.Context(), s, spec, nil)
	if err != nil || !r.RootEqual {
		t.Fatalf("again: %+v, %v", r, err)
	}
	if _, err := Restore(t.Context(), s, spec, nil); !errors.Is(err, server.ErrFolder) {
		t.Errorf("a third time: %v, want ErrFolder", err)
	}
}

// unsettled takes a snapshot while two HSMs hold different states of one key.
func unsettled(t *testing.T, v *vault) (*memory, *backup.Snapshot, hsm.KeyRef) {
	t.Helper()
	m := newMemory(t, v, 2)
	m.everyKey(t)
	r := records(t, mech.Spec{Type: mech.AES, Size: 16})[0]
	r.Set(hsm.AttributeRegister("label"), []byte("before"), hsm.Stamp{Time: 1, HSM: m.ids[0]})
	masked := mask(t, m.keyring, r)
	insert(t, m.hsms[0], masked)
	insert(t, m.hsms[1], masked)
	m.hsms[0].SetLabel(r.Ref, "after")
	share := r.Clone()
	share.Set(hsm.ShareRegister("bob"), hsm.BoolValue(true), hsm.Stamp{Time: 2, HSM: m.ids[1]})
	insert(t, m.hsms[1], mask(t, m.keyring, share))
	s := v.take(t, m)
	if s.Settled() {
		t.Fatal("the snapshot is settled")
	}
	return m, s, r.Ref
}

// TestAnUnsettledSnapshotMerges: the clone knows what any HSM knew.
func TestAnUnsettledSnapshotMerges(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	m, s, ref := unsettled(t, v)
	r, err := Restore(t.Context(), s, v.spec(t, "west", 2), nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.RootEqual {
		t.Error("an unsettled snapshot restores to the root of its manifest")
	}
	west := start(t, r.Profile)
	for got, err := range west.auto.Extract(t.Context(), func(yield func(hsm.KeyRef) bool) { yield(ref) }) {
		if err != nil {
			t.Fatal(err)
		}
		rec, err := m.keyring.Unmask(got)
		if err != nil || rec.Text("label") != "after" || !rec.SharedWith("bob") {
			t.Errorf("label %q, shares %v, %v; want both HSMs' news", rec.Text("label"), rec.Shares(), err)
		}
	}
	used, err := UseAll(t.Context(), s)
	if err != nil || uint64(used.Keys) != s.Summary().Keys || len(used.Failures) != 0 {
		t.Errorf("used %+v, %v; the manifest counts %d keys", used, err, s.Summary().Keys)
	}
}
