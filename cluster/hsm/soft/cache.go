package soft

import (
	"container/list"
	"fmt"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft/mech"
)

// cachedKeys is how many token keys are kept opened and parsed.
const cachedKeys = 1024

// entry is a key opened, and parsed at its first use. Its fields do not change.
type entry struct {
	rec    *hsm.Record
	digest hsm.Digest
	parsed func() (material, error)
}

// material is a key ready for use: one of the three, or none for what is no key.
type material struct {
	secret  *mech.SecretKey
	private *mech.PrivateKey
	public  *mech.PublicKey
}

func newEntry(rec *hsm.Record, digest hsm.Digest) *entry {
	return &entry{rec: rec, digest: digest, parsed: sync.OnceValues(func() (material, error) { return parse(rec) })}
}

func parse(r *hsm.Record) (m material, err error) {
	switch r.Core.Class {
	case hsm.ClassSecret:
		m.secret, err = mech.ParseSecret(mech.KeyType(r.Core.Type), r.Material.Reveal())
	case hsm.ClassPrivate:
		m.private, err = mech.LoadPrivate(r.Material.Reveal())
	case hsm.ClassPublic:
		m.public, err = mech.ParsePublic(r.Core.Public)
	case hsm.ClassData, hsm.ClassCertificate: // it is read, and nothing else
	default:
		return m, fmt.Errorf("%w: key %s is of class %q, which this software does not know", hsm.ErrCorrupt, r.Ref, r.Core.Class)
	}
	if err != nil {
		return m, fmt.Errorf("%w: key %s: %w", hsm.ErrCorrupt, r.Ref, err)
	}
	return m, nil
}

// keyCache keeps the keys used last. An entry is put in under the read lock of
// its reference and dropped under the write lock, so it is never stale. What it
// held is left to the garbage collector: it may be in use.
type keyCache struct {
	mu    sync.Mutex
	size  int
	byRef map[hsm.KeyRef]*list.Element // of *entry
	order *list.List                   // the last used first
}

func newKeyCache(size int) *keyCache {
	return &keyCache{size: size, byRef: map[hsm.KeyRef]*list.Element{}, order: list.New()}
}

func (c *keyCache) get(ref hsm.KeyRef) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byRef[ref]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*entry)
}

func (c *keyCache) put(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ref := e.rec.Ref
	if old := c.byRef[ref]; old != nil {
		c.order.Remove(old)
	}
	c.byRef[ref] = c.order.PushFront(e)
	for c.order.Len() > c.size {
		last := c.order.Back()
		c.order.Remove(last)
		delete(c.byRef, last.Value.(*entry).rec.Ref)
	}
}

func (c *keyCache) drop(ref hsm.KeyRef) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byRef[ref]; e != nil {
		c.order.Remove(e)
		delete(c.byRef, ref)
	}
}

// tokenKey returns a live token key, whoever owns it. ErrNotFound, or
// ErrDestroyed with the tombstone's owner in the record.
func (h *HSM) tokenKey(ref hsm.KeyRef) (*entry, error) {
	if e := h.cache.get(ref); e != nil {
		return e, nil
	}
	defer h.locks.rlock(hsm.ScopeLineage, ref)()
	cur, err := h.read(hsm.ScopeLineage, ref)
	if err != nil {
		return nil, err
	}
	if cur == nil || cur.rec.Kind != hsm.KindKey {
		return nil, notFound(ref)
	}
	e := newEntry(cur.rec, cur.obj.Digest)
	if cur.obj.Tombstone {
		return e, fmt.Errorf("%w: %s", hsm.ErrDestroyed, ref)
	}
	h.cache.put(e)
	return e, nil
}

func notFound(ref hsm.KeyRef) error {
	return fmt.Errorf("%w: key %s; see key list", hsm.ErrNotFound, ref)
}
