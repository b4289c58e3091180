package soft

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Bounds of one durable batch of Insert.
const (
	chunkObjects = 512
	chunkBytes   = 1 << 20
)

// Insert implements hsm.Replica. Objects are opened and written in chunks, on
// all cores; each chunk is one atomic durable step. After an error the chunks
// under way still count.
func (r replica) Insert(ctx context.Context, objects iter.Seq2[hsm.MaskedObject, error]) (total hsm.Inserted, err error) {
	done, err := r.enter(ctx)
	if err != nil {
		return total, err
	}
	defer done()
	defer func() {
		if err != nil || total.Added+total.Changed > 0 {
			r.s.audit(ctx, "insert", 0, fmt.Sprintf("added %d, changed %d, conflicts %d", total.Added, total.Changed, len(total.Conflicts)), err)
		}
	}()
	w := &inserter{r: r, slots: make(chan struct{}, runtime.GOMAXPROCS(0))}
	readErr := w.read(ctx, objects)
	w.running.Wait()
	slices.Sort(w.total.Conflicts)
	return w.total, errors.Join(w.err, readErr)
}

// inserter runs the chunks of one Insert, as many at a time as there are slots.
type inserter struct {
	r       replica
	slots   chan struct{}
	running sync.WaitGroup

	mu    sync.Mutex
	total hsm.Inserted
	err   error // the first one; no chunk is begun after it
}

// read cuts the sequence into chunks and starts them.
func (w *inserter) read(ctx context.Context, objects iter.Seq2[hsm.MaskedObject, error]) error {
	var chunk []hsm.MaskedObject
	size := 0
	for m, err := range objects {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			w.start(ctx, chunk) // what came before the error is good
			return err
		}
		chunk, size = append(chunk, m), size+len(m.Bytes)
		if len(chunk) < chunkObjects && size < chunkBytes {
			continue
		}
		if !w.start(ctx, chunk) {
			return nil
		}
		chunk, size = nil, 0
	}
	w.start(ctx, chunk)
	return nil
}

// start inserts a chunk in the background, once there is a slot. It returns
// false if an earlier chunk failed.
func (w *inserter) start(ctx context.Context, chunk []hsm.MaskedObject) bool {
	w.slots <- struct{}{}
	w.mu.Lock()
	failed := w.err != nil
	w.mu.Unlock()
	if failed || len(chunk) == 0 {
		<-w.slots
		return !failed
	}
	w.running.Go(func() {
		defer func() { <-w.slots }()
		counted, err := w.r.insertChunk(ctx, chunk)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.total.Add(counted)
		if w.err == nil {
			w.err = err
		}
	})
	return true
}

// arrival is an object on its way in.
type arrival struct {
	masked  hsm.MaskedObject
	was     *hsm.Object // what the HSM held when version was read; nil: nothing
	version uint64
	rec     *hsm.Record // once it is opened
}

// insertChunk inserts some objects in one durable step. If one of them is not
// acceptable, those before it are inserted and the error is returned.
func (r replica) insertChunk(ctx context.Context, chunk []hsm.MaskedObject) (hsm.Inserted, error) {
	var counted hsm.Inserted
	arrivals, err := r.compare(chunk)
	if err != nil {
		return counted, r.s.h.store.wrap("insert", err)
	}
	opened := make([]arrival, 0, len(arrivals))
	var refused error
	for _, a := range arrivals {
		if refused = r.open(&a); refused != nil {
			break
		}
		if a.rec == nil {
			counted.Unchanged++
			continue
		}
		opened = append(opened, a)
	}
	written, err := r.write(ctx, opened)
	counted.Add(written)
	return counted, errors.Join(refused, err)
}

// compare looks up what the HSM holds of a chunk, with one iterator in order of
// reference.
func (r replica) compare(chunk []hsm.MaskedObject) ([]arrival, error) {
	h, arrivals, order := r.s.h, make([]arrival, len(chunk)), make([]int, len(chunk))
	for i, m := range chunk {
		arrivals[i] = arrival{masked: m, version: h.locks.version(r.scope, m.Ref)}
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(chunk[a].Ref, chunk[b].Ref) })
	prefix := []byte{prefixDigest, byte(r.scope)}
	it, err := h.store.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: prefixEnd(prefix)})
	if err != nil {
		return nil, err
	}
	for _, i := range order {
		key := digestKey(r.scope, chunk[i].Ref)
		if !it.SeekGE(key) || !bytes.Equal(it.Key(), key) {
			continue
		}
		o, err := decodeDigest(chunk[i].Ref, it.Value())
		if err != nil {
			return nil, errors.Join(err, it.Close())
		}
		arrivals[i].was = &o
	}
	return arrivals, errors.Join(it.Error(), it.Close())
}

// open authenticates an object and checks that it may come in. It stays closed
// if the HSM has it already, to the digest.
func (r replica) open(a *arrival) error {
	same := a.was != nil && *a.was == a.masked.Object
	if same && !r.s.isUser() {
		return nil
	}
	rec, err := r.s.h.admit(a.masked, r.scope)
	if err != nil {
		return err
	}
	if !r.s.mayCopy(rec) {
		return fmt.Errorf("%w: %s %s belongs to %q; a crypto user inserts the keys it owns", hsm.ErrDenied, rec.Kind, rec.Ref, rec.Core.Owner)
	}
	if !same {
		a.rec = rec
	}
	return nil
}

// admit authenticates an object that comes from elsewhere and checks scope,
// cluster and stamps.
func (h *HSM) admit(m hsm.MaskedObject, scope hsm.Scope) (*hsm.Record, error) {
	rec, err := h.keys().Unmask(m)
	if err != nil {
		return nil, err
	}
	if err := h.acceptable(m.Object, rec.Cluster, rec.Latest(), scope); err != nil {
		return nil, err
	}
	return rec, nil
}

// acceptable checks scope, cluster and latest stamp of an authentic object.
func (h *HSM) acceptable(o hsm.Object, cluster hsm.ClusterID, latest hsm.Stamp, scope hsm.Scope) error {
	switch {
	case o.Kind.Scope() != scope:
		return fmt.Errorf("%w: %s %s is not of this scope", hsm.ErrInvalid, o.Kind, o.Ref)
	case scope == hsm.ScopeCluster && cluster != h.opts.Cluster:
		return fmt.Errorf("%w: %s %s belongs to %s, this HSM to %s; members and lockouts stay in their cluster", hsm.ErrLineage, o.Kind, o.Ref, cluster, h.opts.Cluster)
	}
	if err := h.clock.Observe(latest); err != nil {
		return fmt.Errorf("%s %s: %w", o.Kind, o.Ref, err)
	}
	return nil
}

// write merges the arrivals into the store in one durable step.
func (r replica) write(ctx context.Context, arrivals []arrival) (hsm.Inserted, error) {
	if len(arrivals) == 0 {
		return hsm.Inserted{}, nil
	}
	h := r.s.h
	unlock, err := h.lockSettled(r.scope, arrivals)
	if err != nil {
		return hsm.Inserted{}, err
	}
	defer unlock()
	m := merging{h: h, s: r.s, scope: r.scope, t: h.begin(), now: map[hsm.KeyRef]*held{}}
	for _, a := range arrivals {
		if err := m.add(a); err != nil {
			return hsm.Inserted{}, errors.Join(err, m.t.batch.Close())
		}
	}
	if m.counted.Added+m.counted.Changed == 0 {
		return m.counted, m.t.batch.Close()
	}
	if err := m.t.commit(); err != nil {
		return hsm.Inserted{}, err
	}
	for _, ended := range m.ended {
		r.s.auditEnded(ctx, ended)
	}
	return m.counted, nil
}

// lockSettled locks the arrivals' references. An arrival that is provisional
// here was committed elsewhere; its operation is committed here too, first.
func (h *HSM) lockSettled(scope hsm.Scope, arrivals []arrival) (unlock func(), err error) {
	refs := make([]hsm.KeyRef, len(arrivals))
	for i, a := range arrivals {
		refs[i] = a.rec.Ref
	}
	for {
		unlock = h.locks.lock(scope, refs...)
		op, found := h.committedElsewhere(scope, arrivals)
		if !found {
			return unlock, nil
		}
		unlock()
		if err := h.commitInDoubt(op); err != nil && !errors.Is(err, hsm.ErrOp) {
			return nil, err
		}
	}
}

func (h *HSM) committedElsewhere(scope hsm.Scope, arrivals []arrival) (hsm.OpID, bool) {
	for _, a := range arrivals {
		if p := h.ops.holding(scope, a.rec.Ref); p != nil && p.births[a.rec.Ref] == a.rec.Birth {
			return p.op, true
		}
	}
	return hsm.OpID{}, false
}

// merging is one chunk being merged. now holds what the batch has already put,
// since one object may come twice.
type merging struct {
	h       *HSM
	s       *session
	scope   hsm.Scope
	t       *tx
	now     map[hsm.KeyRef]*held
	counted hsm.Inserted
	ended   []*hsm.Record // gave way to another birth
}

func (m *merging) add(a arrival) error {
	cur, err := m.current(a)
	if err != nil {
		return err
	}
	if p := m.h.ops.holding(m.scope, a.rec.Ref); p != nil { // of another birth: see lockSettled
		m.counted.Conflicts = append(m.counted.Conflicts, a.rec.Ref)
		return nil
	}
	if cur == nil {
		m.counted.Added++
		m.put(nil, a.rec, a.masked)
		return nil
	}
	if cur.obj == a.masked.Object {
		m.counted.Unchanged++
		return nil
	}
	return m.merge(cur, a)
}

// current returns what the HSM holds now. It need not be read again if there
// was nothing and nobody has written since.
func (m *merging) current(a arrival) (*held, error) {
	ref := a.rec.Ref
	if cur := m.now[ref]; cur != nil {
		return cur, nil
	}
	if a.was == nil && m.h.locks.unchanged(m.scope, ref, a.version) {
		return nil, nil
	}
	return m.h.read(m.scope, ref)
}

func (m *merging) merge(cur *held, a arrival) error {
	rec, err := hsm.Merge(cur.rec, a.rec)
	if err == nil {
		err = m.s.mayTakeOver(cur.rec, rec)
	}
	if errors.Is(err, hsm.ErrConflict) || errors.Is(err, errTakesOver) {
		m.counted.Conflicts = append(m.counted.Conflicts, a.rec.Ref)
		return nil
	}
	if err != nil {
		return err
	}
	masked, err := m.h.keys().Mask(rec)
	if err != nil {
		return err
	}
	if masked.Digest == cur.obj.Digest {
		m.counted.Unchanged++
		return nil
	}
	if m.counted.Changed++; rec.Birth != cur.rec.Birth {
		m.ended = append(m.ended, cur.rec)
	}
	m.put(cur, rec, masked)
	return nil
}

func (m *merging) put(cur *held, rec *hsm.Record, masked hsm.MaskedObject) {
	m.t.put(cur, rec, masked)
	m.now[rec.Ref] = &held{obj: masked.Object, rec: rec, bytes: masked.Bytes}
}
