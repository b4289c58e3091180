package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// undo removes a failed operation from every HSM that may hold it, and returns
// those that could not be told. Where no commit was sent, an abort suffices: what
// nobody commits is dropped. Where one was, its objects may be visible on an HSM
// that cannot be told, and server-side sync may have brought them to any other; so
// a tombstone is made and spread: it beats any copy that turns up later. HSMs that
// do not take it are among those that could not be told. certain is false if not one HSM was left to make it on; such an
// HSM is told when it is back, as long as the client lives.
func (o *operation) undo() (undelivered []hsm.HSMID, certain bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(o.ctx), o.c.timing.cleanup)
	defer cancel()
	var tombstones []hsm.MaskedObject
	begun := o.count(func(p *part) bool { return p.tried || p.commit }) > 0
	if begun {
		tombstones = o.entomb(ctx)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, p := range o.asked() {
		wg.Go(func() {
			if o.abortOr(ctx, p, tombstones) != nil {
				mu.Lock()
				defer mu.Unlock()
				undelivered = append(undelivered, p.r.id())
				o.c.abortLater(o.ctx, p.r, o.id, o.lease)
			}
		})
	}
	wg.Wait()
	certain = !begun || len(tombstones) > 0 || len(undelivered) == 0
	if begun && len(tombstones) == 0 { // an abort may have made them
		tombstones = o.exhume(ctx, undelivered)
	}
	missed := o.spreadTombstones(ctx, tombstones)
	if begun && len(tombstones) == 0 {
		missed = o.unasked()
	}
	for _, id := range missed {
		if !slices.Contains(undelivered, id) {
			undelivered = append(undelivered, id)
		}
	}
	slices.Sort(undelivered)
	return undelivered, certain
}

// withdraw aborts a failed operation whose keys existed before it. An abort after
// a commit would be for keys born in the operation, so HSMs that have committed,
// or may have, are left alone, and returned: a key that is elsewhere must not be
// destroyed. HSMs that hold it provisional learn the outcome from them.
func (o *operation) withdraw() (left []hsm.HSMID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(o.ctx), o.c.timing.cleanup)
	defer cancel()
	var wg sync.WaitGroup
	for _, p := range o.asked() {
		if p.tried || p.commit {
			left = append(left, p.r.id())
			continue
		}
		wg.Go(func() {
			if err := o.abort(ctx, p); err != nil && !errors.Is(err, hsm.ErrDenied) {
				o.c.abortLater(o.ctx, p.r, o.id, o.lease)
			}
		})
	}
	wg.Wait()
	slices.Sort(left)
	return left
}

// exhume reads the tombstones that aborts have left on one of the HSMs that were told.
func (o *operation) exhume(ctx context.Context, untold []hsm.HSMID) []hsm.MaskedObject {
	for _, p := range o.asked() {
		if slices.Contains(untold, p.r.id()) {
			continue
		}
		tombstones, err := call(ctx, p.r, o.c.timing.call, o.tombstonesOn)
		if err == nil && len(tombstones) == len(o.objects) {
			return tombstones
		}
	}
	return nil
}

// unasked lists the HSMs that were not told of the operation, and may have its objects
// from server-side sync all the same.
func (o *operation) unasked() (ids []hsm.HSMID) {
	parts := o.asked()
	for _, r := range o.c.all() {
		if !slices.ContainsFunc(parts, func(p *part) bool { return p.r == r }) {
			ids = append(ids, r.id())
		}
	}
	return ids
}

// abortOr delivers the abort. An HSM that does not know that the keys were born in
// this operation keeps them; it takes their tombstones.
func (o *operation) abortOr(ctx context.Context, p *part, tombstones []hsm.MaskedObject) error {
	err := o.abort(ctx, p)
	if !errors.Is(err, hsm.ErrDenied) || len(tombstones) == 0 {
		return err
	}
	_, err = call(ctx, p.r, o.c.timing.call, func(ctx context.Context, s hsm.Session) (struct{}, error) {
		return struct{}{}, insertAll(ctx, s, tombstones)
	})
	return err
}

// asked lists the HSMs that may hold the operation.
func (o *operation) asked() []*part {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.parts)
}

// abort delivers the abort, trying once more if the HSM comes back.
func (o *operation) abort(ctx context.Context, p *part) error {
	err := abortOn(ctx, p.r, o.id)
	if err == nil || !away(err) {
		return err
	}
	p.r.wake()
	pause(ctx, o.c.timing.grace/4, o.c.changes())
	return abortOn(ctx, p.r, o.id)
}

// entomb makes tombstones of the objects on one HSM. HSMs that have committed
// come first: an abort leaves tombstones there. On an HSM that has not, the
// operation is committed and aborted at once, which comes to the same. While none
// answers it keeps trying, for half the time of the cleanup.
func (o *operation) entomb(ctx context.Context) []hsm.MaskedObject {
	ctx, cancel := context.WithTimeout(ctx, o.c.timing.cleanup/2)
	defer cancel()
	for ctx.Err() == nil {
		changed := o.c.changes()
		for _, r := range o.graves() {
			tombstones, err := call(ctx, r, o.c.timing.call, o.entombOn)
			if err == nil && len(tombstones) == len(o.objects) {
				return tombstones
			}
			r.wake()
		}
		// An HSM that refuses at once changes its state at once: each round takes a
		// moment, so that it is not asked as fast as it refuses.
		pause(ctx, o.c.timing.backoffMin/4, nil)
		pause(ctx, o.c.timing.backoffMin, changed)
	}
	return nil
}

// graves lists all HSMs, those that have committed first, then those that were
// asked to, then the others.
func (o *operation) graves() []*remote {
	parts := o.asked()
	slices.SortStableFunc(parts, func(a, b *part) int { return boolOrder(a.commit, b.commit) })
	var graves []*remote
	for _, p := range parts {
		graves = append(graves, p.r)
	}
	for _, r := range o.c.all() {
		if !slices.Contains(graves, r) {
			graves = append(graves, r)
		}
	}
	return graves
}

// boolOrder orders true first.
func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func (o *operation) entombOn(ctx context.Context, s hsm.Session) ([]hsm.MaskedObject, error) {
	commitErr := s.Commit(ctx, o.id)
	abortErr := s.Abort(ctx, o.id)
	switch {
	case abortErr != nil && !errors.Is(abortErr, hsm.ErrDenied):
		return nil, abortErr
	case commitErr == nil && abortErr == nil:
		return o.tombstonesOn(ctx, s)
	}
	return o.destroyOn(ctx, s)
}

// destroyOn makes tombstones where the operation itself cannot: it is aborted or
// expired there. Another operation stands in for it, whose abort destroys also
// keys that are not destroyable; where the keys are live already, it takes the
// owner's own destruction.
func (o *operation) destroyOn(ctx context.Context, s hsm.Session) ([]hsm.MaskedObject, error) {
	again := newOp()
	err := s.Prepare(ctx, again, o.lease, o.objects)
	if err == nil {
		err = s.Commit(ctx, again)
	}
	if err == nil {
		err = s.Abort(ctx, again)
	}
	switch {
	case err == nil:
		return o.tombstonesOn(ctx, s)
	case errors.Is(err, hsm.ErrExist), errors.Is(err, hsm.ErrDenied):
		return o.destroyLive(ctx, s)
	}
	return nil, err
}

// destroyLive destroys keys as their owner does.
func (o *operation) destroyLive(ctx context.Context, s hsm.Session) ([]hsm.MaskedObject, error) {
	if err := insertAll(ctx, s, o.objects); err != nil {
		return nil, err
	}
	var tombstones []hsm.MaskedObject
	for _, m := range o.objects {
		t, err := destroyOne(ctx, s, m.Ref)
		if err != nil {
			return nil, err
		}
		tombstones = append(tombstones, t)
	}
	return tombstones, nil
}

// destroyOne destroys a key whether it is destroyable or not, and returns its
// tombstone.
func destroyOne(ctx context.Context, s hsm.Session, ref hsm.KeyRef) (hsm.MaskedObject, error) {
	destroy := hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref}
	t, err := s.Change(ctx, destroy)
	switch {
	case errors.Is(err, hsm.ErrAttribute):
		if _, err := s.Change(ctx, hsm.Change{Kind: hsm.ChangeAttribute, Ref: ref, Name: "destroyable", Value: "true"}); err != nil {
			return t, err
		}
		return s.Change(ctx, destroy)
	case errors.Is(err, hsm.ErrDestroyed):
		for t, err := range s.Extract(ctx, slices.Values([]hsm.KeyRef{ref})) {
			return t, err
		}
	}
	return t, err
}

func (o *operation) tombstonesOn(ctx context.Context, s hsm.Session) ([]hsm.MaskedObject, error) {
	var tombstones []hsm.MaskedObject
	for m, err := range s.Extract(ctx, o.refs) {
		if err != nil {
			return nil, err
		}
		if !m.Tombstone {
			return nil, fmt.Errorf("%w: %s is live after its abort", hsm.ErrCorrupt, m.Ref)
		}
		tombstones = append(tombstones, m)
	}
	return tombstones, nil
}

func (o *operation) refs(yield func(hsm.KeyRef) bool) {
	for _, m := range o.objects {
		if !yield(m.Ref) {
			return
		}
	}
}

// spreadTombstones copies tombstones to every HSM, and returns those that did not
// take them; they get them from server-side sync.
func (o *operation) spreadTombstones(ctx context.Context, tombstones []hsm.MaskedObject) (missed []hsm.HSMID) {
	if len(tombstones) == 0 {
		return nil
	}
	answers := gather(ctx, o.c, o.c.all(), nil, nil, func(ctx context.Context, s hsm.Session) (struct{}, error) {
		return struct{}{}, insertAll(ctx, s, tombstones)
	})
	for _, a := range answers {
		if a.err != nil {
			missed = append(missed, a.from.id())
		}
	}
	return missed
}
