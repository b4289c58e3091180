package synckey

import (
	"context"
	"fmt"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// held is what one cluster holds under one reference.
type held struct {
	// masked are the states that its HSMs are in: one in the common case, none
	// where the cluster does not hold the object.
	masked []hsm.MaskedObject
	// states are the clear parts of masked.
	states []*hsm.Record
	// record is what these merge to; nil where there is none.
	record *hsm.Record
	// uneven: the cluster's HSMs do not all hold the same.
	uneven bool
	// torn: they hold different births, and none of them says which one stands.
	torn bool
}

// read fetches what the cluster holds under the references.
func (l *look) read(ctx context.Context, refs []hsm.KeyRef) (map[hsm.KeyRef]*held, error) {
	views := l.views
	if len(views) == 1 {
		views = []hsm.Source{l.side} // all the same: any HSM will do, and another if one fails
	}
	seen, out := map[hsm.KeyRef]int{}, map[hsm.KeyRef]*held{}
	for _, v := range views {
		answered := map[hsm.KeyRef]bool{}
		for m, err := range v.Extract(ctx, slices.Values(refs)) {
			if err != nil {
				return nil, l.side.wrap(fmt.Errorf("read: %w", err))
			}
			if _, asked := slices.BinarySearch(refs, m.Ref); !asked {
				return nil, l.side.wrap(fmt.Errorf("%w: it answers with %s, which was not asked for", reconcile.ErrPeer, m.Ref))
			}
			if answered[m.Ref] { // a flood would have no end
				return nil, l.side.wrap(fmt.Errorf("%w: it answers twice with %s", reconcile.ErrPeer, m.Ref))
			}
			answered[m.Ref] = true
			if out[m.Ref] == nil {
				out[m.Ref] = &held{}
			}
			if err := out[m.Ref].add(m, l.side.Lineage()); err != nil {
				return nil, l.side.wrap(fmt.Errorf("object %s: %w", m.Ref, err))
			}
			seen[m.Ref]++
		}
	}
	for ref, h := range out {
		h.uneven = h.uneven || seen[ref] < len(views)
	}
	return out, nil
}

// add takes in the state of one more HSM.
func (h *held) add(said hsm.MaskedObject, lineage hsm.Lineage) error {
	m, r, err := hsm.ParseMasked(said.Bytes)
	switch {
	case err != nil:
		return err
	case m.Lineage != lineage:
		return fmt.Errorf("%w: it is of %s, its cluster of %s", hsm.ErrLineage, m.Lineage, lineage)
	case m.Ref != said.Ref:
		return fmt.Errorf("%w: it is %s by its bytes", reconcile.ErrPeer, m.Ref)
	}
	if slices.ContainsFunc(h.masked, func(o hsm.MaskedObject) bool { return o.Object == m.Object }) {
		return nil
	}
	h.masked, h.states = append(h.masked, m), append(h.states, r)
	merged := mergeAll(h.states)
	h.record, h.torn, h.uneven = merged[0], len(merged) > 1, len(h.masked) > 1
	return nil
}

// mergeAll merges states of one reference as far as they merge: to one record, unless
// there are births between which nobody has decided. It takes all together, since what
// settles two of them may be said by a third.
func mergeAll(states []*hsm.Record) []*hsm.Record {
	merged := slices.Clone(states)
	for i := 0; i < len(merged); i++ {
		for j := 0; j < i; j++ {
			if m, err := hsm.Merge(merged[j], merged[i]); err == nil {
				merged[j] = m
				merged, i = slices.Delete(merged, i, i+1), 0 // it may name more by now
				break
			}
		}
	}
	return merged
}

// same tells whether two clusters hold one and the same state on all HSMs.
func (h *held) same(o *held) bool {
	return !h.uneven && !o.uneven && len(h.masked) == 1 && len(o.masked) == 1 && h.masked[0].Object == o.masked[0].Object
}

func (h *held) size() (n int) {
	for _, m := range h.masked {
		n += len(m.Bytes)
	}
	return n
}
