package backup

import (
	"context"
	"fmt"
	"iter"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
	"github.com/hsmbackup/hsmbackup/storage"
)

// OpenOptions says how to open a snapshot.
type OpenOptions struct {
	// Identities decrypt packs and envelope: those of recipients read the packs,
	// those of enough custodians the envelope and with it every pack. Without any,
	// everything but Extract and Recovery works.
	Identities []Identity
	// Trust is the lineage that must have signed the manifest. Without it the
	// manifest is only known to be whole and signed by the lineage it names, which
	// whoever can write to the store may have made up.
	Trust *hsm.Lineage
	// Workers is how many packs are read at a time, each in memory; 0 means up
	// to 3, and fewer where packs are large.
	Workers int
	// Progress is called now and then while objects are extracted or verified,
	// never twice at a time.
	Progress func(Progress)
}

// Snapshot is one snapshot, open for reading. It is an hsm.Source and an
// hsm.Sketcher, and safe for concurrent use. It needs no closing.
type Snapshot struct {
	store    storage.Store
	manifest *format.Manifest
	id       format.Marked
	options  OpenOptions
	catalog  *catalog
	memo     memo
	only     map[format.Name]bool // packs; nil: all (Only)
}

var _ hsm.Sketcher = (*Snapshot)(nil)

// Open opens the snapshot with this id, or the newest if id is "". Its manifest
// is checked: ErrNoSnapshot, ErrCorrupt, ErrVersion, hsm.ErrSignature,
// hsm.ErrLineage. A damaged newest manifest is an error and not passed over:
// which snapshot to use instead is for the caller to say.
func Open(ctx context.Context, store storage.Store, id string, o OpenOptions) (*Snapshot, error) {
	sequence, err := resolve(ctx, store, id)
	if err != nil {
		return nil, err
	}
	m, stored, err := loadManifest(ctx, store, sequence)
	if err != nil {
		return nil, fmt.Errorf("open snapshot: %w", err)
	}
	if o.Trust != nil && m.Lineage != *o.Trust {
		return nil, fmt.Errorf("open snapshot %s: %w: it is of %s, want %s", format.ID(sequence), hsm.ErrLineage, m.Lineage, *o.Trust)
	}
	of := format.Marked{Sequence: sequence, Manifest: format.NameOf(stored)}
	s := &Snapshot{store: store, manifest: m, id: of, options: o}
	s.catalog = &catalog{store: store, lineage: m.Lineage, packs: m.Packs, index: s.index}
	return s, nil
}

func resolve(ctx context.Context, store storage.Store, id string) (uint64, error) {
	if id != "" {
		n, ok := format.ParseID(id)
		if !ok {
			return 0, fmt.Errorf("%w: %q: want up to ten digits", ErrNoSnapshot, id)
		}
		return n, nil
	}
	numbers, err := sequences(ctx, store)
	if err != nil {
		return 0, err
	}
	if len(numbers) == 0 {
		return 0, fmt.Errorf("%w: the repository holds none", ErrNoSnapshot)
	}
	return numbers[len(numbers)-1], nil
}

// ID returns the snapshot's id.
func (s *Snapshot) ID() string { return format.ID(s.manifest.Sequence) }

// Summary returns what the manifest says.
func (s *Snapshot) Summary() Summary { return summarize(s.manifest) }

// Settled tells whether restoring gives exactly Root. Otherwise the snapshot
// holds several states of some objects (Summary.Unsettled), which merge when
// they are restored.
func (s *Snapshot) Settled() bool { return len(s.manifest.Unsettled) == 0 }

// Lineage implements hsm.Source.
func (s *Snapshot) Lineage() hsm.Lineage { return s.manifest.Lineage }

// Objects implements hsm.Source, from the indexes, or where one is damaged from
// its pack if the identities decrypt it. ErrCorrupt.
func (s *Snapshot) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	if s.only == nil {
		return listing(ctx, s.catalog.layers)
	}
	return listing(ctx, func(ctx context.Context) ([]layer, error) { return s.catalog.sampled(ctx, s.only) })
}

// Only returns the snapshot as if it held those objects alone whose current
// state lies in the packs of a sample. Its Root and Cells are still those of the
// whole.
func (s *Snapshot) Only(sample Sample) *Snapshot {
	part := &Snapshot{store: s.store, manifest: s.manifest, id: s.id, options: s.options, catalog: s.catalog}
	if sample.Share > 0 && sample.Share < 1 {
		part.only = sample.choose(s.manifest.Packs)
	}
	return part
}

// FingerprintKeys implements hsm.Sketcher.
func (s *Snapshot) FingerprintKeys(ctx context.Context) (hsm.FingerprintKeys, error) {
	return s.manifest.Fingerprints, ctx.Err()
}

// Root implements hsm.Sketcher.
func (s *Snapshot) Root(ctx context.Context) (hsm.Root, error) { return s.manifest.Root, ctx.Err() }

// Cells implements hsm.Sketcher: from the manifest, and past its prefix from
// the indexes.
func (s *Snapshot) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return reconcile.CellsFrom(s.manifest.Fingerprints, s.manifest.Cells, from, func() iter.Seq2[hsm.Object, error] { return s.Objects(ctx) })
}
