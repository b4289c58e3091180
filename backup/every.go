package backup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
)

// EveryOptions says how a series goes on by itself.
type EveryOptions struct {
	// Interval is the time from the beginning of one take to that of the next, give
	// or take a twentieth, so that hosts do not run in step. A take that lasts longer
	// is followed by the next at once; takes never overlap.
	Interval time.Duration
	// Event is told what happened, one call for each thing.
	Event func(Event)
	// Grace is how long a take goes on once ctx is over; 0 means ten seconds.
	Grace time.Duration
}

// EventKind is what an Event tells of.
type EventKind string

// The kinds of events. What goes on is not told again: of failures the first
// is, and then one that has another cause, and one an hour.
const (
	EventTaken     EventKind = "taken"     // a snapshot was taken
	EventFailed    EventKind = "failed"    // a take failed
	EventRecovered EventKind = "recovered" // a take succeeded after failures
	EventMissing   EventKind = "missing"   // HSMs do not answer that did, or the reverse
	EventNote      EventKind = "note"      // something an operator should look at
)

// Event is one thing that happened.
type Event struct {
	Kind     EventKind
	Report   *Report       // of the take, unless it failed
	Err      error         // of EventFailed
	Failures int           // EventFailed, EventRecovered: in a row
	For      time.Duration // EventRecovered: since the first of them
	Retry    time.Duration // EventFailed: until the next try
	Note     string        // of EventNote
}

const (
	defaultGrace = 10 * time.Second
	// maxWait bounds the time between two tries while takes fail: a store that is
	// back is written to within a minute.
	maxWait = time.Minute
	// repeatEvent is when a failure that goes on is told of again.
	repeatEvent = time.Hour
)

// Every takes snapshots until ctx is over, which ends it without an error once
// the take under way is done or has used up its grace. A failure of the first take
// that time cannot mend, such as a wrong recipient or missing rights, is returned;
// from then on, and for an HSM or a store that cannot be reached, Every tries again,
// less and less often.
func (s *Series) Every(ctx context.Context, o EveryOptions) error {
	if o.Interval <= 0 {
		return fmt.Errorf("%w: snapshots every %s", hsm.ErrInvalid, o.Interval)
	}
	if o.Grace == 0 {
		o.Grace = defaultGrace
	}
	e := &routine{series: s, options: o}
	for first := true; ctx.Err() == nil; first = false {
		begun := time.Now()
		report, err := e.take(ctx)
		if err != nil && ctx.Err() != nil {
			return nil
		}
		if err != nil && first && !passing(err) {
			return err
		}
		e.tell(report, err)
		sleep(ctx, e.wait()-time.Since(begun))
	}
	return nil
}

// passing tells whether an error may be over by itself.
func passing(err error) bool {
	for _, kind := range []error{hsm.ErrUnavailable, hsm.ErrSession, storage.ErrUnreachable, storage.ErrFull, ErrRaced, ErrCoverage, ErrUnsettled, context.DeadlineExceeded} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// routine is one call of Every.
type routine struct {
	series  *Series
	options EveryOptions

	failures int // in a row
	since    time.Time
	told     time.Time // of a failure
	cause    string
	missing  []hsm.HSMID
	notes    map[string]bool // of the take before
}

// take takes one snapshot. Once ctx is over it may go on for a while: what it has
// stored is worth more with its manifest.
func (e *routine) take(ctx context.Context) (*Report, error) {
	inner, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() {
		time.AfterFunc(e.options.Grace, func() { cancel(context.Cause(ctx)) })
	})()
	return e.series.Take(inner)
}

// wait is the time from the last take's beginning to the next one's.
func (e *routine) wait() time.Duration {
	d := e.options.Interval
	for range min(e.failures-1, 16) {
		d = max(min(2*d, maxWait), e.options.Interval)
	}
	return d - d/20 + rand.N(d/10+1)
}

// tell tells what is new.
func (e *routine) tell(r *Report, err error) {
	if err != nil {
		e.tellFailure(err)
		return
	}
	if e.failures > 0 {
		e.event(Event{Kind: EventRecovered, Report: r, Failures: e.failures, For: time.Since(e.since)})
		e.failures, e.cause = 0, ""
	}
	if !slices.Equal(r.Coverage.Missing, e.missing) {
		e.missing = slices.Clone(r.Coverage.Missing)
		e.event(Event{Kind: EventMissing, Report: r})
	}
	notes := map[string]bool{}
	for _, n := range r.Notes {
		if notes[n] = true; !e.notes[n] {
			e.event(Event{Kind: EventNote, Report: r, Note: n})
		}
	}
	e.notes = notes
	if !r.Unchanged {
		e.event(Event{Kind: EventTaken, Report: r})
	}
}

func (e *routine) tellFailure(err error) {
	now := time.Now()
	if e.failures++; e.failures == 1 {
		e.since = now
	}
	cause := causeOf(err)
	if cause == e.cause && now.Sub(e.told) < repeatEvent {
		return
	}
	e.cause, e.told = cause, now
	e.event(Event{Kind: EventFailed, Err: err, Failures: e.failures, Retry: e.wait()})
}

// causeOf tells failures apart by kind, not by text: addresses and numbers in it
// change.
func causeOf(err error) string {
	for _, kind := range []error{
		hsm.ErrUnavailable, hsm.ErrSession, hsm.ErrDenied, hsm.ErrLineage, storage.ErrUnreachable, storage.ErrFull, storage.ErrDenied,
		storage.ErrNoBucket, storage.ErrTLS, storage.ErrClock, ErrRaced, ErrCoverage, ErrUnsettled, ErrRecipient, ErrCorrupt,
	} {
		if errors.Is(err, kind) {
			return kind.Error()
		}
	}
	return "another"
}

func (e *routine) event(v Event) {
	if e.options.Event != nil {
		e.options.Event(v)
	}
}
