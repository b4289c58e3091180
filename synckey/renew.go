package synckey

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// ErrMoved: the clusters are not any more what the plan was made for: something
// that it would apply was destroyed, lost a user it needs, or is under another
// birth by now. Nothing was applied; make another plan.
var ErrMoved = errors.New("the clusters have moved since the plan was made")

// freshness is how old a plan may be and still be applied as it was made. What
// changes within it could change as well while the plan is being applied.
const freshness = 5 * time.Second

// renew looks again at what an older plan is about to apply, if either side's
// roots are others than when it was made. What is the same by now is left out,
// what has changed is taken as it is now, and what a person would decide anew
// is ErrMoved. It costs one round trip if nothing has moved.
func (p *Plan) renew(ctx context.Context) error {
	if time.Since(p.made) < p.fresh {
		return nil
	}
	now := blankPlan(p.src, p.dst, p.options, false)
	now.why = map[hsm.KeyRef]string{}
	now.found = &difference{src: &look{side: p.src}, dst: &look{side: p.dst}, refs: p.planned()}
	if err := now.found.both(func(l *look) error { return l.survey(ctx) }); err != nil {
		return err
	}
	if p.found.src.unmoved(now.found.src) && p.found.dst.unmoved(now.found.dst) {
		return nil
	}
	if err := now.learnUsers(ctx); err != nil {
		return err
	}
	if err := now.classify(ctx); err != nil {
		return err
	}
	for _, f := range [][2]*flow{{p.forth, now.forth}, {p.back, now.back}} {
		if err := f[0].still(f[1], now.why); err != nil {
			return err
		}
	}
	p.found, p.forth, p.back = now.found, now.forth, now.back
	return nil
}

// survey asks all HSMs of the side for their roots, once more if one fails.
func (l *look) survey(ctx context.Context) error {
	for i := range attempts {
		fresh := &look{side: l.side}
		err := fresh.find(ctx)
		if err == nil {
			err = fresh.group(ctx)
		}
		if err == nil {
			*l = *fresh
			return nil
		}
		if !away(err) || i == attempts-1 {
			return err
		}
	}
	return nil
}

// unmoved tells whether the HSMs of a side are in the states they were in. A
// login that is shown no roots cannot tell.
func (l *look) unmoved(now *look) bool {
	return len(l.roots) > 0 && maps.Equal(l.roots, now.roots)
}

// planned lists what a plan applies, in either direction, ascending.
func (p *Plan) planned() (refs []hsm.KeyRef) {
	for _, f := range []*flow{p.forth, p.back} {
		for _, of := range f.steps.refs {
			refs = append(refs, of...)
		}
	}
	slices.Sort(refs)
	return slices.Compact(refs)
}

// still compares what one direction was planned to insert with what it would
// insert now. Another phase is another fate: live then and destroyed now, or
// the other way round.
func (f *flow) still(now *flow, why map[hsm.KeyRef]string) error {
	phases := map[hsm.KeyRef]phase{}
	for i, refs := range now.steps.refs {
		for _, ref := range refs {
			phases[ref] = phase(i)
		}
	}
	for i, refs := range f.steps.refs {
		for _, ref := range refs {
			at, planned := phases[ref]
			reason, differs := why[ref]
			switch {
			case planned && at != phase(i):
				return moved(f, ref, "it was destroyed, or revived")
			case !planned && differs:
				return moved(f, ref, reason)
			}
		}
	}
	if now.destroys() > f.destroys() {
		return fmt.Errorf("%w: it would destroy %d objects at the %s, %d were planned; nothing was applied", ErrMoved, now.destroys(), f.to.name, f.destroys())
	}
	return nil
}

func moved(f *flow, ref hsm.KeyRef, reason string) error {
	return fmt.Errorf("%w: %s, to be brought to the %s: %s; nothing was applied", ErrMoved, ref, f.to.name, reason)
}
