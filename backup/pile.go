package backup

import (
	"context"
	"maps"
	"slices"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Increments pile up: each brings a pack, most of them tiny. So packs are sorted
// into classes by size, and when a class is full its packs, and those of the
// classes below, are merged: the increment after that holds what is still current
// in them once more, in one pack, and names the old ones no more (FORMAT.md §2). A
// snapshot has at most mergeCount packs of each class, each object is stored again
// at most once a class, and the old packs go when prune finds that no snapshot
// names them.
var classes = [...]uint64{32 << 10, 512 << 10, 8 << 20}

// mergeCount is how many packs of one class are merged.
var mergeCount = 32

func classOf(size uint64) int {
	for i, limit := range classes {
		if size < limit {
			return i
		}
	}
	return len(classes)
}

// pile returns which packs are to be merged, by their place; nil if none.
func pile(packs []format.PackEntry) map[int]bool {
	var members [len(classes)][]int
	for i, p := range packs {
		if c := classOf(p.Size); c < len(classes) && !p.Alternate {
			members[c] = append(members[c], i)
		}
	}
	out := map[int]bool{}
	for c := len(classes) - 1; c >= 0; c-- {
		if len(members[c]) < mergeCount && len(out) == 0 {
			continue
		}
		for _, i := range members[c] {
			out[i] = true
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// merge replaces the small packs that have piled up by new ones, if there is
// something to write anyhow. The lead holds all that they hold, in the same or a
// later state, unsettled objects aside, and is asked for it again, since nobody
// here can open a pack.
func (t *take) merge(ctx context.Context, lead NamedSource) error {
	c := t.contents
	if t.parent == nil || !c.anything {
		return nil
	}
	old := pile(t.parent.Packs)
	if old == nil {
		return nil
	}
	layers, err := c.layers(ctx)
	if err != nil {
		return err
	}
	if t.spareUnsettled(old, layers); len(old) < 2 {
		return nil
	}
	current := map[hsm.KeyRef]hsm.Digest{}
	for i := range old {
		for _, o := range layers[i].items {
			if _, at, held := locate(layers, o.Ref); held && at == i {
				current[o.Ref] = o.Digest
			}
		}
	}
	packs, err := t.pack(ctx, lead, slices.Collect(maps.Keys(current)), false)
	if err != nil {
		return err
	}
	if err := c.add(ctx, packs, current); err != nil {
		return err
	}
	c.merged, c.repeated = old, uint64(len(current))
	c.covers = map[hsm.HSMID]bool{lead.ID: true} // it may have moved on meanwhile
	return nil
}

// spareUnsettled leaves the packs alone that hold a state of an unsettled object:
// such a state may be known to an HSM that is away, or to one that the lead has
// yet to learn from, and the lead's own would take its place.
func (t *take) spareUnsettled(old map[int]bool, layers []layer) {
	for _, v := range t.contents.open {
		for i := range old {
			if _, holds := layers[i].find(v.Ref); holds {
				delete(old, i)
			}
		}
	}
}

// unpiled returns the parent's packs without those that were merged, and without
// alternates that hold nothing unsettled any more.
func (c *contents) unpiled(packs []format.PackEntry) (out []format.PackEntry) {
	for i, p := range packs {
		if !c.merged[i] && !(p.Alternate && len(c.merged) > 0 && len(c.open) == 0) {
			out = append(out, p)
		}
	}
	return out
}
