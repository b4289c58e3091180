package backup

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/file"
)

func flip(b []byte, at int) []byte {
	out := bytes.Clone(b)
	out[at] ^= 1
	return out
}

func overwrite(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if b == nil {
		return
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// drain extracts everything.
func drain(ctx context.Context, s *Snapshot) (n int, err error) {
	var refs []hsm.KeyRef
	for o, err := range s.Objects(ctx) {
		if err != nil {
			return 0, err
		}
		refs = append(refs, o.Ref)
	}
	for _, err := range s.Extract(ctx, func(yield func(hsm.KeyRef) bool) {
		for _, r := range refs {
			if !yield(r) {
				return
			}
		}
	}) {
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// TestTakeHealsItself: a take whose parent is damaged writes a full snapshot.
func TestTakeHealsItself(t *testing.T) {
	for _, prefix := range []string{"packs/", "index/", "envelopes/", "manifests/"} {
		c := newTestCluster(t, 1)
		folder := t.TempDir()
		store, err := file.Open(folder)
		if err != nil {
			t.Fatal(err)
		}
		refs := keys(c.hsm(0), 5)
		mustTake(t, c, store, c.options())
		for _, name := range names(t, store) {
			if !strings.HasPrefix(name, prefix) {
				continue
			}
			b, err := os.ReadFile(filepath.Join(folder, name))
			if err != nil {
				t.Fatal(err)
			}
			overwrite(t, filepath.Join(folder, name), b[:len(b)-1])
		}
		c.hsm(0).SetLabel(refs[0], "changed")
		r := mustTake(t, c, store, c.options())
		if r.ID != "0000000002" || r.FullReason == "" && len(r.Notes) == 0 {
			t.Fatalf("%s: %+v", prefix, r)
		}
		mustVerify(t, c, store, r.ID)
		if all, err := List(t.Context(), store); err != nil || len(all) != 2 || (all[0].Err == nil) == (prefix == "manifests/") {
			t.Fatalf("%s: list: %v, %v", prefix, all, err)
		}
	}
}

func TestReplayedAndForgedManifestsAreRefused(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	keys(c.hsm(0), 5)
	mustTake(t, c, store, c.options())
	old, err := storage.ReadAll(t.Context(), store, "manifests/0000000001", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	// An old manifest under a new number.
	must(put(t.Context(), store, "manifests/0000000002", old))
	_, err = Open(t.Context(), store, "", OpenOptions{})
	wantErr(t, err, ErrCorrupt)
	// One that another lineage signed in this one's name.
	attacker := newTestCluster(t, 1)
	attacker.recipient, attacker.custodian, attacker.custodians = c.recipient, c.custodian, c.custodians
	keys(attacker.hsm(0), 5)
	forged := newStore(t)
	mustTake(t, attacker, forged, attacker.options())
	theirs, err := storage.ReadAll(t.Context(), forged, "manifests/0000000001", 1<<20)
	must(err)
	mine, sign := c.keyring.Lineage(), attacker.keyring.Lineage()
	claimed := bytes.Replace(theirs, sign[:], mine[:], 1)
	must(put(t.Context(), store, "manifests/0000000003", claimed))
	_, err = Open(t.Context(), store, "3", OpenOptions{Trust: &mine})
	wantErr(t, err, hsm.ErrSignature)
	// An honest one of another lineage.
	_, err = Open(t.Context(), forged, "", OpenOptions{Trust: &mine})
	wantErr(t, err, hsm.ErrLineage)
	// Takes pass over all of them and say so.
	keys(c.hsm(0), 1)
	if r := mustTake(t, c, store, c.options()); r.ID != "0000000004" || r.Parent != "0000000001" || len(r.Notes) != 2 {
		t.Fatalf("%+v", r)
	}
	mustVerify(t, c, store, "")
}

func TestWrongIdentity(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	keys(c.hsm(0), 5)
	mustTake(t, c, store, c.options())
	for _, ids := range [][]Identity{nil, {newIdentity(t).Identity}} {
		s, err := Open(t.Context(), store, "", OpenOptions{Identities: ids})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := drain(t.Context(), s); n != 0 || !errors.Is(err, ErrIdentity) || Hint(err) == "" {
			t.Fatalf("%d objects, %v", n, err)
		}
		_, err = Verify(t.Context(), store, "", LevelRoot, OpenOptions{Identities: ids})
		wantErr(t, err, ErrIdentity)
	}
	// A custodian reads the packs too, through the envelope.
	if r, err := Verify(t.Context(), store, "", LevelRoot, OpenOptions{Identities: []Identity{c.custodian.Identity}}); err != nil || !r.OK() || r.Unmasked != 5 {
		t.Fatalf("%+v, %v", r, err)
	}
	// The recipient of the packs is no custodian: keys stay sealed.
	s, _ := Open(t.Context(), store, "", OpenOptions{Identities: []Identity{c.recipient.Identity}})
	_, _, err := s.Recovery(t.Context())
	wantErr(t, err, ErrIdentity)
	if r, err := Verify(t.Context(), store, "", LevelRoot, OpenOptions{Identities: []Identity{c.recipient.Identity}}); err != nil || !r.OK() || r.Unmasked != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestNoSnapshot(t *testing.T) {
	store := newStore(t)
	for _, id := range []string{"", "1", "0000000001", "x", "-1", "12345678901"} {
		_, err := Open(t.Context(), store, id, OpenOptions{})
		wantErr(t, err, ErrNoSnapshot)
	}
}

func TestExtractSome(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	refs := keys(c.hsm(0), 3000)
	mustTake(t, c, store, c.options())
	c.hsm(0).SetLabel(refs[1], "changed")
	mustTake(t, c, store, c.options())
	s := c.open(t, store, "")
	want := []hsm.KeyRef{refs[1], refs[2999], refs[5], refs[5], hsm.NewKeyRef()}
	got := map[hsm.KeyRef]int{}
	for m, err := range s.Extract(t.Context(), func(yield func(hsm.KeyRef) bool) {
		for _, r := range want {
			if !yield(r) {
				return
			}
		}
	}) {
		if err != nil {
			t.Fatal(err)
		}
		got[m.Ref]++
		if o, _ := c.hsm(0).Get(m.Ref); o.Digest != m.Digest || !bytes.Equal(o.Bytes, m.Bytes) {
			t.Fatalf("%s is not the current state", m.Ref)
		}
	}
	if len(got) != 3 || got[refs[1]] != 1 || got[refs[5]] != 1 || got[refs[2999]] != 1 {
		t.Fatalf("got %v", got)
	}
	// Leaving early leaves no goroutine that blocks.
	for range s.Extract(t.Context(), func(yield func(hsm.KeyRef) bool) {
		for _, r := range refs {
			if !yield(r) {
				return
			}
		}
	}) {
		break
	}
}

// TestJunkManifestsDoNotUseTheNumbersUp: whoever may only add objects cannot
// stop snapshots with a manifest of the highest number there is.
func TestJunkManifestsDoNotUseTheNumbersUp(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	keys(c.hsm(0), 3)
	first := mustTake(t, c, store, c.options())
	for _, name := range []string{"manifests/9999999999", "manifests/0000000002"} {
		if err := put(t.Context(), store, name, []byte("junk")); err != nil {
			t.Fatal(err)
		}
	}
	keys(c.hsm(0), 3)
	second := mustTake(t, c, store, c.options())
	if first.ID != "0000000001" || second.ID != "0000000003" || second.Parent != first.ID {
		t.Errorf("snapshots %s, then %s of parent %s", first.ID, second.ID, second.Parent)
	}
	mustVerify(t, c, store, second.ID)
}

// TestNothingChangedIsNotSaidOfADamagedSnapshot: a snapshot that cannot be
// restored any more is replaced, although no key has changed.
func TestNothingChangedIsNotSaidOfADamagedSnapshot(t *testing.T) {
	for _, prefix := range []string{"packs/", "index/", "envelopes/"} {
		for _, missing := range []bool{false, true} {
			c := newTestCluster(t, 1)
			folder := t.TempDir()
			store, err := file.Open(folder)
			if err != nil {
				t.Fatal(err)
			}
			keys(c.hsm(0), 5)
			mustTake(t, c, store, c.options())
			for _, name := range names(t, store) {
				if !strings.HasPrefix(name, prefix) {
					continue
				}
				path := filepath.Join(folder, name)
				if missing {
					err = os.Remove(path)
				} else {
					err = os.Truncate(path, 40)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			r := mustTake(t, c, store, c.options())
			if r.Unchanged || r.ID != "0000000002" || r.FullReason == "" {
				t.Fatalf("%s missing %t: %+v", prefix, missing, r)
			}
			mustVerify(t, c, store, r.ID)
		}
	}
}
