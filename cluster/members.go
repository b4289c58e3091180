package cluster

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// all returns the cluster's HSMs, those that are away included.
func (c *Cluster) all() []*remote { return *c.remotes.Load() }

// up returns the HSMs in use.
func (c *Cluster) up() []*remote {
	var up []*remote
	for _, r := range c.all() {
		if r.current() != nil {
			up = append(up, r)
		}
	}
	return up
}

func (c *Cluster) find(id hsm.HSMID) *remote {
	for _, r := range c.all() {
		if r.id() == id {
			return r
		}
	}
	return nil
}

// changes returns a channel that is closed at the next change of any HSM.
func (c *Cluster) changes() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *Cluster) signal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Cluster) allTried() bool {
	for _, r := range c.all() {
		r.mu.Lock()
		tries := r.tries
		r.mu.Unlock()
		if tries == 0 {
			return false
		}
	}
	return true
}

// noHSM says why each HSM does not answer.
func (c *Cluster) noHSM() error {
	if c.isClosed() {
		return ErrClosed
	}
	e := &noHSMError{}
	for _, r := range c.all() {
		err := r.downError()
		if r.current() != nil {
			err = fmt.Errorf("%w: it has not answered in time", hsm.ErrUnavailable)
		}
		e.results = append(e.results, Result{Name: r.describe().Address, Err: err})
	}
	return e
}

// learn follows a list of members: new ones are connected to, removed ones left,
// and those that moved are looked for at their new address. Nobody connects to
// those that have not joined yet, or are about to be removed.
func (c *Cluster) learn(members []hsm.Member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	remotes := slices.Clone(c.all())
	for _, m := range members {
		i := slices.IndexFunc(remotes, func(r *remote) bool { return r.is(m) })
		used := m.Counts() && !m.Leaving
		switch {
		case i < 0 && used:
			remotes = append(remotes, c.start(m))
		case i < 0:
		case !used:
			remotes[i].cancel()
			remotes = slices.Delete(remotes, i, i+1)
		case i >= 0:
			remotes[i].follow(m)
		}
	}
	slices.SortFunc(remotes, func(a, b *remote) int { return cmp.Compare(a.id(), b.id()) })
	c.remotes.Store(&remotes)
}

// is tells whether m is this HSM: by its id, or by its address while the id is
// not known.
func (r *remote) is(m hsm.Member) bool {
	mine := r.describe()
	if mine.ID == 0 || m.ID == 0 {
		return mine.Address == m.Address
	}
	return mine.ID == m.ID
}

// follow takes over what the cluster says of this HSM. c.mu is held.
func (r *remote) follow(m hsm.Member) {
	was := r.describe()
	if m.ID == 0 || was.ID == 0 || m == was {
		return // without an id, identify settles it
	}
	r.member.Store(&m)
	if was.Address != m.Address {
		r.wake()
	}
}

// start begins to connect to a member. c.mu is held.
func (c *Cluster) start(m hsm.Member) *remote {
	ctx, cancel := context.WithCancel(c.base)
	r := &remote{c: c, kick: make(chan struct{}, 1), cancel: cancel}
	r.member.Store(&m)
	c.keep.Go(func() { defer cancel(); r.keepUp(ctx) })
	return r
}

// identify gives an HSM known by its address only its id. An error if another
// connection to it exists already; this one ends then.
func (c *Cluster) identify(r *remote, info hsm.Info) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, other := range c.all() {
		if other != r && other.id() == info.ID {
			remotes := slices.DeleteFunc(slices.Clone(c.all()), func(x *remote) bool { return x == r })
			c.remotes.Store(&remotes)
			r.cancel()
			return fmt.Errorf("%w: %s is connected already", hsm.ErrExist, info.ID)
		}
	}
	m := r.describe()
	m.ID, m.Zone = info.ID, cmp.Or(m.Zone, info.Zone)
	r.member.Store(&m)
	return nil
}

// watch looks for new members and settings now and then, and as soon as an HSM
// has gone: it may have moved.
func (c *Cluster) watch() {
	chance := c.jitters("watch")
	for c.base.Err() == nil {
		pause(c.base, jitter(chance, c.timing.refresh), nil)
		c.refresh(c.base)
	}
}

// refresh asks one HSM for the members and the settings. It is best effort: the
// next round asks again.
func (c *Cluster) refresh(ctx context.Context) {
	for _, r := range c.inTurn(c.up()) {
		members, err := call(ctx, r, c.timing.call, func(ctx context.Context, s hsm.Session) ([]hsm.Member, error) {
			if err := r.check(ctx, s); err != nil {
				return nil, err
			}
			return s.Members(ctx)
		})
		if err == nil {
			c.learn(members)
			return
		}
	}
}

// inTurn orders HSMs by load, those with the same load each in their turn.
func (c *Cluster) inTurn(rs []*remote) []*remote {
	if len(rs) < 2 {
		return rs
	}
	first := int(c.turn.Add(1)) % len(rs)
	rs = slices.Concat(rs[first:], rs[:first])
	loads := make(map[*remote]int64, len(rs))
	for _, r := range rs {
		loads[r] = r.load.Load()
	}
	slices.SortStableFunc(rs, func(a, b *remote) int { return cmp.Compare(loads[a], loads[b]) })
	return rs
}

// ready returns the HSMs in use. If they are fewer than n, the others are tried
// once more now, and waited for until that attempt has ended, or for a while.
func (c *Cluster) ready(ctx context.Context, n int) []*remote {
	return c.readyWithin(ctx, n, c.timing.ready)
}

// muster is ready for as many HSMs as there are, with less patience: it is for
// those who make do with fewer.
func (c *Cluster) muster(ctx context.Context) []*remote {
	return c.readyWithin(ctx, len(c.all()), c.timing.grace)
}

func (c *Cluster) readyWithin(ctx context.Context, n int, limit time.Duration) []*remote {
	if up := c.up(); len(up) >= n {
		return up
	}
	waiting := map[*remote]uint64{}
	for _, r := range c.all() {
		if r.current() == nil {
			r.mu.Lock()
			waiting[r] = r.tries
			r.mu.Unlock()
			r.wake()
		}
	}
	c.until(ctx, limit, func() bool { return len(c.up()) >= n || !stillTrying(waiting) })
	return c.up()
}

// until waits, for as long as limit, for something that comes with a change of which HSMs
// are in use or have been tried: done tells whether it is so.
func (c *Cluster) until(ctx context.Context, limit time.Duration, done func() bool) {
	enough := time.After(limit)
	for {
		changed := c.changes()
		if done() {
			return
		}
		select {
		case <-changed:
		case <-enough:
			return
		case <-ctx.Done():
			return
		}
	}
}

func stillTrying(waiting map[*remote]uint64) bool {
	for r, before := range waiting {
		r.mu.Lock()
		tries := r.tries
		r.mu.Unlock()
		if tries == before && r.current() == nil {
			return true
		}
	}
	return false
}

// Members lists the cluster's HSMs as those HSMs know them together that answer, removed
// ones included: one of them may not have heard yet of who joined or was removed a moment
// ago. ErrNoHSM if none answers.
func (c *Cluster) Members(ctx context.Context) ([]hsm.Member, error) {
	answered, refusal := false, error(nil)
	var lists [][]hsm.Member
	one := func(as []answer[[]hsm.Member]) bool {
		return slices.ContainsFunc(as, func(a answer[[]hsm.Member]) bool { return a.err == nil })
	}
	for _, a := range gather(ctx, c, c.ready(ctx, 1), one, nil, func(ctx context.Context, s hsm.Session) ([]hsm.Member, error) { return s.Members(ctx) }) {
		switch {
		case a.err == nil:
			answered = true
		case !away(a.err):
			refusal = a.err
		}
		lists = append(lists, a.value)
	}
	if !answered {
		return nil, cmp.Or(refusal, ctx.Err(), c.noHSM())
	}
	return together(lists...), nil
}

// together makes one list of members of several, in each of which some steps may be
// missing.
func together(lists ...[]hsm.Member) []hsm.Member {
	known := map[hsm.HSMID]hsm.Member{}
	for _, list := range lists {
		for _, m := range list {
			if other, ok := known[m.ID]; ok {
				m = m.With(other)
			}
			known[m.ID] = m
		}
	}
	return slices.SortedFunc(maps.Values(known), func(a, b hsm.Member) int { return cmp.Compare(a.ID, b.ID) })
}

// anyHSM asks one HSM, and the next one if it is away. It is for requests that
// may be made twice.
func anyHSM[T any](ctx context.Context, c *Cluster, f func(context.Context, hsm.Session) (T, error)) (T, error) {
	var none T
	for _, r := range c.inTurn(c.ready(ctx, 1)) {
		v, err := call(ctx, r, c.timing.call, f)
		if !away(err) {
			return v, err
		}
	}
	if err := ctx.Err(); err != nil {
		return none, err
	}
	return none, c.noHSM()
}
