package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Use performs one cryptographic operation on an HSM that holds the key, the
// least loaded first. If that HSM fails or does not have the key after all, the
// next one is asked. A key that is known to be on enough HSMs costs one round
// trip.
//
// ErrAvailability if the policy checks on use and the token key is on fewer than
// MinCopies HSMs; session keys are exempt. hsm.ErrNotFound, hsm.ErrDestroyed.
// ErrNoHSM or hsm.ErrUnavailable if the HSMs that hold the key are away.
func (c *Cluster) Use(ctx context.Context, u hsm.Use) ([]byte, error) {
	refs := slices.DeleteFunc([]hsm.KeyRef{u.Key, u.Payload}, func(r hsm.KeyRef) bool { return r == 0 })
	u.Approvals = slices.Concat(c.approvals, u.Approvals)
	if on, err := c.issuer(u.Approvals); on != nil || err != nil {
		if err != nil {
			return nil, err
		}
		return c.useApproved(ctx, on, refs, u)
	}
	use := func(ctx context.Context, s hsm.Session) ([]byte, error) { return s.Use(ctx, u) }
	if len(refs) == 0 {
		return anyHSM(ctx, c, use)
	}
	if c.routing == RouteAny {
		return c.useAnywhere(ctx, refs, use)
	}
	var last error
	for range 2*len(c.all()) + 1 {
		r, err := c.route(ctx, c.pick, nil, refs...)
		if err != nil {
			return nil, err
		}
		out, err := call(ctx, r, c.timing.call, use)
		switch {
		case away(err):
		case errors.Is(err, hsm.ErrNotFound):
			for _, ref := range refs {
				c.coverage.remove(ref, r.id())
			}
		case errors.Is(err, hsm.ErrDestroyed):
			c.forget(refs)
			return nil, err
		default:
			return out, err
		}
		last = err
	}
	return nil, last
}

// Routing says which HSM a use of a key goes to.
type Routing uint8

// The routings. RouteAny is CloudHSM's: a key that is on enough HSMs may be used,
// the call goes to any HSM, and fails with hsm.ErrNotFound where the key has not
// arrived yet. It is there to test how applications take that.
const (
	RouteToHolders Routing = iota
	RouteAny
)

// WithRouting replaces RouteToHolders.
func WithRouting(r Routing) Option { return func(c *Cluster) { c.routing = r } }

// useAnywhere uses keys on any HSM, once.
func (c *Cluster) useAnywhere(ctx context.Context, refs []hsm.KeyRef, use func(context.Context, hsm.Session) ([]byte, error)) ([]byte, error) {
	for _, ref := range refs {
		k, err := c.available(ctx, ref)
		if err != nil {
			return nil, err
		}
		if k.session { // it is nowhere else, and CloudHSM's client knows where
			r, err := c.route(ctx, c.pick, nil, refs...)
			if err != nil {
				return nil, err
			}
			return call(ctx, r, c.timing.call, use)
		}
	}
	r := c.pick(nil, nil)
	if r == nil {
		return nil, c.noHSM()
	}
	return call(ctx, r, c.timing.call, use)
}

func (c *Cluster) forget(refs []hsm.KeyRef) {
	for _, ref := range refs {
		c.coverage.forget(ref)
	}
}

// available returns where a key is. ErrAvailability if that is too few HSMs for
// a token key to be used.
func (c *Cluster) available(ctx context.Context, ref hsm.KeyRef) (covered, error) {
	p := c.Policy()
	need := 1
	if p.CheckOnUse {
		need = p.MinCopies
	}
	k, err := c.locate(ctx, ref, need)
	if err != nil {
		return k, err
	}
	if !k.session && c.countMembers(k.holders) < need {
		return k, &AvailabilityError{Ref: ref, Min: need, Holders: k.holders}
	}
	return k, nil
}

// picker chooses an HSM that holds everything asked for and was not passed over:
// pick or pickToWrite.
type picker func(passed map[*remote]bool, where []covered) *remote

// route picks the HSM to use the keys on: in use, holding all of them, not passed
// over before, and of those the one that pick prefers. Without keys, any HSM will
// do. If all that hold the keys are away, they are tried once more now.
func (c *Cluster) route(ctx context.Context, pick picker, passed map[*remote]bool, refs ...hsm.KeyRef) (*remote, error) {
	var where []covered
	for _, ref := range refs {
		if ref == 0 {
			continue
		}
		k, err := c.available(ctx, ref)
		if err != nil {
			return nil, err
		}
		where = append(where, k)
	}
	if r := pick(passed, where); r != nil {
		return r, nil
	}
	c.muster(ctx)
	if r := pick(passed, where); r != nil {
		return r, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(c.up()) == 0 {
		return nil, c.noHSM()
	}
	return nil, fmt.Errorf("%w: no HSM that holds %s is in use", hsm.ErrUnavailable, refs)
}

// stay is how many calls in a row go to one HSM as long as it has no more to do than
// the others: one that has just answered is awake.
const stay = 32

// pick chooses the least loaded HSM that holds everything asked for; of equals,
// each in its turn, which is that of stay calls.
func (c *Cluster) pick(passed map[*remote]bool, where []covered) *remote {
	all := c.all()
	first := int(c.turn.Add(1) / stay)
	var best *remote
	var load int64
	for i := range all {
		r := all[(first+i)%len(all)]
		if r.current() == nil || passed[r] || !holdsAll(r, where) {
			continue
		}
		if n := r.load.Load(); best == nil || n < load {
			best, load = r, n
		}
	}
	return best
}

func holdsAll(r *remote, where []covered) bool {
	id := r.id()
	for _, k := range where {
		if !k.on(id) {
			return false
		}
	}
	return true
}
