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
// object that has been destroyed since is left out, so that nothing is destroyed
// that the plan did not show.
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
	through := &through{p: p, total: p.forth.steps.len() + p.back.steps.len(), pacer: p.pacer}
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

// through carries the objects of a plan over, at its rate, and counts them. It
// holds one slice of them: see Rate.full.
type through struct {
	p           *Plan
	pacer       *pacer
	done, total int64

	held []hsm.MaskedObject
	size int64
}

// all inserts what one direction holds. Of a source that fails on the way, what
// it has handed over is inserted still.
func (t *through) all(ctx context.Context, f *flow) error {
	for m, err := range t.p.objects(ctx, f) {
		if err != nil {
			return errors.Join(err, t.flush(ctx, f))
		}
		t.held, t.size = append(t.held, m), t.size+int64(len(m.Bytes))
		if !t.pacer.rate.full(len(t.held), t.size) {
			continue
		}
		if err := t.flush(ctx, f); err != nil {
			return err
		}
	}
	return t.flush(ctx, f)
}

// flush inserts what is held. If we die before it returns, none, some or all of
// it is there, and the next plan holds the rest; when it returns, all of it is
// durable on as many HSMs as the policy wants.
func (t *through) flush(ctx context.Context, f *flow) error {
	held, r := t.held, t.p.Result
	if len(held) == 0 {
		return nil
	}
	if err := t.pacer.next(ctx, len(held), t.size); err != nil {
		return err
	}
	inserted, err := f.to.Insert(ctx, func(yield func(hsm.MaskedObject, error) bool) {
		for _, m := range held {
			if !yield(m, nil) {
				return
			}
		}
	})
	r.Applied += inserted.Added + inserted.Changed
	r.conflict(inserted.Conflicts...)
	r.ObjectBytes += t.size
	if err != nil {
		return err
	}
	t.done += int64(len(held))
	if t.p.settled != nil {
		t.p.settled(held)
	}
	if report := t.p.options.Progress; report != nil {
		report(min(t.done, t.total), t.total, r.ObjectBytes)
	}
	t.held, t.size = held[:0], 0
	return nil
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
		if h := again[ref]; !ok && h != nil && (tombstones || !h.record.Destroyed && (p.options.Destroyed || f.steps.shown(ref, h.record))) {
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
