package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// ErrRemoval: removing the HSM would lose keys, or leave too few HSMs; it can be
// forced.
var ErrRemoval = errors.New("the HSM cannot be removed")

// Removed is what Remove did.
type Removed struct {
	Member hsm.Member
	// Drained: the others held everything that it held. False after a removal by
	// force of an HSM that did not answer: what only it held is lost, and operations
	// in doubt wait for a decision (Settle).
	Drained bool
}

// Remove removes an HSM from the cluster, for good: an admin. First the HSM takes
// nothing new (it is LEAVING, and clients leave it), then everything that it holds
// is copied to the others, and only then it is a member no more: its connections
// end, and it stops.
//
// ErrRemoval if fewer HSMs would be left than the policy wants copies, or if the
// HSM does not answer, so that keys may be lost that only it holds; force does
// both. The last HSM is never removed. If Remove fails half way, or the context
// ends, the HSM stays a member; if we die half way it stays LEAVING, and Remove
// can be called again.
func (c *Cluster) Remove(ctx context.Context, id hsm.HSMID, force bool) (*Removed, error) {
	members, err := c.Members(ctx)
	if err != nil {
		return nil, err
	}
	m, err := c.leaver(members, id, force)
	if err != nil {
		return nil, err
	}
	if m.Joining && !c.hasJoined(ctx, m) { // it never counted, and holds nothing that others do not
		return c.finishRemoval(ctx, m, true)
	}
	if err := c.drain(ctx, &m); err != nil {
		if !force {
			return nil, errors.Join(err, c.stay(ctx, m))
		}
		return c.finishRemoval(ctx, m, false)
	}
	return c.finishRemoval(ctx, m, true)
}

// hasJoined asks a member that has not joined, as far as the others have heard. Only it
// may know that it has, and then it may hold keys.
func (c *Cluster) hasJoined(ctx context.Context, m hsm.Member) bool {
	info, err := c.look(ctx, m)
	return err == nil && info.State.Serves()
}

// leaver finds the member and checks that the cluster can do without it.
func (c *Cluster) leaver(members []hsm.Member, id hsm.HSMID, force bool) (hsm.Member, error) {
	i := slices.IndexFunc(members, func(m hsm.Member) bool { return m.ID == id })
	if i < 0 {
		return hsm.Member{}, fmt.Errorf("%w: %s is no member of the cluster", hsm.ErrNotFound, id)
	}
	m, left := members[i], 0
	for _, other := range members {
		if other.ID != id && other.Counts() && !other.Leaving {
			left++
		}
	}
	switch n := c.Policy().MinCopies; {
	case m.Removed:
		return m, fmt.Errorf("%w: %s was removed already", hsm.ErrNotFound, id)
	case m.Joining:
		return m, nil
	case left == 0:
		return m, fmt.Errorf("%w: %s is the last HSM, and holds the only copy of every key; take a snapshot, and delete its folder", hsm.ErrDenied, id)
	case left < n && !force:
		return m, fmt.Errorf("%w: %d HSMs would be left, min-copies is %d, and no key could be made; add one with hsm invite, or lower min-copies, or use --force", ErrRemoval, left, n)
	}
	return m, nil
}

// drain makes the HSM take nothing new, and copies what it holds to the others.
func (c *Cluster) drain(ctx context.Context, m *hsm.Member) error {
	session, end, err := c.visit(ctx, *m)
	if err != nil {
		return fmt.Errorf("%w: %s does not answer, and keys that only it holds would be lost: %w; start it, or use --force", ErrRemoval, m.ID, err)
	}
	defer end()
	m.Leaving = true
	leaving := hsm.Change{Kind: hsm.ChangeMember, Member: m}
	if _, err := session.Change(ctx, leaving); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrRemoval, m.ID, err)
	}
	if _, err := c.Change(ctx, leaving); err != nil {
		return err
	}
	// When it says that it leaves, changes that were under way have ended.
	for {
		info, err := session.Info(ctx)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrRemoval, m.ID, err)
		}
		if info.State == hsm.StateLeaving {
			break
		}
		if pause(ctx, 20*time.Millisecond, nil); ctx.Err() != nil {
			return fmt.Errorf("%w: %s: %w", ErrRemoval, m.ID, context.Cause(ctx))
		}
	}
	return c.evacuate(ctx, *m, session)
}

// visit starts a session on an HSM that need not be in use.
func (c *Cluster) visit(ctx context.Context, m hsm.Member) (session hsm.Session, end func(), err error) {
	limited, cancel := context.WithTimeout(ctx, c.timing.connect)
	defer cancel()
	module, err := c.dial(limited, m)
	if err != nil {
		return nil, nil, err
	}
	if session, err = c.auth.open(limited, module); err != nil {
		return nil, nil, errors.Join(err, module.Close())
	}
	return session, func() { session.Close(); module.Close() }, nil
}

// evacuate brings every other HSM up to the one that leaves. It is enough that as
// many as the policy wants copies have everything: server-side sync does the rest.
func (c *Cluster) evacuate(ctx context.Context, m hsm.Member, from hsm.Session) error {
	others := slices.DeleteFunc(c.muster(ctx), func(r *remote) bool { return r.id() == m.ID })
	answers := gatherFor(ctx, c, evacuation, others, nil, nil, func(ctx context.Context, to hsm.Session) (struct{}, error) {
		synced, err := reconcile.Sync(ctx, from, to)
		if err == nil && len(synced.Conflicts) > 0 {
			err = fmt.Errorf("%w: %s is another key on each", hsm.ErrConflict, synced.Conflicts[0])
		}
		return struct{}{}, err
	})
	have, errs := 0, []error{}
	for _, a := range answers {
		if a.err == nil {
			have++
		} else {
			errs = append(errs, fmt.Errorf("%s: %w", a.from.name(), a.err))
		}
	}
	if need := min(c.Policy().MinCopies, len(c.all())); have == 0 || have < need {
		return fmt.Errorf("%w: what %s holds is on %d of the HSMs that stay, min-copies is %d: %w", ErrRemoval, m.ID, have, c.Policy().MinCopies, errors.Join(errs...))
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

// finishRemoval makes it a member no more, on the others first and then on itself.
func (c *Cluster) finishRemoval(ctx context.Context, m hsm.Member, drained bool) (*Removed, error) {
	before := m
	m.Removed, m.Leaving, m.Drained = true, false, drained
	gone := hsm.Change{Kind: hsm.ChangeMember, Member: &m}
	// If we die before this it is LEAVING, after it removed: one object says both.
	if changed, err := c.Change(ctx, gone); err != nil {
		if changed != nil || away(err) { // some HSM may know it as removed: it must take nothing new
			return nil, fmt.Errorf("%s stays LEAVING, since others may know it as removed; remove it again: %w", m.ID, err)
		}
		return nil, errors.Join(err, c.stay(ctx, before))
	}
	if session, end, err := c.visit(ctx, m); err == nil {
		_, _ = session.Change(ctx, gone) // otherwise its peers tell it
		end()
	}
	return &Removed{Member: m, Drained: drained}, nil
}

// Settled is what Settle did.
type Settled struct {
	// Members are those that operations in doubt need no longer wait for.
	Members []hsm.HSMID
	Keep    bool
}

// Settle decides, by an admin's word, what becomes of operations in doubt that
// began until now and hang on nothing but HSMs that cannot be asked any more:
// removed by force, or set back to an older state. Keep makes their keys live,
// in case a caller was told of one; otherwise they are dropped. Each HSM acts on it
// when all members have answered that they know no better, and so do HSMs that are
// down now when they are back.
func (c *Cluster) Settle(ctx context.Context, keep bool) (*Settled, error) {
	members, err := c.Members(ctx)
	if err != nil {
		return nil, err
	}
	out := &Settled{Keep: keep, Members: []hsm.HSMID{}}
	for _, m := range members {
		if !m.Doubtful() {
			continue
		}
		m.Settled, m.Keep = time.Now().UnixMilli(), keep
		if _, err := c.Change(ctx, hsm.Change{Kind: hsm.ChangeMember, Member: &m}); err != nil {
			return out, err
		}
		out.Members = append(out.Members, m.ID)
	}
	return out, nil
}
