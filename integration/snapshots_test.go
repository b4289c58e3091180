package integration

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/storage/file"
)

// backedUp is a cluster of one HSM with a full snapshot and an increment in a
// folder.
type backedUp struct {
	*testCluster
	store, identity string
	root            string
}

func newBackedUp(t *testing.T, m *machine) backedUp {
	t.Helper()
	identity, recipient := custodian(t, m, "custodian.txt")
	b := backedUp{newCluster(t, m, "east", 1, "--custodian", recipient), m.path("store"), identity, ""}
	for i := range 2 {
		b.generate(t, fmt.Sprintf("key-%d", i))
		var s struct {
			ID, Parent, Root string
			Objects          int
			New              int `json:"new_objects"`
			Coverage         struct{ Answered, Missing []string }
		}
		b.nobody().json(t, &s, "snapshot", "--to", b.store)
		if b.root = s.Root; s.ID == "" || (i == 0) != (s.Parent == "") || len(s.Coverage.Answered) != 1 || s.Objects == 0 || s.New == 0 {
			t.Fatalf("snapshot: %+v", s)
		}
	}
	return b
}

// restore is the command line that restores from a store into a folder.
func (b backedUp) restore(store, dir string) []string {
	return []string{"restore", "--from", store, "--identity", b.identity, "--name", "payments", "--region", "west", "--hsms", "1", "--dir", b.path(dir)}
}

func TestDamagedSnapshotsAreNamedAndNotRestored(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newMachine(t))
	damages := map[string]func(t *testing.T, path string){
		"missing":   func(t *testing.T, path string) { must(t, os.Remove(path)) },
		"truncated": func(t *testing.T, path string) { old := read(t, path); write(t, path, old[:len(old)-len(old)/3]) },
		"flipped":   flipBit,
		"emptied":   func(t *testing.T, path string) { write(t, path, "") },
	}
	for _, folder := range []string{"packs", "index", "envelopes", "manifests"} {
		for name, damage := range damages {
			t.Run(folder+" "+name, func(t *testing.T) {
				store := copyFolder(t, b.store)
				object := newestFile(t, store, folder)
				damage(t, filepath.Join(store, object))
				b.mustNotice(t, store, object, folder == "manifests" && name == "missing")
			})
		}
	}
}

// TestRestoreNamesOtherClusters: the newest snapshot of a store may be that of a clone.
func TestRestoreNamesOtherClusters(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newMachine(t))
	var plan struct{ Notes []string }
	b.json(t, &plan, append(b.restore(b.store, "west"), "--plan")...)
	if len(plan.Notes) != 0 {
		t.Errorf("of the only cluster: %q", plan.Notes)
	}
	b.ok(t, b.restore(b.store, "west")...)
	west := &testCluster{machine: b.machine, dir: b.path("west")}
	west.startAll(t)
	west.nobody().ok(t, "snapshot", "--to", b.store)
	b.json(t, &plan, append(b.restore(b.store, "third"), "--plan")...)
	if len(plan.Notes) != 1 || !strings.Contains(plan.Notes[0], "0000000003 is of") || !strings.Contains(plan.Notes[0], "the newest of them 0000000002") {
		t.Errorf("of a clone: %q", plan.Notes)
	}
	if out := b.ok(t, b.restore(b.store, "third")...); !strings.Contains(out, "note: snapshot 0000000003") {
		t.Errorf("restored: %s", out)
	}
	b.json(t, &plan, append(b.restore(b.store, "fourth"), "--plan", "--snapshot", "2")...)
	if len(plan.Notes) != 0 {
		t.Errorf("of a snapshot that was named: %q", plan.Notes)
	}
}

// TestCopyAllGoesOnAfterDamage: an old snapshot that cannot be copied is named, and
// keeps none of the others back.
func TestCopyAllGoesOnAfterDamage(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newMachine(t))
	m := b.nobody()
	m.ok(t, "snapshot", "--to", b.store, "--full")
	m.ok(t, "snapshot", "--to", b.store, "--full")
	m.refused(t, 2, "usage", "snapshots", "copy", "--from", b.store, "--to", "file://"+b.store, "--all")
	for _, damage := range []string{"pack", "manifest"} {
		store, to := copyFolder(t, b.store), b.path("copy-"+damage)
		victim := filepath.Join(store, "manifests", "0000000001")
		if damage == "pack" {
			victim = filepath.Join(store, newestFile(t, store, "packs"))
		}
		flipBit(t, victim)
		r := m.run(t, "snapshots", "copy", "--from", store, "--to", to, "--all", "--json")
		var v struct {
			Copies []struct{ ID string }
			Failed []string
		}
		decode(t, r.stdout, &v)
		if r.code != 1 || len(v.Failed) != 1 || len(v.Copies) != 3 || !strings.Contains(v.Failed[0], filepath.Base(victim)) {
			t.Errorf("%s: %v", damage, r)
		}
		if r := m.run(t, "snapshots", "copy", "--from", store, "--to", to, "--all"); r.code != 1 || !strings.Contains(r.stdout, "not copied: ") || !strings.Contains(r.stderr, "\nhint: ") {
			t.Errorf("%s, again: %v", damage, r)
		}
		m.ok(t, "snapshots", "verify", to, "--all", "--level", "root", "--identity", b.identity)
	}
}

// mustNotice demands that restore and verify fail and name the object; only a
// damaged index costs a restore nothing, since the pack holds what it said. A
// manifest that is missing makes a snapshot that never was: the older one is
// restored, and only asking for the newer one by its id fails.
func (b backedUp) mustNotice(t *testing.T, store, object string, neverWas bool) {
	t.Helper()
	id := filepath.Base(newestFile(t, b.store, "manifests"))
	into := fmt.Sprintf("west-%x", sha256.Sum256([]byte(store)))[:16]
	r := b.run(t, append(b.restore(store, into), "--snapshot", id)...)
	if strings.HasPrefix(object, "index") { // made again of its pack
		if r.code != 0 {
			t.Errorf("restore without %s: exit code %d: %v", object, r.code, r)
		}
	} else {
		b.mustRefuse(t, r, object, into)
	}
	for _, level := range []string{"hashes", "root"} {
		args := []string{"snapshots", "verify", store, id, "--level", level}
		if level == "root" {
			args = append(args, "--identity", b.identity)
		}
		v := b.run(t, args...)
		if want := map[bool]int{true: 1, false: 3}[neverWas]; v.code != want {
			t.Errorf("verify --level %s: exit code %d, want %d: %v", level, v.code, want, v)
		}
		if want := filepath.Base(object); !strings.Contains(v.stdout+v.stderr, want) {
			t.Errorf("verify --level %s does not name %s: %v", level, want, v)
		}
	}
}

// mustRefuse demands that a restore named what is damaged and left nothing.
func (b backedUp) mustRefuse(t *testing.T, r result, object, into string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
	if r.code != 1 || len(lines) != 2 || !strings.HasPrefix(lines[1], "hint: ") {
		t.Errorf("restore: exit code %d, want 1: %v", r.code, r)
	}
	if want := filepath.Base(object); !strings.Contains(lines[0], want) {
		t.Errorf("restore does not name %s: %v", want, r)
	}
	for _, path := range []string{into, into + ".new"} {
		if _, err := os.Stat(b.path(path)); err == nil {
			t.Errorf("the failed restore left %s", path)
		}
	}
}

func flipBit(t *testing.T, path string) {
	t.Helper()
	text := []byte(read(t, path))
	text[len(text)*2/3] ^= 0x10
	write(t, path, string(text))
}

// newestFile returns the file of a folder of the store that was written last,
// relative to the store.
func newestFile(t *testing.T, store, folder string) string {
	t.Helper()
	var newest string
	var at time.Time
	err := filepath.WalkDir(filepath.Join(store, folder), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && !info.ModTime().Before(at) {
			newest, at = path, info.ModTime()
		}
		return err
	})
	must(t, err)
	relative, err := filepath.Rel(store, newest)
	must(t, err)
	return relative
}

// copyFolder copies a store to a place where its files may be written, with the
// times they had.
func copyFolder(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	must(t, os.CopyFS(to, os.DirFS(from)))
	must(t, filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		relative, _ := filepath.Rel(from, path)
		info, err := d.Info()
		if err == nil {
			err = os.Chmod(filepath.Join(to, relative), 0o600)
		}
		if err == nil {
			err = os.Chtimes(filepath.Join(to, relative), info.ModTime(), info.ModTime())
		}
		return err
	}))
	return to
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRestoreIsRefused(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newMachine(t))
	other, _ := custodian(t, b.machine, "other.txt")
	restore := func(store, dir string, more ...string) []string { return append(b.restore(store, dir), more...) }

	t.Run("with the wrong identity", func(t *testing.T) {
		b.refused(t, 1, "backup", "restore", "--from", b.store, "--identity", other, "--region", "west", "--hsms", "1", "--dir", b.path("west"))
	})
	t.Run("without an identity", func(t *testing.T) {
		b.refused(t, 2, "usage", "restore", "--from", b.store, "--region", "west", "--hsms", "1", "--dir", b.path("west"))
	})
	t.Run("with an identity file that is none, or missing", func(t *testing.T) {
		write(t, b.path("garbage.txt"), "not an identity\n")
		b.refused(t, 1, "backup", "restore", "--from", b.store, "--identity", b.path("garbage.txt"), "--region", "west", "--dir", b.path("west"))
		b.refused(t, 1, "not_found", "restore", "--from", b.store, "--identity", b.path("nowhere.txt"), "--region", "west", "--dir", b.path("west"))
	})
	t.Run("from a folder that is missing, or holds no snapshot", func(t *testing.T) {
		b.refused(t, 1, "storage", restore(b.path("nowhere"), "west")...)
		must(t, os.Mkdir(b.path("empty"), 0o700))
		b.refused(t, 1, "backup", restore(b.path("empty"), "west")...)
		b.refused(t, 1, "backup", restore(b.store, "west", "--snapshot", "0000000099")...)
		b.refused(t, 1, "backup", restore(b.store, "west", "--at", "2001-01-01T00:00:00Z")...)
	})
	t.Run("of another lineage", func(t *testing.T) {
		stranger := createCluster(t, b.machine, "stranger", 1)
		p, err := profile.Load(stranger.dir)
		must(t, err)
		b.refused(t, 4, "lineage", restore(b.store, "west", "--lineage", p.Lineage.String())...)
	})
	t.Run("into a folder that is not empty", func(t *testing.T) {
		must(t, os.Mkdir(b.path("full"), 0o700))
		write(t, b.path("full", "precious"), "keep me")
		b.refused(t, 4, "folder", restore(b.store, "full")...)
		if read(t, b.path("full", "precious")) != "keep me" {
			t.Error("the restore touched a folder that is not its own")
		}
		b.refused(t, 4, "folder", append(b.restore(b.store, "east"), "--hsms", "1")...)
	})
	t.Run("no trace is left", func(t *testing.T) {
		for _, name := range []string{"west", "west.new"} {
			if _, err := os.Stat(b.path(name)); err == nil {
				t.Errorf("refused restores left %s", name)
			}
		}
	})
	t.Run("and a plan does nothing", func(t *testing.T) {
		var plan struct {
			Plan bool
			Root string
		}
		b.json(t, &plan, restore(b.store, "west", "--plan")...)
		if _, err := os.Stat(b.path("west")); err == nil || !plan.Plan || plan.Root != b.root {
			t.Errorf("plan %+v, west: %v", plan, err)
		}
	})
	t.Run("keys into a running cluster that it does not hold", func(t *testing.T) {
		into := []string{"restore", "--from", b.store, "--identity", b.identity, "--into", b.dir, "--json"}
		for _, more := range [][]string{{"--key", "0x0123456789abcdef"}, {"--filter", "attr.label=nowhere"}} {
			r := b.nobody().run(t, append(into, more...)...)
			var v struct {
				Added, Unchanged, Applied int
				Missing                   []string
			}
			decode(t, r.stdout, &v)
			if want := more[0] == "--key"; r.code != 3 || v.Added+v.Unchanged+v.Applied != 0 || want != slices.Equal(v.Missing, []string{"0x0123456789abcdef"}) {
				t.Errorf("%v: %v", more, r)
			}
		}
		if r := b.nobody().run(t, append(into, "--filter", "attr.label=key-0")...); r.code != 0 {
			t.Error(r)
		}
	})
	t.Run("a snapshot without recipients", func(t *testing.T) {
		lonely := createCluster(t, b.machine, "lonely", 1)
		lonely.startAll(t)
		lonely.nobody().refused(t, 2, "usage", "snapshot", "--to", b.path("lonely-store"))
		b.nobody().refused(t, 1, "backup", "snapshot", "--to", b.path("lonely-store"), "--recipient", "age1nonsense")
	})
}

// synced is what synckey reports.
type synced struct {
	Lineage        string
	Src, Dst       json.RawMessage
	Missing        int
	Changed        int
	DestroyedAtSrc int `json:"destroyed_at_src"`
	OnlyAtDst      int `json:"only_at_dst"`
	Conflicts      []string
	Blocked        []struct {
		Ref    string `json:"key_reference"`
		Reason string
	}
	Applied, Remaining int
	SketchBytes        int  `json:"sketch_bytes"`
	ObjectBytes        int  `json:"object_bytes"`
	RoundTrips         int  `json:"round_trips"`
	RootsEqual         bool `json:"roots_equal"`
	Seconds            float64
}

// TestScenario7SynckeyBetweenClusters: new keys pass; missing users, conflicts and
// clusters that are no clones are refused; a repetition changes nothing.
func TestScenario7SynckeyBetweenClusters(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newRaceMachine(t))
	b.ok(t, b.restore(b.store, "west")...)
	west := &testCluster{machine: b.machine, dir: b.path("west")}
	west.startAll(t)
	synckey := func(more ...string) []string {
		return append([]string{"synckey", "--src", b.dir, "--dst", west.dir}, more...)
	}
	var s synced

	t.Run("a clone is equal", func(t *testing.T) {
		b.json(t, &s, synckey("--dry-run")...)
		if !s.RootsEqual || s.Remaining != 0 || west.root(t) != b.testCluster.root(t) {
			t.Errorf("synckey of a fresh clone: %+v", s)
		}
	})
	t.Run("a dry run shows the difference and leaves it", func(t *testing.T) {
		b.generate(t, "later")
		r := b.run(t, synckey("--dry-run", "--json")...)
		decode(t, r.stdout, &s)
		if r.code != 3 || s.Missing != 1 || s.Applied != 0 || s.Remaining != 1 || s.RoundTrips != 1 {
			t.Errorf("%+v: %v", s, r)
		}
		west.alice().refused(t, 1, "not_found", "key", "show", "attr.label=later")
	})
	t.Run("a run applies it", func(t *testing.T) {
		b.json(t, &s, synckey()...)
		if s.Missing != 1 || s.Applied != 1 || s.Remaining != 0 || !s.RootsEqual {
			t.Errorf("%+v", s)
		}
		west.alice().ok(t, "key", "show", "attr.label=later")
	})
	t.Run("a repetition changes nothing", func(t *testing.T) {
		root := west.root(t)
		b.json(t, &s, synckey()...)
		if s.Missing != 0 || s.Applied != 0 || !s.RootsEqual || west.root(t) != root {
			t.Errorf("%+v", s)
		}
	})
	t.Run("masked object files", func(t *testing.T) { maskedFiles(t, b.testCluster, west) })
	t.Run("owners that are missing block their keys", func(t *testing.T) {
		b.createUser(t, "erin:erin-is-here-1")
		b.as("crypto-user", "erin:erin-is-here-1").ok(t, "key", "generate", "aes", "--label", "erins", "--cluster", b.dir)
		r := b.run(t, synckey("--json")...)
		decode(t, r.stdout, &s)
		if r.code != 3 || len(s.Blocked) != 1 || !strings.Contains(s.Blocked[0].Reason, "erin") {
			t.Errorf("%+v: %v", s, r)
		}
		b.json(t, &s, synckey("--users")...)
		west.as("crypto-user", "erin:erin-is-here-1").ok(t, "key", "show", "attr.label=erins", "--cluster", west.dir)
	})
	t.Run("clusters that are no clones are refused", func(t *testing.T) {
		stranger := newCluster(t, b.machine, "stranger", 1)
		stranger.generate(t, "strangers")
		b.refused(t, 4, "lineage", "synckey", "--src", stranger.dir, "--dst", west.dir)
		b.refused(t, 4, "lineage", "synckey", "--src", west.dir, "--dst", stranger.dir)
		stranger.alice().refused(t, 4, "lineage", "key", "insert-masked", "--in", b.path("key.masked"))
		west.alice().refused(t, 1, "not_found", "key", "show", "attr.label=strangers")
	})
	t.Run("a cluster and itself", func(t *testing.T) {
		b.refused(t, 2, "invalid", "synckey", "--src", west.dir, "--dst", west.dir)
	})
	t.Run("one reference, two births", func(t *testing.T) {
		ref := plantConflict(t, b, west, 0x0123456789abcdef)
		before := [2]string{b.testCluster.root(t), west.root(t)}
		r := b.run(t, synckey("--json", "--users")...)
		decode(t, r.stdout, &s)
		if r.code != 3 || !slices.Equal(s.Conflicts, []string{ref}) || s.RootsEqual {
			t.Errorf("%+v: %v", s, r)
		}
		if plain := b.run(t, synckey()...); plain.code != 3 || !strings.Contains(plain.stdout, ref) {
			t.Errorf("the conflict is not named: %v", plain)
		}
		if after := [2]string{b.testCluster.root(t), west.root(t)}; after != before {
			t.Errorf("a conflict changed a side: %v, %v", before, after)
		}
		decideConflict(t, b, west, ref)
	})
}

// decideConflict decides by hand which of two keys stands: a plan that changes
// nothing, the same plan carried out, and the same command once more.
func decideConflict(t *testing.T, b backedUp, west *testCluster, ref string) {
	t.Helper()
	resolve := func(more ...string) []string {
		return append([]string{"synckey", "resolve", "--src", b.dir, "--dst", west.dir, "--key", ref}, more...)
	}
	var r struct {
		Plan       string
		Kept       []string
		Resolved   bool
		RootsEqual bool `json:"roots_equal"`
		Births     []struct{ Birth, Fate, Owner string }
	}
	before := [2]string{b.testCluster.root(t), west.root(t)}
	shown := b.admin().run(t, resolve("--keep", "dst", "--keep-both", "--json")...)
	decode(t, shown.stdout, &r)
	if after := [2]string{b.testCluster.root(t), west.root(t)}; shown.code != 3 || len(r.Births) != 2 || r.Births[0].Fate != "kept under another reference" || r.Births[1].Fate != "stands" || after != before {
		t.Fatalf("the plan: %v, %+v", shown, r)
	}
	b.admin().refused(t, 4, "moved", resolve("--keep", "src", "--keep-both", "--plan", r.Plan, "--yes")...)
	if moved := b.admin().run(t, resolve("--keep", "src", "--plan", r.Plan, "--yes")...); !strings.Contains(moved.stderr, "without --plan") {
		t.Errorf("the hint repeats the plan that has moved: %v", moved)
	}
	b.admin().refused(t, 2, "usage", resolve()...)
	b.admin().refused(t, 2, "invalid", "synckey", "resolve", "--src", b.dir, "--dst", b.dir, "--key", ref, "--keep", "src")
	b.admin().refused(t, 1, "not_found", "synckey", "resolve", "--src", b.dir, "--dst", west.dir, "--key", "0x77", "--keep", "src")
	for range 2 { // the second time there is nothing to do
		b.admin().json(t, &r, resolve("--keep", "dst", "--keep-both", "--yes")...)
		if !r.Resolved || !r.RootsEqual {
			t.Fatalf("%+v", r)
		}
	}
	var s synced
	b.json(t, &s, "synckey", "--src", b.dir, "--dst", west.dir)
	if !s.RootsEqual || len(s.Conflicts) != 0 {
		t.Errorf("afterwards: %+v", s)
	}
}

// plantConflict puts two different keys under one reference into two clusters of
// a lineage, as only whoever holds the lineage's keys can, and returns the
// reference.
func plantConflict(t *testing.T, b backedUp, west *testCluster, ref hsm.KeyRef) string {
	t.Helper()
	ctx := context.Background()
	keyring := recoverKeyring(t, b)
	for i, c := range []*testCluster{b.testCluster, west} {
		client := openAppliance(t, c)
		masked, err := keyring.Mask(recordOf(t, keyring, ref, byte(i)))
		must(t, err)
		_, err = client.Insert(ctx, func(yield func(hsm.MaskedObject, error) bool) { yield(masked, nil) })
		must(t, err)
		must(t, client.Close())
	}
	return ref.String()
}

func recoverKeyring(t *testing.T, b backedUp) *hsm.Keyring {
	t.Helper()
	store, err := file.Open(b.store)
	must(t, err)
	ids, err := backup.ParseIdentityFile([]byte(read(t, b.identity)))
	must(t, err)
	s, err := backup.Open(context.Background(), store, "", backup.OpenOptions{Identities: ids})
	must(t, err)
	keyring, _, err := s.Recovery(context.Background())
	must(t, err)
	return keyring
}

// recordOf makes an AES key of alice's whose material depends on n.
func recordOf(t *testing.T, k *hsm.Keyring, ref hsm.KeyRef, n byte) *hsm.Record {
	t.Helper()
	at := hsm.Stamp{Time: uint64(time.Now().Add(-time.Minute).UnixMilli()) << 16, HSM: hsm.NewHSMID()}
	r := &hsm.Record{
		Kind: hsm.KindKey, Ref: ref, Registers: map[string]hsm.Register{}, Hidden: map[string]hsm.Register{},
		Core:     hsm.Core{Class: hsm.ClassSecret, Type: "aes", Size: 32, Origin: hsm.MethodImport, Created: at, Owner: "alice", SensitiveAtBirth: true, ExtractableAtBirth: true},
		Material: hsm.NewSecret(slices.Repeat([]byte{n + 1}, 32)),
	}
	r.Set(hsm.AttributeRegister("label"), []byte("twice"), at)
	birth, err := k.Birth(r)
	must(t, err)
	r.Birth = birth
	return r
}
