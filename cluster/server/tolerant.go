package server

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// tolerant takes what it can of what a peer has: one object that is refused, of an HSM
// whose clock is hours ahead for instance, must not keep from it what comes with that.
type tolerant struct {
	hsm.SketchReplica
	known *refusals

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
	if len(all) == 0 {
		return hsm.Inserted{}, nil
	}
	total, err := t.insert(ctx, all)
	if err == nil || !isOfObject(err) {
		return total, err
	}
	total = hsm.Inserted{Added: total.Added, Changed: total.Changed} // what else there was is counted again
	for one := range slices.Chunk(all, 1) {
		n, err := t.insert(ctx, one)
		switch {
		case err == nil:
		case !isOfObject(err):
			return total, err
		default:
			t.known.add(one[0].Object, err)
			t.note(err)
		}
		total.Add(n)
	}
	return total, nil
}

func (t *tolerant) insert(ctx context.Context, objects []hsm.MaskedObject) (hsm.Inserted, error) {
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

// refusals are objects that were refused a short while ago, and are not tried again in
// every round: each time is an entry in the audit log.
type refusals struct {
	mu  sync.Mutex
	all map[hsm.Object]refusedObject
}

type refusedObject struct {
	at  time.Time
	why error
}

// refusedFor is how long an object is not tried again.
const refusedFor = 10 * time.Second

// lately returns why an object was refused not long ago; nil: try it.
func (r *refusals) lately(o hsm.Object) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if was, ok := r.all[o]; ok && time.Since(was.at) < refusedFor {
		return was.why
	}
	return nil
}

func (r *refusals) add(o hsm.Object, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil || len(r.all) >= maxLacks {
		r.all = map[hsm.Object]refusedObject{}
	}
	r.all[o] = refusedObject{time.Now(), why}
}
