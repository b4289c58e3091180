package backup

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage/file"
)

// A fixture is a repository that a released version wrote, with the identities
// that open it. It must restore for ever: a fixture is added with each change of
// the format, and none is ever written again.

var newFixture = flag.String("new-fixture", "", "write a new fixture of this name")

const fixtureFolder = "testdata/fixtures"

// fixtureExpectation is what restoring each snapshot of a fixture gives.
type fixtureExpectation struct {
	Lineage   hsm.Lineage
	CA        string
	Snapshots map[string]fixtureSnapshot
}

type fixtureSnapshot struct {
	Root   string
	Labels map[string]string // live keys
	Dead   []string
}

func TestFixturesRestore(t *testing.T) {
	if *newFixture != "" {
		writeFixture(t, filepath.Join(fixtureFolder, *newFixture))
	}
	folders, err := filepath.Glob(filepath.Join(fixtureFolder, "*"))
	if err != nil || len(folders) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	for _, f := range folders {
		t.Run(filepath.Base(f), func(t *testing.T) { checkFixture(t, f) })
	}
}

func checkFixture(t *testing.T, folder string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(folder, "expect.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want fixtureExpectation
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	b, err = os.ReadFile(filepath.Join(folder, "identities.txt"))
	if err != nil {
		t.Fatal(err)
	}
	ids, err := ParseIdentityFile(b)
	if err != nil {
		t.Fatal(err)
	}
	store, err := file.Open(filepath.Join(folder, "repository"))
	if err != nil {
		t.Fatal(err)
	}
	all, err := List(t.Context(), store)
	if err != nil || len(all) != len(want.Snapshots) {
		t.Fatalf("%d snapshots, %v", len(all), err)
	}
	for id, w := range want.Snapshots {
		o := OpenOptions{Identities: ids, Trust: &want.Lineage}
		r, err := Verify(t.Context(), store, id, LevelRoot, o)
		if err != nil || !r.OK() || r.Envelope != "opened" {
			t.Fatalf("verify %s: %+v, %v", id, r, err)
		}
		s, err := Open(t.Context(), store, id, o)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(w, fixtureState(t, s)); d != "" {
			t.Errorf("snapshot %s restores to something else: %s", id, d)
		}
		if _, ca, err := s.Recovery(t.Context()); err != nil || string(ca.Reveal()) != want.CA {
			t.Errorf("snapshot %s: recovery: %v", id, err)
		}
	}
}

// fixtureState restores a snapshot and describes the result.
func fixtureState(t *testing.T, s *Snapshot) fixtureSnapshot {
	t.Helper()
	r := restore(t, s)
	root := rootOf(t, r)
	out := fixtureSnapshot{Root: fmt.Sprintf("%x/%d", root.Sum, root.Count), Labels: map[string]string{}}
	for i := range r.Len() {
		ref, _ := r.At(i)
		if o, _ := r.Get(ref); o.Tombstone {
			out.Dead = append(out.Dead, ref.String())
			continue
		}
		label, _ := r.Label(ref)
		out.Labels[ref.String()] = label
	}
	return out
}

func writeFixture(t *testing.T, folder string) {
	t.Helper()
	if _, err := os.Stat(folder); err == nil {
		t.Fatalf("%s exists: fixtures are never written again", folder)
	}
	repository := filepath.Join(folder, "repository")
	if err := os.MkdirAll(repository, 0o755); err != nil {
		t.Fatal(err)
	}
	store, err := file.Open(repository)
	if err != nil {
		t.Fatal(err)
	}
	c := newTestCluster(t, 2)
	second, third := newX25519(t), newIdentity(t)
	c.custodians, c.threshold = append(c.custodians, second.recipient, third.recipient), 2
	refs := keys(c.hsm(0), 12)
	c.sync(t)
	mustTake(t, c, store, c.options())
	c.hsm(0).SetLabel(refs[0], "a new label")
	c.hsm(1).Destroy(refs[1])
	keys(c.hsm(1), 2)
	c.sync(t)
	mustTake(t, c, store, c.options())
	want := fixtureExpectation{Lineage: c.keyring.Lineage(), CA: string(c.ca.Reveal()), Snapshots: map[string]fixtureSnapshot{}}
	ids := []Identity{c.recipient.Identity, c.custodian.Identity, second.Identity}
	for _, id := range []string{"0000000001", "0000000002"} {
		s, err := Open(t.Context(), store, id, OpenOptions{Identities: ids})
		if err != nil {
			t.Fatal(err)
		}
		want.Snapshots[id] = fixtureState(t, s)
	}
	b, err := json.MarshalIndent(want, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	text := "# The identities of this fixture: of its packs, and two of three custodians.\n# They are public, and protect nothing.\n" +
		c.recipient.text() + "\n" + c.custodian.text() + "\n" + second.text() + "\n"
	for name, content := range map[string][]byte{"expect.json": append(b, '\n'), "identities.txt": []byte(text)} {
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
