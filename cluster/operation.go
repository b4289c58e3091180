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

// operation is one creation on its way to all HSMs, after one of them has made
// the objects: prepare everywhere, then either commit or abort (DESIGN.md §7).
//
// What holds if the client dies:
//   - before the verdict: every HSM that has the objects has them provisional,
//     none is committed, and none will be: they are dropped after their lease.
//   - after the verdict, before the first commit: the same.
//   - after the first commit: the key exists. HSMs that hold it provisional ask
//     the others after their lease and commit; the rest get it from server-side
//     sync. The caller was told nothing.
//
// What holds if an HSM dies: what it held provisional is gone, and with it
// nothing that anybody was promised, since only commits count for the policy. As
// long as the client lives it prepares the objects there anew and commits them.
type operation struct {
	c       *Cluster
	id      hsm.OpID
	objects []hsm.MaskedObject
	lease   time.Duration
	policy  Policy
	creator *remote
	copies  bool // the keys exist apart from this operation (hsm.MethodInsert)

	ctx     context.Context // of the work on HSMs; it survives the caller's
	cancel  context.CancelFunc
	work    sync.WaitGroup
	verdict chan struct{} // closed when commit is decided
	first   chan struct{} // closed at the first commit
	news    chan struct{} // holds one token while there is news for run

	mu    sync.Mutex
	parts []*part
}

// part is an operation on one HSM. operation.mu guards all but r.
type part struct {
	r        *remote
	prepared bool
	settled  bool // prepare has ended
	tried    bool // commit or insert was sent, and may have been done
	commit   bool // the objects are visible there, durably
	waiting  bool // for another HSM's commit, to copy it
	over     bool // nothing more happens here
	future   bool // prepare refused the objects as from the future
	err      error
}

func (c *Cluster) newOperation(ctx context.Context, id hsm.OpID, objects []hsm.MaskedObject, lease time.Duration, p Policy) *operation {
	o := &operation{
		c: c, id: id, objects: objects, lease: lease, policy: p,
		verdict: make(chan struct{}), first: make(chan struct{}), news: make(chan struct{}, 1),
	}
	o.ctx, o.cancel = context.WithTimeout(hsm.SameApplication(c.base, ctx), lease)
	return o
}

// run takes the operation to its end: nil when MinCopies HSMs have committed,
// otherwise an error, with nothing left behind. ctx bounds it, cleanup apart.
func (o *operation) run(ctx context.Context, creator *remote) error {
	o.creator = creator
	o.spread(creator)
	if !o.await(ctx, o.allPrepared, o.cannotPrepare) {
		return o.fail(ctx)
	}
	// From here on HSMs may commit. Whatever happens, the key ends on MinCopies
	// HSMs, or destroyed on all of them.
	close(o.verdict)
	if !o.await(ctx, o.enough, o.cannotCommit) {
		return o.fail(ctx)
	}
	rest := func(context.Context) { o.work.Wait(); o.cancel() }
	if !o.c.background(rest) {
		rest(o.ctx)
	}
	return nil
}

// spread starts the work on every member. Members that are away take no part:
// server-side sync brings them the key.
func (o *operation) spread(creator *remote) {
	for _, r := range o.c.all() {
		if r == creator || r.current() != nil {
			o.parts = append(o.parts, &part{r: r, prepared: r == creator, settled: r == creator})
		}
	}
	for _, p := range o.parts {
		o.work.Go(func() { o.take(p) })
	}
}

// await waits until done, or until it cannot be any more. It tells which.
func (o *operation) await(ctx context.Context, done, hopeless func() bool) bool {
	for {
		switch {
		case done():
			return true
		case ctx.Err() != nil || o.ctx.Err() != nil:
			return false
		case hopeless():
			return done() // the last answer may have come between the two questions
		}
		select {
		case <-o.news:
		case <-ctx.Done():
		case <-o.ctx.Done():
		}
	}
}

func (o *operation) count(is func(*part) bool) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, p := range o.parts {
		if is(p) {
			n++
		}
	}
	return n
}

// suffice tells whether the policy is content with copies where is says so: on
// MinCopies HSMs, in MinZones zones.
func (o *operation) suffice(is func(*part) bool) bool {
	var room [8]*remote // nothing to allocate: it is asked at every step
	return o.policy.metBy(o.appendWhere(room[:0], is))
}

func (o *operation) where(is func(*part) bool) []*remote { return o.appendWhere(nil, is) }

func (o *operation) appendWhere(on []*remote, is func(*part) bool) []*remote {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range o.parts {
		if is(p) {
			on = append(on, p.r)
		}
	}
	return on
}

// allPrepared tells whether the key may be committed: enough HSMs hold it.
func (o *operation) allPrepared() bool {
	return o.suffice(func(p *part) bool { return p.prepared }) && o.harmony() == nil
}

// cannotPrepare waits for every HSM's answer, so that the error can tell them all.
func (o *operation) cannotPrepare() bool {
	return o.count(func(p *part) bool { return !p.settled }) == 0 || o.harmony() != nil
}

func (o *operation) cannotCommit() bool {
	begun := o.begun()
	return !o.suffice(func(p *part) bool { return p.commit || !p.over && (begun || !p.waiting) })
}

// enough tells whether enough HSMs have committed.
func (o *operation) enough() bool { return o.suffice(func(p *part) bool { return p.commit }) }

// harmony returns an error if an HSM has something else under one of the
// references: then there must be no key at all.
func (o *operation) harmony() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range o.parts {
		if errors.Is(p.err, hsm.ErrExist) || errors.Is(p.err, hsm.ErrConflict) || errors.Is(p.err, hsm.ErrDestroyed) {
			return p.err
		}
	}
	return nil
}

func (o *operation) holders() []hsm.HSMID {
	o.mu.Lock()
	defer o.mu.Unlock()
	ids := []hsm.HSMID{}
	for _, p := range o.parts {
		if p.commit {
			ids = append(ids, p.r.id())
		}
	}
	return ids
}

// note changes a part and tells run.
func (o *operation) note(p *part, change func()) {
	o.mu.Lock()
	change()
	o.mu.Unlock()
	select {
	case o.news <- struct{}{}:
	default:
	}
}

// take does one HSM's share: prepare, wait for the verdict, commit.
func (o *operation) take(p *part) {
	defer o.note(p, func() { p.settled, p.over = true, true })
	if !p.prepared {
		err := o.prepare(p)
		o.note(p, func() { p.settled, p.prepared, p.future, p.err = true, err == nil, errors.Is(err, hsm.ErrFuture), err })
		o.checkClock()
	}
	select {
	case <-o.verdict:
		o.commit(p)
	case <-o.ctx.Done():
	}
}

// checkClock notes, once all HSMs have said whether they take the objects, that
// most of them refuse those of the creator as from the future.
func (o *operation) checkClock() {
	if o.count(func(p *part) bool { return !p.settled }) > 0 {
		return
	}
	refused := o.count(func(p *part) bool { return p.future })
	accepted := o.count(func(p *part) bool { return p.prepared && p.r != o.creator })
	if mostRefuse(refused, accepted) {
		o.creator.avoid()
	}
}

// clockFailure returns the creator, or 0, if the operation ended before its
// verdict because HSMs refused the objects as from the future: had they not,
// there would have been copies enough.
func (o *operation) clockFailure() hsm.HSMID {
	select {
	case <-o.verdict:
		return 0
	default:
	}
	refused := o.count(func(p *part) bool { return p.future })
	prepared := o.count(func(p *part) bool { return p.prepared })
	if refused == 0 || prepared >= o.policy.MinCopies || prepared+refused < o.policy.MinCopies {
		return 0
	}
	o.creator.avoid()
	return o.creator.id()
}

// prepare makes the objects provisional on one HSM. An HSM that is back at once,
// having been started again, is asked again.
func (o *operation) prepare(p *part) error {
	ask := func(ctx context.Context, s hsm.Session) error { return s.Prepare(ctx, o.id, o.lease, o.objects) }
	err := o.on(p, ask)
	if away(err) && o.ctx.Err() == nil {
		p.r.wake()
		pause(o.ctx, o.c.timing.grace/4, o.c.changes())
		err = o.on(p, ask)
	}
	return err
}

func (o *operation) on(p *part, f func(context.Context, hsm.Session) error) error {
	_, err := call(o.ctx, p.r, o.c.timing.call, func(ctx context.Context, s hsm.Session) (struct{}, error) {
		return struct{}{}, f(ctx, s)
	})
	return err
}

// commit makes the objects visible on one HSM. As long as the operation needs
// this copy it is tried again when the HSM is back.
func (o *operation) commit(p *part) {
	for o.ctx.Err() == nil {
		o.note(p, func() { p.tried = true })
		err := o.on(p, func(ctx context.Context, s hsm.Session) error { return s.Commit(ctx, o.id) })
		if errors.Is(err, hsm.ErrOp) {
			err = o.again(p, err)
		}
		if err == nil {
			o.committed(p)
			return
		}
		o.note(p, func() { p.err = err })
		if o.enough() || !away(err) {
			return
		}
		o.awaitBack(p)
	}
}

// again brings the objects to an HSM that does not hold the operation. One that
// was started again has forgotten it, and takes it anew. One that takes it no
// more, having promised another HSM so, gets a copy of what was committed. Copies
// of keys that exist (hsm.MethodInsert) are not prepared twice: only the creator
// knows that of them, until it is started again, and no abort may destroy them.
func (o *operation) again(p *part, refusal error) error {
	if !o.copies {
		err := o.on(p, func(ctx context.Context, s hsm.Session) error {
			if err := s.Prepare(ctx, o.id, o.lease, o.objects); err != nil {
				return err
			}
			return s.Commit(ctx, o.id)
		})
		if err == nil || away(err) {
			return err
		}
	}
	return o.insert(p, refusal)
}

// awaitBack waits for the HSM to come back, or for the operation to do without.
func (o *operation) awaitBack(p *part) {
	pause(o.ctx, o.c.timing.backoffMin/4, nil)
	for o.ctx.Err() == nil && !o.enough() {
		changed := o.c.changes()
		if p.r.current() != nil {
			return
		}
		pause(o.ctx, o.c.timing.backoffMax, changed)
	}
}

// insert copies the committed objects to an HSM that does not hold the operation.
// It waits for the first commit: before that, there is nothing to copy.
func (o *operation) insert(p *part, refusal error) error {
	o.note(p, func() { p.tried, p.waiting = false, true })
	select {
	case <-o.first:
	case <-o.ctx.Done():
		return refusal
	}
	o.note(p, func() { p.tried, p.waiting = true, false })
	return o.on(p, func(ctx context.Context, s hsm.Session) error { return insertAll(ctx, s, o.objects) })
}

func (o *operation) begun() bool { return o.count(func(p *part) bool { return p.commit }) > 0 }

func (o *operation) committed(p *part) {
	id := p.r.id()
	for _, m := range o.objects {
		if m.Kind == hsm.KindKey {
			o.c.coverage.note(m.Ref, id)
		}
	}
	o.note(p, func() {
		p.commit, p.err = true, nil
		select {
		case <-o.first:
		default:
			close(o.first)
		}
	})
}

// insertAll merges a few objects into an HSM; a conflict is an error.
func insertAll(ctx context.Context, into hsm.Replica, objects []hsm.MaskedObject) error {
	n, err := into.Insert(ctx, func(yield func(hsm.MaskedObject, error) bool) {
		for _, m := range objects {
			if !yield(m, nil) {
				return
			}
		}
	})
	if err == nil && len(n.Conflicts) > 0 {
		err = fmt.Errorf("%w: %s", hsm.ErrConflict, n.Conflicts[0])
	}
	return err
}

// fail undoes the operation everywhere and says what happened.
func (o *operation) fail(ctx context.Context) error {
	conflict := o.harmony()
	o.cancel()
	o.work.Wait()
	for _, m := range o.objects {
		o.c.coverage.forget(m.Ref)
	}
	e := &CopiesError{
		What: "the key was", Members: len(o.c.all()), Min: o.policy.MinCopies, Setting: o.policy.Setting, Check: o.policy.CheckOnUse,
		Outcome: "the key was not created", Cause: context.Cause(ctx),
	}
	for _, m := range o.objects {
		e.Refs = append(e.Refs, m.Ref)
	}
	e.Ahead = o.clockFailure()
	on := o.where(func(p *part) bool { return p.prepared || p.commit })
	e.Copies, e.Zones, e.MinZones = len(on), zonesOf(on), o.policy.MinZones
	e.Results = o.results()
	certain := false
	if o.copies {
		if left := o.withdraw(); len(left) > 0 {
			e.Outcome = "the key existed before, so it stays where it was, or may have been, committed: " + fmt.Sprint(left) + "; server-side sync brings it to the others"
		}
	} else if e.Undelivered, certain = o.undo(); !certain {
		e.Outcome = "whether the key exists is not known before " + fmt.Sprint(e.Undelivered) + " answers"
	}
	switch {
	case conflict != nil:
		return conflict
	case errors.Is(e.Cause, ErrMinCopies):
		e.Cause = fmt.Errorf("no %d copies within %s", o.policy.MinCopies, o.policy.Timeout)
	case e.Cause != nil:
		return fmt.Errorf("%w: %w", e.Cause, e)
	}
	return e
}

func (o *operation) results() []Result {
	o.mu.Lock()
	defer o.mu.Unlock()
	var results []Result
	took := []*remote{}
	for _, p := range o.parts {
		took = append(took, p.r)
		res := Result{HSM: p.r.id(), Name: p.r.name(), Err: p.err, State: "not prepared"}
		switch {
		case p.commit:
			res.State = "committed"
		case p.prepared:
			res.State = "prepared"
		}
		results = append(results, res)
	}
	for _, r := range o.c.all() {
		if !slices.Contains(took, r) {
			results = append(results, Result{HSM: r.id(), Name: r.name(), Err: r.downError()})
		}
	}
	return results
}
