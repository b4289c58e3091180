package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// Invitation is what Invite made.
type Invitation struct {
	Token   hsm.Secret // its text: whoever has it may join
	ID      hsm.InviteID
	Expires time.Time
	// Missing are members that do not know of it yet.
	Missing []hsm.HSMID
}

// Invite makes a one-time token with which one new HSM may join the cluster: an
// admin. The secret is drawn here and leaves this process in Token only; the HSMs
// get its public half. Replaces, if it is not zero, is the member whose place the
// new one takes: it is removed when the new one has every key that can be had, so
// it should be dead; hsm.ErrDenied if it answers.
//
// The token works as long as more than half of the members, without the one to be
// replaced and without those that leave, can be reached by the HSM that lets the new one in.
func (c *Cluster) Invite(ctx context.Context, life time.Duration, replaces hsm.HSMID) (*Invitation, error) {
	members, err := c.Members(ctx)
	if err != nil {
		return nil, err
	}
	if replaces != 0 {
		if err := c.mayReplace(ctx, members, replaces); err != nil {
			return nil, err
		}
	}
	i := &hsm.Invite{Expires: time.Now().Add(life), Replaces: replaces}
	var addresses []string
	for _, m := range voters(members, replaces) {
		i.Voters = append(i.Voters, m.ID)
		addresses = append(addresses, m.Address)
	}
	token, err := pki.NewToken(c.profile.ID, []byte(c.profile.CA), i.Expires, addresses)
	if err != nil {
		return nil, err
	}
	defer token.Seed.Wipe()
	i.ID, i.Key, i.Expires = token.Invite, token.Key(), token.Expires
	changed, err := c.Change(ctx, hsm.Change{Kind: hsm.ChangeInvite, Invite: i})
	if err != nil {
		return nil, err
	}
	return &Invitation{Token: token.Text(), ID: i.ID, Expires: i.Expires, Missing: changed.Missing}, nil
}

// voters are the members that vote on a new invitation: not the one to be replaced, nor
// those that are LEAVING, which take nothing new, and vote neither, unless there are no
// others.
func voters(members []hsm.Member, replaces hsm.HSMID) (list []hsm.Member) {
	var leaving []hsm.Member
	for _, m := range members {
		switch {
		case !m.Counts() || m.ID == replaces:
		case m.Leaving:
			leaving = append(leaving, m)
		default:
			list = append(list, m)
		}
	}
	if len(list) == 0 {
		return leaving
	}
	return list
}

func (c *Cluster) mayReplace(ctx context.Context, members []hsm.Member, id hsm.HSMID) error {
	i := slices.IndexFunc(members, func(m hsm.Member) bool { return m.ID == id })
	if i < 0 || members[i].Removed {
		return fmt.Errorf("%w: %s is no member of the cluster", hsm.ErrNotFound, id)
	}
	if info, err := c.look(ctx, members[i]); err == nil && info.State.Serves() {
		return fmt.Errorf("%w: %s answers and is %s; a live HSM is not replaced but removed, with hsm remove", ErrMember, id, info.State)
	}
	return nil
}

// look asks an HSM that is not in use who and how it is, without logging in.
func (c *Cluster) look(ctx context.Context, m hsm.Member) (info hsm.Info, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*c.timing.grace)
	defer cancel()
	module, err := c.dial(ctx, m)
	if err != nil {
		return info, err
	}
	defer module.Close()
	session, err := module.Session(ctx)
	if err != nil {
		return info, err
	}
	info, err = session.Info(ctx)
	if err == nil && m.ID != 0 && info.ID != m.ID {
		err = fmt.Errorf("%w: %s answers at %s, where %s was expected", hsm.ErrUnavailable, info.ID, m.Address, m.ID)
	}
	return info, errors.Join(err, session.Close())
}

// addOthers completes a cluster's state by the HSMs that are not in use: those
// that answer, and do not serve; and those that join, leave, or were removed.
func (c *Cluster) addOthers(ctx context.Context, out *Info) {
	members, err := c.Members(ctx)
	if err != nil {
		return // what is known is shown
	}
	for _, m := range members {
		if !slices.ContainsFunc(out.HSMs, func(h HSMInfo) bool { return h.ID == m.ID }) {
			out.HSMs = append(out.HSMs, HSMInfo{ID: m.ID, Name: m.Name, Address: m.Address, Zone: m.Zone, State: lifeOf(m), LagSeconds: -1, listed: true})
		}
	}
	var looks sync.WaitGroup
	for i := range out.HSMs {
		h := &out.HSMs[i]
		if h.State == string(hsm.StateRemoved) || !h.listed && h.State != unreachable {
			continue
		}
		looks.Go(func() {
			m := hsm.Member{ID: h.ID, Name: h.Name, Address: h.Address, Zone: h.Zone}
			if info, err := c.look(ctx, m); err == nil && (h.listed || !info.State.Serves()) {
				*h = describeHSM(m, info, nil)
			}
		})
	}
	looks.Wait()
	out.Removed = takeRemoved(out)
}

// takeRemoved moves the removed HSMs out of the list.
func takeRemoved(out *Info) []HSMInfo {
	isRemoved := func(h HSMInfo) bool { return h.State == string(hsm.StateRemoved) }
	removed := slices.DeleteFunc(slices.Clone(out.HSMs), func(h HSMInfo) bool { return !isRemoved(h) })
	out.HSMs = slices.DeleteFunc(out.HSMs, isRemoved)
	return removed
}

// lifeOf is the state that the member list alone tells of one not in use.
func lifeOf(m hsm.Member) string {
	switch {
	case m.Removed:
		return string(hsm.StateRemoved)
	case m.Joining:
		return string(hsm.StateJoining)
	case m.Leaving:
		return string(hsm.StateLeaving)
	}
	return unreachable
}
