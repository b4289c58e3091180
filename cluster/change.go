package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Changed is what Change did.
type Changed struct {
	// Object is the new state; without Bytes when a session key was changed.
	Object hsm.MaskedObject
	// Copies are the HSMs that have the change; Missing the other members, which
	// get it from server-side sync.
	Copies, Missing []hsm.HSMID
	Results         []Result
	// Heard are the HSMs that the change is later than: it wins over every change
	// that one of them had when it was asked. All changes acknowledged before are
	// among them when as many were heard as leave fewer than the policy's copies.
	Heard []hsm.HSMID
}

// Change changes a key, user or policy on one HSM, durably, and copies the result
// to all others at once.
//
// It is refused with ErrMinCopies, and nothing done, when fewer HSMs answer than
// the policy wants copies (or than there are, if those are fewer). Settings,
// members, invitations and revocations may be changed with one HSM left, since
// that is how an operator gets out of such a state. If HSMs fail on the way, so that the change is on too few,
// it stands: Changed is returned together with ErrMinCopies, and server-side sync
// finishes it.
//
// The change is stamped later than all that the HSMs that answer have seen, so that
// it wins over changes acknowledged before, however the clocks of the HSMs differ.
//
// If the change is on too few HSMs, or on one alone, because others refuse it for
// the clock of the HSM it was made on, the error matches hsm.ErrFuture too: the
// change is not acknowledged, even where the policy wants one copy. The next
// changes are made on other HSMs for a while.
//
// A user is deleted only when as many HSMs have said that it owns no key as know of every
// key that was acknowledged: with its owner gone nobody could use it, or destroy it.
//
// hsm.ErrUnavailable: the change may or may not have been made; look, and repeat.
func (c *Cluster) Change(ctx context.Context, ch hsm.Change) (*Changed, error) {
	ch.Approvals = slices.Concat(c.approvals, ch.Approvals)
	issuer, err := c.issuer(ch.Approvals)
	if err != nil {
		return nil, err
	}
	if changed, err := c.destroyInSession(ctx, ch, issuer); changed != nil || err != nil {
		return changed, err
	}
	p := c.Policy()
	need := min(p.MinCopies, len(c.all()))
	if ch.Kind == hsm.ChangeSettings || ch.Kind == hsm.ChangeMember || ch.Kind == hsm.ChangeInvite || ch.Kind == hsm.ChangeRevoke ||
		ch.Kind == hsm.ChangeUserUnlock && issuer != nil { // only the HSM that issued the token takes that
		need = 1
	}
	heard := c.hear(ctx, need)
	if n := heard.answering; n < need {
		return nil, c.tooFew("the change would be", n, 0, Policy{MinCopies: need}, "nothing was done")
	}
	ch.After = heard.after
	if err := c.nextLife(ctx, &ch, need); err != nil {
		return nil, err
	}
	if err := c.ownsNothing(ctx, ch, need); err != nil {
		return nil, err
	}
	uneven := c.level(ctx, ch)
	if err := mustBeLevel(issuer, uneven); err != nil {
		return nil, err
	}
	object, on, err := c.changeFirst(ctx, ch, issuer, uneven)
	for again := 0; errors.Is(err, hsm.ErrLate) && again < hearings; again++ {
		heard = c.hearAgain(ctx)
		ch.After = max(ch.After, heard.after)
		object, on, err = c.changeFirst(ctx, ch, issuer, uneven)
	}
	if err != nil {
		return nil, err
	}
	c.noteChange(ch)
	if len(object.Bytes) == 0 && ch.Ref != 0 { // a session key
		return &Changed{Object: object, Copies: []hsm.HSMID{on.id()}, Missing: []hsm.HSMID{}}, nil
	}
	changed, err := c.copyChange(ctx, ch, object, on, need)
	changed.Heard = heard.from
	if !errors.Is(err, hsm.ErrFuture) { // otherwise most HSMs keep the password before
		c.noteOwnPassword(ch)
	}
	return changed, err
}

// destroyInSession destroys a session key that this session has made, on the HSM that
// has it: it has no copies, and no stamps that others know. It returns nothing if the
// key is none such, and nothing was done.
func (c *Cluster) destroyInSession(ctx context.Context, ch hsm.Change, issuer *remote) (*Changed, error) {
	k, known := c.coverage.get(ch.Ref)
	if ch.Kind != hsm.ChangeDestroy || issuer != nil || !known || !k.session {
		return nil, nil
	}
	object, on, err := c.changeFirst(ctx, ch, nil, nil)
	if err != nil {
		return nil, err
	}
	c.noteChange(ch)
	if len(object.Bytes) > 0 { // it has become a token key by another hand
		return c.copyChange(ctx, ch, object, on, min(c.Policy().MinCopies, len(c.all())))
	}
	return &Changed{Object: object, Copies: []hsm.HSMID{on.id()}, Missing: []hsm.HSMID{}}, nil
}

// hearings is how often a change hears the HSMs anew when others change the same thing
// at the same time.
const hearings = 5

// changeFirst applies the change on one HSM: for a key on one that holds it, and
// for a user on the next if one does not know the user yet. When it is not known
// whether an HSM has made the change, the next one makes it again: both states
// merge into one, since users, policies and members are born alike everywhere. A change
// with approvals is made on the HSM that issued the tokens, and on no other; and none is
// made on those that except names.
func (c *Cluster) changeFirst(ctx context.Context, ch hsm.Change, issuer *remote, except map[*remote]bool) (hsm.MaskedObject, *remote, error) {
	if issuer != nil {
		m, err := c.changeOn(ctx, issuer, ch)
		return m, issuer, err
	}
	var last, unsure error
	passed := map[*remote]bool{}
	maps.Copy(passed, except)
	for range len(c.all()) {
		r, err := c.routeChange(ctx, passed, liveRef(ch))
		if err != nil {
			return hsm.MaskedObject{}, nil, errors.Join(last, err)
		}
		if r == nil {
			break
		}
		m, err := c.changeOn(ctx, r, ch)
		if err == nil {
			return m, r, nil
		}
		if unsure != nil && errors.Is(err, hsm.ErrExist) { // it may have come from there
			return hsm.MaskedObject{}, nil, fmt.Errorf("%w; another HSM says: %v; this call may have made it", unsure, err)
		}
		again := errors.Is(err, hsm.ErrNotFound) || errors.Is(err, hsm.ErrFull) || errors.Is(err, hsm.ErrFuture) || away(err)
		if !again || ctx.Err() != nil {
			return hsm.MaskedObject{}, nil, err
		}
		if errors.Is(err, hsm.ErrNotFound) {
			c.coverage.remove(ch.Ref, r.id())
		}
		if passed[r], last = true, err; away(err) {
			unsure = err
		}
	}
	if unsure != nil && !away(last) { // one may have done what the last one cannot do
		last = fmt.Errorf("%w; and one that does not answer may have made the change: %w", last, unsure)
	}
	if last == nil {
		last = fmt.Errorf("%w: no HSM takes what the others know of that; nothing was done, try again in a moment", hsm.ErrUnavailable)
	}
	return hsm.MaskedObject{}, nil, last
}

// changeOn asks one HSM for the change. A new user's password is hashed, which takes its
// time on a busy machine; and asking the next HSM might find the name taken by the first.
func (c *Cluster) changeOn(ctx context.Context, r *remote, ch hsm.Change) (hsm.MaskedObject, error) {
	limit := c.timing.call
	if ch.Kind == hsm.ChangeUserCreate {
		limit *= 4
	}
	return call(ctx, r, limit, func(ctx context.Context, s hsm.Session) (hsm.MaskedObject, error) { return s.Change(ctx, ch) })
}

// liveRef is the key that an HSM must hold for the change; a destroyed one is on
// no HSM, and its tombstone on all. Of several births under a reference each HSM says
// itself which it holds.
func liveRef(ch hsm.Change) hsm.KeyRef {
	switch ch.Kind {
	case hsm.ChangeRevive, hsm.ChangeSupersede, hsm.ChangeKeepCopy:
		return 0
	}
	return ch.Ref
}

// routeChange picks an HSM for a change: one that holds the key, whatever its
// coverage, and preferably none whose objects its peers refuse. Nil if all have been passed over.
func (c *Cluster) routeChange(ctx context.Context, passed map[*remote]bool, ref hsm.KeyRef) (*remote, error) {
	var where []covered
	if ref != 0 {
		k, err := c.locate(ctx, ref, 1)
		if err != nil {
			return nil, err
		}
		where = append(where, k)
	}
	if r := c.pickToWrite(passed, where); r != nil || len(passed) > 0 {
		return r, nil
	}
	if len(c.up()) == 0 {
		return nil, c.noHSM()
	}
	return nil, fmt.Errorf("%w: no HSM that holds %s is in use", hsm.ErrUnavailable, ref)
}

// noteChange keeps up what the client remembers.
func (c *Cluster) noteChange(ch hsm.Change) {
	switch {
	case ch.Kind == hsm.ChangeDestroy, ch.Kind == hsm.ChangeRevive, ch.Kind == hsm.ChangeSupersede:
		c.coverage.forget(ch.Ref)
	case ch.Kind == hsm.ChangeSettings && ch.Settings != nil:
		c.applySettings(*ch.Settings)
	case ch.Kind == hsm.ChangeMember && ch.Member != nil:
		c.learn([]hsm.Member{*ch.Member})
	}
}

// noteOwnPassword takes over the password that the client has changed for itself.
func (c *Cluster) noteOwnPassword(ch hsm.Change) {
	if ch.Kind == hsm.ChangeUserPassword && c.auth.is(ch.User) { // names are unique over all roles
		c.auth.setPassword(ch.Password)
	}
}

// answering counts the HSMs that answer at this moment, as far as n of them.
func (c *Cluster) answering(ctx context.Context, n int) (answering int) {
	if n <= 1 {
		return len(c.ready(ctx, n))
	}
	return len(c.askClocks(ctx, c.ready(ctx, n), n))
}

// apply brings a change to one more HSM: by its result, or where the principal
// may not insert that, like its own password, by the change itself. So it does what
// belongs to the cluster: an HSM acts on that at once, and takes it while it leaves.
func apply(ctx context.Context, s hsm.Session, ch hsm.Change, m hsm.MaskedObject) error {
	if len(m.Bytes) > 0 && (m.Kind.Scope() != hsm.ScopeCluster || s.Principal().Role != hsm.RoleAdmin) {
		err := insertAll(ctx, s.Scoped(m.Kind.Scope()), []hsm.MaskedObject{m})
		if !errors.Is(err, hsm.ErrDenied) {
			return err
		}
	}
	_, err := s.Change(ctx, ch)
	return err
}

// copyChange brings a change to all HSMs but the one it was made on.
func (c *Cluster) copyChange(ctx context.Context, ch hsm.Change, m hsm.MaskedObject, on *remote, need int) (*Changed, error) {
	others := slices.DeleteFunc(slices.Clone(c.all()), func(r *remote) bool { return r == on || r.current() == nil })
	enough := func(as []answer[struct{}]) bool {
		n := 1
		for _, a := range as {
			if a.err == nil {
				n++
			}
		}
		return n >= need
	}
	answers := gather(ctx, c, others, enough, nil, func(ctx context.Context, s hsm.Session) (struct{}, error) {
		return struct{}{}, apply(ctx, s, ch, m)
	})
	out := &Changed{Object: m, Copies: []hsm.HSMID{on.id()}}
	out.Results = append(out.Results, Result{HSM: on.id(), State: "changed"})
	var conflict error
	for _, a := range answers {
		out.Results = append(out.Results, Result{HSM: a.from.id(), Name: a.from.name(), State: "changed", Err: a.err})
		if a.err == nil {
			out.Copies = append(out.Copies, a.from.id())
		} else if errors.Is(a.err, hsm.ErrConflict) {
			conflict = a.err
		}
	}
	slices.Sort(out.Copies)
	out.Missing = c.without(out.Copies)
	if conflict != nil {
		return out, conflict
	}
	return out, c.shortChange(out, on, need)
}

// shortChange returns what is wrong with a change that is on too few HSMs, or that
// others refuse as from the future while none has it but the one it was made on.
func (c *Cluster) shortChange(out *Changed, on *remote, need int) error {
	copies, refused := len(out.Copies), len(refusedForTime(out.Results))
	if mostRefuse(refused, copies-1) || refused > 0 && copies < need {
		on.avoid()
	}
	alone := copies == 1 && refused > 0
	if copies >= need && !alone {
		return nil
	}
	e := &CopiesError{
		What: "the change is", Copies: copies, Members: len(c.all()), Min: need, Results: out.Results,
		Outcome: "it stands, and server-side sync brings it to the others",
	}
	if refused > 0 {
		e.Ahead = on.id()
	}
	if alone {
		e.Outcome = "it was made on " + on.name() + " and not on the others; repeat it"
	}
	return e
}
