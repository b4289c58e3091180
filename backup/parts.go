package backup

import (
	"context"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// smallPack is the stored size below which packs are read together: an index
// and a decryption each are dear for a few objects.
const (
	smallPack = 1 << 20
	groupSize = 16 << 20
)

// Parts splits the snapshot for hsm.Loader: every settled object is in one part,
// in its current state; each part ascends by reference, reads a pack or a few small
// ones when it is ranged over, and holds no more than those in memory. What is not
// settled is in no part: Unsettled names it, and Extract yields it. The bytes of an
// object are valid until the next one is asked for. The errors are those of Extract; what
// is yielded before the first is good.
func (s *Snapshot) Parts(ctx context.Context) ([]iter.Seq2[hsm.MaskedObject, error], error) {
	layers, err := s.catalog.layers(ctx)
	if err != nil {
		return nil, err
	}
	open := map[hsm.KeyRef]bool{}
	for _, ref := range s.Unsettled() {
		open[ref] = true
	}
	plan := make([]wanted, len(layers))
	for o, at := range merged(layers) {
		if !open[o.Ref] {
			plan[at.layer].items = append(plan[at.layer].items, at.item)
		}
	}
	var parts []iter.Seq2[hsm.MaskedObject, error]
	var group []wanted
	var size uint64
	for i, w := range plan {
		stored := s.manifest.Packs[i].Size
		if w.layer = i; len(w.items) == 0 {
			continue
		}
		if stored >= smallPack {
			parts = append(parts, s.part(ctx, layers, w))
			continue
		}
		if group, size = append(group, w), size+stored; size >= groupSize {
			parts, group, size = append(parts, s.part(ctx, layers, group...)), nil, 0
		}
	}
	if len(group) > 0 {
		parts = append(parts, s.part(ctx, layers, group...))
	}
	return parts, nil
}

// PartsName names what Parts returns, all of it and in that order: another snapshot,
// or one that is split otherwise, has another name.
func (s *Snapshot) PartsName() string {
	return fmt.Sprintf("parts v1 %d %d of %s", smallPack, groupSize, s.id.Manifest)
}

// Unsettled lists the objects of which the snapshot holds several states.
func (s *Snapshot) Unsettled() (refs []hsm.KeyRef) {
	for _, v := range s.manifest.Unsettled {
		refs = append(refs, v.Ref)
	}
	slices.Sort(refs)
	return slices.Compact(refs)
}

// part yields what is wanted of one pack as it is decrypted, or of several after
// sorting it.
func (s *Snapshot) part(ctx context.Context, layers []layer, plan ...wanted) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		var held []hsm.MaskedObject
		j := &joiner{lineage: s.Lineage(), passing: len(plan) == 1}
		for _, w := range plan {
			more := true
			err := s.eachWanted(ctx, layers[w.layer].items, w, j, func(m hsm.MaskedObject) error {
				if len(plan) > 1 {
					held = append(held, m)
				} else if more = yield(m, nil); !more {
					return io.EOF
				}
				return nil
			})
			if !more {
				return
			}
			if err != nil {
				yield(hsm.MaskedObject{}, fmt.Errorf("snapshot %s: %w", s.ID(), err))
				return
			}
		}
		slices.SortFunc(held, func(a, b hsm.MaskedObject) int { return compareRefs(a.Ref, b.Ref) })
		for _, m := range held {
			if !yield(m, nil) {
				return
			}
		}
	}
}

// eachWanted calls f for the wanted objects of one pack, which j puts together, until it
// returns io.EOF.
func (s *Snapshot) eachWanted(ctx context.Context, items []hsm.Object, w wanted, j *joiner, f func(hsm.MaskedObject) error) error {
	buf := packBuffers.Get().(*[]byte)
	defer packBuffers.Put(buf)
	p := s.manifest.Packs[w.layer]
	if err := fetchPack(ctx, s.store, p, buf); err != nil {
		return err
	}
	rest := w.items
	err := s.eachBlock(ctx, *buf, func(first int, b *format.BlockData) error {
		for len(rest) > 0 && rest[0] < min(first+b.Len(), len(items)) {
			m, err := j.join(b.Columns(rest[0]-first), items[rest[0]])
			if err == nil {
				err = f(m)
			}
			if err != nil {
				return err
			}
			rest = rest[1:]
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if len(rest) == 0 { // whole and hashed already: the rest of it is not needed
			return io.EOF
		}
		return nil
	})
	switch {
	case err == io.EOF:
		return nil
	case err == nil && len(rest) > 0:
		err = fmt.Errorf("%w: it holds fewer objects than its index", ErrCorrupt)
	}
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%s: %w", format.PackPath(p.Pack), err)
	}
	return err
}
