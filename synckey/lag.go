package synckey

import (
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Bounds of what a watch remembers, for the sake of memory.
const (
	maxAwaited = 100_000 // objects whose first sight is remembered one by one
	maxLags    = 10_000  // lags that the quantiles are of: the latest ones
)

// lags measures how long differences last: for each object, from the beginning
// of the look that first found it waiting to be applied, to when it is durable.
// What is not to be applied (blocked, in conflict, not asked for) does not wait.
// It is safe for concurrent use.
type lags struct {
	mu      sync.Mutex
	awaited map[hsm.KeyRef]time.Time
	rest    time.Time // when the first object beyond maxAwaited was seen; zero: none is
	recent  []time.Duration
	next    int // of recent, once it is full
}

// see takes in what a look that began at some time found waiting. Objects that
// do not wait any more are forgotten.
func (l *lags) see(refs iter.Seq[hsm.KeyRef], at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, rest := map[hsm.KeyRef]time.Time{}, time.Time{}
	for ref := range refs {
		first, known := l.awaited[ref]
		switch {
		case known:
		case !l.rest.IsZero():
			first = l.rest // it may be one of those that were not remembered
		default:
			first = at
		}
		if len(now) < maxAwaited {
			now[ref] = first
		} else if rest.IsZero() || first.Before(rest) {
			rest = first
		}
	}
	l.awaited, l.rest = now, rest
}

// applied takes in what has become durable, and returns the longest lag of it.
func (l *lags) applied(objects []hsm.MaskedObject, now time.Time) (longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range objects {
		first, known := l.awaited[m.Ref]
		if !known && l.rest.IsZero() {
			continue // another state of the same object was counted
		}
		if !known {
			first = l.rest
		}
		delete(l.awaited, m.Ref)
		d := max(now.Sub(first), 0)
		if longest = max(longest, d); len(l.recent) < maxLags {
			l.recent = append(l.recent, d)
			continue
		}
		l.recent[l.next] = d
		l.next = (l.next + 1) % maxLags
	}
	return longest
}

// none notes that nothing waits.
func (l *lags) none() { l.see(func(func(hsm.KeyRef) bool) {}, time.Time{}) }

// behind is how long the object that has waited longest has.
func (l *lags) behind(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := l.rest
	for _, at := range l.awaited {
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	if first.IsZero() {
		return 0
	}
	return max(now.Sub(first), 0)
}

// quantiles are of the latest lags; 0 where there are none.
func (l *lags) quantiles(qs ...float64) []time.Duration {
	l.mu.Lock()
	sorted := slices.Clone(l.recent)
	l.mu.Unlock()
	slices.Sort(sorted)
	out := make([]time.Duration, len(qs))
	for i, q := range qs {
		if n := len(sorted); n > 0 {
			out[i] = sorted[min(int(q*float64(n)), n-1)]
		}
	}
	return out
}
