package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// answer is what one HSM said.
type answer[T any] struct {
	from  *remote
	value T
	err   error
}

// gathering collects the answers of several HSMs to one question.
type gathering[T any] struct {
	mu      sync.Mutex
	answers []answer[T]
	ended   bool
	late    func(answer[T])
	came    chan struct{} // holds one token while there is news
}

// gather asks several HSMs at once, and returns one answer for each of them. It
// returns when all have answered; or, once enough says so of the answers so far,
// after a grace for the others; or when the context ends. Calls that are still
// under way then go on in the background: their answer is an error for now, and
// what they bring is passed to late. A nil enough waits for all, a nil late passes
// over late answers.
//
// The calls survive the caller's context: what was begun is not torn off half
// way when a caller loses patience.
func gather[T any](ctx context.Context, c *Cluster, rs []*remote, enough func([]answer[T]) bool, late func(answer[T]),
	ask func(context.Context, hsm.Session) (T, error)) []answer[T] {
	return gatherFor(ctx, c, c.timing.call, rs, enough, late, ask)
}

// gatherFor is gather with a limit for each call.
func gatherFor[T any](ctx context.Context, c *Cluster, limit time.Duration, rs []*remote, enough func([]answer[T]) bool, late func(answer[T]),
	ask func(context.Context, hsm.Session) (T, error)) []answer[T] {
	g := &gathering[T]{came: make(chan struct{}, 1), late: late}
	for _, r := range rs {
		run := func(base context.Context) {
			v, err := call(hsm.SameApplication(base, ctx), r, limit, ask)
			g.add(answer[T]{from: r, value: v, err: err})
		}
		if !c.background(run) {
			g.add(answer[T]{from: r, err: ErrClosed})
		}
	}
	var grace <-chan time.Time
	for {
		answers := g.now()
		if len(answers) == len(rs) || ctx.Err() != nil {
			return g.end(rs, context.Cause(ctx))
		}
		if grace == nil && enough != nil && enough(answers) {
			grace = time.After(c.timing.grace / 4)
		}
		select {
		case <-g.came:
		case <-ctx.Done():
		case <-grace:
			return g.end(rs, fmt.Errorf("%w: it has not answered yet", hsm.ErrUnavailable))
		}
	}
}

// add takes an answer, or passes it on if nobody waits any more.
func (g *gathering[T]) add(a answer[T]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		if g.late != nil {
			g.late(a)
		}
		return
	}
	g.answers = append(g.answers, a)
	select {
	case g.came <- struct{}{}:
	default:
	}
}

func (g *gathering[T]) now() []answer[T] {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clip(g.answers)
}

// end closes the gathering; those that have not answered get the error.
func (g *gathering[T]) end(rs []*remote, why error) []answer[T] {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	for _, r := range rs {
		if !slices.ContainsFunc(g.answers, func(a answer[T]) bool { return a.from == r }) {
			g.answers = append(g.answers, answer[T]{from: r, err: why})
		}
	}
	return g.answers
}
