package server

import (
	"context"
	"fmt"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// HSMs whose clocks are more than hsm.MaxAhead apart take nothing new from each
// other, in one direction. Each asks its peers for their clocks, and says when its own
// is the one that is off, as far as it can know: off the middle of them all.

// clockEvery is how often a peer is asked for its clock while all goes well.
const clockEvery = time.Minute

// seeClock notes how far a peer's clock is from this HSM's: on each new connection, and
// every minute.
func (s *syncer) seeClock(ctx context.Context, p *peer, session hsm.Session) error {
	if p.clocked == session && time.Since(p.clockedAt) < clockEvery {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	theirs, err := session.Info(ctx)
	if err != nil {
		return err
	}
	ours, err := s.session.Info(ctx)
	if err != nil {
		return err
	}
	p.clocked, p.clockedAt = session, time.Now()
	if !theirs.Time.IsZero() { // an HSM of an older version does not tell
		ahead := theirs.Time.Sub(ours.Time)
		if (ahead - p.progress.numbers().ahead).Abs() > time.Second {
			p.refusals.forget()
		}
		p.progress.clock(ahead)
	}
	return nil
}

// clockOffsets are how far the clocks of this HSM, 0, and of its peers that have told theirs
// lately are ahead of this HSM's.
func (s *syncer) clockOffsets() []time.Duration {
	offsets := []time.Duration{0}
	for _, p := range s.watched() {
		if n := p.numbers(); time.Since(n.clockAt) < 3*clockEvery {
			offsets = append(offsets, n.ahead)
		}
	}
	return offsets
}

// clockOffset is how far this HSM's clock is ahead of the middle of its own and those
// of its peers that have told theirs lately; negative: behind.
func (s *syncer) clockOffset() time.Duration {
	return -hsm.MiddleClock(s.clockOffsets())
}

// clockServes is clockInTime where more than two clocks tell which one is off. Of two, the
// one ahead may be right: that HSM has all that both have, and the other one, which refuses
// what it makes, is not in sync. So one of the two is worth calling.
func (s *syncer) clockServes() error {
	if len(s.clockOffsets()) <= 2 {
		return nil
	}
	return s.clockInTime()
}

// clockInTime refuses a clock with which this HSM and the others do not take what is
// new from each other.
func (s *syncer) clockInTime() error {
	off := s.clockOffset().Round(time.Second)
	switch {
	case off > hsm.MaxAhead:
		return fmt.Errorf("%w: the clock of HSM %s is %s ahead of the others': they refuse what it makes; set it right", hsm.ErrUnavailable, s.self, off)
	case off < -hsm.MaxAhead:
		return fmt.Errorf("%w: the clock of HSM %s is %s behind the others': it refuses what they make; set it right", hsm.ErrUnavailable, s.self, -off)
	}
	return nil
}

// tellClock says once in the log that the clock is off, and once that it no longer is.
func (s *syncer) tellClock() {
	err := s.clockInTime()
	switch was := s.clockOff; {
	case err != nil && !was:
		s.log.Error("the clock is off", "error", err)
	case err == nil && was:
		s.log.Info("the clock is right again")
	}
	s.clockOff = err != nil
}
