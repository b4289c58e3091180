// Package synckey reconciles the keys of two clusters of one lineage: it proves
// that they are one lineage, computes the whole difference in one round trip,
// plans, applies the plan through the destination's client-side sync, and
// proves the result. PROTOCOL.md specifies it.
package synckey

import (
	"context"
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
// copies; hsm.ErrUnavailable if it does not answer.
func Run(ctx context.Context, src, dst *cluster.Cluster, o Options) (*Result, error) {
	start := time.Now()
	p, err := NewPlan(ctx, src, dst, o)
	if err != nil {
		return nil, err
	}
	defer func() { p.Result.Seconds = time.Since(start).Seconds() }()
	if err := p.Apply(ctx); err != nil {
		return p.Result, err
	}
	return p.Result, p.Check(ctx)
}
