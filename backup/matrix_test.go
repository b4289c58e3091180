package backup

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/file"
)

// scene is a repository of three snapshots: a full one, an increment of it, and
// a full one with other custodians, so that each kind of object has one that
// several snapshots share, one that a single snapshot needs, and another valid
// one to be swapped with.
type scene struct {
	*testCluster
	folder  string
	store   storage.Store
	all     []string
	needs   map[string][]string                  // id to the names of the objects it needs
	objects map[string]map[hsm.KeyRef]hsm.Digest // id to what it holds
	roots   map[string]hsm.Root
}

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{testCluster: newTestCluster(t, 1), folder: t.TempDir(), needs: map[string][]string{}, objects: map[string]map[hsm.KeyRef]hsm.Digest{}, roots: map[string]hsm.Root{}}
	s.cheap(t)
	store, err := file.Open(s.folder)
	if err != nil {
		t.Fatal(err)
	}
	s.store = store
	refs := keys(s.hsm(0), 6)
	s.take(t, false)
	s.hsm(0).SetLabel(refs[0], "changed")
	s.hsm(0).Destroy(refs[1])
	keys(s.hsm(0), 3)
	s.take(t, false)
	second := newX25519(t)
	s.custodians = append(s.custodians, second.recipient)
	keys(s.hsm(0), 1)
	s.take(t, true)
	s.all = names(t, store)
	return s
}

func (s *scene) take(t *testing.T, full bool) {
	t.Helper()
	o := s.options()
	o.Full = full
	r := mustTake(t, s, s.store, o)
	m, _, err := loadManifest(t.Context(), s.store, uint64(len(s.needs)+1))
	if err != nil {
		t.Fatal(err)
	}
	need := []string{format.ManifestPath(m.Sequence), format.EnvelopePath(m.Envelope)}
	for _, p := range m.Packs {
		need = append(need, format.PackPath(p.Pack), format.IndexPath(p.Index))
	}
	s.needs[r.ID], s.roots[r.ID], s.objects[r.ID] = need, r.Root, map[hsm.KeyRef]hsm.Digest{}
	for o, err := range s.hsm(0).Objects(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		s.objects[r.ID][o.Ref] = o.Digest
	}
}

func (s *scene) read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.folder, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// another returns another valid object of the same kind.
func (s *scene) another(t *testing.T, name string) []byte {
	t.Helper()
	kind, _, _ := strings.Cut(name, "/")
	for _, other := range s.all {
		if other != name && strings.HasPrefix(other, kind+"/") {
			return s.read(t, other)
		}
	}
	t.Fatalf("no other object like %s", name)
	return nil
}

// matrix is every way in which an object is damaged.
func matrix(b, other []byte) map[string][]byte {
	line := bytes.IndexByte(b, '\n')
	return map[string][]byte{
		"missing":                nil,
		"empty":                  {},
		"one byte":               b[:1],
		"first line alone":       b[:line+1],
		"first line truncated":   b[:line],
		"halved":                 b[:len(b)/2],
		"last byte missing":      b[:len(b)-1],
		"one byte more":          append(bytes.Clone(b), 0),
		"a line more":            append(bytes.Clone(b), "\ngarbage\n"...),
		"itself twice":           append(bytes.Clone(b), b...),
		"bit of the magic":       flip(b, 3),
		"bit of the version":     flip(b, line-1),
		"bit of the line's end":  flip(b, line),
		"bit after the line":     flip(b, line+1),
		"bit of the first third": flip(b, len(b)/3),
		"bit of the middle":      flip(b, len(b)/2),
		"bit near the end":       flip(b, len(b)-17),
		"last bit":               flip(b, len(b)-1),
		"zeros":                  make([]byte, len(b)),
		"another valid one":      other,
		"a newer version":        bytes.Replace(b, []byte(" v1\n"), []byte(" v9\n"), 1),
	}
}

// TestDamageMatrix damages every object of a repository in every way. Each damage
// is found by verify without any key, which names the object and the reason;
// every snapshot that does not need the object restores to its root; and of the
// snapshots that need it every key that lies elsewhere is restored.
func TestDamageMatrix(t *testing.T) {
	s := newScene(t)
	for _, victim := range s.all {
		good, other := s.read(t, victim), s.another(t, victim)
		path := filepath.Join(s.folder, victim)
		for name, bad := range matrix(good, other) {
			t.Run(victim[:min(len(victim), 20)]+"/"+name, func(t *testing.T) {
				overwrite(t, path, bad)
				defer overwrite(t, path, good)
				for id := range s.needs {
					if slices.Contains(s.needs[id], victim) {
						s.checkDamaged(t, id, victim)
					} else if name == "missing" || name == "zeros" || name == "another valid one" {
						s.checkWhole(t, id) // does not read it, whatever the damage
					}
				}
			})
		}
	}
	for id := range s.needs {
		s.checkWhole(t, id)
	}
}

func (s *scene) checkWhole(t *testing.T, id string) {
	t.Helper()
	r, err := Verify(t.Context(), s.store, id, LevelRoot, OpenOptions{Identities: s.identities()})
	if err != nil || !r.OK() {
		t.Errorf("snapshot %s, which does not need the object: %v, %+v", id, err, r)
	}
	if got := rootOf(t, restore(t, s.open(t, s.store, id))); got != s.roots[id] {
		t.Errorf("snapshot %s, which does not need the object, restores to another root", id)
	}
}

func (s *scene) checkDamaged(t *testing.T, id, victim string) {
	t.Helper()
	kind, _, _ := strings.Cut(victim, "/")
	for _, level := range []Level{LevelHashes, LevelRoot} {
		r, err := Verify(t.Context(), s.store, id, level, OpenOptions{Identities: s.identities()})
		if kind == "manifests" {
			s.wantNamed(t, level, err, victim, id)
			continue
		}
		if err != nil || r.OK() || len(r.Problems) != 1 || r.Problems[0].Object != victim {
			t.Errorf("verify %s of %s: %v, %+v", level, id, err, r)
			continue
		}
		s.wantNamed(t, level, r.Err(), victim, id)
	}
	if kind != "manifests" {
		s.restoreRest(t, id, victim)
	}
}

// wantNamed demands an error of one line that names the object, or the id of a
// snapshot that is gone, says why, and has a hint.
func (s *scene) wantNamed(t *testing.T, level Level, err error, victim, id string) {
	t.Helper()
	gone := errors.Is(err, ErrNoSnapshot) && strings.Contains(err.Error(), id)
	known := errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion) || errors.Is(err, hsm.ErrSignature)
	if err == nil || !gone && (!known || !strings.Contains(err.Error(), victim)) || strings.Contains(err.Error(), "\n") || Hint(err) == "" {
		t.Errorf("verify %s of %s does not name %s: %v", level, id, victim, err)
	}
}

// restoreRest restores all of a damaged snapshot that does not depend on the
// victim: with a damaged envelope or index everything, with a damaged pack each
// key that lies elsewhere. Nothing wrong is ever restored.
func (s *scene) restoreRest(t *testing.T, id, victim string) {
	t.Helper()
	snapshot := s.open(t, s.store, id)
	if !strings.HasPrefix(victim, "packs/") {
		if got := rootOf(t, restore(t, snapshot)); got != s.roots[id] {
			t.Errorf("snapshot %s without %s restores to another root", id, victim)
		}
		return
	}
	lost := s.itemsOf(t, id, victim)
	if n, err := s.extract(t, snapshot, s.objects[id]); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), victim) || n > len(s.objects[id])-len(lost) {
		t.Errorf("extracted %d of all, %v", n, err)
	}
	rest := map[hsm.KeyRef]hsm.Digest{}
	for ref, digest := range s.objects[id] {
		if lost[ref] != digest {
			rest[ref] = digest
		}
	}
	if n, err := s.extract(t, snapshot, rest); n != len(rest) || err != nil {
		t.Errorf("extracted %d of %d keys that lie elsewhere, %v", n, len(rest), err)
	}
}

// itemsOf returns what the pack holds of the snapshot's current objects.
func (s *scene) itemsOf(t *testing.T, id, pack string) map[hsm.KeyRef]hsm.Digest {
	t.Helper()
	number, _ := format.ParseID(id)
	m, _, err := loadManifest(t.Context(), s.store, number)
	if err != nil {
		t.Fatal(err)
	}
	out := map[hsm.KeyRef]hsm.Digest{}
	for _, p := range m.Packs {
		if format.PackPath(p.Pack) != pack {
			continue
		}
		x, err := loadIndex(t.Context(), s.store, m.Lineage, p)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range x.Items {
			if s.objects[id][o.Ref] == o.Digest {
				out[o.Ref] = o.Digest
			}
		}
	}
	return out
}

// extract extracts the objects wanted and checks that each is what it was.
func (s *scene) extract(t *testing.T, from *Snapshot, want map[hsm.KeyRef]hsm.Digest) (n int, err error) {
	t.Helper()
	refs := func(yield func(hsm.KeyRef) bool) {
		for ref := range want {
			if !yield(ref) {
				return
			}
		}
	}
	for m, err := range from.Extract(context.Background(), refs) {
		if err != nil {
			return n, err
		}
		r, unmaskErr := s.keyring.Unmask(m)
		if unmaskErr != nil || r.Ref != m.Ref || want[m.Ref] != m.Digest {
			t.Errorf("a wrong object was extracted: %s, %v", m.Ref, unmaskErr)
		}
		n++
	}
	return n, nil
}

// TestACopyUnderAnotherNameIsFoundOrHarmless: an object duplicated under another
// name is refused where something reads that name, and otherwise changes nothing.
func TestACopyUnderAnotherNameIsFoundOrHarmless(t *testing.T) {
	s := newScene(t)
	for _, victim := range s.all {
		kind, _, _ := strings.Cut(victim, "/")
		name := map[string]string{
			"packs":     "packs/00/" + strings.Repeat("0", 64),
			"index":     "index/" + strings.Repeat("0", 64),
			"envelopes": "envelopes/" + strings.Repeat("0", 64),
			"manifests": "manifests/0000000009",
		}[kind]
		overwrite(t, filepath.Join(s.folder, victim+"x"), s.read(t, victim)) // no name of ours
		if err := os.MkdirAll(filepath.Dir(filepath.Join(s.folder, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		overwrite(t, filepath.Join(s.folder, name), s.read(t, victim))
		for id := range s.needs {
			s.checkWhole(t, id)
		}
		if kind == "manifests" { // a replay: it is the newest by name, and refused
			_, err := Open(t.Context(), s.store, "", OpenOptions{})
			wantErr(t, err, ErrCorrupt)
			s.wantNamed(t, LevelHashes, err, name, "0000000009")
		}
		r := mustTake(t, s, s.store, s.options())
		if !r.Unchanged && kind != "manifests" {
			t.Errorf("a copy of %s made a snapshot of nothing new: %+v", victim, r)
		}
		mustVerify(t, s.testCluster, s.store, r.ID)
		overwrite(t, filepath.Join(s.folder, victim+"x"), nil)
		overwrite(t, filepath.Join(s.folder, name), nil)
	}
}
