package synckey

import (
	"context"
	"iter"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// owned lists of a source only the keys of one crypto user, tombstones
// included. It is for the side whose login sees everything while the other
// side's is a crypto user. It keeps no sketch, and reads the clear part of
// every key to tell its owner, a few hundred at a time.
type owned struct {
	hsm.Source
	owner string
}

// ownedBatch is how many keys are read at a time.
const ownedBatch = 256

// Objects implements hsm.Source.
func (s owned) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return func(yield func(hsm.Object, error) bool) {
		var batch []hsm.Object
		for o, err := range s.Source.Objects(ctx) {
			if err != nil {
				yield(hsm.Object{}, err)
				return
			}
			if o.Kind != hsm.KindKey {
				continue
			}
			if batch = append(batch, o); len(batch) < ownedBatch {
				continue
			}
			if !s.pass(ctx, batch, yield) {
				return
			}
			batch = batch[:0]
		}
		s.pass(ctx, batch, yield)
	}
}

// pass yields those of a batch that the user owns. False: nobody wants more.
func (s owned) pass(ctx context.Context, batch []hsm.Object, yield func(hsm.Object, error) bool) bool {
	refs := make([]hsm.KeyRef, len(batch))
	for i, o := range batch {
		refs[i] = o.Ref
	}
	mine := map[hsm.KeyRef]bool{}
	for m, err := range s.Extract(ctx, slices.Values(refs)) {
		if err != nil {
			yield(hsm.Object{}, err)
			return false
		}
		_, r, err := hsm.ParseMasked(m.Bytes)
		if err != nil {
			yield(hsm.Object{}, err)
			return false
		}
		mine[m.Ref] = r.Core.Owner == s.owner
	}
	for _, o := range batch {
		if mine[o.Ref] && !yield(o, nil) {
			return false
		}
	}
	return true
}
