package cluster

import (
	"fmt"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// clockNotice is how far a clock may be from the others before it is shown.
const clockNotice = 30 * time.Second

// noteClocks says of each HSM whose clock is far from the middle of all others and
// this host's. One that is so far off that the others refuse what it makes, or it
// what they make, is DEGRADED. now is when the answers had come; an answer that was under way for
// some seconds looks late by as much.
func noteClocks(out *Info, states map[*remote]hsm.Info, now time.Time) {
	offsets := []time.Duration{0} // this host's
	byID := map[hsm.HSMID]time.Duration{}
	for _, s := range states {
		if !s.Time.IsZero() {
			byID[s.ID] = s.Time.Sub(now)
			offsets = append(offsets, byID[s.ID])
		}
	}
	middle := hsm.MiddleClock(offsets)
	for i := range out.HSMs {
		h := &out.HSMs[i]
		offset, ok := byID[h.ID]
		if !ok {
			continue
		}
		off := offset - middle
		h.ClockSeconds = off.Seconds()
		switch {
		case off > clockNotice:
			h.addNotice(fmt.Sprintf("its clock is %s ahead of the others'; above %s they refuse what it makes", off.Round(time.Second), hsm.MaxAhead))
		case off < -clockNotice:
			h.addNotice(fmt.Sprintf("its clock is %s behind the others'; above %s it refuses what they make", (-off).Round(time.Second), hsm.MaxAhead))
		}
		if off.Abs() > hsm.MaxAhead && h.State == string(hsm.StateActive) {
			h.State = string(hsm.StateDegraded)
		}
	}
}

func (h *HSMInfo) addNotice(text string) {
	if h.Notice != "" {
		h.Notice += "; "
	}
	h.Notice += text
}
