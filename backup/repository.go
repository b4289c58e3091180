package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
)

// put creates an object that is named by its content: if it exists, it is done.
func put(ctx context.Context, store storage.Store, path string, stored []byte) error {
	err := store.Put(ctx, path, bytes.NewReader(stored), int64(len(stored)))
	if errors.Is(err, storage.ErrExist) {
		return nil
	}
	return err
}

// putNamed is put of an object whose path ends in its hash.
func putNamed(ctx context.Context, store storage.Store, path string, stored []byte, name format.Name) error {
	err := store.Put(ctx, path, storage.NewHashed(stored, name), int64(len(stored)))
	if errors.Is(err, storage.ErrExist) {
		return nil
	}
	return err
}

// fetch reads an object that is named by its content and checks the name.
func fetch(ctx context.Context, store storage.Store, path string, name format.Name, limit int64) ([]byte, error) {
	stored, err := storage.ReadAll(ctx, store, path, limit)
	if errors.Is(err, storage.ErrTooLarge) {
		return nil, fmt.Errorf("%w: %s: more than %d bytes", ErrCorrupt, path, limit)
	}
	if err != nil {
		return nil, missing(err)
	}
	if format.NameOf(stored) != name {
		return nil, fmt.Errorf("%w: %s: its content has another hash than its name", ErrCorrupt, path)
	}
	return stored, nil
}

// sequences lists the numbers of all manifests, ascending.
func sequences(ctx context.Context, store storage.Store) ([]uint64, error) {
	var out []uint64
	for info, err := range store.List(ctx, format.ManifestPrefix) {
		if err != nil {
			return nil, err
		}
		if n, ok := format.ParseManifestPath(info.Name); ok {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

// loadManifest reads one manifest and checks that it was signed, by the lineage
// it names, for the number it lies under.
func loadManifest(ctx context.Context, store storage.Store, sequence uint64) (*format.Manifest, []byte, error) {
	path := format.ManifestPath(sequence)
	stored, err := storage.ReadAll(ctx, store, path, format.MaxManifest)
	switch {
	case errors.Is(err, storage.ErrNotExist):
		return nil, nil, fmt.Errorf("%w: %s: %w", ErrNoSnapshot, format.ID(sequence), err)
	case errors.Is(err, storage.ErrTooLarge):
		return nil, nil, fmt.Errorf("%w: %s: more than %d bytes", ErrCorrupt, path, format.MaxManifest)
	case err != nil:
		return nil, nil, err
	}
	m, err := openManifest(stored, sequence)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, stored, nil
}

func openManifest(stored []byte, sequence uint64) (*format.Manifest, error) {
	m, body, signature, err := format.DecodeManifest(stored)
	if err != nil {
		return nil, err
	}
	if err := signature.Verify(m.Lineage, hsm.PurposeManifest, body); err != nil {
		if errors.Is(err, hsm.ErrLineage) { // the key is not that of the lineage the body claims
			return nil, fmt.Errorf("%w: forged: %w", hsm.ErrSignature, err)
		}
		return nil, err
	}
	if m.Sequence != sequence {
		return nil, fmt.Errorf("%w: it is the manifest of snapshot %s, replayed under another number", ErrCorrupt, format.ID(m.Sequence))
	}
	return m, nil
}

// Summary is one line of a listing.
type Summary struct {
	ID          string            `json:"id"`
	Parent      string            `json:"parent,omitempty"` // "" for a full snapshot
	Started     time.Time         `json:"started"`
	Created     time.Time         `json:"created"`
	Lineage     hsm.Lineage       `json:"lineage"`
	Cluster     hsm.ClusterID     `json:"cluster_id"`
	ClusterName string            `json:"cluster"`
	Region      string            `json:"region"`
	Root        hsm.Root          `json:"-"`
	Objects     uint64            `json:"objects"` // tombstones included
	Keys        uint64            `json:"keys"`
	Tombstones  uint64            `json:"tombstones"`
	Packs       int               `json:"packs"`
	Bytes       uint64            `json:"bytes"` // of all packs it needs
	Answered    []hsm.HSMID       `json:"answered"`
	Missing     []hsm.HSMID       `json:"missing"`
	Unsettled   int               `json:"unsettled"`
	Tags        map[string]string `json:"tags,omitempty"`
	Version     string            `json:"version"`
	Err         error             `json:"-"` // the manifest is damaged, forged or cannot be read; only ID is known
}

// List returns all snapshots, ascending by id. A manifest that is damaged,
// forged, too new or Unreadable is listed with Err set, so that the others stay in
// sight; if all are Unreadable that is the error.
func List(ctx context.Context, store storage.Store) ([]Summary, error) {
	numbers, err := sequences(ctx, store)
	if err != nil {
		return nil, err
	}
	read := make([]*Summary, len(numbers))
	err = parallel(ctx, readers, len(numbers), func(ctx context.Context, i int) (err error) {
		read[i], err = readSummary(ctx, store, numbers[i])
		return err
	})
	if err == nil {
		err = allUnreadable(read, func(s *Summary) error { return s.Err })
	}
	if err != nil {
		return nil, err
	}
	out := make([]Summary, 0, len(numbers))
	for _, s := range read {
		if s != nil {
			out = append(out, *s)
		}
	}
	return out, nil
}

// readSummary reads one manifest: nil if it is gone, with Err if it does not open.
func readSummary(ctx context.Context, store storage.Store, n uint64) (*Summary, error) {
	m, _, err := loadManifest(ctx, store, n)
	switch {
	case errors.Is(err, ErrNoSnapshot): // deleted meanwhile
		return nil, nil
	case damaged(err), errors.Is(err, hsm.ErrSignature), Unreadable(err):
		return &Summary{ID: format.ID(n), Err: err}, nil
	case err != nil:
		return nil, err
	}
	s := summarize(m)
	return &s, nil
}

func summarize(m *format.Manifest) Summary {
	s := Summary{
		ID: format.ID(m.Sequence), Started: m.Started, Created: m.Created, Lineage: m.Lineage, Cluster: m.Cluster, ClusterName: m.ClusterName,
		Region: m.Region, Root: m.Root, Objects: m.Root.Count, Keys: m.Live[hsm.KindKey], Tombstones: m.Tombstones, Packs: len(m.Packs),
		Answered: m.Answered, Missing: m.Missing, Unsettled: len(m.Unsettled), Tags: m.Tags, Version: m.Software,
	}
	if m.Parent != 0 {
		s.Parent = format.ID(m.Parent)
	}
	for _, p := range m.Packs {
		s.Bytes += p.Size
	}
	return s
}

// FindAt returns the id of the newest of these snapshots, as List returns them, that was begun at or before t.
// ErrNoSnapshot if there is none. ErrCorrupt, ErrVersion, hsm.ErrSignature or what Unreadable knows if a manifest
// that does not open may be that one, since it lies between it and the first that was begun
// later: an older snapshot would restore less than was asked for.
func FindAt(all []Summary, t time.Time) (string, error) {
	var unknown *Summary
	for _, s := range slices.Backward(all) {
		switch {
		case s.Err != nil:
			unknown = &s
		case s.Started.After(t):
			unknown = nil // and what came after it is later still
		case unknown != nil:
			return "", fmt.Errorf("snapshot %s may be the newest begun at or before %s, and does not open: %w; %s is the newest before it", unknown.ID, t.Format(time.RFC3339), unknown.Err, s.ID)
		default:
			return s.ID, nil
		}
	}
	if unknown != nil {
		return "", fmt.Errorf("snapshot %s may have been begun at or before %s, and does not open: %w", unknown.ID, t.Format(time.RFC3339), unknown.Err)
	}
	return "", fmt.Errorf("%w: none was begun at or before %s", ErrNoSnapshot, t.Format(time.RFC3339))
}
