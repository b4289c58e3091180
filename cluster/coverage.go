package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// maxCovered bounds the coverage cache: about 10 MiB. Session keys stay in it beyond that,
// as many as HSMs let a session have.
const maxCovered = 1 << 16

// trimLooks is how many keys are looked at to find one to forget: where nearly all are
// session keys, a walk over them all for each new one would take longer than to make it.
const trimLooks = 64

// covered is where a key is known to be. It is replaced, never changed.
type covered struct {
	holders []hsm.HSMID
	session bool      // a session key: on one HSM, and nowhere else ever
	asked   time.Time // when the HSMs were last asked
}

func (k covered) on(id hsm.HSMID) bool { return slices.Contains(k.holders, id) }

// coverageCache remembers which HSMs hold a key, so that using it costs one
// round trip. Only presence is remembered; absence is asked for every time.
type coverageCache struct {
	mu   sync.RWMutex
	keys map[hsm.KeyRef]covered
}

func newCoverageCache() *coverageCache {
	return &coverageCache{keys: map[hsm.KeyRef]covered{}}
}

func (cc *coverageCache) get(ref hsm.KeyRef) (covered, bool) {
	cc.mu.RLock()
	defer cc.mu.RUnlock()
	k, ok := cc.keys[ref]
	return k, ok
}

// put replaces what is known; when the cache is full it forgets some other key.
func (cc *coverageCache) put(ref hsm.KeyRef, k covered) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	cc.keys[ref] = k
	cc.trim(ref)
}

// trim forgets some other keys if they have become too many. cc.mu is held.
func (cc *coverageCache) trim(keep hsm.KeyRef) {
	looks := 0
	for other, k := range cc.keys { // which begins anywhere
		if looks++; len(cc.keys) <= maxCovered || looks > trimLooks {
			return
		}
		if other != keep && !k.session {
			delete(cc.keys, other)
		}
	}
}

// add notes one more holder.
func (cc *coverageCache) add(ref hsm.KeyRef, id hsm.HSMID) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if k, ok := cc.keys[ref]; ok && !k.on(id) {
		k.holders = append(slices.Clone(k.holders), id)
		cc.keys[ref] = k
	}
}

// note notes a holder of a token key, known or new.
func (cc *coverageCache) note(ref hsm.KeyRef, id hsm.HSMID) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	k, ok := cc.keys[ref]
	if !ok || k.session {
		k = covered{asked: time.Now()}
	}
	if !k.on(id) {
		k.holders = append(slices.Clone(k.holders), id)
	}
	cc.keys[ref] = k
	cc.trim(ref)
}

// remove notes that an HSM does not hold the key after all.
func (cc *coverageCache) remove(ref hsm.KeyRef, id hsm.HSMID) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if k, ok := cc.keys[ref]; ok {
		k.holders = slices.DeleteFunc(slices.Clone(k.holders), func(h hsm.HSMID) bool { return h == id })
		cc.keys[ref] = k
	}
}

func (cc *coverageCache) forget(ref hsm.KeyRef) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	delete(cc.keys, ref)
}

// forgetSessionKeys drops the keys of a session that is over.
func (cc *coverageCache) forgetSessionKeys(id hsm.HSMID) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	for ref, k := range cc.keys {
		if k.session && k.on(id) {
			delete(cc.keys, ref)
		}
	}
}

// touch claims the right to ask for a key's coverage again, if it is incomplete
// and was last asked for long enough ago.
func (cc *coverageCache) touch(ref hsm.KeyRef, members int, after time.Duration) bool {
	k, ok := cc.get(ref)
	if !ok || k.session || len(k.holders) >= members || time.Since(k.asked) < after {
		return false
	}
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if k, ok = cc.keys[ref]; !ok || time.Since(k.asked) < after {
		return false
	}
	k.asked = time.Now()
	cc.keys[ref] = k
	return true
}

// locate returns where a key is, from memory if it is known on at least need
// members, otherwise by asking. hsm.ErrNotFound if no HSM in use has it, together
// with hsm.ErrUnavailable if others are away, which may; hsm.ErrDestroyed if any
// knows it destroyed.
func (c *Cluster) locate(ctx context.Context, ref hsm.KeyRef, need int) (covered, error) {
	k, ok := c.coverage.get(ref)
	if ok && (k.session || c.countMembers(k.holders) >= max(need, 1)) {
		if members := len(c.all()); c.coverage.touch(ref, members, c.timing.recheck) {
			c.background(func(ctx context.Context) { _, _ = c.discover(ctx, ref, members) })
		}
		return k, nil
	}
	_, err := c.discover(ctx, ref, need)
	if err != nil {
		return covered{}, err
	}
	k, _ = c.coverage.get(ref)
	return k, nil
}

// countMembers counts those of the HSMs that are still members. An HSM that is
// away still holds its keys; a removed one does not count.
func (c *Cluster) countMembers(ids []hsm.HSMID) int {
	n := 0
	for _, r := range c.all() {
		if slices.Contains(ids, r.id()) {
			n++
		}
	}
	return n
}

// discover asks every HSM in use for a key, and remembers who has it. It does
// not wait long for the others once need of them have answered that they do.
func (c *Cluster) discover(ctx context.Context, ref hsm.KeyRef, need int) (Key, error) {
	enough := func(as []answer[hsm.KeyInfo]) bool {
		n := 0
		for _, a := range as {
			if a.err == nil {
				n++
			}
		}
		return need > 0 && n >= need
	}
	late := func(a answer[hsm.KeyInfo]) {
		if a.err == nil {
			c.coverage.add(ref, a.from.id())
		}
	}
	answers := gather(ctx, c, c.ready(ctx, max(need, 1)), enough, late, func(ctx context.Context, s hsm.Session) (hsm.KeyInfo, error) {
		return s.Key(ctx, ref)
	})
	if ctx.Err() != nil {
		return Key{}, fmt.Errorf("where %s is: %w", ref, context.Cause(ctx))
	}
	key, err := c.combine(ref, answers)
	if err != nil {
		c.coverage.forget(ref)
		return Key{}, err
	}
	c.coverage.put(ref, covered{holders: key.Coverage, session: !key.Token, asked: time.Now()})
	return key, nil
}

// combine makes one key of what the HSMs say of it.
func (c *Cluster) combine(ref hsm.KeyRef, answers []answer[hsm.KeyInfo]) (Key, error) {
	var key Key
	var refused, unreachable error
	token := slices.ContainsFunc(answers, func(a answer[hsm.KeyInfo]) bool { return a.err == nil && a.value.Token })
	for _, a := range answers {
		switch {
		case a.err == nil && token && !a.value.Token:
			// A session key on its way to being a token key: not a copy yet.
		case a.err == nil:
			if len(key.Coverage) == 0 {
				key.KeyInfo = a.value
			}
			key.Coverage = append(key.Coverage, a.from.id())
		case errors.Is(a.err, hsm.ErrDestroyed):
			return Key{}, a.err
		case away(a.err):
			unreachable = a.err
		case !errors.Is(a.err, hsm.ErrNotFound) || refused == nil:
			refused = a.err
		}
	}
	if n := len(c.all()) - len(answers); n > 0 && unreachable == nil {
		unreachable = fmt.Errorf("%w: %d HSMs are away", hsm.ErrUnavailable, n) // and may hold the key
	}
	switch {
	case len(key.Coverage) > 0:
		slices.Sort(key.Coverage)
		key.Missing = c.without(key.Coverage)
		return key, nil
	case refused != nil && unreachable != nil && errors.Is(refused, hsm.ErrNotFound):
		return Key{}, fmt.Errorf("%w; not every HSM answered: %w", refused, unreachable)
	case refused != nil:
		return Key{}, refused
	}
	return Key{}, c.noHSM()
}

// without lists the members that are not among ids.
func (c *Cluster) without(ids []hsm.HSMID) []hsm.HSMID {
	missing := []hsm.HSMID{}
	for _, r := range c.all() {
		if id := r.id(); !slices.Contains(ids, id) {
			missing = append(missing, id)
		}
	}
	return missing
}
