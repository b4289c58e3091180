package server

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// tolerant takes what it can of what a peer has: objects that are refused, of an HSM
// whose clock is hours ahead for instance, must not keep from it what comes with them.
type tolerant struct {
	hsm.SketchReplica
	known *refusals
	info  func(context.Context) (hsm.Info, error) // of the HSM that takes them

	mu    sync.Mutex
	first error
}

// refusal returns why an object was refused; nil: none was.
func (t *tolerant) refusal() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.first
}

func (t *tolerant) note(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.first == nil {
		t.first = err
	}
}

// Insert implements hsm.Replica.
func (t *tolerant) Insert(ctx context.Context, objects iter.Seq2[hsm.MaskedObject, error]) (hsm.Inserted, error) {
	var all []hsm.MaskedObject
	for m, err := range objects {
		if err != nil {
			return hsm.Inserted{}, err
		}
		if err := t.known.lately(m.Object); err != nil {
			t.note(err)
			continue
		}
		all = append(all, m)
	}
	if t.known.ofTheFuture() {
		rest, err := t.withoutFuture(ctx, all)
		if err != nil {
			return hsm.Inserted{}, err
		}
		all = rest
	}
	total, err := t.insert(ctx, all)
	if !isOfObject(err) {
		return total, err
	}
	rest, err := t.withoutFuture(ctx, all)
	if err != nil {
		return total, err
	}
	n, err := t.oneByOne(ctx, rest)
	return hsm.Inserted{Added: total.Added + n.Added, Changed: total.Changed + n.Changed, Unchanged: n.Unchanged, Conflicts: n.Conflicts}, err
}

// withoutFuture refuses the objects that say themselves that they are of the future, and
// returns the others. There may be many, as long as a clock is off: the HSM, which writes
// each refusal to its audit log, is not asked about them.
func (t *tolerant) withoutFuture(ctx context.Context, objects []hsm.MaskedObject) (rest []hsm.MaskedObject, err error) {
	info, err := t.info(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range objects {
		_, r, err := hsm.ParseMasked(m.Bytes)
		if err != nil || r.Latest().Wall().Sub(info.Time) <= hsm.MaxAhead {
			rest = append(rest, m) // the HSM says what is wrong with it
			continue
		}
		t.known.setFuture()
		t.note(fmt.Errorf("%s %s: %w: %s by %s; check the clocks of both HSMs", m.Kind, m.Ref, hsm.ErrFuture, r.Latest().Wall().Format(time.RFC3339), r.Latest().HSM))
	}
	return rest, nil
}

// oneByOne inserts all objects if it can, and otherwise each on its own.
func (t *tolerant) oneByOne(ctx context.Context, objects []hsm.MaskedObject) (total hsm.Inserted, err error) {
	total, err = t.insert(ctx, objects)
	if !isOfObject(err) {
		return total, err
	}
	total = hsm.Inserted{Added: total.Added, Changed: total.Changed} // what else there was is counted again
	for one := range slices.Chunk(objects, 1) {
		n, err := t.insert(ctx, one)
		switch {
		case err == nil:
		case !isOfObject(err):
			return total, err
		default:
			t.note(err)
			if !t.known.add(one[0].Object, err) {
				return total, err
			}
		}
		total.Add(n)
	}
	return total, nil
}

func (t *tolerant) insert(ctx context.Context, objects []hsm.MaskedObject) (hsm.Inserted, error) {
	if len(objects) == 0 {
		return hsm.Inserted{}, nil
	}
	return t.SketchReplica.Insert(ctx, func(yield func(hsm.MaskedObject, error) bool) {
		for _, m := range objects {
			if !yield(m, nil) {
				return
			}
		}
	})
}

// isOfObject tells whether an error is about one object, and says nothing of others. That a
// masking key is lacking is none: its peers bring it in their next round.
func isOfObject(err error) bool {
	return slices.ContainsFunc([]error{hsm.ErrFuture, hsm.ErrCorrupt, hsm.ErrLineage, hsm.ErrInvalid}, func(of error) bool { return errors.Is(err, of) })
}

// refusals are objects of a peer that were refused, and are not tried again in every
// round: each time is an entry in the audit log. They are few: what comes after maxRefusals
// waits for them, as all would without.
type refusals struct {
	mu     sync.Mutex
	all    map[hsm.Object]*refusedObject
	future bool // the peer has objects of the future
}

type refusedObject struct {
	again time.Time
	pause time.Duration // until then, from when it was refused last
	why   error
}

const maxRefusals = 1024

// firstRefusal and lastRefusal are how long an object is not tried again, at first, and at
// most.
const (
	firstRefusal = 10 * time.Second
	lastRefusal  = 10 * time.Minute
)

// lately returns why an object was refused not long ago; nil: try it.
func (r *refusals) lately(o hsm.Object) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if was := r.all[o]; was != nil && time.Now().Before(was.again) {
		return was.why
	}
	return nil
}

// add notes that an object was refused; false if there are too many.
func (r *refusals) add(o hsm.Object, why error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.all[o]
	if was == nil && len(r.all) >= maxRefusals {
		maps.DeleteFunc(r.all, func(_ hsm.Object, x *refusedObject) bool { return time.Since(x.again) > time.Minute }) // not offered any more
	}
	switch {
	case was == nil && len(r.all) >= maxRefusals:
		return false
	case was == nil:
		was = &refusedObject{pause: firstRefusal}
	default:
		was.pause = min(2*was.pause, lastRefusal)
	}
	if r.all == nil {
		r.all = map[hsm.Object]*refusedObject{}
	}
	was.again, was.why = time.Now().Add(was.pause), why
	r.all[o] = was
	return true
}

// ofTheFuture tells whether to look for objects of the future before the HSM does.
func (r *refusals) ofTheFuture() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.future
}

func (r *refusals) setFuture() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.future = true
}

// forget has all of them tried again: a clock was set, and what was of the future may no
// longer be; or the peer has nothing any more that is refused.
func (r *refusals) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.all)
	r.future = false
}
