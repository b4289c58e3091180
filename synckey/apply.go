package synckey

import (
	"context"
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
// What did not fit into memory is read again, in the state it is in by then; an
// object that has been destroyed since is left out, so that nothing is destroyed
// that the plan did not show.
func (p *Plan) Apply(ctx context.Context) error {
	through := &through{p: p, total: p.forth.steps.len() + p.back.steps.len()}
	for _, f := range []*flow{p.forth, p.back} {
		if f.steps.len() == 0 {
			continue
		}
		inserted, err := f.to.Insert(ctx, through.counted(p.objects(ctx, f)))
		p.Result.Applied += inserted.Added + inserted.Changed
		p.Result.conflict(inserted.Conflicts...)
		if err != nil {
			return f.to.wrap(err)
		}
	}
	return nil
}

// through counts what is on its way.
type through struct {
	p           *Plan
	done, total int64
}

func (t *through) counted(in iter.Seq2[hsm.MaskedObject, error]) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		for m, err := range in {
			if err == nil {
				t.p.Result.ObjectBytes += int64(len(m.Bytes))
			}
			if !yield(m, err) || err != nil {
				return
			}
			t.done++
			if report := t.p.options.Progress; report != nil {
				report(min(t.done, t.total), t.total, t.p.Result.ObjectBytes)
			}
		}
	}
}

// objects yields what one direction inserts, phase by phase.
func (p *Plan) objects(ctx context.Context, f *flow) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		for i, refs := range f.steps.refs {
			for batch := range slices.Chunk(refs, readBatch) {
				if !p.yieldBatch(ctx, f, p.mayDestroy(phase(i)), batch, yield) {
					return
				}
			}
		}
	}
}

// mayDestroy tells whether tombstones may come in a phase, though the object
// was live when the plan was made.
func (p *Plan) mayDestroy(at phase) bool {
	return at == phaseGraves || at == phaseLeavers || at == phaseKeys && p.options.Destroyed
}

// yieldBatch yields the objects of a batch. False: nothing is to follow.
func (p *Plan) yieldBatch(ctx context.Context, f *flow, tombstones bool, refs []hsm.KeyRef, yield func(hsm.MaskedObject, error) bool) bool {
	again, err := p.fetch(ctx, f, refs)
	if err != nil {
		yield(hsm.MaskedObject{}, err)
		return false
	}
	for _, ref := range refs {
		kept, ok := f.steps.kept[ref]
		if h := again[ref]; !ok && h != nil && (tombstones || !h.record.Destroyed) {
			kept = h.masked
		}
		for _, m := range kept {
			if !yield(m, nil) {
				return false
			}
		}
	}
	return true
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
