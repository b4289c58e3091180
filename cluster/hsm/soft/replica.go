package soft

import (
	"context"
	"errors"
	"iter"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// replica is one scope of the HSM as one session may see it: everything for
// admins, appliances and HSMs, the keys it owns for a crypto user, to whom the
// cluster scope is closed.
type replica struct {
	s     *session
	scope hsm.Scope
}

// enter begins a call; the caller defers done.
func (r replica) enter(ctx context.Context) (done func(), err error) {
	if r.scope == hsm.ScopeCluster {
		return r.s.enter(ctx, hsm.RoleAdmin, hsm.RoleAppliance, hsm.RoleHSM)
	}
	return r.s.enter(ctx, everyone...)
}

// Lineage implements hsm.Source.
func (r replica) Lineage() hsm.Lineage { return r.s.h.keys().Lineage() }

// Objects implements hsm.Source. All objects are of one moment.
func (r replica) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return func(yield func(hsm.Object, error) bool) {
		done, err := r.enter(ctx)
		if err != nil {
			yield(hsm.Object{}, err)
			return
		}
		defer done()
		snapshot := r.s.h.store.db.NewSnapshot()
		defer snapshot.Close()
		r.list(ctx, snapshot)(yield)
	}
}

// list yields the objects in from that the session may see.
func (r replica) list(ctx context.Context, from pebble.Reader) iter.Seq2[hsm.Object, error] {
	if r.s.isUser() {
		return r.listOwned(ctx, from)
	}
	return func(yield func(hsm.Object, error) bool) {
		err := scan(from, []byte{prefixDigest, byte(r.scope)}, func(key, value []byte) (bool, error) {
			ref, err := refOf(key)
			if err != nil {
				return false, err
			}
			o, err := decodeDigest(ref, value)
			if err != nil {
				return false, err
			}
			if !yield(o, nil) {
				return false, nil // whatever the context says: nothing may follow
			}
			return true, ctx.Err()
		})
		if err != nil {
			r.fail(yield, err)
		}
	}
}

func (r replica) listOwned(ctx context.Context, from pebble.Reader) iter.Seq2[hsm.Object, error] {
	return func(yield func(hsm.Object, error) bool) {
		refs, err := refsUnder(from, userPrefix(r.s.who.Name), relOwner, relTombstone)
		if err != nil {
			r.fail(yield, err)
			return
		}
		for _, ref := range refs {
			o, err := r.owned(from, ref)
			if err = errors.Join(err, ctx.Err()); err != nil {
				r.fail(yield, err)
				return
			}
			if o != nil && !yield(*o, nil) {
				return
			}
		}
	}
}

// owned reads what listing knows of an object with the session's user as owner,
// nil if it belongs to an earlier user of that name.
func (r replica) owned(from pebble.Reader, ref hsm.KeyRef) (*hsm.Object, error) {
	if u, _ := r.s.h.users.get(r.s.who.Name); u.incarnation == 0 { // there was none
		return r.s.h.digest(from, r.scope, ref)
	}
	cur, err := r.s.h.readFrom(from, r.scope, ref)
	if cur == nil || err != nil || !r.s.mayCopy(cur.rec) {
		return nil, err
	}
	return &cur.obj, nil
}

func (r replica) fail(yield func(hsm.Object, error) bool, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		yield(hsm.Object{}, err)
		return
	}
	yield(hsm.Object{}, r.s.h.store.wrap("list", err))
}

// digest reads what listing knows of an object, nil if there is none.
func (h *HSM) digest(from pebble.Reader, scope hsm.Scope, ref hsm.KeyRef) (*hsm.Object, error) {
	b, err := get(from, digestKey(scope, ref))
	if b == nil || err != nil {
		return nil, err
	}
	o, err := decodeDigest(ref, b)
	return &o, err
}

// mayCopy tells whether the session may read and insert this object.
func (s *session) mayCopy(r *hsm.Record) bool {
	return !s.isUser() || r.Kind == hsm.KindKey && s.h.owns(s.who.Name, r)
}

// FingerprintKeys implements hsm.Sketcher.
func (r replica) FingerprintKeys(ctx context.Context) (hsm.FingerprintKeys, error) {
	done, err := r.enter(ctx)
	if err != nil {
		return hsm.FingerprintKeys{}, err
	}
	defer done()
	return r.s.h.keys().FingerprintKeys(), nil
}

// Root implements hsm.Sketcher. A crypto user's root is of the keys it owns,
// and costs a listing of them.
func (r replica) Root(ctx context.Context) (hsm.Root, error) {
	done, err := r.enter(ctx)
	if err != nil {
		return hsm.Root{}, err
	}
	defer done()
	if !r.s.isUser() {
		return r.s.h.states[r.scope].Root(), nil
	}
	snapshot := r.s.h.store.db.NewSnapshot()
	defer snapshot.Close()
	root := reconcile.NewRootState(r.s.h.keys().FingerprintKeys())
	for o, err := range r.list(ctx, snapshot) {
		if err != nil {
			return hsm.Root{}, err
		}
		root.Add(reconcile.ItemOf(o))
	}
	return root.Root(), nil
}

// Cells implements hsm.Sketcher. A crypto user's are of the keys it owns.
func (r replica) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return func(yield func(hsm.Cell, error) bool) {
		done, err := r.enter(ctx)
		if err != nil {
			yield(hsm.Cell{}, err)
			return
		}
		defer done()
		snapshot, prefix := r.s.h.freeze(r.scope)
		defer snapshot.Close()
		if r.s.isUser() {
			prefix = nil
		}
		items := func() iter.Seq2[hsm.Object, error] { return r.list(ctx, snapshot) }
		reconcile.CellsFrom(r.s.h.keys().FingerprintKeys(), prefix, from, items)(yield)
	}
}

// freeze returns a snapshot of the store and the sketch's prefix of the same
// moment. Commits wait for it, briefly.
func (h *HSM) freeze(scope hsm.Scope) (*pebble.Snapshot, []hsm.Cell) {
	h.moment.Lock()
	defer h.moment.Unlock()
	return h.store.db.NewSnapshot(), h.states[scope].Cells()
}
