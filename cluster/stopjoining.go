package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// stopJoining begins the removal of an HSM that has not joined as far as the others have
// heard. If it has joined it may hold keys, and is removed like any other. If it has not,
// it never counts: it serves only after one of the others has told it that nobody removes
// it, and they all know now that somebody does. sure is false if that is not known of all,
// or it cannot be asked, which takes force.
func (c *Cluster) stopJoining(ctx context.Context, m *hsm.Member, force bool) (joined, sure bool, err error) {
	m.Leaving = true
	changed, err := c.Change(ctx, hsm.Change{Kind: hsm.ChangeMember, Member: m})
	if err != nil {
		return false, false, err
	}
	joined = c.hasJoined(ctx, *m)
	if !joined { // it may not answer, and have told others
		members, err := c.Members(ctx)
		if err != nil {
			return false, false, err
		}
		joined = slices.ContainsFunc(members, func(x hsm.Member) bool { return x.ID == m.ID && !x.Joining })
	}
	if joined {
		return true, true, nil
	}
	if len(changed.Missing) > 0 && !force {
		return false, false, fmt.Errorf("%w: %s is joining, and may have joined as far as %v know, which do not answer; start them, or use --force", ErrRemoval, m.ID, changed.Missing)
	}
	return false, len(changed.Missing) == 0, nil
}

// hasJoined asks an HSM itself, which knows it first, and waits until one that has just
// joined serves.
func (c *Cluster) hasJoined(ctx context.Context, m hsm.Member) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*c.timing.connect)
	defer cancel()
	for {
		joined, serves := c.askJoiner(ctx, m)
		if !joined || serves {
			return joined
		}
		if pause(ctx, 20*time.Millisecond, nil); ctx.Err() != nil {
			return true
		}
	}
}

func (c *Cluster) askJoiner(ctx context.Context, m hsm.Member) (joined, serves bool) {
	ctx, cancel := context.WithTimeout(ctx, 2*c.timing.grace)
	defer cancel()
	module, err := c.dial(ctx, m)
	if err != nil {
		return false, false
	}
	defer module.Close()
	session, err := module.Session(ctx)
	if err != nil {
		return false, false
	}
	defer session.Close()
	members, err := session.Members(ctx)
	i := slices.IndexFunc(members, func(x hsm.Member) bool { return x.ID == m.ID })
	if err != nil || i < 0 || members[i].Joining {
		return false, false
	}
	info, err := session.Info(ctx)
	return true, err == nil && info.State.Serves()
}
