package synckey

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// WatchOptions say how a watch goes on.
type WatchOptions struct {
	Options
	// Interval is the time from the beginning of one look to that of the next, give
	// or take a twentieth, so that hosts do not look in step; 0 means a second.
	Interval time.Duration
	// Patient: a plan that a rule refuses (too many changes) does not end the watch.
	// Nothing of it is applied, and it is made again when the clusters have moved.
	Patient bool
	// Event is told what happened, one call for each thing.
	Event func(Event)
}

const (
	defaultInterval = time.Second
	// maxWait bounds the time between two looks while they fail.
	maxWait = time.Minute
	// relook is when a difference with which nothing was to be done is looked at
	// again, though no root has changed.
	relook = time.Minute
)

// Watch keeps the destination up to the source, and with Options.Both the source
// up to the destination. It remembers nothing that matters: whoever dies is
// started again, and looks. Several may run at a time, on several hosts; what one
// has applied the others do not find. Status is safe for concurrent use, Run runs
// once at a time.
type Watch struct {
	src, dst *cluster.Cluster
	options  WatchOptions
	events   teller
	lags     lags

	a, b   *side     // nil: all HSMs are to be challenged
	done   string    // the roots with which nothing was left to do; see look.roots
	looked time.Time // when that was found

	mu     sync.Mutex
	status Status
}

// NewWatch returns a watch that has not looked yet.
func NewWatch(src, dst *cluster.Cluster, o WatchOptions) *Watch {
	if o.Interval == 0 {
		o.Interval = defaultInterval
	}
	w := &Watch{src: src, dst: dst, options: o, events: teller{tell: o.Event}}
	w.status.Differences = (&Result{}).byClass()
	return w
}

// Run looks and applies until ctx is over, which ends it without an error: what
// was under way then is there in part, each object whole, and the next one does
// the rest.
//
// Whatever time may mend is tried again, less and less often: HSMs and clusters
// that do not answer, or too few of them. What it cannot mend ends Run: those
// errors of the function Run that are refusals (hsm.ErrLineage, hsm.ErrDenied,
// hsm.ErrLogin, ErrLimit unless Patient), and in the first look any other.
func (w *Watch) Run(ctx context.Context) error {
	if w.options.Interval < 0 {
		return fmt.Errorf("%w: a look every %s", hsm.ErrInvalid, w.options.Interval)
	}
	for first := true; ctx.Err() == nil; first = false {
		begun := time.Now()
		err := w.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && w.ends(err, first) {
			return err
		}
		w.note(err)
		// However long the look took, the clusters have a moment for themselves.
		_ = sleep(ctx, max(w.wait()-time.Since(begun), w.options.Interval/4))
	}
	return nil
}

// ends tells whether an error is not for time to mend.
func (w *Watch) ends(err error, first bool) bool {
	switch {
	case refused(err):
		return !w.options.Patient
	case is(err, hsm.ErrLineage, hsm.ErrDenied, hsm.ErrLogin, hsm.ErrLocked, cluster.ErrExpired, cluster.ErrRevoked):
		return true
	}
	return first && !is(err, hsm.ErrUnavailable, hsm.ErrSession, hsm.ErrFull, cluster.ErrMinCopies, ErrMoved, context.DeadlineExceeded)
}

// refused tells whether a rule refused a plan.
func refused(err error) bool { return is(err, ErrLimit) }

func is(err error, kinds ...error) bool {
	return slices.ContainsFunc(kinds, func(kind error) bool { return errors.Is(err, kind) })
}

// wait is the time from the last look's beginning to the next one's.
func (w *Watch) wait() time.Duration {
	d := w.options.Interval
	for range min(w.events.failures-1, 16) {
		d = max(min(2*d, maxWait), w.options.Interval)
	}
	return d - d/20 + rand.N(d/10+1)
}

// look compares all roots: one question to each HSM, and in the common case
// nothing more. If they differ, and not as they did when nothing was left to do,
// it makes a plan and applies it.
func (w *Watch) look(ctx context.Context) error {
	begun := time.Now()
	if w.a == nil {
		var err error
		if w.a, w.b, err = newSides(w.src, w.dst, w.options.Options); err != nil {
			return err
		}
	}
	seen, err := w.roots(ctx)
	switch {
	case err != nil:
		return err
	case seen.equal:
		w.level(nil)
		return nil
	case seen.text != "" && seen.text == w.done && begun.Sub(w.looked) < relook:
		return w.still()
	}
	// From here on the roots are done with, whatever is found: if applying changes
	// nothing, there is no point in doing it again before they change.
	if err = w.reconcile(ctx, begun); err == nil || refused(err) {
		w.done, w.looked = seen.text, begun
	}
	return err
}

// reconcile makes a plan and applies it.
func (w *Watch) reconcile(ctx context.Context, begun time.Time) error {
	p, err := newPlan(ctx, w.a, w.b, w.options.Options, false)
	if err != nil {
		return err
	}
	w.lags.see(p.refs(), begun)
	w.found(p)
	if p.found.equal {
		w.level(p.Result)
		return nil
	}
	var longest time.Duration
	p.settled = func(objects []hsm.MaskedObject) {
		longest = max(longest, w.lags.applied(objects, time.Now()))
	}
	err = p.Apply(ctx)
	p.Result.Seconds = time.Since(begun).Seconds()
	w.applied(p.Result, err)
	if p.Result.Applied > 0 {
		w.events.emit(Event{Kind: EventApplied, Result: p.Result, Lag: longest})
	}
	if err != nil {
		return err
	}
	w.lags.none()
	w.events.left(p.Result)
	return nil
}

// refs yields what the plan applies.
func (p *Plan) refs() iter.Seq[hsm.KeyRef] {
	return func(yield func(hsm.KeyRef) bool) {
		for _, f := range []*flow{p.forth, p.back} {
			for _, refs := range f.steps.refs {
				for _, ref := range refs {
					if !yield(ref) {
						return
					}
				}
			}
		}
	}
}
