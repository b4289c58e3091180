package soft

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// held is an object as the store holds it.
type held struct {
	obj   hsm.Object
	rec   *hsm.Record
	bytes []byte
}

func (c *held) masked(l hsm.Lineage) hsm.MaskedObject {
	return hsm.MaskedObject{Object: c.obj, Lineage: l, Bytes: c.bytes}
}

// read returns the object under a reference, authenticated, nil if there is
// none. Provisional objects are not there.
func (h *HSM) read(scope hsm.Scope, ref hsm.KeyRef) (*held, error) {
	if h.absent.surely(objectKey(scope, ref)) {
		return nil, nil
	}
	return h.readFrom(h.store.db, scope, ref)
}

func (h *HSM) readFrom(r pebble.Reader, scope hsm.Scope, ref hsm.KeyRef) (*held, error) {
	b, err := get(r, objectKey(scope, ref))
	if b == nil || err != nil {
		return nil, h.store.wrap("read "+ref.String(), err)
	}
	m, _, err := hsm.ParseMasked(b)
	if err != nil {
		return nil, h.damaged(ref, err)
	}
	rec, err := h.keys().Unmask(m)
	if err != nil {
		return nil, h.damaged(ref, err)
	}
	if rec.Ref != ref || rec.Kind.Scope() != scope {
		return nil, h.damaged(ref, fmt.Errorf("%w: another object lies there", hsm.ErrCorrupt))
	}
	return &held{obj: m.Object, rec: rec, bytes: b}, nil
}

func (h *HSM) damaged(ref hsm.KeyRef, err error) error {
	return fmt.Errorf("object store %s: %s: %w; replace this HSM: a new one fills itself from its peers", h.store.dir, ref, err)
}

// tx is one durable step. Whoever makes one holds the locks of all objects in
// it. It is used once.
type tx struct {
	h       *HSM
	batch   *pebble.Batch
	changes []change
	err     error // of adding to the batch; commit returns it
}

type change struct {
	old *held // nil: the object is new
	new hsm.Object
	rec *hsm.Record
}

func (h *HSM) begin() *tx { return &tx{h: h, batch: h.store.db.NewBatch()} }

// put replaces old, which may be nil, by m, whose record is r.
func (t *tx) put(old *held, r *hsm.Record, m hsm.MaskedObject) {
	scope := r.Kind.Scope()
	t.set(objectKey(scope, r.Ref), m.Bytes)
	t.set(digestKey(scope, r.Ref), encodeDigest(m.Object))
	if r.Kind == hsm.KindKey {
		t.reindex(old, r)
	}
	t.changes = append(t.changes, change{old: old, new: m.Object, rec: r})
}

func (t *tx) set(key, value []byte) {
	if t.err == nil {
		t.err = t.batch.Set(key, value, nil)
	}
}

func (t *tx) delete(key []byte) {
	if t.err == nil {
		t.err = t.batch.Delete(key, nil)
	}
}

// commit makes the step durable and then visible in counts, sketches, cache
// and tables. On an error nothing of it is visible.
func (t *tx) commit() error {
	defer t.batch.Close()
	latest := t.keepLatest()
	if t.err != nil {
		return t.h.store.wrap("write", t.err)
	}
	if err := t.h.commit(t); err != nil {
		return err
	}
	t.h.keptLatest(latest)
	t.h.raiseFloor()
	return nil
}

func (h *HSM) commit(t *tx) error {
	h.moment.RLock()
	defer h.moment.RUnlock()
	for i := range t.changes { // before anybody can see them
		if c := &t.changes[i]; c.old == nil {
			h.absent.add(objectKey(c.rec.Kind.Scope(), c.rec.Ref))
		}
	}
	if err := h.store.commit(t.batch); err != nil {
		return err
	}
	h.wrote(t.batch)
	for i := range t.changes {
		h.applied(&t.changes[i])
	}
	return nil
}

func (h *HSM) applied(c *change) {
	var old *hsm.Object
	if c.old != nil {
		old = &c.old.obj
	}
	h.states[c.rec.Kind.Scope()].Update(old, &c.new)
	h.count(old, &c.new)
	if c.rec.Kind == hsm.KindKey {
		h.cache.drop(c.rec.Ref)
		return
	}
	h.learn(c.rec, c.new)
	if c.rec.Kind.Scope() == hsm.ScopeCluster && c.rec.Kind != hsm.KindLockout {
		h.opts.ClusterChanged()
	}
}

// update reads an object, lets f say what becomes of it, and writes that, all
// under the object's lock. f gets nil if there is no object; it must not change
// what it gets; it returns the new record, or nil to leave things as they are.
// What is returned is the state afterwards.
func (h *HSM) update(scope hsm.Scope, ref hsm.KeyRef, f func(cur *held) (*hsm.Record, error)) (hsm.MaskedObject, error) {
	defer h.locks.lock(scope, ref)()
	cur, err := h.read(scope, ref)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	if cur != nil {
		// A change must be later than what it changes, also after this HSM's
		// clock was set back.
		if err := h.clock.Observe(cur.rec.Latest()); err != nil {
			return hsm.MaskedObject{}, err
		}
	}
	r, err := f(cur)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	if r == nil {
		if cur == nil {
			return hsm.MaskedObject{}, nil
		}
		return cur.masked(h.keys().Lineage()), nil
	}
	m, err := h.keys().Mask(r)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	t := h.begin()
	t.put(cur, r, m)
	return m, t.commit()
}

// newRecord makes a record that is not a key and counts its birth.
func (h *HSM) newRecord(kind hsm.Kind, ref hsm.KeyRef, name string) (*hsm.Record, error) {
	r := &hsm.Record{Kind: kind, Ref: ref, Core: hsm.Core{Owner: name}, Registers: map[string]hsm.Register{}, Hidden: map[string]hsm.Register{}}
	if kind.Scope() == hsm.ScopeCluster {
		r.Cluster = h.opts.Cluster
	}
	var err error
	r.Birth, err = h.keys().Birth(r)
	return r, err
}
