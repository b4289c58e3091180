package backup

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/storage"
)

// TestDamagedCopyRecordsAreNamed: whatever byte of a copy's record has changed, the list
// says which record it is and makes nothing of it; the copy itself stays as good as it was.
func TestDamagedCopyRecordsAreNamed(t *testing.T) {
	p := newPruned(t, 1)
	to := newStore(t)
	if _, err := Copy(t.Context(), p.store, to, "", CopyOptions{Source: "there", Tags: map[string]string{"why": "region"}}); err != nil {
		t.Fatal(err)
	}
	path := format.CopyPath(1)
	good, err := storage.ReadAll(t.Context(), to, path, format.MaxRecord)
	if err != nil {
		t.Fatal(err)
	}
	for at := range good {
		damageObject(t, to, path, flip(good, at))
		inv, err := TakeInventory(t.Context(), to)
		if err != nil || len(inv.Snapshots) != 1 || inv.Snapshots[0].State != StateReady {
			t.Fatalf("byte %d: %+v, %v", at, inv, err)
		}
		if c := inv.Snapshots[0].Copy; c != nil || !slices.ContainsFunc(inv.Notes, func(s string) bool { return strings.Contains(s, path) }) {
			t.Fatalf("byte %d: it is taken for %+v; the notes are %q", at, c, inv.Notes)
		}
	}
	damageObject(t, to, path, good)
	mustVerify(t, p.testCluster, to, "")
}

// TestForgedCopyRecordsAreNamed: a record that decodes, and is of another snapshot than it
// lies beside, or under another number.
func TestForgedCopyRecordsAreNamed(t *testing.T) {
	p := newPruned(t, 2)
	to := newStore(t)
	mustCopy(t, p.store, to, fmtID(2))
	for name, forge := range map[string]func(*format.CopyRecord){
		"another manifest": func(c *format.CopyRecord) { c.Manifest[0] ^= 1 },
		"another number":   func(c *format.CopyRecord) { c.Sequence = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			inv, err := TakeInventory(t.Context(), to)
			if err != nil {
				t.Fatal(err)
			}
			c := format.CopyRecord{Sequence: 2, Manifest: inv.Snapshots[0].id.Manifest, Source: "elsewhere", Begun: time.Now(), Software: "v1.2.3"}
			forge(&c)
			stored, err := format.EncodeCopy(c)
			if err != nil {
				t.Fatal(err)
			}
			damageObject(t, to, format.CopyPath(2), stored)
			if inv, err = TakeInventory(t.Context(), to); err != nil || inv.Snapshots[0].Copy != nil && inv.Snapshots[0].Copy.Source == "elsewhere" {
				t.Fatalf("%+v, %v", inv.Snapshots, err)
			}
			if !slices.ContainsFunc(inv.Notes, func(s string) bool { return strings.Contains(s, format.CopyPath(2)) }) {
				t.Fatalf("the notes are %q", inv.Notes)
			}
		})
	}
}

// TestCopyStopsAtADamagedRecord: a copy that was interrupted and whose record has been
// damaged since is not gone on with under another snapshot's name.
func TestCopyStopsAtADamagedRecord(t *testing.T) {
	p := newPruned(t, 1)
	to := newStore(t)
	mustCopy(t, p.store, to, "")
	if err := to.Delete(t.Context(), format.ManifestPath(1)); err != nil { // as if it had died before the last step
		t.Fatal(err)
	}
	path := format.CopyPath(1)
	good, err := storage.ReadAll(t.Context(), to, path, format.MaxRecord)
	if err != nil {
		t.Fatal(err)
	}
	damageObject(t, to, path, flip(good, len(good)-1))
	_, err = Copy(t.Context(), p.store, to, "", CopyOptions{Source: "there"})
	if wantErr(t, err, ErrCorrupt); !strings.Contains(err.Error(), path) {
		t.Fatal(err)
	}
	damageObject(t, to, path, good)
	mustCopy(t, p.store, to, "")
	mustVerify(t, p.testCluster, to, "")
}
