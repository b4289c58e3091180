package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// leaseSlack is how much longer a provisional object lives than the creation
// it belongs to may last, cleanup included: an HSM never drops it on its own
// while its client is still at work.
const leaseSlack = 15 * time.Second

// Created is what Create made. For a pair Keys holds the private key first.
type Created struct {
	Keys []Key
	// Coverage are the HSMs that have committed; Missing the other members, which
	// get the keys from the rest of this creation or from server-side sync.
	Coverage, Missing []hsm.HSMID
}

// Create makes a key, or a pair, by any of the methods of hsm.CreateRequest.
//
// A token key is created by client-side sync (DESIGN.md §7): it is copied to
// every HSM, and Create returns when the policy's MinCopies HSMs hold it durably;
// the others are finished in the background. If that many cannot be reached,
// Create fails with ErrMinCopies and no HSM keeps the key; HSMs that could not be
// told are listed in the CopiesError and drop it by themselves. Keys that existed
// before, by hsm.MethodInsert, are never destroyed: HSMs that have committed one
// keep it, and the CopiesError says which. policy is what
// this call asks for; it can only raise the cluster's (Policy.WithFlag).
//
// If too many HSMs refuse the key because the clock of the one that made it is
// minutes ahead of theirs, it is made anew on another. Create fails with
// ErrMinCopies and hsm.ErrFuture when no HSM's key is accepted by enough others.
//
// A session key whose promotion (hsm.MethodPromote) fails stays as it was, unless an
// HSM had committed it: then it is destroyed with what became of it.
//
// A session key lives on one HSM and ends with the session; no policy applies.
func (c *Cluster) Create(ctx context.Context, r hsm.CreateRequest, policy Policy) (*Created, error) {
	done, err := c.begin()
	if err != nil {
		return nil, err
	}
	defer done()
	if !r.Token {
		return c.createSessionKey(ctx, r)
	}
	p := c.Policy().raisedBy(policy)
	made, err := c.createToken(ctx, r, p)
	if err == nil {
		c.warnOnce()
	}
	if e := (*CopiesError)(nil); errors.As(err, &e) {
		e.log(c.log)
	}
	return made, err
}

// createToken creates a token key, or refuses before anything is done.
func (c *Cluster) createToken(ctx context.Context, r hsm.CreateRequest, p Policy) (*Created, error) {
	if !p.metBy(c.all()) {
		return nil, c.tooFew("the key would be", len(c.all()), zonesOf(c.all()), p, "add HSMs or lower min-copies; nothing was done")
	}
	if err := c.usable(ctx, r.Key); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.Timeout, fmt.Errorf("%w: not finished within %s", ErrMinCopies, p.Timeout))
	defer cancel()
	up := c.ready(ctx, p.MinCopies)
	if !p.metBy(up) {
		up = c.ready(ctx, len(c.all()))
	}
	if !p.metBy(up) {
		return nil, c.tooFew("the key would be", len(up), zonesOf(up), p, "nothing was done")
	}
	r.Lease = max(r.Lease, p.Timeout+leaseSlack)
	return c.createTokenKey(ctx, r, p)
}

// createTokenKey runs operations, each made on another HSM, until one is not
// refused for the clock of the HSM it was made on.
func (c *Cluster) createTokenKey(ctx context.Context, r hsm.CreateRequest, p Policy) (*Created, error) {
	var refused error
	passed := map[*remote]bool{}
	for {
		made, creator, op, err := c.createFirst(ctx, r, p, passed)
		if err != nil {
			return nil, cmp.Or(refused, err)
		}
		o := c.newOperation(ctx, op, made.Objects, r.Lease, p)
		o.copies = r.Method == hsm.MethodInsert
		err = o.run(ctx, creator)
		switch {
		case err == nil:
			return o.created(made), nil
		case ctx.Err() != nil || !errors.Is(err, hsm.ErrFuture):
			return nil, err
		}
		passed[creator], refused = true, err
	}
}

// tooFew refuses before anything was done.
func (c *Cluster) tooFew(what string, copies, zones int, p Policy, outcome string) error {
	e := &CopiesError{
		What: what, Copies: copies, Members: len(c.all()), Min: p.MinCopies, Setting: p.Setting, Zones: zones, MinZones: p.MinZones,
		Check: p.CheckOnUse, Outcome: outcome,
	}
	for _, r := range c.all() {
		if r.current() == nil {
			e.Results = append(e.Results, Result{HSM: r.id(), Name: r.name(), Err: r.downError()})
		}
	}
	return e
}

// usable refuses the use of a base or unwrapping key that is on too few HSMs.
func (c *Cluster) usable(ctx context.Context, ref hsm.KeyRef) error {
	if ref == 0 {
		return nil
	}
	_, err := c.available(ctx, ref)
	return err
}

var errNoCreator = fmt.Errorf("%w: no HSM is left to create on", hsm.ErrUnavailable)

// createFirst makes the key on one HSM. An HSM that fails on the way is passed
// over: what it may have made is provisional under an operation that nobody will
// commit, and the next HSM works under a new one. So is an HSM that refuses what
// it is given as from the future: its own clock may be behind. passed grows by the
// HSMs passed over.
func (c *Cluster) createFirst(ctx context.Context, r hsm.CreateRequest, p Policy, passed map[*remote]bool) (hsm.Created, *remote, hsm.OpID, error) {
	last := errNoCreator
	r.Approvals = slices.Concat(c.approvals, r.Approvals)
	issuer, err := c.issuer(r.Approvals)
	if err != nil {
		return hsm.Created{}, nil, hsm.OpID{}, err
	}
	pick := c.pickerFor(r.Token)
	if issuer != nil {
		pick = onlyOn(issuer)
	}
	for range len(c.all()) - len(passed) {
		creator, err := c.route(ctx, pick, passed, r.Key)
		if err != nil {
			return hsm.Created{}, nil, hsm.OpID{}, errors.Join(last, err)
		}
		op := newOp()
		var in hsm.Session
		made, err := call(ctx, creator, p.Timeout/2, func(ctx context.Context, s hsm.Session) (hsm.Created, error) {
			in = s
			return s.Create(ctx, op, r)
		})
		if err == nil {
			return made, creator, op, nil
		}
		if away(err) || ctx.Err() != nil {
			c.callOff(ctx, creator, in, op, r)
		}
		lacks := r.Key != 0 && errors.Is(err, hsm.ErrNotFound)
		if ctx.Err() != nil || !away(err) && !errors.Is(err, hsm.ErrFull) && !errors.Is(err, hsm.ErrFuture) && !lacks {
			return hsm.Created{}, nil, op, err
		}
		if lacks {
			c.coverage.remove(r.Key, creator.id())
		}
		passed[creator], last = true, err
	}
	return hsm.Created{}, nil, hsm.OpID{}, last
}

// callOff sees to it that nothing stays of what an HSM may have made without its answer
// having come.
func (c *Cluster) callOff(ctx context.Context, creator *remote, in hsm.Session, op hsm.OpID, r hsm.CreateRequest) {
	switch {
	case in == nil: // it was not asked
	case r.Token:
		c.abortLater(ctx, creator, op, r.Lease)
	default:
		creator.disown(in, op)
	}
}

func newOp() hsm.OpID {
	var op hsm.OpID
	rand.Read(op[:])
	return op
}

// abortLater tells an HSM, when it is back, that an operation is off. It gives
// up at the end of the lease: the HSM then settles the operation by itself.
func (c *Cluster) abortLater(as context.Context, r *remote, op hsm.OpID, lease time.Duration) {
	c.background(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(hsm.SameApplication(ctx, as), lease)
		defer cancel()
		for ctx.Err() == nil && !c.isClosed() {
			if abortOn(ctx, r, op) == nil {
				return
			}
			pause(ctx, c.timing.backoffMin, c.changes())
		}
	})
}

func (c *Cluster) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func abortOn(ctx context.Context, r *remote, op hsm.OpID) error {
	_, err := call(ctx, r, r.c.timing.call, func(ctx context.Context, s hsm.Session) (struct{}, error) {
		return struct{}{}, s.Abort(ctx, op)
	})
	if errors.Is(err, hsm.ErrOp) {
		return nil // it holds no such operation, and will not
	}
	return err
}

// createSessionKey makes a key on one HSM and remembers where.
func (c *Cluster) createSessionKey(ctx context.Context, r hsm.CreateRequest) (*Created, error) {
	if err := c.usable(ctx, r.Key); err != nil {
		return nil, err
	}
	made, creator, _, err := c.createFirst(ctx, r, c.Policy(), map[*remote]bool{})
	if err != nil {
		return nil, err
	}
	out := &Created{Coverage: []hsm.HSMID{creator.id()}, Missing: []hsm.HSMID{}}
	for _, k := range made.Keys {
		c.coverage.put(k.Ref, covered{holders: out.Coverage, session: true})
		out.Keys = append(out.Keys, Key{KeyInfo: k, Coverage: out.Coverage, Missing: out.Missing})
	}
	return out, nil
}

// created describes the keys of an operation that succeeded.
func (o *operation) created(made hsm.Created) *Created {
	holders := o.holders()
	slices.Sort(holders)
	out := &Created{Coverage: holders, Missing: o.c.without(holders)}
	for _, k := range made.Keys {
		out.Keys = append(out.Keys, Key{KeyInfo: k, Coverage: out.Coverage, Missing: out.Missing})
	}
	return out
}
