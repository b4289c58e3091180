package backup

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"math/bits"
	"slices"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// contents is the set of objects that a take has gathered so far: the parent's
// and what was added. It is an hsm.Sketcher, so that HSMs are compared with it.
// It is not safe for concurrent use, except that Diff may read it.
type contents struct {
	lineage  hsm.Lineage
	keys     hsm.FingerprintKeys
	parent   *catalog // the parent's packs; empty for a full snapshot
	added    []packed
	root     hsm.Root
	cells    []hsm.Cell
	live     map[hsm.Kind]uint64
	dead     uint64
	covers   map[hsm.HSMID]bool
	foreign  map[hsm.KeyRef]hsm.Digest // taken from others than the lead
	open     []format.Version          // unsettled
	anything bool                      // something was added, or settled
	merged   map[int]bool              // packs of the parent that the added ones replace, by their place
	repeated uint64                    // objects that were stored again for that
}

var _ hsm.Sketcher = (*contents)(nil)

// packed is a pack that is stored, with its index.
type packed struct {
	entry  format.PackEntry
	items  []hsm.Object
	epochs []uint64   // of the masking keys that it needs
	root   hsm.Root   // of the items alone
	cells  []hsm.Cell // of the items alone, format.MaxCells
}

func emptyContents(lineage hsm.Lineage, keys hsm.FingerprintKeys, hsms []NamedSource) *contents {
	c := &contents{
		lineage: lineage, keys: keys, parent: &catalog{}, cells: make([]hsm.Cell, format.MaxCells),
		live: map[hsm.Kind]uint64{}, covers: map[hsm.HSMID]bool{}, foreign: map[hsm.KeyRef]hsm.Digest{},
	}
	for _, h := range hsms { // every HSM holds all of nothing
		c.covers[h.ID] = true
	}
	return c
}

func contentsOf(m *format.Manifest, c *catalog) *contents {
	out := &contents{
		lineage: m.Lineage, keys: m.Fingerprints, parent: c, root: m.Root, cells: slices.Clone(m.Cells),
		live: maps.Clone(m.Live), dead: m.Tombstones, covers: map[hsm.HSMID]bool{}, foreign: map[hsm.KeyRef]hsm.Digest{}, open: slices.Clone(m.Unsettled),
	}
	if out.live == nil {
		out.live = map[hsm.Kind]uint64{}
	}
	for _, id := range m.Covers {
		out.covers[id] = true
	}
	return out
}

// layers returns the parent's and the added layers.
func (c *contents) layers(ctx context.Context) ([]layer, error) {
	parent, err := c.parent.layers(ctx)
	if err != nil {
		return nil, err
	}
	out := slices.Clone(parent)
	for _, p := range c.added {
		out = append(out, layer{items: p.items, alternate: p.entry.Alternate})
	}
	return out, nil
}

// add takes stored packs into the set. replaced holds the digests of those
// objects that the set held before.
func (c *contents) add(ctx context.Context, packs []packed, replaced map[hsm.KeyRef]hsm.Digest) error {
	if len(packs) == 0 {
		return nil
	}
	var before []layer
	if len(replaced) > 0 { // their kinds are needed, for the counts
		var err error
		if before, err = c.layers(ctx); err != nil {
			return err
		}
	}
	gone := &goneItems{contents: c, root: reconcile.NewRootState(c.keys), prefix: reconcile.NewPrefix(c.keys, len(c.cells))}
	for _, p := range packs {
		for _, o := range p.items {
			if digest, ok := replaced[o.Ref]; ok {
				if err := gone.take(before, o.Ref, digest); err != nil {
					return err
				}
			}
			c.count(o, 1)
		}
		c.root = addRoots(c.root, p.root)
		reconcile.JoinCells(c.cells, p.cells[:len(c.cells)])
	}
	c.root = addRoots(c.root, negative(gone.root.Root()))
	reconcile.JoinCells(c.cells, gone.prefix.Cells())
	c.added = append(c.added, packs...)
	c.anything = true
	return nil
}

// goneItems are those that a pack replaces.
type goneItems struct {
	contents *contents
	root     *reconcile.RootState // of them
	prefix   *reconcile.Prefix    // of their negatives
}

func (g *goneItems) take(before []layer, ref hsm.KeyRef, digest hsm.Digest) error {
	old, held := lookup(before, ref)
	if !held || old.Digest != digest {
		return fmt.Errorf("%w: the indexes do not hold %s as the sketch does", ErrCorrupt, ref)
	}
	g.root.Add(reconcile.ItemOf(old))
	g.prefix.Remove(reconcile.ItemOf(old))
	g.contents.count(old, ^uint64(0))
	return nil
}

// fromOthers notes what packs hold as taken from others than the lead.
func (c *contents) fromOthers(packs []packed) {
	for _, p := range packs {
		for _, o := range p.items {
			c.foreign[o.Ref] = o.Digest
		}
	}
}

// addAlternates takes packs that replace nothing.
func (c *contents) addAlternates(packs []packed) {
	c.added = append(c.added, packs...)
	c.anything = c.anything || len(packs) > 0
}

// count adds n, modulo 2^64, to what o counts as.
func (c *contents) count(o hsm.Object, n uint64) {
	if o.Tombstone {
		c.dead += n
		return
	}
	if c.live[o.Kind] += n; c.live[o.Kind] == 0 {
		delete(c.live, o.Kind)
	}
}

// addRoots adds two roots, which are sums modulo 2^256 (reconcile.RootState).
func addRoots(a, b hsm.Root) (sum hsm.Root) {
	var carry uint64
	for i := 24; i >= 0; i -= 8 {
		var limb uint64
		limb, carry = bits.Add64(binary.BigEndian.Uint64(a.Sum[i:]), binary.BigEndian.Uint64(b.Sum[i:]), carry)
		binary.BigEndian.PutUint64(sum.Sum[i:], limb)
	}
	sum.Count = a.Count + b.Count
	return sum
}

// negative returns what, added to r, gives the root of nothing.
func negative(r hsm.Root) (n hsm.Root) {
	var borrow uint64
	for i := 24; i >= 0; i -= 8 {
		var limb uint64
		limb, borrow = bits.Sub64(0, binary.BigEndian.Uint64(r.Sum[i:]), borrow)
		binary.BigEndian.PutUint64(n.Sum[i:], limb)
	}
	n.Count = -r.Count
	return n
}

// Lineage implements hsm.Source.
func (c *contents) Lineage() hsm.Lineage { return c.lineage }

// Objects implements hsm.Source.
func (c *contents) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return listing(ctx, c.layers)
}

// Extract implements hsm.Source; contents are only compared.
func (c *contents) Extract(context.Context, iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		yield(hsm.MaskedObject{}, fmt.Errorf("%w: a snapshot being taken is not read", hsm.ErrInvalid))
	}
}

// FingerprintKeys implements hsm.Sketcher.
func (c *contents) FingerprintKeys(context.Context) (hsm.FingerprintKeys, error) { return c.keys, nil }

// Root implements hsm.Sketcher.
func (c *contents) Root(context.Context) (hsm.Root, error) { return c.root, nil }

// Cells implements hsm.Sketcher.
func (c *contents) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return reconcile.CellsFrom(c.keys, c.cells, from, func() iter.Seq2[hsm.Object, error] { return c.Objects(ctx) })
}

// listing yields the current objects of the layers.
func listing(ctx context.Context, layers func(context.Context) ([]layer, error)) iter.Seq2[hsm.Object, error] {
	return func(yield func(hsm.Object, error) bool) {
		all, err := layers(ctx)
		if err != nil {
			yield(hsm.Object{}, err)
			return
		}
		n := 0
		for o := range merged(all) {
			if n++; n%1024 == 0 && ctx.Err() != nil {
				yield(hsm.Object{}, context.Cause(ctx))
				return
			}
			if !yield(o, nil) {
				return
			}
		}
	}
}

// sketch returns the prefix that the manifest keeps: twice as many cells as
// objects, from 64 to MaxCells, so that small clusters have small manifests.
func (c *contents) sketch(ctx context.Context) ([]hsm.Cell, error) {
	want := format.MaxCells
	if c.root.Count < format.MaxCells/2 {
		want = max(64, 1<<bits.Len64(2*c.root.Count-1))
	}
	if want <= len(c.cells) {
		return c.cells[:want], nil
	}
	for cell, err := range c.Cells(ctx, len(c.cells)) {
		if err != nil {
			return nil, err
		}
		if c.cells = append(c.cells, cell); len(c.cells) == want {
			break
		}
	}
	return c.cells, nil
}
