package synckey

import (
	"context"
	"errors"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// insertsAhead is how many insertions of a phase are under way at a time, if no rate
// bounds them: over a long link it is its bandwidth then that bounds a run, and not
// its delay. They hold as many slices of objects; see Rate.full.
const insertsAhead = 8

// through carries the objects of a plan over, at its rate, and counts them. Within
// a phase insertions overtake each other, for merging knows no order; a phase begins
// when the one before is durable to its end, for keys need their users.
type through struct {
	p     *Plan
	pacer *pacer
	total int64
	slots chan struct{}

	held []hsm.MaskedObject // not on its way yet
	size int64

	running sync.WaitGroup
	mu      sync.Mutex // guards what follows, and the plan's Result
	done    int64
	err     error // the first one; no insertion begins after it
}

func newThrough(p *Plan) *through {
	ahead := insertsAhead
	if (p.pacer.rate != Rate{}) {
		ahead = 1
	}
	return &through{p: p, total: p.forth.steps.len() + p.back.steps.len(), pacer: p.pacer, slots: make(chan struct{}, ahead)}
}

// all inserts what one direction holds, phase by phase. Of a source that fails on the
// way, what it has handed over is inserted still.
func (t *through) all(ctx context.Context, f *flow) error {
	for at := range phases {
		if len(f.steps.refs[at]) == 0 {
			continue
		}
		err := t.phase(ctx, f, at)
		t.running.Wait()
		if err = errors.Join(err, t.failure()); err != nil {
			return err
		}
	}
	return nil
}

func (t *through) failure() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

func (t *through) phase(ctx context.Context, f *flow, at phase) error {
	for m, err := range t.p.objects(ctx, f, at) {
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
		if t.failure() != nil {
			return nil // all says so
		}
	}
	return t.flush(ctx, f)
}

// flush sends what is held on its way, once there is a slot.
func (t *through) flush(ctx context.Context, f *flow) error {
	held, size := t.held, t.size
	if t.held, t.size = nil, 0; len(held) == 0 {
		return nil
	}
	select {
	case t.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	err := t.pacer.next(ctx, len(held), size)
	if err != nil || t.failure() != nil {
		<-t.slots
		return err
	}
	t.running.Go(func() {
		defer func() { <-t.slots }()
		t.insert(ctx, f, held, size)
	})
	return nil
}

// insert inserts some objects. If we die before it returns, none, some or all of
// them are there, here and of each insertion that is under way beside it, and the
// next plan holds the rest; when it returns, all of them are durable on as many HSMs as
// the policy wants.
func (t *through) insert(ctx context.Context, f *flow, held []hsm.MaskedObject, size int64) {
	inserted, err := f.to.Insert(ctx, each(held...))
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.p.Result
	r.Applied += inserted.Added + inserted.Changed
	r.conflict(inserted.Conflicts...)
	r.ObjectBytes += size
	if err != nil {
		if t.err == nil {
			t.err = err
		}
		return
	}
	t.done += int64(len(held))
	if t.p.settled != nil {
		t.p.settled(held)
	}
	if report := t.p.options.Progress; report != nil {
		report(min(t.done, t.total), t.total, r.ObjectBytes)
	}
}

func each(objects ...hsm.MaskedObject) func(yield func(hsm.MaskedObject, error) bool) {
	return func(yield func(hsm.MaskedObject, error) bool) {
		for _, m := range objects {
			if !yield(m, nil) {
				return
			}
		}
	}
}
