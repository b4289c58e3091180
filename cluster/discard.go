package cluster

import (
	"context"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// discards are session keys of one session that nobody wants any more, and that its HSM
// could not be told to destroy yet. The HSM bounds how many there can be.
type discards struct {
	mu      sync.Mutex
	refs    []hsm.KeyRef
	running bool
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
	l.discards.mu.Lock()
	l.discards.refs = append(l.discards.refs, ref)
	l.discards.mu.Unlock()
	if l.up.Load() { // it was back before the key was noted
		holder.discard(l)
	}
}

// discard has what nobody wants destroyed in the background, now that the HSM answers.
func (r *remote) discard(l *link) {
	l.discards.mu.Lock()
	defer l.discards.mu.Unlock()
	if l.discards.running || len(l.discards.refs) == 0 {
		return
	}
	l.discards.running = r.c.background(func(ctx context.Context) { r.discardAll(ctx, l) })
}

// discardAll destroys until nothing is left, or the HSM is away again.
func (r *remote) discardAll(ctx context.Context, l *link) {
	for {
		l.discards.mu.Lock()
		n := len(l.discards.refs)
		if n == 0 || r.current() != l || ctx.Err() != nil {
			l.discards.running = false
			l.discards.mu.Unlock()
			return
		}
		ref := l.discards.refs[n-1]
		l.discards.refs = l.discards.refs[:n-1]
		l.discards.mu.Unlock()
		_, err := call(ctx, r, r.c.timing.call, func(ctx context.Context, s hsm.Session) (hsm.MaskedObject, error) {
			return s.Change(ctx, hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
		})
		if away(err) || ctx.Err() != nil {
			l.discards.mu.Lock()
			l.discards.refs = append(l.discards.refs, ref)
			l.discards.mu.Unlock()
			continue // as above, unless it is back already
		}
		r.c.coverage.forget(ref)
	}
}
