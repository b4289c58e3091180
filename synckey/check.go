package synckey

import (
	"context"
	"fmt"
	"time"
)

// Check compares the two clusters again and fills in Remaining, Left and
// RootsEqual: equal roots, or what differs and why, as if a plan were made now.
// HSMs that were written a moment ago may still be settling with their peers: it
// looks again until they agree, or for a short time.
func (p *Plan) Check(ctx context.Context) error {
	deadline, pause := time.Now().Add(p.settle), 50*time.Millisecond
	for {
		now, err := newPlan(ctx, p.src, p.dst, p.options, true)
		if err != nil {
			return fmt.Errorf("check the result: %w", err)
		}
		if !now.moving() || time.Now().Add(pause).After(deadline) {
			p.conclude(now)
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Second)
	}
}

// moving tells whether the HSMs of a cluster are about to change by themselves.
func (p *Plan) moving() bool {
	return p.unsettled > 0 || !p.found.equal && p.Result.Remaining == 0
}

// conclude takes over what a plan made afterwards has found. What that one would
// apply is listed too: it came up meanwhile.
func (p *Plan) conclude(now *Plan) {
	r := p.Result
	root := func(into *Cluster, from Cluster) { into.Root, into.HSMs, into.Away = from.Root, from.HSMs, from.Away }
	root(&r.Src, now.Result.Src)
	root(&r.Dst, now.Result.Dst)
	r.Remaining, r.Left, r.RootsEqual = now.Result.Remaining, now.Result.Left, now.Result.RootsEqual
	r.conflict(now.Result.Conflicts...)
}
