package integration

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// fault is something that goes wrong for a while.
type fault struct {
	lane      int // faults of one lane do not overlap
	at, lasts time.Duration
	kind      string
	who       []int // HSMs, or for kill-caller a caller process
	delay     time.Duration
}

func (f fault) String() string {
	names := make([]string, len(f.who))
	for i, w := range f.who {
		names[i] = fmt.Sprint(w + 1)
	}
	s := fmt.Sprintf("%6.2fs %s %s for %s", f.at.Seconds(), f.kind, strings.Join(names, ","), f.lasts.Round(time.Millisecond))
	if f.delay > 0 {
		s += fmt.Sprintf(" by %s", f.delay)
	}
	return s
}

// The lanes: two that harm processes, each of HSMs of its own; one that harms
// the network; one that kills callers; one that cuts the power of all HSMs.
const (
	laneLow = iota
	laneHigh
	laneNetwork
	laneCallers
	lanePower
	lanes
)

var (
	processFaults = []string{"kill", "kill", "freeze", "terminate"}
	networkFaults = []string{"isolate", "split", "hide", "mute", "deafen", "slow", "reset"}
)

// schedule draws the faults of a run. The same seed draws the same.
func schedule(seed uint64, length time.Duration, hsms, callers int) []fault {
	rng := rand.New(rand.NewPCG(seed, 0))
	span := func(from, to int) time.Duration { return time.Duration(from+rng.IntN(to-from)) * time.Millisecond }
	var out []fault
	for lane := range lanes {
		for at := span(500, 2500); ; {
			f := draw(rng, lane, hsms, callers)
			f.at, f.lasts = at, span(300, 5000)
			if lane == lanePower {
				f.at, f.lasts = at+span(10000, 30000), span(100, 1000)
			}
			if at = f.at + f.lasts + span(200, 3000); at > length {
				break
			}
			out = append(out, f)
		}
	}
	slices.SortStableFunc(out, func(a, b fault) int { return int(a.at - b.at) })
	return out
}

func draw(rng *rand.Rand, lane, hsms, callers int) fault {
	f := fault{lane: lane}
	half := (hsms + 1) / 2
	switch lane {
	case laneLow:
		f.kind, f.who = processFaults[rng.IntN(len(processFaults))], []int{rng.IntN(half)}
	case laneHigh:
		f.kind, f.who = processFaults[rng.IntN(len(processFaults))], []int{half + rng.IntN(hsms-half)}
	case laneNetwork:
		f.kind, f.who = networkFaults[rng.IntN(len(networkFaults))], rng.Perm(hsms)[:1+rng.IntN(half)]
		if f.kind == "slow" {
			f.delay = time.Duration(20+rng.IntN(400)) * time.Millisecond
		}
	case laneCallers:
		f.kind, f.who = "kill-caller", []int{rng.IntN(callers)}
	case lanePower:
		f.kind, f.who = "power", []int{}
		for i := range hsms {
			f.who = append(f.who, i)
		}
	}
	return f
}

// harm sets the rules of a fault of the network; heal undoes them all.
func (n *network) harm(f fault) {
	in := func(hsm int) bool { return slices.Contains(f.who, hsm) }
	switch f.kind {
	case "isolate": // nobody reaches them, and they reach nobody
		n.set(rule{cut: true}, func(from, to int) bool { return in(from) != in(to) })
	case "split": // callers reach all HSMs, which do not reach each other
		n.set(rule{cut: true}, func(from, to int) bool { return from != caller && to != caller && in(from) != in(to) })
	case "hide": // HSMs reach each other, and callers do not reach these
		n.set(rule{cut: true}, func(from, to int) bool { return from == caller && in(to) || to == caller && in(from) })
	case "mute": // what they say arrives nowhere
		n.set(rule{cut: true}, func(from, to int) bool { return in(from) && !in(to) })
	case "deafen": // what is said to them does not arrive
		n.set(rule{cut: true}, func(from, to int) bool { return in(to) && !in(from) })
	case "slow":
		n.set(rule{delay: f.delay}, func(from, to int) bool { return in(from) || in(to) })
	case "reset":
		n.reset(func(link [2]int) bool { return in(link[0]) || in(link[1]) })
	}
}

func TestScheduleIsTheSeeds(t *testing.T) {
	a, b := schedule(7, time.Minute, 5, 2), schedule(7, time.Minute, 5, 2)
	if fmt.Sprint(a) != fmt.Sprint(b) || fmt.Sprint(a) == fmt.Sprint(schedule(8, time.Minute, 5, 2)) {
		t.Error("a schedule is not its seed's")
	}
	kinds := map[string]bool{}
	for _, f := range schedule(7, time.Hour, 5, 2) {
		kinds[f.kind] = true
	}
	for _, kind := range slices.Concat(processFaults, networkFaults, []string{"kill-caller", "power"}) {
		if !kinds[kind] {
			t.Errorf("no %s in an hour", kind)
		}
	}
	end := make([]time.Duration, lanes)
	for _, f := range a {
		if f.at < end[f.lane] {
			t.Errorf("%v begins before the fault before it ends", f)
		}
		end[f.lane] = f.at + f.lasts
	}
}
