package reconciletest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// Replica is an hsm.SketchReplica in memory: it authenticates and merges what
// it is given, as an HSM does. It is safe for concurrent use.
type Replica struct {
	keyring *hsm.Keyring
	clock   *hsm.Clock

	mu      sync.Mutex
	objects map[hsm.KeyRef]hsm.MaskedObject
	sorted  []hsm.Object // what objects holds, never written to; nil if stale
	state   *reconcile.State
}

var _ hsm.SketchReplica = (*Replica)(nil)

// NewReplica returns an empty replica of the keyring's lineage, with the
// default sketch prefix.
func NewReplica(keyring *hsm.Keyring) *Replica { return NewReplicaPrefix(keyring, 0) }

// NewReplicaPrefix returns an empty replica that keeps prefix cells.
func NewReplicaPrefix(keyring *hsm.Keyring, prefix int) *Replica {
	return &Replica{
		keyring: keyring, clock: hsm.NewClock(hsm.NewHSMID(), time.Now),
		objects: map[hsm.KeyRef]hsm.MaskedObject{},
		state:   reconcile.NewState(keyring.FingerprintKeys(), prefix),
	}
}

// Lineage implements hsm.Source.
func (r *Replica) Lineage() hsm.Lineage { return r.keyring.Lineage() }

// Objects implements hsm.Source: a listing of the moment of the call.
func (r *Replica) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return func(yield func(hsm.Object, error) bool) {
		r.mu.Lock()
		sorted := r.list()
		r.mu.Unlock()
		yieldAll(ctx, sorted, yield)
	}
}

// list returns the objects ascending by reference; the caller holds the lock.
func (r *Replica) list() []hsm.Object {
	if r.sorted == nil {
		r.sorted = make([]hsm.Object, 0, len(r.objects))
		for _, ref := range slices.Sorted(maps.Keys(r.objects)) {
			r.sorted = append(r.sorted, r.objects[ref].Object)
		}
	}
	return r.sorted
}

// Extract implements hsm.Source.
func (r *Replica) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		for ref := range refs {
			if err := ctx.Err(); err != nil {
				yield(hsm.MaskedObject{}, err)
				return
			}
			if o, ok := r.Get(ref); ok && !yield(o, nil) {
				return
			}
		}
	}
}

// Get returns one object.
func (r *Replica) Get(ref hsm.KeyRef) (hsm.MaskedObject, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o, ok := r.objects[ref]
	return o, ok
}

// Insert implements hsm.Replica.
func (r *Replica) Insert(ctx context.Context, objects iter.Seq2[hsm.MaskedObject, error]) (done hsm.Inserted, err error) {
	for o, err := range objects {
		if err := errors.Join(err, ctx.Err()); err != nil {
			return done, err
		}
		record, err := r.keyring.Unmask(o)
		if err != nil {
			return done, err
		}
		if err := r.clock.Observe(record.Latest()); err != nil {
			return done, err
		}
		r.mu.Lock()
		err = r.merge(record, &done)
		r.mu.Unlock()
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// merge merges the record into the replica; the caller holds the lock.
func (r *Replica) merge(record *hsm.Record, done *hsm.Inserted) error {
	before, held := r.objects[record.Ref]
	if held {
		mine, err := r.keyring.Unmask(before)
		if err != nil {
			return err
		}
		if record, err = hsm.Merge(mine, record); errors.Is(err, hsm.ErrConflict) {
			done.Conflicts = append(done.Conflicts, before.Ref)
			return nil
		} else if err != nil {
			return err
		}
	}
	after, err := r.keyring.Mask(record)
	if err != nil {
		return err
	}
	switch {
	case !held:
		done.Added++
		r.state.Update(nil, &after.Object)
	case before.Digest == after.Digest:
		done.Unchanged++
		return nil
	default:
		done.Changed++
		r.state.Update(&before.Object, &after.Object)
	}
	r.objects[after.Ref], r.sorted = after, nil
	return nil
}

// FingerprintKeys implements hsm.Sketcher.
func (r *Replica) FingerprintKeys(ctx context.Context) (hsm.FingerprintKeys, error) {
	return r.keyring.FingerprintKeys(), ctx.Err()
}

// Root implements hsm.Sketcher.
func (r *Replica) Root(ctx context.Context) (hsm.Root, error) {
	return r.state.Root(), ctx.Err()
}

// Cells implements hsm.Sketcher.
func (r *Replica) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return func(yield func(hsm.Cell, error) bool) {
		r.mu.Lock()
		prefix, sorted := r.state.Cells(), r.list()
		r.mu.Unlock()
		items := func() iter.Seq2[hsm.Object, error] {
			return func(yield func(hsm.Object, error) bool) { yieldAll(ctx, sorted, yield) }
		}
		reconcile.CellsFrom(r.keyring.FingerprintKeys(), prefix, from, items)(yield)
	}
}

// Remove forgets an object, as if the replica had never held it: what no HSM
// does, and what a test of reconciliation wants.
func (r *Replica) Remove(ref hsm.KeyRef) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o, ok := r.objects[ref]; ok {
		r.state.Update(&o.Object, nil)
		delete(r.objects, ref)
		r.sorted = nil
	}
}

func yieldAll(ctx context.Context, objects []hsm.Object, yield func(hsm.Object, error) bool) {
	for i, o := range objects {
		if i%256 == 0 && ctx.Err() != nil {
			yield(hsm.Object{}, ctx.Err())
			return
		}
		if !yield(o, nil) {
			return
		}
	}
}

// change writes a new state of an object that the replica holds.
func (r *Replica) change(ref hsm.KeyRef, edit func(*hsm.Record)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	o, ok := r.objects[ref]
	if !ok {
		return fmt.Errorf("%w: %s", hsm.ErrNotFound, ref)
	}
	record, err := r.keyring.Unmask(o)
	if err != nil {
		return err
	}
	edit(record)
	return r.merge(record, &hsm.Inserted{})
}
