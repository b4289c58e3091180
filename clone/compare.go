package clone

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// class is what an object of a snapshot means to a running cluster. Where the
// snapshot holds several states of one object, the highest class counts.
type class uint8

const (
	classKnown     class = iota // the cluster knows all that the snapshot does, and more
	classAdded                  // the cluster never heard of it
	classChanged                // live on both sides, and the snapshot has news
	classGone                   // live in the snapshot, destroyed in the cluster
	classTombstone              // destroyed in the snapshot, and not in the cluster
	classConflict               // one reference, two births
)

var classNames = [...]string{"known", "added", "changed", "destroyed", "tombstone", "conflict"}

func (c class) String() string { return classNames[c] }

// item is an object of a snapshot that differs from the cluster's.
type item struct {
	ref   hsm.KeyRef
	kind  hsm.Kind
	class class
	from  *hsm.Record // the snapshot's, clear parts
}

// known tells whether the cluster has all that the snapshot knows of it.
func (i *item) known() bool { return i.class == classKnown || i.class == classGone }

func (i *item) state() string {
	switch {
	case i.class == classConflict:
		return "another birth"
	case i.from.Destroyed:
		return "destroyed"
	case i.class == classChanged:
		return "in a newer state"
	}
	return "live"
}

func (i *item) label() string {
	if i.kind == hsm.KindKey {
		return i.from.Text("label")
	}
	return i.from.Core.Owner
}

// comparison counts what a snapshot and a cluster differ in.
type comparison struct {
	refs        []hsm.KeyRef // of the snapshot's objects that differ; ascending
	extra       int          // objects of which the snapshot knows nothing
	changed     int          // objects in different states
	sketchBytes int64
	roundTrips  int
}

// differs tells whether an object of the snapshot is in another state, or
// missing, on an HSM of the cluster.
func (c *comparison) differs(ref hsm.KeyRef) bool {
	_, found := slices.BinarySearch(c.refs, ref)
	return found
}

// compareBatch is how many objects are looked up in the cluster at a time.
const compareBatch = 512

// compare holds a snapshot against a running cluster of its lineage and calls
// each for every object of the snapshot that differs, once for every state the
// snapshot holds of it. It needs no custodian, only the identity of a recipient.
func compare(ctx context.Context, s *backup.Snapshot, live *cluster.Cluster, each func(*item)) (*comparison, error) {
	c, err := difference(ctx, s, live)
	if err != nil {
		return nil, fmt.Errorf("compare snapshot %s with the cluster: %w", s.ID(), err)
	}
	var batch []*item
	// One pass over the packs: a snapshot is not made for reading here and there.
	for m, err := range s.Extract(ctx, slices.Values(c.refs)) {
		if err != nil {
			return nil, fmt.Errorf("read snapshot %s: %w", s.ID(), err)
		}
		_, from, err := hsm.ParseMasked(m.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: snapshot %s: %s: %w", backup.ErrCorrupt, s.ID(), m.Ref, err)
		}
		batch = append(batch, &item{ref: m.Ref, kind: m.Kind, from: from})
		if len(batch) < compareBatch {
			continue
		}
		if err := classify(ctx, live, batch, each); err != nil {
			return nil, err
		}
		batch = nil
	}
	return c, classify(ctx, live, batch, each)
}

// difference compares with one HSM for each root there is among those of the
// cluster: while keys are being made, they differ.
func difference(ctx context.Context, s *backup.Snapshot, live *cluster.Cluster) (*comparison, error) {
	sources, _, err := live.Sources(ctx)
	if err != nil {
		return nil, err
	}
	c, roots := &comparison{}, map[hsm.Root]bool{}
	for _, h := range sources {
		root, err := h.Root(ctx)
		if err != nil {
			return nil, err
		}
		if roots[root] {
			continue
		}
		roots[root] = true
		d, err := reconcile.Diff(ctx, s, h)
		if err != nil {
			return nil, err
		}
		c.extra, c.changed = max(c.extra, len(d.Extra)), max(c.changed, len(d.Changed))
		c.sketchBytes += d.SketchBytes
		c.roundTrips += d.RoundTrips
		for _, e := range slices.Concat(d.Missing, d.Changed) {
			c.refs = append(c.refs, e.Ref)
		}
	}
	slices.Sort(c.refs)
	c.refs = slices.Compact(c.refs)
	return c, nil
}

// classify looks a batch up in the cluster, each object once: the batch holds an
// unsettled one in every state.
func classify(ctx context.Context, live *cluster.Cluster, batch []*item, each func(*item)) error {
	there := map[hsm.KeyRef]*hsm.Record{}
	asked := map[hsm.KeyRef]bool{}
	for _, i := range batch {
		asked[i.ref] = true
	}
	for m, err := range live.Extract(ctx, slices.Values(slices.Sorted(maps.Keys(asked)))) {
		if err != nil {
			return fmt.Errorf("read the cluster: %w", err)
		}
		_, r, err := hsm.ParseMasked(m.Bytes)
		if err != nil {
			return fmt.Errorf("read the cluster: %s: %w", m.Ref, err)
		}
		there[m.Ref] = r
	}
	for _, i := range batch {
		i.class = classOf(i.from, there[i.ref])
		each(i)
	}
	return nil
}

// classOf decides from the clear parts alone. What is sealed, as a user's
// password, is not seen; inserting merges it all the same.
func classOf(from, to *hsm.Record) class {
	switch {
	case to == nil && from.Destroyed:
		return classTombstone
	case to == nil:
		return classAdded
	}
	merged, err := hsm.Merge(from, to)
	switch {
	case err != nil, merged.Birth != to.Birth && !to.Destroyed: // a live key does not give way to a snapshot unasked
		return classConflict
	case merged.Destroyed && !to.Destroyed:
		return classTombstone
	case merged.Destroyed && !from.Destroyed:
		return classGone
	case sameClear(merged, to):
		return classKnown
	case merged.Destroyed:
		return classTombstone
	}
	return classChanged
}

// sameClear compares what of two records is visible without keys.
func sameClear(a, b *hsm.Record) bool {
	same := func(x, y hsm.Register) bool { return x.Stamp == y.Stamp && bytes.Equal(x.Value, y.Value) }
	return a.Birth == b.Birth && a.Standing == b.Standing && maps.EqualFunc(a.Rivals, b.Rivals, (*hsm.Rival).Equal) &&
		a.Incarnation == b.Incarnation && a.Destroyed == b.Destroyed && maps.EqualFunc(a.Registers, b.Registers, same)
}
