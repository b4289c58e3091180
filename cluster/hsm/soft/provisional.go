package soft

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Bounds of a lease, and of the objects of one operation.
const (
	defaultLease = 30 * time.Second
	maxLease     = time.Hour
	maxOpObjects = 1024
)

// Pending is a provisional operation whose lease is over and whose outcome is
// not known. Its objects stay as they are, invisible, until ResolveAs or an
// Insert of one of them tells.
type Pending struct {
	Op    hsm.OpID
	Refs  []hsm.KeyRef
	Since time.Time
}

// InDoubt lists the operations whose outcome has to be learned from the peers,
// the oldest first.
func (h *HSM) InDoubt() []Pending {
	h.ops.mu.Lock()
	defer h.ops.mu.Unlock()
	now, list := h.opts.Now(), []Pending{}
	for _, p := range h.ops.pending {
		if now.After(p.lease) {
			list = append(list, Pending{Op: p.op, Refs: p.refs(), Since: p.since})
		}
	}
	slices.SortFunc(list, func(a, b Pending) int {
		return cmp.Or(a.Since.Compare(b.Since), bytes.Compare(a.Op[:], b.Op[:]))
	})
	return list
}

// doubts shows the oldest of the operations in doubt.
func doubts(all []Pending) (out []hsm.Doubt) {
	for _, p := range all[:min(len(all), hsm.MaxDoubts)] {
		out = append(out, hsm.Doubt{Op: p.Op, Refs: p.Refs[:min(len(p.Refs), hsm.MaxDoubtRefs)], Since: p.Since})
	}
	return out
}

// ResolveAs settles an operation whose outcome was learned from the peers:
// committed by one of them, or by none, and none ever will. It is idempotent,
// and durable when it returns. ErrOp if the HSM holds no such operation and did
// not settle it that way before.
func (h *HSM) ResolveAs(ctx context.Context, op hsm.OpID, committed bool) error {
	done, err := h.enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	if committed {
		err = h.commitInDoubt(op)
	} else {
		err = h.drop(op)
	}
	h.opts.Audit(ctx, "resolve", hsm.Principal{Role: hsm.RoleHSM, Name: h.opts.ID.String()}, 0, fmt.Sprintf("op %x committed %t", op, committed), err)
	return err
}

// Prepare implements hsm.Provisional.
func (s *session) Prepare(ctx context.Context, op hsm.OpID, lease time.Duration, objects []hsm.MaskedObject) error {
	done, err := s.enter(ctx, everyone...)
	if err != nil {
		return err
	}
	defer done()
	p := &pending{op: op, by: s.who, objects: objects, births: map[hsm.KeyRef][16]byte{}}
	if err := s.admitAll(p); err != nil {
		return err
	}
	return s.h.prepare(p, lease)
}

// admitAll checks the objects of an operation: authentic live keys that the
// session may insert.
func (s *session) admitAll(p *pending) error {
	if len(p.objects) == 0 || len(p.objects) > maxOpObjects {
		return fmt.Errorf("%w: %d objects in one operation: want 1 to %d", hsm.ErrInvalid, len(p.objects), maxOpObjects)
	}
	for _, m := range p.objects {
		rec, err := s.h.admit(m, hsm.ScopeLineage)
		if err != nil {
			return err
		}
		if rec.Kind != hsm.KindKey || rec.Destroyed {
			return fmt.Errorf("%w: %s %s: only live keys are created in two steps", hsm.ErrInvalid, rec.Kind, rec.Ref)
		}
		if !s.mayCopy(rec) {
			return fmt.Errorf("%w: key %s belongs to %q", hsm.ErrDenied, rec.Ref, rec.Core.Owner)
		}
		if _, twice := p.births[rec.Ref]; twice {
			return fmt.Errorf("%w: key %s twice in one operation", hsm.ErrInvalid, rec.Ref)
		}
		p.recs, p.births[rec.Ref] = append(p.recs, rec), rec.Birth
	}
	return nil
}

// prepare takes an operation on, in memory: what is durable is its end. If we
// die before the commit nothing was promised: the client prepares anew what it
// then commits, and a client that has vanished has either committed on another
// HSM, from which server-side sync brings the objects, or on none, and then they
// are gone, as they should be.
func (h *HSM) prepare(p *pending, lease time.Duration) error {
	if lease < 0 || lease > maxLease || p.op == (hsm.OpID{}) {
		return fmt.Errorf("%w: want an operation id, and a lease of at most %s", hsm.ErrInvalid, maxLease)
	}
	defer h.ops.lock(p.op)()
	if again, err := h.preparedBefore(p); again || err != nil {
		return err
	}
	p.since = h.opts.Now()
	p.lease = p.since.Add(cmp.Or(lease, defaultLease))
	defer h.locks.lock(hsm.ScopeLineage, p.refs()...)()
	if err := h.free(p); err != nil {
		return err
	}
	if err := h.store.writable(); err != nil {
		return err
	}
	return h.ops.reserve(p)
}

// preparedBefore tells whether the operation needs no work: the same objects
// were prepared, or committed, before. ErrOp if it was aborted, ErrExist if it
// was another one.
func (h *HSM) preparedBefore(p *pending) (bool, error) {
	m, err := h.readMark(p.op)
	if err != nil {
		return false, h.store.wrap("prepare", err)
	}
	if m != nil && m.state() == hsm.OpAborted {
		return false, fmt.Errorf("%w: it was aborted here; start over with a new one", hsm.ErrOp)
	}
	if m != nil {
		return true, sameRefs(m.Refs, p.refs())
	}
	old := h.ops.get(p.op)
	if old == nil {
		return false, nil
	}
	for i, o := range old.objects {
		if len(old.objects) != len(p.objects) || o.Object != p.objects[i].Object {
			return true, sameRefs(nil, p.refs())
		}
	}
	return true, nil
}

func sameRefs(a, b []hsm.KeyRef) error {
	if !slices.Equal(a, b) {
		return fmt.Errorf("%w: the operation was prepared here with other objects", hsm.ErrExist)
	}
	return nil
}

// free checks that no reference is taken in the store.
func (h *HSM) free(p *pending) error {
	for _, ref := range p.refs() {
		cur, err := h.read(hsm.ScopeLineage, ref)
		switch {
		case err != nil:
			return err
		case cur == nil:
		case cur.rec.Birth != p.births[ref]:
			return fmt.Errorf("%w: %s is another %s here", hsm.ErrConflict, ref, cur.rec.Kind)
		case cur.rec.Destroyed:
			return fmt.Errorf("%w: %s: %w", hsm.ErrExist, ref, hsm.ErrDestroyed)
		default:
			return fmt.Errorf("%w: %s is here already", hsm.ErrExist, ref)
		}
	}
	return nil
}

// Commit implements hsm.Provisional.
func (s *session) Commit(ctx context.Context, op hsm.OpID) (err error) {
	done, err := s.enter(ctx, everyone...)
	if err != nil {
		return err
	}
	defer done()
	defer func() { s.audit(ctx, "commit", 0, fmt.Sprintf("op %x", op), err) }()
	h := s.h
	defer h.ops.lock(op)()
	p, m, err := s.own(op)
	switch {
	case err != nil:
		return err
	case m != nil && m.state() == hsm.OpCommitted:
		return nil
	case p == nil || h.ops.promised(op):
		return fmt.Errorf("%w: HSM %s does not hold it; it is unknown or aborted here", hsm.ErrOp, h.opts.ID)
	case h.opts.Now().After(p.lease):
		return fmt.Errorf("%w: its lease on HSM %s was over at %s", hsm.ErrOp, h.opts.ID, p.lease.UTC().Format(time.RFC3339))
	}
	return h.commitLocked(p)
}

// own returns what the HSM holds of an operation: it is pending, or it has a
// mark, or neither. ErrDenied if it belongs to another principal; HSMs may
// settle all.
func (s *session) own(op hsm.OpID) (*pending, *mark, error) {
	p := s.h.ops.get(op)
	var m *mark
	if p == nil || s.h.ops.promised(op) { // otherwise there is none
		var err error
		if m, err = s.h.readMark(op); err != nil {
			return nil, nil, s.h.store.wrap("read", err)
		}
	}
	by := s.who
	if p != nil {
		by = p.by
	} else if m != nil && m.Refs != nil {
		by = hsm.Principal{Role: m.Role, Name: m.Name}
	}
	if by != s.who && s.who.Role != hsm.RoleHSM {
		return nil, nil, fmt.Errorf("%w: the operation belongs to %s %q", hsm.ErrDenied, by.Role, by.Name)
	}
	return p, m, nil
}

// commitInDoubt commits an operation that was committed elsewhere, whatever was
// promised to clients.
func (h *HSM) commitInDoubt(op hsm.OpID) error {
	defer h.ops.lock(op)()
	if p := h.ops.get(op); p != nil {
		return h.commitLocked(p)
	}
	return h.settledAs(op, hsm.OpCommitted)
}

func (h *HSM) settledAs(op hsm.OpID, want hsm.OpState) error {
	m, err := h.readMark(op)
	if err != nil {
		return h.store.wrap("read", err)
	}
	if m == nil || m.state() != want {
		return fmt.Errorf("%w: HSM %s does not hold it", hsm.ErrOp, h.opts.ID)
	}
	return nil
}

// commitLocked makes the objects visible, in one step with the end of the
// operation. The caller holds the operation's lock.
func (h *HSM) commitLocked(p *pending) error {
	defer h.locks.lock(hsm.ScopeLineage, p.refs()...)()
	t := h.begin()
	for i, m := range p.objects {
		t.put(nil, p.recs[i], m)
	}
	if err := h.finish(t, p, p.op, hsm.OpCommitted); err != nil {
		return err
	}
	if p.committed != nil {
		p.committed()
	}
	return h.pruneMarks()
}

// finish ends an operation durably: it is not pending any more, and marked. p
// is nil if the HSM never held it.
func (h *HSM) finish(t *tx, p *pending, op hsm.OpID, state hsm.OpState) error {
	t.mark(p, op, state)
	if err := t.commit(); err != nil {
		return err
	}
	if p != nil {
		h.ops.remove(p)
	}
	return nil
}

// drop drops an operation that no HSM has committed or will.
func (h *HSM) drop(op hsm.OpID) error {
	defer h.ops.lock(op)()
	if p := h.ops.get(op); p != nil {
		return h.finish(h.begin(), p, op, hsm.OpAborted)
	}
	return h.settledAs(op, hsm.OpAborted)
}

// Abort implements hsm.Provisional. A committed operation is undone by the
// crypto user who owns its keys, while they are newly born: see undo.
func (s *session) Abort(ctx context.Context, op hsm.OpID) (err error) {
	done, err := s.enter(ctx, everyone...)
	if err != nil {
		return err
	}
	defer done()
	defer func() { s.audit(ctx, "abort", 0, fmt.Sprintf("op %x", op), err) }()
	if s.abortKeys(op) {
		return nil
	}
	h := s.h
	defer h.ops.lock(op)()
	p, m, err := s.own(op)
	switch {
	case err != nil:
		return err
	case p == nil && m != nil && m.state() == hsm.OpAborted:
		return nil
	case p == nil && m != nil:
		err = s.undo(ctx, op, m)
	default:
		err = h.finish(h.begin(), p, op, hsm.OpAborted)
	}
	if err != nil {
		return err
	}
	return h.pruneMarks()
}

// undo destroys the objects of a committed operation, whether they are
// destroyable or not: their creation failed elsewhere, and nobody was told of
// them. Since tombstones spread and win everywhere, that is for the owner only,
// for keys born in this operation, and for as long as a creation may last.
// Otherwise it is ErrDenied, and the operation stays committed.
func (s *session) undo(ctx context.Context, op hsm.OpID, m *mark) error {
	h := s.h
	if !s.isUser() {
		return fmt.Errorf("%w: operation %x is committed, and its keys stay", s.denied(hsm.RoleCryptoUser), op)
	}
	defer h.locks.lock(hsm.ScopeLineage, m.Refs...)()
	live, err := h.liveOf(m.Refs)
	if err != nil {
		return err
	}
	t := h.begin()
	for _, cur := range live {
		if err := s.mayUndo(m, cur.rec); err != nil {
			return errors.Join(err, t.batch.Close())
		}
		if err := t.destroy(cur); err != nil {
			return errors.Join(err, t.batch.Close())
		}
	}
	t.mark(&pending{by: hsm.Principal{Role: m.Role, Name: m.Name}}, op, hsm.OpAborted)
	err = t.commit()
	for _, cur := range live {
		s.audit(ctx, "destroy", cur.rec.Ref, fmt.Sprintf("op %x aborted", op), err)
	}
	return err
}

// liveOf reads those of the objects that are live.
func (h *HSM) liveOf(refs []hsm.KeyRef) ([]*held, error) {
	var live []*held
	for _, ref := range refs {
		cur, err := h.read(hsm.ScopeLineage, ref)
		if err != nil {
			return nil, err
		}
		if cur != nil && !cur.obj.Tombstone {
			live = append(live, cur)
		}
	}
	return live, nil
}

// mayUndo checks that an abort may destroy a key of a committed operation.
func (s *session) mayUndo(m *mark, r *hsm.Record) error {
	committed := time.UnixMilli(int64(m.Time))
	switch {
	case r.Kind != hsm.KindKey || !s.h.owns(s.who.Name, r):
		return fmt.Errorf("%w: key %s belongs to %q; only its owner undoes its creation", hsm.ErrDenied, r.Ref, r.Core.Owner)
	case !m.Born:
		return fmt.Errorf("%w: key %s existed before this operation copied it here, so it stays; to destroy it, use key delete", hsm.ErrDenied, r.Ref)
	case s.h.opts.Now().After(committed.Add(maxLease)):
		return fmt.Errorf("%w: key %s was committed at %s, so it stays; to destroy it, use key delete", hsm.ErrDenied, r.Ref, committed.UTC().Format(time.RFC3339))
	}
	return nil
}

// destroy replaces a live object by its tombstone.
func (t *tx) destroy(cur *held) error {
	r := cur.rec.Clone()
	r.Destroy()
	m, err := t.h.keys().Mask(r)
	if err != nil {
		return err
	}
	t.put(cur, r, m)
	return nil
}

// Resolve implements hsm.Provisional.
func (s *session) Resolve(ctx context.Context, op hsm.OpID) (hsm.OpState, error) {
	done, err := s.enter(ctx, everyone...)
	if err != nil {
		return hsm.OpUnknown, err
	}
	defer done()
	h := s.h
	defer h.ops.lock(op)()
	p, m, err := s.own(op)
	switch {
	case err != nil:
		return hsm.OpUnknown, err
	case m != nil:
		return m.state(), nil
	case p != nil && !h.opts.Now().After(p.lease):
		return hsm.OpPrepared, nil
	}
	return hsm.OpAborted, h.promise(p, op)
}

// promise marks an operation aborted. If it is pending its objects stay, for
// a peer may yet tell that it was committed elsewhere.
func (h *HSM) promise(p *pending, op hsm.OpID) error {
	t := h.begin()
	t.mark(p, op, hsm.OpAborted)
	if err := t.commit(); err != nil {
		return err
	}
	if p != nil {
		h.ops.promise(op)
	}
	return h.pruneMarks()
}
