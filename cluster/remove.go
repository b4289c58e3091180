package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// ErrRemoval: removing the HSM would lose keys, or leave too few HSMs; it can be
// forced.
var ErrRemoval = errors.New("the HSM cannot be removed")

// ErrMember: a rule on members stands against it, whoever asks and whatever is forced.
var ErrMember = fmt.Errorf("%w by the rules on members", hsm.ErrDenied)

// Removed is what Remove did.
type Removed struct {
	Member hsm.Member
	// Drained: the others held everything that it held. False after a removal by
	// force of an HSM that did not answer: what only it held is lost, and operations
	// in doubt wait for a decision (Settle).
	Drained bool
}

// Remove removes an HSM from the cluster, for good: an admin. First the HSM takes
// nothing new (it is LEAVING, and clients leave it), then everything that it holds and
// HSMs have in common is copied to the others, and only then it is a member no more: its
// connections end, and it stops. What goes down with it is what was never on another:
// session keys, quorum tokens that it has issued, and its audit log, which stays in its
// folder.
//
// ErrRemoval if fewer HSMs would be left than the policy wants copies, or if the
// HSM does not answer, so that what only it holds may be lost; force does
// both. HSMs that are being removed at the same time do not count: of two removals that
// cannot both be, one is refused, or both are. The last HSM is never removed. If Remove fails half way, or the context
// ends, the HSM stays a member; if we die half way it stays LEAVING, and Remove
// can be called again.
func (c *Cluster) Remove(ctx context.Context, id hsm.HSMID, force bool) (*Removed, error) {
	members, err := c.Members(ctx)
	if err != nil {
		return nil, err
	}
	m, err := c.leaver(members, id, force)
	if errors.Is(err, ErrRemoval) { // it may be half removed
		return nil, errors.Join(err, c.stay(ctx, m))
	}
	if err != nil {
		return nil, err
	}
	if m.Joining {
		joined, sure, err := c.stopJoining(ctx, &m, force)
		if err != nil {
			return nil, errors.Join(err, c.stay(ctx, m))
		}
		if !joined {
			return c.finishRemoval(ctx, m, sure, false)
		}
	}
	return c.removeJoined(ctx, m, force, members)
}

// removeJoined removes a member that counts. members are as they were before anything was
// done: a removal that somebody else has begun is not taken back where this one cannot begin.
func (c *Cluster) removeJoined(ctx context.Context, m hsm.Member, force bool, members []hsm.Member) (*Removed, error) {
	session, end, failed := c.visit(ctx, m)
	if failed != nil {
		failed = fmt.Errorf("%w: %s does not answer, and what only it holds (keys, users, settings, revocations) would be lost: %w; start it, or use --force", ErrRemoval, m.ID, failed)
		if !force && slices.Contains(members, m) {
			return nil, failed
		}
		if !force {
			return nil, errors.Join(failed, c.stay(ctx, m))
		}
		session, end = nil, func() {}
	}
	defer end()
	if err := c.announce(ctx, &m, session); err != nil {
		if !force {
			return nil, errors.Join(err, c.stay(ctx, m))
		}
		failed = cmp.Or(failed, err)
	}
	staying, err := c.recheck(ctx, m, session, force)
	if err != nil { // force does not help
		return nil, errors.Join(err, c.stay(ctx, m))
	}
	if failed == nil {
		failed = c.drain(ctx, m, session, staying)
		if errors.Is(failed, errUnsure) {
			return nil, failed
		}
	}
	if failed != nil && !force {
		return nil, errors.Join(failed, c.stay(ctx, m))
	}
	return c.finishRemoval(ctx, m, failed == nil, failed == nil)
}

// drain copies what the HSM holds, and has it know itself as removed if it has taken
// nothing since. If another admin has taken the removal back in between, and yet another
// one removes it again, what it has taken meanwhile is copied too. Unless there is an error,
// the removal is decided when drain returns.
func (c *Cluster) drain(ctx context.Context, m hsm.Member, session hsm.Session, staying int) error {
	for {
		departure, err := c.awaitLeaving(ctx, m.ID, session)
		if err == nil {
			err = c.evacuate(ctx, m, session, staying)
		}
		if err == nil {
			err = c.depart(ctx, m, session, departure)
		}
		if !errors.Is(err, hsm.ErrLate) {
			return err
		}
	}
}

// errUnsure: the HSM may know itself as removed.
var errUnsure = errors.New("it may know itself as removed; remove it again")

// depart has the HSM know itself as removed. It decides, since nobody else knows whether it
// has taken anything after it was copied: ErrLate if it has, and nothing is done. If we die
// after it, the HSM tells the others by itself.
func (c *Cluster) depart(ctx context.Context, m hsm.Member, session hsm.Session, departure uint64) error {
	ctx, cancel := context.WithTimeout(ctx, c.timing.call)
	defer cancel()
	gone := removedMember(m, true)
	_, err := session.Change(ctx, hsm.Change{Kind: hsm.ChangeMember, Member: &gone, Departure: departure})
	if err != nil && (away(err) || ctx.Err() != nil) {
		return fmt.Errorf("%s stays LEAVING: %w: %w", m.ID, errUnsure, err)
	}
	return err
}

// removedMember is the member once it is removed: one object says that it is, and that it
// leaves no more.
func removedMember(m hsm.Member, drained bool) hsm.Member {
	m.Removed, m.Leaving, m.Drained = true, false, drained
	return m
}

// leaver finds the member and checks that the cluster can do without it.
func (c *Cluster) leaver(members []hsm.Member, id hsm.HSMID, force bool) (hsm.Member, error) {
	i := slices.IndexFunc(members, func(m hsm.Member) bool { return m.ID == id })
	if i < 0 {
		return hsm.Member{}, fmt.Errorf("%w: %s is no member of the cluster", hsm.ErrNotFound, id)
	}
	m := members[i]
	switch {
	case m.Removed:
		return m, fmt.Errorf("%w: %s was removed already", hsm.ErrNotFound, id)
	case m.Joining:
		return m, nil
	}
	_, err := c.spared(members, id, force)
	return m, err
}

// spared checks that the cluster can do without a member, and counts those that stay
// without it: who leaves as well does not.
func (c *Cluster) spared(members []hsm.Member, id hsm.HSMID, force bool) (staying int, err error) {
	leaving := ""
	for _, other := range members {
		switch {
		case other.ID == id || !other.Counts():
		case other.Leaving:
			leaving = fmt.Sprintf("; %s is being removed as well: remove one after the other", other.Name)
		default:
			staying++
		}
	}
	switch n := c.Policy().MinCopies; {
	case staying == 0:
		return 0, fmt.Errorf("%w: %s is the last HSM, and holds the only copy of every key; take a snapshot, and delete its folder%s", ErrMember, id, leaving)
	case staying < n && !force:
		return staying, fmt.Errorf("%w: %d HSMs would be left, min-copies is %d, and no key could be made; add one with hsm invite, or lower min-copies, or use --force%s", ErrRemoval, staying, n, leaving)
	}
	return staying, nil
}

// Two removals at once must not each take the other's HSM for one that stays: what is on
// those two alone would be lost, and the last HSM removed. So a removal first has its own
// HSM say that it leaves, on itself and on all others (announce), and only then looks who
// else does (recheck), and asks each HSM that took a copy once more, after it has
// (evacuate). Of two at once the one that announces later sees the other.

// announce makes the HSM take nothing new, on itself, if it answers, and on the others
// that do. If there is an error it may go on.
func (c *Cluster) announce(ctx context.Context, m *hsm.Member, session hsm.Session) error {
	m.Leaving = true
	leaving := hsm.Change{Kind: hsm.ChangeMember, Member: m}
	var err error
	if session != nil {
		if _, err = session.Change(ctx, leaving); err != nil {
			err = fmt.Errorf("%w: %s: %w", ErrRemoval, m.ID, err)
		}
	}
	if err == nil {
		_, err = c.Change(ctx, leaving)
	}
	if err == nil && session != nil {
		_, err = c.awaitLeaving(ctx, m.ID, session)
	}
	return err
}

// awaitLeaving waits until the HSM says that it leaves, and since when: changes that were
// under way have ended then.
func (c *Cluster) awaitLeaving(ctx context.Context, id hsm.HSMID, session hsm.Session) (departure uint64, err error) {
	for {
		info, err := session.Info(ctx)
		if err != nil {
			return 0, fmt.Errorf("%w: %s: %w", ErrRemoval, id, err)
		}
		if info.State == hsm.StateLeaving {
			return info.Departure, nil
		}
		if err := leaves(ctx, session, id); !errors.Is(err, errLeaves) {
			return 0, cmp.Or(err, fmt.Errorf("%w: the removal of %s was taken back by somebody else", ErrRemoval, id))
		}
		if pause(ctx, 20*time.Millisecond, nil); ctx.Err() != nil {
			return 0, fmt.Errorf("%w: %s: %w", ErrRemoval, id, context.Cause(ctx))
		}
	}
}

// recheck looks again whether the cluster can do without the HSM, now that all who are
// removed at the same time can know of it, and counts those that stay.
func (c *Cluster) recheck(ctx context.Context, m hsm.Member, session hsm.Session, force bool) (staying int, err error) {
	members, err := c.Members(ctx)
	if err != nil {
		return 0, err
	}
	if session != nil {
		if own, err := session.Members(ctx); err == nil { // otherwise the others know
			members = together(members, own)
		}
	}
	c.learn(members)
	return c.spared(members, m.ID, force)
}

// visit starts a session on an HSM that need not be in use.
func (c *Cluster) visit(ctx context.Context, m hsm.Member) (session hsm.Session, end func(), err error) {
	limited, cancel := context.WithTimeout(ctx, c.timing.connect)
	defer cancel()
	module, err := c.dial(limited, m)
	if err != nil {
		return nil, nil, err
	}
	if session, err = c.auth.open(limited, module, func(context.Context) {}); err != nil {
		return nil, nil, errors.Join(err, module.Close())
	}
	return session, func() { session.Close(); module.Close() }, nil
}

// evacuate brings every other HSM up to the one that leaves. It is enough that as
// many as the policy wants copies have everything and stay: server-side sync does the
// rest.
func (c *Cluster) evacuate(ctx context.Context, m hsm.Member, from hsm.Session, staying int) error {
	others := slices.DeleteFunc(c.muster(ctx), func(r *remote) bool { return r.id() == m.ID })
	answers := gatherFor(ctx, c, evacuation, others, nil, nil, func(ctx context.Context, to hsm.Session) (struct{}, error) {
		err := c.carry(ctx, from, to)
		if err == nil {
			err = stays(ctx, to)
		}
		return struct{}{}, err
	})
	have, why := 0, []string{}
	for _, a := range answers {
		if a.err == nil {
			have++
		} else {
			why = append(why, fmt.Sprintf("%s: %v", a.from.name(), a.err))
		}
	}
	if need := min(c.Policy().MinCopies, staying); have == 0 || have < need {
		if n := staying - len(answers); n > 0 {
			why = append(why, fmt.Sprintf("%d are not known here yet", n))
		}
		return fmt.Errorf("%w: what %s holds is on %d of the %d HSMs that stay, and must be on %d: %s", ErrRemoval, m.ID, have, staying, max(1, need), strings.Join(why, "; "))
	}
	return nil
}

// carry brings one HSM all that HSMs have in common and the leaving one may hold alone.
// What belongs to the cluster (members, lockouts, invitations with their claims,
// revocations) comes last, since failed logins go on to be counted. Masking keys come by
// server-side sync, for nobody but HSMs may read them.
func (c *Cluster) carry(ctx context.Context, from, to hsm.Session) error {
	if err := c.awaitEpochs(ctx, from, to); err != nil {
		return err
	}
	for _, scope := range []hsm.Scope{hsm.ScopeLineage, hsm.ScopeCluster} {
		synced, err := reconcile.Sync(ctx, from.Scoped(scope), to.Scoped(scope))
		if err == nil && len(synced.Conflicts) > 0 {
			err = fmt.Errorf("%w: %s is another object on each", hsm.ErrConflict, synced.Conflicts[0])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// awaitEpochs waits, for a while, until an HSM has every masking key of the leaving one.
func (c *Cluster) awaitEpochs(ctx context.Context, from, to hsm.Session) error {
	theirs, err := from.Info(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*c.timing.connect)
	defer cancel()
	for {
		info, err := to.Info(ctx)
		if err != nil {
			return err
		}
		lacks := slices.DeleteFunc(slices.Clone(theirs.Epochs), func(e uint64) bool { return slices.Contains(info.Epochs, e) })
		if len(lacks) == 0 {
			return nil
		}
		if pause(ctx, c.timing.backoffMin, nil); ctx.Err() != nil {
			return fmt.Errorf("%w: it lacks the masking key of epoch %d, which server-side sync brings it", hsm.ErrUnavailable, lacks[0])
		}
	}
}

// errLeaves: an HSM is being removed, or was.
var errLeaves = fmt.Errorf("%w: it is being removed as well", ErrRemoval)

// stays asks an HSM itself whether it stays a member. If it does, and is to leave later,
// all that it holds by now is copied to others first.
func stays(ctx context.Context, s hsm.Session) error {
	info, err := s.Info(ctx)
	if err != nil {
		return err
	}
	return leaves(ctx, s, info.ID)
}

// leaves returns errLeaves if the HSM says that the member with this id leaves, or has.
func leaves(ctx context.Context, s hsm.Session, id hsm.HSMID) error {
	members, err := s.Members(ctx)
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.ID == id && (m.Leaving || m.Removed) {
			return errLeaves
		}
	}
	return nil
}

// evacuation bounds the copying to one HSM.
const evacuation = 30 * time.Minute

// stay takes the first step of a removal back.
func (c *Cluster) stay(ctx context.Context, m hsm.Member) error {
	if !m.Leaving {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timing.cleanup)
	defer cancel()
	m.Leaving = false
	_, err := c.Change(ctx, hsm.Change{Kind: hsm.ChangeMember, Member: &m})
	if session, end, visitErr := c.visit(ctx, m); visitErr == nil {
		_, changeErr := session.Change(ctx, hsm.Change{Kind: hsm.ChangeMember, Member: &m})
		end()
		err = errors.Join(err, changeErr)
	}
	if err != nil {
		return fmt.Errorf("%s stays LEAVING, remove it again: %w", m.ID, err)
	}
	return nil
}

// finishRemoval makes it a member no more on the others, and on itself unless it has
// departed.
func (c *Cluster) finishRemoval(ctx context.Context, m hsm.Member, drained, departed bool) (*Removed, error) {
	gone := removedMember(m, drained)
	// If we die before this it is LEAVING on the others, after it removed; one that has
	// departed tells them.
	changed, err := c.Change(ctx, hsm.Change{Kind: hsm.ChangeMember, Member: &gone})
	switch {
	case err == nil:
	case departed:
		return nil, fmt.Errorf("%s is removed, and no other HSM could be told; it tells them itself before it stops: %w", m.ID, err)
	case changed != nil || away(err): // some HSM may know it as removed: it must take nothing new
		return nil, fmt.Errorf("%s stays LEAVING, since others may know it as removed; remove it again: %w", m.ID, err)
	default:
		return nil, errors.Join(err, c.stay(ctx, m))
	}
	if !departed {
		if session, end, err := c.visit(ctx, m); err == nil {
			_, _ = session.Change(ctx, hsm.Change{Kind: hsm.ChangeMember, Member: &gone}) // otherwise its peers tell it
			end()
		}
	}
	return &Removed{Member: gone, Drained: drained}, nil
}
