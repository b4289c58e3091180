// Package synckey reconciles the keys of two clusters of one lineage: it proves
// that they are one lineage, computes the whole difference in one round trip,
// plans, applies the plan through the destination's client-side sync, and
// proves the result. PROTOCOL.md specifies it.
package synckey

import (
	"context"
	"errors"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Options say what a plan takes in.
type Options struct {
	// Filter selects keys; the zero filter selects all. A key is selected if
	// either side's state of it is; of a destroyed key only reference and owner
	// are left to select by. Users and policies are not filtered.
	Filter hsm.Filter
	// Times selects keys too, in the same way.
	Times Times
	// Both also brings the source up to the destination.
	Both bool
	// Destroyed destroys on one side what was destroyed on the other: keys, and
	// with Users users. Without it, these are listed and stay as they are.
	Destroyed bool
	// Users takes users and policies along. Without it, keys whose owner or
	// shared user is missing are blocked, by name. It takes an admin or an
	// appliance on both sides.
	Users bool
	// Rate bounds how fast objects are inserted.
	Rate Rate
	// MaxChanges bounds the objects that a plan may insert into one side; its
	// default is no bound. MaxDestroyed bounds the live keys and users that it may
	// destroy there; its default is a tenth of the side's keys, and always 10. A
	// plan beyond either is not applied at all: ErrLimit.
	MaxChanges, MaxDestroyed Limit
	// UseCheck uses keys on both sides once they are there.
	UseCheck UseCheck
	// Sign has both clusters sign the result; see Plan.Sign. Where the logins may
	// not, the result tells why it is not signed. Version and Asked go into it.
	Sign    bool
	Version string
	Asked   []string
	// Progress is told how many objects of how many are durable, and their size.
	Progress func(done, total, bytes int64)
}

// settle bounds how long Check waits for the HSMs of either side to agree after
// the last insertion.
const settle = 15 * time.Second

// Run plans, applies and checks. Everything it does is idempotent: run again
// after any interruption, it continues. The Result is nil only if there was no
// plan; with any other error it tells how far Run came, Remaining and
// RootsEqual being those before.
//
// hsm.ErrLineage if the clusters share no lineage, or a side cannot prove it;
// hsm.ErrInvalid if both are one cluster; hsm.ErrDenied if the logins do not
// allow what is asked; cluster.ErrMinCopies if a side cannot hold enough
// copies; hsm.ErrUnavailable if it does not answer; ErrLimit if the plan does
// more than is allowed; ErrMoved if the clusters moved under plan after plan.
func Run(ctx context.Context, src, dst *cluster.Cluster, o Options) (*Result, error) {
	start := time.Now()
	p, err := planAndApply(ctx, src, dst, o, nil)
	if p == nil {
		return nil, err
	}
	if err == nil {
		err = p.conclusion(ctx)
	}
	p.Result.Seconds = time.Since(start).Seconds()
	if err == nil && o.Sign {
		err = p.SignIfAllowed(ctx)
	}
	return p.Result, err
}

// conclusion compares again what was applied, and uses it.
func (p *Plan) conclusion(ctx context.Context) error {
	refs := p.applying()
	if err := p.Check(ctx); err != nil || !p.options.UseCheck.wanted() {
		return err
	}
	return p.use(ctx, refs)
}

// planAndApply makes another plan when the clusters have moved under one. Between
// a plan and its application tests do as they like.
func planAndApply(ctx context.Context, src, dst *cluster.Cluster, o Options, between func(*Plan)) (p *Plan, err error) {
	for range attempts {
		if p, err = NewPlan(ctx, src, dst, o); err != nil {
			return nil, err
		}
		if between != nil {
			between(p)
		}
		if err = p.Apply(ctx); !errors.Is(err, ErrMoved) {
			break
		}
	}
	return p, err
}
