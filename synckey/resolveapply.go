package synckey

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Resolve plans, applies and checks a decision. Run again after any interruption it
// does what is missing, and nothing twice. The errors are those of NewResolution and
// Apply.
func Resolve(ctx context.Context, src, dst *cluster.Cluster, o ResolveOptions) (*Resolved, error) {
	r, err := NewResolution(ctx, src, dst, o)
	if err != nil {
		return nil, err
	}
	err = r.Apply(ctx)
	return r.Result, err
}

// Apply carries the decision out: what gives way is kept, if asked for, then one HSM
// writes the decision down, then both sides take it, each step to the durability
// policy of the side before the next begins.
//
// ErrMoved, before anything is done, if any HSM holds something else by now than
// when the plan was made. hsm.ErrDenied, hsm.ErrAttribute (what gives way is trusted,
// or neither destroyable nor kept), cluster.ErrMinCopies, hsm.ErrUnavailable,
// hsm.ErrConflict if there is yet another birth.
func (r *Resolution) Apply(ctx context.Context) error {
	start := time.Now()
	defer func() { r.Result.Seconds = time.Since(start).Seconds() }()
	planned := r.Result.Plan
	if err := r.reread(ctx, planned); err != nil {
		return err
	}
	for _, pair := range r.directions() {
		if err := checkMaskingKeys(ctx, pair[0], pair[1]); err != nil {
			return err
		}
	}
	if r.options.KeepBoth {
		if err := r.keepLosers(ctx); err != nil {
			return err
		}
	}
	stands, err := r.decide(ctx)
	if err != nil {
		return err
	}
	if err := r.spread(ctx, stands, nil); err != nil {
		return err
	}
	// What had been changed of the birth that stands where the decision was not made.
	for _, st := range r.states {
		if st.record.Birth == r.stands {
			if err := r.spread(ctx, st.masked, st.side); err != nil {
				return err
			}
		}
	}
	if err := r.done("spread"); err != nil {
		return err
	}
	return r.check(ctx)
}

func (r *Resolution) directions() [][2]*side {
	if len(r.sides) < 2 {
		return nil
	}
	a, b := r.sides[0], r.sides[1]
	return [][2]*side{{a, b}, {b, a}}
}

// reread looks again, right before the first step.
func (r *Resolution) reread(ctx context.Context, planned string) error {
	if err := r.read(ctx); err != nil {
		return err
	}
	if r.describe(); r.Result.Plan != planned {
		return fmt.Errorf("%w: another state of %s is there by now; nothing was done, look at the plan again", ErrMoved, r.options.Ref)
	}
	return nil
}

// keepLosers makes the live keys that give way keys of other references, on both sides.
//
// If we die on the way, each is under its own reference on some HSMs or on all, still
// under the old one too, and the conflict is as it was: nothing is lost. The
// reference is determined by the birth, so the same command makes no second copy.
func (r *Resolution) keepLosers(ctx context.Context) error {
	stands := r.standing().masked
	for _, l := range r.losers() {
		if l.record.Destroyed {
			continue
		}
		change := hsm.Change{Kind: hsm.ChangeKeepCopy, Ref: r.options.Ref, Value: hex.EncodeToString(l.record.Birth[:]), Masked: &stands}
		made, err := l.side.Change(ctx, change)
		if err != nil {
			return l.side.wrap(fmt.Errorf("keep birth %s of %s: %w", change.Value, r.options.Ref, err))
		}
		if err := r.done("kept on one side"); err != nil {
			return err
		}
		if err := r.spread(ctx, made.Object, l.side); err != nil {
			return err
		}
		r.Result.Kept = append(r.Result.Kept, made.Object.Ref)
		if err := r.done("kept on both sides"); err != nil {
			return err
		}
	}
	slices.Sort(r.Result.Kept)
	return nil
}

// decide has an HSM that holds the birth that is to stand write down that it stands
// above each of the others, and returns the result.
//
// If we die before it returns, the decision is made or it is not, on some HSMs of
// that side or on all; what gives way is still on the other side, and is listed as
// superseded there, or in conflict. The same command finds the decision made, or
// makes it, which gives the same record, and goes on.
func (r *Resolution) decide(ctx context.Context) (hsm.MaskedObject, error) {
	best := r.standing()
	object := best.masked
	for _, l := range r.losers() {
		change := hsm.Change{Kind: hsm.ChangeSupersede, Ref: r.options.Ref, Value: r.Result.Stands, Masked: &l.masked}
		made, err := best.side.Change(ctx, change)
		if err != nil {
			return object, best.side.wrap(fmt.Errorf("set birth %s of %s above %x: %w", r.Result.Stands, r.options.Ref, l.record.Birth, err))
		}
		object = made.Object
		if err := r.done("decided"); err != nil {
			return object, err
		}
	}
	return object, nil
}

// spread inserts an object into all sides but the one that has it.
//
// If we die before it returns, some HSMs have it; server-side sync and the same
// command bring it to the others.
func (r *Resolution) spread(ctx context.Context, m hsm.MaskedObject, except *side) error {
	for _, s := range r.sides {
		if s == except {
			continue
		}
		n, err := s.Insert(ctx, each(m))
		if err == nil && len(n.Conflicts) > 0 {
			err = fmt.Errorf("%w: an HSM holds yet another birth of %s, or one that this login may not end; look at the plan again", hsm.ErrConflict, m.Ref)
		}
		if err != nil {
			return s.wrap(err)
		}
	}
	return nil
}

// check looks at the reference again, and at both clusters as a whole.
func (r *Resolution) check(ctx context.Context) error {
	before := *r.Result
	err := r.read(ctx)
	if err != nil {
		*r.Result = before
		return fmt.Errorf("the decision is made; check the result: %w", err)
	}
	r.Result.Kept, r.Result.Plan, r.Result.Births, r.Result.Stands = before.Kept, before.Plan, before.Births, before.Stands
	r.Result.Resolved = len(r.states) > 0
	for _, st := range r.states {
		if st.record.Birth != r.stands || st.masked.Object != r.states[0].masked.Object {
			r.Result.Resolved = false
		}
	}
	if len(r.sides) < 2 {
		r.Result.RootsEqual = r.Result.Resolved
		return nil
	}
	d, err := compare(ctx, r.sides[0], r.sides[1])
	if err != nil {
		return fmt.Errorf("check the result: %w", err)
	}
	d.src.describe(&r.Result.Src)
	d.dst.describe(r.Result.Dst)
	r.Result.RootsEqual, r.Result.Remaining = d.equal, len(d.refs)
	return nil
}
