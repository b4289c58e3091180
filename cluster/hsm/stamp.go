package hsm

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Stamp is a hybrid logical clock reading: 48 bits of Unix milliseconds and 16
// bits of counter, with the HSM that read it (Kulkarni et al., Logical Physical
// Clocks, OPODIS 2014).
type Stamp struct {
	_    struct{} `cbor:",toarray"`
	Time uint64
	HSM  HSMID
}

// MaxAhead is how far a stamp may lie ahead of the local clock.
const MaxAhead = 5 * time.Minute

// MiddleClock is the middle of how far clocks are ahead of one of them, of an even number
// the lower of the two in the middle: what a clock that is off is off from. It sorts
// offsets, of which there is one at least.
func MiddleClock(offsets []time.Duration) time.Duration {
	slices.Sort(offsets)
	return offsets[(len(offsets)-1)/2]
}

// Compare orders stamps by time, ties by HSM.
func (s Stamp) Compare(o Stamp) int {
	return cmp.Or(cmp.Compare(s.Time, o.Time), cmp.Compare(s.HSM, o.HSM))
}

// Wall returns the wall clock part.
func (s Stamp) Wall() time.Time { return time.UnixMilli(int64(s.Time >> 16)).UTC() }

// Clock issues stamps that grow strictly, also past stamps it has observed and
// when the wall clock steps back. It is safe for concurrent use.
type Clock struct {
	mu   sync.Mutex
	hsm  HSMID
	now  func() time.Time
	last uint64
}

// NewClock returns the clock of one HSM. now is the wall clock.
func NewClock(id HSMID, now func() time.Time) *Clock { return &Clock{hsm: id, now: now} }

// Next issues a stamp later than every stamp issued or observed before.
func (c *Clock) Next() Stamp {
	c.mu.Lock()
	defer c.mu.Unlock()
	wall := uint64(max(0, c.now().UnixMilli())) << 16 // before 1970: a clock never set
	c.last = max(wall, c.last+1)
	return Stamp{Time: c.last, HSM: c.hsm}
}

// Latest is the time of the latest stamp issued or observed.
func (c *Clock) Latest() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// Follow sees to it that the stamps issued from now on are later than a time that
// was read on another clock. ErrFuture as for Observe, unless they are already.
func (c *Clock) Follow(t uint64) error {
	if t <= c.Latest() {
		return nil
	}
	return c.Observe(Stamp{Time: t})
}

// Observe takes note of a foreign stamp. ErrFuture, and no note taken, if it
// lies more than MaxAhead ahead of the wall clock.
func (c *Clock) Observe(s Stamp) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ahead := s.Wall().Sub(c.now()); ahead > MaxAhead {
		return fmt.Errorf("%w: %s by %s is %s ahead; check the clocks of both HSMs", ErrFuture, s.Wall().Format(time.RFC3339), s.HSM, ahead.Round(time.Second))
	}
	c.last = max(c.last, s.Time)
	return nil
}
