package backup

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/storage"
)

// closing is a store that does not give out some objects, and lists them.
type closing struct {
	storage.Store
	closed map[string]bool
}

func (c *closing) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if c.closed[name] {
		return nil, &storage.Error{Op: "get", Name: name, Location: "closing store", Kind: storage.ErrDenied}
	}
	return c.Store.Get(ctx, name, offset, length)
}

// TestUnreadableObjects closes each object of a repository in turn, as a file that may
// not be read: the snapshots that do not need it are listed and restored, those that do
// are restored where an index can be made again or another envelope serves, and else the
// object is named. It is never taken for damage, nor what cannot be checked for good.
func TestUnreadableObjects(t *testing.T) {
	s := newScene(t)
	store := &closing{Store: s.store}
	for _, victim := range s.all {
		t.Run(victim[:min(len(victim), 20)], func(t *testing.T) {
			store.closed = map[string]bool{victim: true}
			s.listUnreadable(t, store, victim)
			for id := range s.needs {
				if !slices.Contains(s.needs[id], victim) {
					if got := rootOf(t, restore(t, s.open(t, store, id))); got != s.roots[id] {
						t.Errorf("snapshot %s, which does not need the object, restores to another root", id)
					}
					mustVerify(t, s.testCluster, store, id)
					continue
				}
				_, err := Verify(t.Context(), store, id, LevelRoot, OpenOptions{Identities: s.identities()})
				s.wantUnreadable(t, err, victim)
				s.restoreUnreadable(t, store, id, victim)
			}
		})
	}
}

func (s *scene) wantUnreadable(t *testing.T, err error, victim string) {
	t.Helper()
	if !Unreadable(err) || damaged(err) || !strings.Contains(err.Error(), victim) || Hint(err) == "" {
		t.Errorf("want an error that says that %s is not given out: %v", victim, err)
	}
}

// listUnreadable lists with all but one object readable.
func (s *scene) listUnreadable(t *testing.T, store storage.Store, victim string) {
	t.Helper()
	all, err := List(t.Context(), store)
	if err != nil || len(all) != len(s.needs) {
		t.Fatalf("%d snapshots are listed, %v", len(all), err)
	}
	for _, one := range all {
		if format.ManifestPrefix+one.ID == victim {
			s.wantUnreadable(t, one.Err, victim)
		} else if one.Err != nil {
			t.Errorf("%s: %v", one.ID, one.Err)
		}
	}
	if strings.HasPrefix(victim, format.ManifestPrefix) {
		_, err := Delete(t.Context(), store, strings.TrimPrefix(victim, format.ManifestPrefix), "test")
		s.wantUnreadable(t, err, victim)
	}
}

// restoreUnreadable restores a snapshot that needs the closed object.
func (s *scene) restoreUnreadable(t *testing.T, store storage.Store, id, victim string) {
	t.Helper()
	kind, _, _ := strings.Cut(victim, "/")
	if kind == "manifests" {
		_, err := Open(t.Context(), store, id, OpenOptions{})
		s.wantUnreadable(t, err, victim)
		return
	}
	snapshot := s.open(t, store, id)
	if kind == "packs" {
		_, err := s.extract(t, snapshot, s.objects[id])
		s.wantUnreadable(t, err, victim)
		return
	}
	if kind == "envelopes" {
		if k, _, err := snapshot.Recovery(t.Context()); err != nil || k.Lineage() != s.keyring.Lineage() {
			t.Errorf("snapshot %s with the envelope of another: %v", id, err)
		}
	}
	if got := rootOf(t, restore(t, snapshot)); got != s.roots[id] {
		t.Errorf("snapshot %s without its %s restores to another root", id, kind)
	}
}

// TestNoEnvelopeReadable: where every envelope is closed that is said, and not that the
// identities are the wrong ones.
func TestNoEnvelopeReadable(t *testing.T) {
	s := newScene(t)
	store := &closing{Store: s.store, closed: map[string]bool{}}
	for _, name := range s.all {
		store.closed[name] = strings.HasPrefix(name, "envelopes/")
	}
	for id := range s.needs {
		_, _, err := s.open(t, store, id).Recovery(t.Context())
		s.wantUnreadable(t, err, "envelopes/")
	}
}

// TestNoManifestReadable: where none is given out it is no matter of single objects.
func TestNoManifestReadable(t *testing.T) {
	s := newScene(t)
	store := &closing{Store: s.store, closed: map[string]bool{}}
	for _, name := range s.all {
		store.closed[name] = strings.HasPrefix(name, format.ManifestPrefix)
	}
	_, err := List(t.Context(), store)
	s.wantUnreadable(t, err, format.ManifestPrefix)
	_, err = TakeInventory(t.Context(), store)
	s.wantUnreadable(t, err, format.ManifestPrefix)
}

// TestPruneBesideUnreadable: what a manifest needs that is not given out stays.
func TestPruneBesideUnreadable(t *testing.T) {
	p := newPruned(t, 4)
	p.full(t)
	p.store.tick(60 * 24 * time.Hour)
	p.full(t)
	p.store.tick(60 * 24 * time.Hour)
	for _, prefix := range objectPrefixes { // as a copy mends what was lost, long after the manifest
		for info, err := range p.store.List(t.Context(), prefix) {
			if err != nil {
				t.Fatal(err)
			}
			b, err := storage.ReadAll(t.Context(), p.store, info.Name, 1<<30)
			if err = errors.Join(err, p.store.Delete(t.Context(), info.Name), p.store.Put(t.Context(), info.Name, bytes.NewReader(b), int64(len(b)))); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.store.tick(60 * 24 * time.Hour)
	store := &closing{Store: p.store, closed: map[string]bool{format.ManifestPath(2): true}}
	for range 2 {
		plan, err := PlanPrune(t.Context(), store, PruneOptions{Policy: Policy{Last: 1}, Now: true, At: p.store.now})
		if err != nil {
			t.Fatal(err)
		}
		if plan.Held == "" || len(plan.Objects) > 0 {
			t.Errorf("objects are removed, and nobody knows what one of the snapshots needs: %v", plan.Objects)
		}
		if _, err := plan.Execute(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		p.store.tick(60 * 24 * time.Hour)
	}
	if n := count(t, p.store, format.ManifestPrefix); n != 2 {
		t.Errorf("%d manifests are left, want the newest and the one that cannot be read", n)
	}
	mustVerify(t, p.testCluster, p.store, "2") // readable again, and whole
}
