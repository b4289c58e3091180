package cluster

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// remote is one HSM of the cluster, connected or not. Its keeper, one goroutine,
// connects, and connects again when a call has found the connection broken.
type remote struct {
	c       *Cluster
	cancel  context.CancelFunc
	link    atomic.Pointer[link] // the last connection, up or not
	load    atomic.Int64         // calls under way
	avoided atomic.Int64         // until when not to create or change on it, in Unix nanoseconds
	kick    chan struct{}        // wakes the keeper
	member  atomic.Pointer[hsm.Member]
	policy  *Policy     // by its settings when it was looked at last; nil: it was not
	yields  atomic.Bool // it leaves the password to others
	slow    int         // logins in a row that were not done in time, on an HSM that answers; the keeper's

	mu    sync.Mutex
	tries uint64 // finished attempts to connect
	err   error  // why it is down
}

// link is one session on one HSM.
type link struct {
	module   hsm.Module
	session  hsm.Session
	up       atomic.Bool
	lost     atomic.Bool // the session is over; a new one is needed
	discards discards
}

// describe returns what the cluster says of the HSM.
func (r *remote) describe() hsm.Member { return *r.member.Load() }

func (r *remote) id() hsm.HSMID { return r.member.Load().ID }

// current returns the session in use, or nil while the HSM is away.
func (r *remote) current() *link {
	if l := r.link.Load(); l != nil && l.up.Load() {
		return l
	}
	return nil
}

// name is what errors call the HSM.
func (r *remote) name() string {
	m := r.describe()
	if m.ID == 0 {
		return m.Address
	}
	return m.ID.String()
}

// downError says why the HSM is not in use.
func (r *remote) downError() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		return fmt.Errorf("%w: %s is not connected yet", hsm.ErrUnavailable, r.describe().Address)
	}
	if errors.Is(r.err, hsm.ErrUnavailable) {
		return r.err
	}
	return fmt.Errorf("%w: %w", hsm.ErrUnavailable, r.err)
}

// wake makes the keeper try now.
func (r *remote) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// fail takes the HSM out of use until its keeper has found it well.
func (r *remote) fail(l *link, err error) {
	if errors.Is(err, hsm.ErrSession) {
		l.lost.Store(true)
	}
	if !l.up.CompareAndSwap(true, false) {
		return
	}
	r.mu.Lock()
	r.err = err
	r.mu.Unlock()
	r.wake()
	r.c.signal()
}

// keepUp is the keeper.
func (r *remote) keepUp(ctx context.Context) {
	defer r.disconnect()
	t, chance := r.c.timing, r.c.jitters(r.describe().Address)
	wait := t.backoffMin
	for ctx.Err() == nil {
		err := r.connect(ctx)
		r.tried(err)
		if err == nil {
			began := time.Now()
			r.watchLink(ctx)
			if time.Since(began) > t.backoffMax {
				wait = t.backoffMin
				continue
			}
		}
		if r.slow > 0 { // another HSM may be faster with the password, and has its turn first
			pause(ctx, min(time.Second, t.connect), nil)
		}
		pause(ctx, jitter(chance, wait), r.kick)
		wait = min(2*wait, t.backoffMax)
	}
}

// watchLink returns when the connection is broken.
func (r *remote) watchLink(ctx context.Context) {
	for r.current() != nil {
		select {
		case <-r.kick:
		case <-ctx.Done():
			return
		}
	}
}

func (r *remote) tried(err error) {
	r.mu.Lock()
	r.tries++
	r.err = err
	r.mu.Unlock()
	r.c.signal()
}

// jitter spreads d by a quarter up and down.
func jitter(r *mathrand.Rand, d time.Duration) time.Duration {
	return d - d/4 + time.Duration(r.Int64N(int64(d/2)+1))
}

// jitters returns the chance in the waits of one goroutine. Each has its own,
// which follows from the client's seed and a name, so that in a simulation it does
// not depend on the order in which goroutines run.
func (c *Cluster) jitters(name string) *mathrand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return mathrand.New(mathrand.NewPCG(c.seed, h.Sum64()))
}

// pause waits for d, for an event, or for the context.
func pause(ctx context.Context, d time.Duration, event <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-event:
	case <-ctx.Done():
	}
}

// connect makes the HSM usable: with the session it has, if that still answers,
// so that its session keys survive a broken network; otherwise with a new one.
func (r *remote) connect(ctx context.Context) error {
	old := r.link.Load()
	if old == nil {
		return r.dialNew(ctx, nil)
	}
	if old.up.Load() {
		return nil
	}
	if err := r.revive(ctx, old); err == nil {
		return nil
	} else if errors.Is(err, hsm.ErrSession) {
		old.lost.Store(true)
	}
	return r.dialNew(ctx, old)
}

// revive puts an old session to use again.
func (r *remote) revive(ctx context.Context, l *link) error {
	if l.lost.Load() {
		return hsm.ErrSession
	}
	ctx, cancel := context.WithTimeout(ctx, r.c.timing.connect/2)
	defer cancel()
	if err := r.check(ctx, l.session); err != nil {
		return err
	}
	l.up.Store(true)
	r.discard(l)
	return nil
}

// maxSlow bounds how much longer a login may take than the time to connect: four times.
const maxSlow = 2

// dialNew connects anew and logs in, and retires the connection before. A password costs an
// HSM work, which it begins anew with each attempt: one that answers, and has not done it in
// time, gets twice as long the next time.
func (r *remote) dialNew(ctx context.Context, old *link) error {
	limit := r.c.timing.connect << min(r.slow, maxSlow)
	limited, cancel := r.c.auth.patience(ctx, limit)
	defer cancel()
	l, answered, err := r.dial(limited)
	late := err != nil && limited.Err() != nil && ctx.Err() == nil
	if r.slow++; !late || !answered || errors.Is(err, errTurn) {
		r.slow = 0
	}
	switch {
	case late:
		return fmt.Errorf("%w: %w from %s within %s", hsm.ErrUnavailable, errNoAnswer, r.describe().Address, limit)
	case err != nil:
		return err
	}
	l.up.Store(true)
	r.link.Store(l)
	if old != nil {
		r.c.coverage.forgetSessionKeys(r.id())
		if !r.c.background(func(context.Context) { _ = old.close() }) {
			_ = old.close()
		}
	}
	return nil
}

// dial tells, beside the link, whether the HSM could be connected to.
func (r *remote) dial(ctx context.Context) (_ *link, answered bool, _ error) {
	module, err := r.c.dial(ctx, r.describe())
	if err != nil {
		return nil, false, err
	}
	if opener := r.c.opener.Load(); opener != nil {
		ctx = hsm.SameApplication(ctx, *opener)
	}
	session, err := r.c.auth.open(ctx, module, r.yield)
	if err != nil {
		return nil, true, errors.Join(err, module.Close())
	}
	l := &link{module: module, session: session}
	if err := r.check(ctx, session); err != nil {
		return nil, true, errors.Join(err, l.close())
	}
	return l, true, nil
}

// yielding bounds the time that an HSM leaves the password to others.
const yielding = 2 * time.Second

// yield waits until another HSM has taken the password, or none is left that might do so
// soon.
func (r *remote) yield(ctx context.Context) {
	r.yields.Store(true)
	defer r.yields.Store(false)
	r.c.signal()
	r.c.until(ctx, yielding, func() bool { return r.c.auth.ticket.Load() != nil || !r.c.mayLogIn() })
}

// mayLogIn tells whether an HSM that does not leave the password to others has not been
// tried yet.
func (c *Cluster) mayLogIn() bool {
	return slices.ContainsFunc(c.all(), func(r *remote) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.tries == 0 && !r.yields.Load()
	})
}

// check asks the HSM who it is, and takes note of the cluster's settings.
func (r *remote) check(ctx context.Context, s hsm.Session) error {
	info, err := s.Info(ctx)
	if err != nil {
		return err
	}
	m := r.describe()
	switch p := r.c.profile; {
	case info.Cluster != p.ID:
		return fmt.Errorf("%w: %s at %s belongs to %s, not to %s", hsm.ErrDenied, info.ID, m.Address, info.Cluster, p.ID)
	case info.Lineage != p.Lineage:
		return fmt.Errorf("%w: %s at %s is of %s, the cluster of %s", hsm.ErrLineage, info.ID, m.Address, info.Lineage, p.Lineage)
	case m.ID != 0 && info.ID != m.ID:
		return fmt.Errorf("%w: %s answers at %s, where %s was expected", hsm.ErrUnavailable, info.ID, m.Address, m.ID)
	}
	if m.ID == 0 {
		if err := r.c.identify(r, info); err != nil {
			return err
		}
	}
	if !info.State.Serves() {
		err := fmt.Errorf("%w: %s at %s is %s", hsm.ErrUnavailable, info.ID, m.Address, info.State)
		if info.State == hsm.StateCatchingUp {
			return fmt.Errorf("%w; %w", err, hsm.ErrStarting)
		}
		return err
	}
	r.c.hearSettings(r, info)
	return nil
}

func (l *link) close() error { return errors.Join(l.session.Close(), l.module.Close()) }

// disconnect ends the last session; the keeper calls it as it ends.
func (r *remote) disconnect() {
	if l := r.link.Swap(nil); l != nil {
		l.up.Store(false)
		_ = l.close() // the HSM ends the session by itself if it is not told
	}
}

// call asks one HSM for something, for at most limit, and takes the HSM out of
// use if it does not answer or has forgotten the session.
func call[T any](ctx context.Context, r *remote, limit time.Duration, f func(context.Context, hsm.Session) (T, error)) (T, error) {
	l := r.current()
	if l == nil {
		var none T
		return none, r.downError()
	}
	r.load.Add(1)
	defer r.load.Add(-1)
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	v, err := f(limited, l.session)
	if err != nil {
		err = r.judge(ctx, limited, l, err)
	}
	return v, err
}

// judge tells an HSM that is away from one that refuses.
func (r *remote) judge(ctx, limited context.Context, l *link, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", r.name(), context.Cause(ctx))
	case limited.Err() != nil:
		err = fmt.Errorf("%w: %s does not answer", hsm.ErrUnavailable, r.name())
	case errors.Is(err, hsm.ErrUnavailable), errors.Is(err, hsm.ErrSession):
		err = fmt.Errorf("%s: %w", r.name(), err)
	default:
		return err
	}
	r.fail(l, err)
	return err
}

// away tells that the HSM did not do its part, though another might.
func away(err error) bool {
	return errors.Is(err, hsm.ErrUnavailable) || errors.Is(err, hsm.ErrSession)
}
