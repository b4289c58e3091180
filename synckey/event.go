package synckey

import (
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// EventKind is what an Event tells of.
type EventKind string

// The kinds of events. What goes on is not told again: of failures the first
// is, and then one that has another cause, and one an hour.
const (
	EventApplied   EventKind = "applied"   // objects became durable on a side
	EventLevel     EventKind = "level"     // all HSMs hold the same, for the first time or again
	EventLeft      EventKind = "left"      // something differs that is not to be applied, and it is not what did before
	EventAway      EventKind = "away"      // HSMs do not answer that did, or the reverse
	EventRefused   EventKind = "refused"   // a rule refused a plan
	EventFailed    EventKind = "failed"    // a look failed
	EventRecovered EventKind = "recovered" // a look succeeded after failures
)

// Event is one thing that happened.
type Event struct {
	Kind             EventKind
	Result           *Result       // of EventApplied, EventLeft; of EventLevel, if it took a plan to know
	Lag              time.Duration // EventApplied: of the object that waited longest
	SrcAway, DstAway []hsm.HSMID   // EventAway: who does not answer now
	Err              error         // EventFailed, EventRefused
	Failures         int           // EventFailed, EventRefused, EventRecovered: in a row
	For              time.Duration // EventRecovered: since the first of them
	Retry            time.Duration // EventFailed, EventRefused: until the next look, about
}

// repeatEvent is when a failure that goes on is told of again.
const repeatEvent = time.Hour

// teller tells what is new.
type teller struct {
	tell func(Event)

	failures  int // in a row
	since     time.Time
	told      time.Time // of a failure
	cause     string
	refusal   error  // why the last plan was refused
	unchanged string // what was left when it was last told
}

func (t *teller) emit(e Event) {
	if t.tell != nil {
		t.tell(e)
	}
}

// left tells what a plan leaves, if it is not what the last one left.
func (t *teller) left(r *Result) {
	h := fnv.New128a()
	for _, l := range r.Left {
		fmt.Fprintf(h, "%d %s\x00", l.Ref, l.Reason)
	}
	now := ""
	if len(r.Left) > 0 {
		now = string(h.Sum(nil))
	}
	if now != t.unchanged && now != "" {
		t.emit(Event{Kind: EventLeft, Result: r})
	}
	t.unchanged = now
}

// ended tells how a look ended.
func (t *teller) ended(err error, wait func() time.Duration) {
	if err == nil {
		if t.failures > 0 {
			t.emit(Event{Kind: EventRecovered, Failures: t.failures, For: time.Since(t.since)})
		}
		t.failures, t.cause, t.refusal = 0, "", nil
		return
	}
	now, kind := time.Now(), EventFailed
	if t.refusal = nil; refused(err) {
		kind, t.refusal = EventRefused, err
	}
	if t.failures++; t.failures == 1 {
		t.since = now
	}
	if cause := causeOf(err); cause != t.cause || now.Sub(t.told) >= repeatEvent {
		t.cause, t.told = cause, now
		t.emit(Event{Kind: kind, Err: err, Failures: t.failures, Retry: wait()})
	}
}

// causeOf tells failures apart by kind, not by text: addresses and numbers in it
// change.
func causeOf(err error) string {
	for _, kind := range []error{ErrLimit, ErrMoved, cluster.ErrMinCopies, hsm.ErrUnavailable, hsm.ErrSession, hsm.ErrFull, hsm.ErrCorrupt} {
		if errors.Is(err, kind) {
			return kind.Error()
		}
	}
	return "another"
}
