package synckey

import (
	"fmt"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Times selects keys by when they were made and last changed, by the clocks of
// the HSMs that did so. Since is included, Until is not; the zero time bounds
// nothing. A tombstone tells no times: it is selected by the live state of the
// other side, or not at all.
type Times struct {
	CreatedSince, CreatedUntil time.Time
	ChangedSince, ChangedUntil time.Time
}

// Empty tells whether every key is selected.
func (t Times) Empty() bool { return t == Times{} }

// check refuses what no key can fulfil: hsm.ErrInvalid.
func (t Times) check() error {
	for _, w := range []struct {
		what         string
		since, until time.Time
	}{{"created", t.CreatedSince, t.CreatedUntil}, {"changed", t.ChangedSince, t.ChangedUntil}} {
		if !w.until.IsZero() && !w.since.Before(w.until) {
			return fmt.Errorf("%w: %s since %s and until %s: no key is", hsm.ErrInvalid, w.what, w.since.Format(time.RFC3339), w.until.Format(time.RFC3339))
		}
	}
	return nil
}

// match tells whether a state is of the times.
func (t Times) match(r *hsm.Record) bool {
	if t.Empty() {
		return true
	}
	return !r.Destroyed && within(r.Core.CreatedAt(), t.CreatedSince, t.CreatedUntil) && within(r.Latest().Wall(), t.ChangedSince, t.ChangedUntil)
}

func within(at, since, until time.Time) bool {
	return !at.Before(since) && (until.IsZero() || at.Before(until))
}
