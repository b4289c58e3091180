package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

var (
	_ hsm.Replica  = (*Cluster)(nil)
	_ hsm.Sketcher = (*Cluster)(nil)
)

// batchSize bounds the objects that are read or inserted in one step.
const batchSize = 256

// batchTime bounds one step of a transfer on one HSM.
const batchTime = time.Minute

// Objects yields the union of the objects on all HSMs in use, ascending by
// reference. Where HSMs differ on an object for the moment, a tombstone is shown
// before a live state. If an HSM fails on the way, an error follows, since what
// only that HSM holds would be missing silently: begin again without it.
func (c *Cluster) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return func(yield func(hsm.Object, error) bool) {
		rs := c.ready(ctx, 1)
		if len(rs) == 0 {
			yield(hsm.Object{}, c.noHSM())
			return
		}
		lists := make([]iter.Seq2[hsm.Object, error], len(rs))
		for i, r := range rs {
			lists[i] = listOn(ctx, r, func(s hsm.Session) iter.Seq2[hsm.Object, error] { return s.Objects(ctx) })
		}
		m := newMerger(lists, func(o hsm.Object) hsm.KeyRef { return o.Ref })
		defer m.stop()
		for m.next() {
			if m.failure() != nil {
				break
			}
			best := m.items[0]
			if i := slices.IndexFunc(m.items, func(o hsm.Object) bool { return o.Tombstone }); i >= 0 {
				best = m.items[i]
			}
			if !yield(best, nil) {
				return
			}
		}
		if err := m.failure(); err != nil {
			yield(hsm.Object{}, err)
		}
	}
}

// Extract yields the named objects, each from an HSM that holds it. When an HSM
// fails, the next one continues. References that no HSM in use holds are passed
// over. Objects come in batches, within a batch in any order.
func (c *Cluster) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		for batch := range chunks(refs, batchSize) {
			objects, err := c.extractBatch(ctx, batch)
			for _, m := range objects {
				if !yield(m, nil) {
					return
				}
			}
			if err != nil {
				yield(hsm.MaskedObject{}, err)
				return
			}
		}
	}
}

// chunks groups a sequence into slices of at most n, each fresh.
func chunks[T any](seq iter.Seq[T], n int) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		var batch []T
		for v := range seq {
			if batch = append(batch, v); len(batch) == n {
				if !yield(batch) {
					return
				}
				batch = nil
			}
		}
		if len(batch) > 0 {
			yield(batch)
		}
	}
}

// extractBatch asks one HSM after another for what is still missing. An error if
// an HSM refuses, or if something is missing and not every HSM in use answered.
func (c *Cluster) extractBatch(ctx context.Context, refs []hsm.KeyRef) ([]hsm.MaskedObject, error) {
	var got []hsm.MaskedObject
	var failure error
	wanted := make(map[hsm.KeyRef]bool, len(refs))
	for _, ref := range refs {
		wanted[ref] = true
	}
	up := c.ready(ctx, 1)
	if len(up) == 0 {
		return nil, c.noHSM()
	}
	for _, r := range c.inTurn(up) {
		objects, err := call(ctx, r, batchTime, func(ctx context.Context, s hsm.Session) ([]hsm.MaskedObject, error) {
			return extractAll(ctx, s, refs, wanted)
		})
		for _, m := range objects {
			if wanted[m.Ref] {
				delete(wanted, m.Ref)
				got = append(got, m)
			}
		}
		if err != nil && !away(err) {
			return got, err
		}
		failure = errors.Join(failure, err)
		if len(wanted) == 0 {
			return got, nil
		}
	}
	return got, failure
}

// extractAll returns what it has read also when it fails half way. It reads each
// object once: an HSM whose answer has no end ends with reconcile.ErrPeer.
func extractAll(ctx context.Context, s hsm.Source, refs []hsm.KeyRef, wanted map[hsm.KeyRef]bool) ([]hsm.MaskedObject, error) {
	var got []hsm.MaskedObject
	answered := make(map[hsm.KeyRef]bool, len(refs))
	missing := func(yield func(hsm.KeyRef) bool) {
		for _, ref := range refs {
			if wanted[ref] && !yield(ref) {
				return
			}
		}
	}
	for m, err := range s.Extract(ctx, missing) {
		if err != nil {
			return got, err
		}
		if !wanted[m.Ref] || answered[m.Ref] {
			return got, fmt.Errorf("%w: it answers with %s, which it was not asked for, or twice", reconcile.ErrPeer, m.Ref)
		}
		answered[m.Ref] = true
		got = append(got, m)
	}
	return got, nil
}

// Insert merges objects into every HSM in use, in parallel, and counts those that
// reached MinCopies HSMs. It is refused with ErrMinCopies, nothing done, when too
// few HSMs answer; when HSMs fail on the way it stops with ErrMinCopies, and what
// was inserted stays: insert again, or let server-side sync finish it.
func (c *Cluster) Insert(ctx context.Context, objects iter.Seq2[hsm.MaskedObject, error]) (hsm.Inserted, error) {
	var total hsm.Inserted
	p := c.Policy()
	if n := c.answering(ctx, p.MinCopies); n < p.MinCopies {
		return total, c.tooFew("the objects would be", n, 0, Policy{MinCopies: p.MinCopies, Setting: p.Setting, CheckOnUse: p.CheckOnUse}, "nothing was done")
	}
	var batch []hsm.MaskedObject
	flush := func() error {
		n, err := c.insertBatch(ctx, batch, p)
		total.Add(n)
		batch = nil
		return err
	}
	for m, err := range objects {
		if err != nil {
			if len(batch) > 0 {
				err = errors.Join(err, flush())
			}
			return total, err
		}
		if batch = append(batch, m); len(batch) == batchSize {
			if err := flush(); err != nil {
				return total, err
			}
		}
	}
	if len(batch) == 0 {
		return total, nil
	}
	return total, flush()
}

// insertBatch brings one batch to all HSMs in use. The HSM that had the most to
// learn says what changed.
func (c *Cluster) insertBatch(ctx context.Context, batch []hsm.MaskedObject, p Policy) (hsm.Inserted, error) {
	answers := gatherFor(ctx, c, batchTime, c.up(), nil, nil, func(ctx context.Context, s hsm.Session) (hsm.Inserted, error) {
		return s.Insert(ctx, values(batch))
	})
	if err := ctx.Err(); err != nil {
		return hsm.Inserted{}, err
	}
	var most hsm.Inserted
	conflicts := map[hsm.KeyRef]bool{}
	e := &CopiesError{What: "the objects are", Members: len(c.all()), Min: p.MinCopies, Check: false, Outcome: "insert them again"}
	accepted := slices.ContainsFunc(answers, func(a answer[hsm.Inserted]) bool { return a.err == nil })
	for _, a := range answers {
		e.Results = append(e.Results, Result{HSM: a.from.id(), Name: a.from.name(), State: "inserted", Err: a.err})
		if a.err != nil {
			behind := accepted && errors.Is(a.err, hsm.ErrFuture) // its clock, then, not the objects
			if !away(a.err) && !errors.Is(a.err, hsm.ErrFull) && !behind {
				return hsm.Inserted{}, a.err
			}
			continue
		}
		e.Copies++
		for _, ref := range a.value.Conflicts {
			conflicts[ref] = true
		}
		if a.value.Added+a.value.Changed > most.Added+most.Changed || e.Copies == 1 {
			most = a.value
		}
	}
	if e.Copies < p.MinCopies {
		return hsm.Inserted{}, e
	}
	c.forgetTombstones(batch)
	most.Conflicts = sortedRefs(conflicts)
	return most, nil
}

func values(batch []hsm.MaskedObject) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		for _, m := range batch {
			if !yield(m, nil) {
				return
			}
		}
	}
}

func (c *Cluster) forgetTombstones(batch []hsm.MaskedObject) {
	for _, m := range batch {
		if m.Tombstone {
			c.coverage.forget(m.Ref)
		}
	}
}

func sortedRefs(set map[hsm.KeyRef]bool) []hsm.KeyRef {
	var refs []hsm.KeyRef
	for ref := range set {
		refs = append(refs, ref)
	}
	slices.Sort(refs)
	return refs
}

// FingerprintKeys returns the lineage's fingerprint keys.
func (c *Cluster) FingerprintKeys(ctx context.Context) (hsm.FingerprintKeys, error) {
	return anyHSM(ctx, c, func(ctx context.Context, s hsm.Session) (hsm.FingerprintKeys, error) { return s.FingerprintKeys(ctx) })
}

// Root returns the one root of all HSMs in use. While they differ it waits for
// server-side sync, at most as long as a creation may last; then ErrDrift.
func (c *Cluster) Root(ctx context.Context) (hsm.Root, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Policy().Timeout)
	defer cancel()
	var drift error
	for {
		root, err := c.rootNow(ctx)
		if ctx.Err() != nil && err != nil {
			return root, cmp.Or(drift, err) // this time there was no time to ask all
		}
		if !errors.Is(err, ErrDrift) {
			return root, err
		}
		drift = err
		pause(ctx, c.timing.backoffMin, nil)
	}
}

func (c *Cluster) rootNow(ctx context.Context) (hsm.Root, error) {
	answers := gather(ctx, c, c.ready(ctx, 1), nil, nil, func(ctx context.Context, s hsm.Session) (hsm.Root, error) { return s.Root(ctx) })
	var root hsm.Root
	var from *remote
	for _, a := range answers {
		switch {
		case away(a.err):
		case a.err != nil:
			return root, a.err
		case from == nil:
			root, from = a.value, a.from
		case a.value != root:
			return root, fmt.Errorf("%w: %s holds %d objects, %s holds %d; wait for server-side sync (cluster wait)", ErrDrift, from.name(), root.Count, a.from.name(), a.value.Count)
		}
	}
	if from == nil {
		return root, errors.Join(c.noHSM(), ctx.Err())
	}
	return root, nil
}

// Cells yields the coded symbols of one HSM, of one moment. If that HSM fails
// before the first cell, another is asked.
func (c *Cluster) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return func(yield func(hsm.Cell, error) bool) {
		for _, r := range c.inTurn(c.ready(ctx, 1)) {
			begun := false
			for cell, err := range listOn(ctx, r, func(s hsm.Session) iter.Seq2[hsm.Cell, error] { return s.Cells(ctx, from) }) {
				if err != nil && !begun && away(err) {
					break
				}
				begun = true
				if !yield(cell, err) || err != nil {
					return
				}
			}
			if begun {
				return
			}
		}
		yield(hsm.Cell{}, c.noHSM())
	}
}

// Source is one HSM of the cluster, as backup and synckey read it.
type Source struct {
	ID hsm.HSMID
	hsm.Session
}

// Sources returns the sessions on the HSMs in use, and the members that are away.
// A session serves until the Cluster is closed or its HSM fails; then it answers
// hsm.ErrUnavailable or hsm.ErrSession. The Cluster closes them. ErrNoHSM if none
// is in use.
func (c *Cluster) Sources(ctx context.Context) (answered []Source, missing []hsm.HSMID, err error) {
	c.muster(ctx)
	for _, r := range c.all() {
		if l := r.current(); l != nil {
			answered = append(answered, Source{ID: r.id(), Session: l.session})
		} else {
			missing = append(missing, r.id())
		}
	}
	if len(answered) == 0 {
		return nil, missing, c.noHSM()
	}
	return answered, missing, nil
}
