package sim

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// What the checker knows of members. These hold at every moment:
//
//   - An HSM that has joined holds every key that was acknowledged, and on all HSMs,
//     when it was started.
//   - Of those that come with one token, one joins at most.
//   - What an HSM held that was removed in good order is on the others.
//   - An HSM that knows that it was removed serves nobody.
//   - One that was removed does not count for the policy of a key whose creation began
//     well after that.
//
// In calm all HSMs list the same members, and those are they.

// staleness is how long callers and HSMs may go on with a list of members from before a
// removal by force; one in good order has taken effect on the HSM itself.
const staleness = 2 * time.Minute

// starts notes what an HSM that joins must hold when it has. c.mu must not be held.
func (c *checker) starts(b *box) {
	if b.stage.get() != joining {
		return
	}
	c.mu.Lock()
	b.must = nil
	members := b.region.members()
	for _, ref := range slices.Sorted(maps.Keys(c.keys)) {
		everywhere := !c.keys[ref].destroyed
		for _, m := range members {
			s, ok := m.known.keys[ref]
			everywhere = everywhere && ok && !s.destroyed
		}
		if everywhere {
			b.must = append(b.must, ref)
		}
	}
	c.mu.Unlock()
	b.mu.Lock()
	eye := b.eye
	b.mu.Unlock()
	if c.w.plant == joinEarly && eye != nil {
		early := b.member()
		members, err := eye.Members(context.Background())
		for _, m := range members {
			if m.ID == b.member().ID {
				early = m
			}
		}
		early.Joining = false
		if _, changeErr := eye.Change(context.Background(), hsm.Change{Kind: hsm.ChangeMember, Member: &early}); err != nil || changeErr != nil {
			c.w.violate("%s: %v %v", b.name, err, changeErr)
		}
	}
}

// place reads what an HSM knows of the members. c.mu is held.
func (c *checker) place(b *box, eye hsm.Session) {
	members, err := eye.Members(context.Background())
	if err != nil {
		return // it has died meanwhile
	}
	for _, m := range members {
		x := b.region.boxOf(m.ID)
		if x == nil {
			continue
		}
		if m.Removed && x.removal.CompareAndSwap(nil, &removal{since: c.w.trace.now(), drained: m.Drained}) {
			c.w.trace.add("%s knows that %s was removed, drained: %t", b.name, x.name, m.Drained)
			if m.Drained {
				x.bequeath()
				c.nothingLost(b.region)
			}
		}
		if m.ID != b.member().ID || b.isCopy {
			continue
		}
		if m.Removed {
			b.expelled.CompareAndSwap(0, int64(c.w.trace.now()))
		}
		if !m.Joining && b.stage.get() == joining {
			c.joined(b)
		}
	}
}

// joined checks an HSM that says that it has joined. c.mu is held.
func (c *checker) joined(b *box) {
	b.stage.set(belongs)
	c.w.trace.add("%s belongs", b.name)
	c.w.count(func(s *stats) { s.kinds["joined"]++ })
	for _, ref := range b.must {
		if s, ok := b.known.keys[ref]; !c.keys[ref].destroyed && (!ok || s.destroyed) {
			c.w.violate("%s has joined, and lacks key %s (%s)", b.name, ref, c.keys[ref].label)
		}
	}
	for _, other := range b.region.everyone() {
		if other != b && !other.isCopy && other.stage.get() == belongs && other.invite() != "" && other.invite() == b.invite() {
			c.w.violate("%s and %s have joined with one token", b.name, other.name)
		}
	}
}

// served checks that an HSM that knows that it was removed does nothing for callers: it
// may still say how it is, and who the members are.
func (c *checker) served(call call, err error) {
	to := call.to
	expelled := time.Duration(to.expelled.Load())
	if err != nil || expelled == 0 || c.w.trace.now() <= expelled || call.from.who.Role == hsm.RoleHSM {
		return
	}
	switch call.method {
	case "Session", "Info", "Members", "Close":
		return
	}
	c.w.violate("%s does %s for %s although it was removed", to.name, call.method, call.from.name)
}

// wasRemoved tells whether an HSM was a member no more when a creation began, as far as
// callers can know. c.mu is held.
func (c *checker) wasRemoved(r *region, name, label string) bool {
	a := c.attempts[label]
	for _, b := range r.everyone() {
		gone := b.removal.Load()
		if b.name != name || gone == nil || a == nil {
			continue
		}
		allowed := staleness
		if gone.drained {
			allowed = 0
		}
		return a.began > gone.since+allowed
	}
	return false
}

// places checks that all HSMs list the same members, and the right ones.
func (c *checker) places(r *region) {
	want := map[hsm.HSMID]bool{}
	for _, b := range r.members() {
		want[b.member().ID] = true
	}
	for _, b := range r.members() {
		b.mu.Lock()
		eye := b.eye
		b.mu.Unlock()
		members, err := eye.Members(context.Background())
		if err != nil {
			c.w.violate("%s: %v", b.name, err)
		}
		is := map[hsm.HSMID]bool{}
		for _, m := range members {
			if !m.Removed {
				is[m.ID] = true
			}
			if !m.Removed && (m.Joining || m.Leaving) {
				c.w.violate("%s: %s is on its way in or out: %+v", b.name, m.Name, m)
			}
		}
		if !maps.Equal(is, want) {
			c.w.violate("%s lists members %v, and they are %v", b.name, slices.Sorted(maps.Keys(is)), slices.Sorted(maps.Keys(want)))
		}
	}
}
