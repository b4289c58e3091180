package cluster

import (
	"context"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Of two changes to one register the one with the later stamp wins, and clocks of
// HSMs may differ by minutes. So before a change is made the HSMs are asked for their
// clocks, which are past all stamps that they have seen, and the change is stamped
// later. A change that was acknowledged is on as many HSMs as the policy wants
// copies: whoever hears all HSMs but fewer than that hears of it.

// hearing is what HSMs said of their clocks before a change.
type hearing struct {
	answering int
	from      []hsm.HSMID // whose clocks after is not behind
	after     uint64      // time of a stamp; 0: none
}

// hear asks the HSMs for their clocks, as many as are needed for a change to be
// later than all that were acknowledged, if so many answer; others are waited for a
// moment. need is how many must answer at all.
func (c *Cluster) hear(ctx context.Context, need int) hearing {
	members := len(c.all())
	if members == 1 {
		return hearing{answering: len(c.ready(ctx, 1))}
	}
	want := max(need, c.hearingOf(members))
	rs := c.ready(ctx, need)
	if len(rs) < want {
		rs = c.readyWithin(ctx, want, c.timing.grace)
	}
	return heardOf(c.askClocks(ctx, rs, want), members)
}

// hearingOf is how many of so many HSMs know all that was acknowledged: what was is on as
// many as the policy wants copies, and so on one of these.
func (c *Cluster) hearingOf(members int) int {
	return members - min(members, max(1, c.Policy().MinCopies)) + 1
}

// hearAgain asks all HSMs that are in use, after one has said that it has a later
// change than those that were asked before.
func (c *Cluster) hearAgain(ctx context.Context) hearing {
	up := c.up()
	return heardOf(c.askClocks(ctx, up, len(up)), len(c.all()))
}

// askClocks returns what HSMs say of themselves, once so many of them have, and a moment
// has passed for the others.
func (c *Cluster) askClocks(ctx context.Context, rs []*remote, want int) []hsm.Info {
	enough := func(as []answer[hsm.Info]) bool { return len(infosOf(as)) >= want }
	return infosOf(gather(ctx, c, rs, enough, nil, func(ctx context.Context, s hsm.Session) (hsm.Info, error) { return s.Info(ctx) }))
}

func heardOf(infos []hsm.Info, members int) hearing {
	h := hearing{answering: len(infos), after: max(latestPlausible(infos, members), usualTime(infos))}
	for _, i := range infos {
		if i.Clock <= h.after {
			h.from = append(h.from, i.ID)
		}
	}
	slices.Sort(h.from)
	return h
}

// nextLife says which incarnation a change begins that makes a user or revives a key:
// the one after the last that an HSM knows to have ended. So a call that an HSM gets
// late does not bring back what was destroyed meanwhile, and a user is not made in a
// life that has ended already where the HSM that makes it has not heard of that.
func (c *Cluster) nextLife(ctx context.Context, ch *hsm.Change, need int) error {
	ref := ch.Ref
	switch ch.Kind {
	case hsm.ChangeUserCreate:
		name, err := hsm.CanonicalUserName(ch.User)
		if err != nil {
			return err
		}
		ref = hsm.UserRef(name)
	case hsm.ChangeRevive:
	default:
		return nil
	}
	answers := gather(ctx, c, c.ready(ctx, need), nil, nil, func(ctx context.Context, s hsm.Session) (uint64, error) { return nextLifeOn(ctx, s, ref) })
	ch.Life = 1
	for _, a := range answers {
		if a.err == nil {
			ch.Life = max(ch.Life, a.value)
		}
	}
	return nil
}

// nextLifeOn returns the incarnation, and one, that could begin for an object on an HSM, or
// that it is in.
func nextLifeOn(ctx context.Context, s hsm.Session, ref hsm.KeyRef) (life uint64, err error) {
	r, err := recordOn(ctx, s, ref)
	switch {
	case r == nil || err != nil:
		return 1, err
	case r.Destroyed:
		return r.Incarnation + 2, nil
	}
	return r.Incarnation + 1, nil
}

func infosOf(as []answer[hsm.Info]) (infos []hsm.Info) {
	for _, a := range as {
		if a.err == nil {
			infos = append(infos, a.value)
		}
	}
	return infos
}

// latestPlausible returns the latest of the clocks that may be that of a change
// which was acknowledged. One HSM's clock that is so far ahead that no other takes
// what it stamps is not: nobody could be later than that.
func latestPlausible(infos []hsm.Info, members int) (latest uint64) {
	for _, i := range infos {
		if i.Clock > latest && takers(infos, i.Clock)+members-len(infos) > 1 {
			latest = i.Clock
		}
	}
	return latest
}

// usualTime is the wall clock of the HSMs, of most of them: what has not been changed
// for long is stamped by that, as if an HSM stamped it. (An HSM that is started again
// knows how late its stamps are: its store keeps that.)
func usualTime(infos []hsm.Info) uint64 {
	var walls []int64
	for _, i := range infos {
		if i.Clock != 0 { // software that tells
			walls = append(walls, i.Time.UnixMilli())
		}
	}
	if len(walls) == 0 {
		return 0
	}
	slices.Sort(walls)
	return uint64(max(0, walls[(len(walls)-1)/2])) << 16
}

// takers counts the HSMs that take what was stamped at a time, or have.
func takers(infos []hsm.Info, at uint64) (n int) {
	for _, i := range infos {
		if at <= i.Clock || !(hsm.Stamp{Time: at}).Wall().After(i.Time.Add(hsm.MaxAhead)) {
			n++
		}
	}
	return n
}
