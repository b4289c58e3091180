package synckey

import (
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Apply inserts what the plan holds: into the destination, and with
// Options.Both into the source. Each insertion is a merge on every HSM, durable
// on as many as the cluster's policy wants when it returns. If we die half way,
// some objects are there and some are not; none is half there, and the same
// command does the rest.
//
// hsm.ErrMaskingKey, before anything is inserted, if the other side seals under a
// key that this one lacks.
//
// What did not fit into memory is read again, in the state it is in by then; an
// object that has been destroyed since is left out, with Options.Destroyed too, so that
// nothing is destroyed that the plan did not show and that its limit did not count.
//
// Before anything else, ErrLimit if the plan does more than its options allow, and
// ErrMoved if it is older than a few seconds and the clusters have moved in a way
// that matters to it.
func (p *Plan) Apply(ctx context.Context) error {
	if err := p.renew(ctx); err != nil {
		return err
	}
	if err := p.within(ctx); err != nil {
		return err
	}
	through := newThrough(p)
	for _, f := range []*flow{p.forth, p.back} {
		if f.steps.len() == 0 {
			continue
		}
		if err := checkMaskingKeys(ctx, f.from, f.to); err != nil {
			return err
		}
		if err := through.all(ctx, f); err != nil {
			return f.to.wrap(err)
		}
	}
	return nil
}

// mayDestroy tells whether tombstones may come in a phase: in those that the plan
// destroys in. An object that was live when the plan was made counts in no limit.
func mayDestroy(at phase) bool { return at == phaseGraves || at == phaseLeavers }

// objects yields what one phase of a direction inserts.
func (p *Plan) objects(ctx context.Context, f *flow, at phase) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		fetch := func(ctx context.Context, refs []hsm.KeyRef) (map[hsm.KeyRef]*held, error) {
			return p.fetch(ctx, f, refs)
		}
		err := readAhead(ctx, f.steps.refs[at], fetch, func(refs []hsm.KeyRef, again map[hsm.KeyRef]*held) error {
			return yieldBatch(f, mayDestroy(at), refs, again, yield)
		})
		if err != nil && !errors.Is(err, errEnough) {
			yield(hsm.MaskedObject{}, err)
		}
	}
}

// errEnough: nobody wants more.
var errEnough = errors.New("enough")

// yieldBatch yields the objects of a batch, those that were not kept as they were
// read again.
func yieldBatch(f *flow, tombstones bool, refs []hsm.KeyRef, again map[hsm.KeyRef]*held, yield func(hsm.MaskedObject, error) bool) error {
	for _, ref := range refs {
		kept, ok := f.steps.kept[ref]
		if h := again[ref]; !ok && h != nil && (tombstones || !h.record.Destroyed) && f.steps.shown(ref, h.record) {
			kept = h.masked
		}
		for _, m := range kept {
			if !yield(m, nil) {
				return errEnough
			}
		}
	}
	return nil
}

// fetch reads those of a batch again that were not kept.
func (p *Plan) fetch(ctx context.Context, f *flow, refs []hsm.KeyRef) (map[hsm.KeyRef]*held, error) {
	again := slices.DeleteFunc(slices.Clone(refs), func(ref hsm.KeyRef) bool {
		_, kept := f.steps.kept[ref]
		return kept
	})
	if len(again) == 0 {
		return nil, ctx.Err()
	}
	slices.Sort(again)
	if f == p.forth {
		return p.found.src.read(ctx, again)
	}
	return p.found.dst.read(ctx, again)
}
