package cluster

import (
	"context"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// discards are session keys of one session that nobody wants any more, and that its HSM
// could not be told to destroy yet: known by their references, or by the operations that
// may have made them, where the answer was lost. The HSM bounds how many keys there can
// be; creations under way when it went away, how many operations.
type discards struct {
	mu      sync.Mutex
	refs    []hsm.KeyRef
	ops     []hsm.OpID
	running bool
}

// take takes one off the list: ref, or if that is 0 op.
func (d *discards) take() (ref hsm.KeyRef, op hsm.OpID, ok bool) {
	switch n, m := len(d.refs), len(d.ops); {
	case n > 0:
		ref, d.refs = d.refs[n-1], d.refs[:n-1]
	case m > 0:
		op, d.ops = d.ops[m-1], d.ops[:m-1]
	default:
		return 0, op, false
	}
	return ref, op, true
}

// put puts back what take took.
func (d *discards) put(ref hsm.KeyRef, op hsm.OpID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ref != 0 {
		d.refs = append(d.refs, ref)
	} else {
		d.ops = append(d.ops, op)
	}
}

// Discard destroys a session key that nobody uses any more. If its HSM is away, that
// is done as soon as it answers again in the same session; if it begins another one,
// the key has ended with the session before. What else fails is passed over: a key that
// is not there, say.
func (c *Cluster) Discard(ctx context.Context, ref hsm.KeyRef) {
	k, known := c.coverage.get(ref)
	var holder *remote
	var l *link
	if known && k.session && len(k.holders) == 1 {
		if holder = c.find(k.holders[0]); holder != nil {
			l = holder.link.Load()
		}
	}
	_, err := c.Change(ctx, hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
	if l == nil || err == nil || !away(err) && ctx.Err() == nil {
		return
	}
	holder.discardLater(l, ref, hsm.OpID{})
}

// disown has the session keys destroyed that an operation may have made in a session of
// this HSM, whose answer did not come.
func (r *remote) disown(in hsm.Session, op hsm.OpID) {
	if l := r.link.Load(); l != nil && l.session == in { // otherwise they have ended with it
		r.discardLater(l, 0, op)
	}
}

// discardLater notes what is to be destroyed as soon as the HSM answers in the session.
func (r *remote) discardLater(l *link, ref hsm.KeyRef, op hsm.OpID) {
	l.discards.put(ref, op)
	if l.up.Load() { // it is back already
		r.discard(l)
	}
}

// discard has what nobody wants destroyed in the background, now that the HSM answers.
func (r *remote) discard(l *link) {
	l.discards.mu.Lock()
	defer l.discards.mu.Unlock()
	if l.discards.running || len(l.discards.refs)+len(l.discards.ops) == 0 {
		return
	}
	l.discards.running = r.c.background(func(ctx context.Context) { r.discardAll(ctx, l) })
}

// discardAll destroys until nothing is left, or the HSM is away again.
func (r *remote) discardAll(ctx context.Context, l *link) {
	for {
		l.discards.mu.Lock()
		if r.current() != l || ctx.Err() != nil {
			l.discards.running = false
			l.discards.mu.Unlock()
			return
		}
		ref, op, ok := l.discards.take()
		l.discards.running = ok
		l.discards.mu.Unlock()
		if !ok {
			return
		}
		_, err := call(ctx, r, r.c.timing.call, func(ctx context.Context, s hsm.Session) (struct{}, error) {
			if ref == 0 {
				return struct{}{}, s.Abort(ctx, op)
			}
			_, err := s.Change(ctx, hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
			return struct{}{}, err
		})
		if away(err) || ctx.Err() != nil {
			l.discards.put(ref, op)
			continue // as above, unless it is back already
		}
		r.c.coverage.forget(ref)
	}
}
