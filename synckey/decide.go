package synckey

import (
	"context"
	"fmt"
	"strings"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// flow is one direction of a plan.
type flow struct {
	from, to *side
	wanted   bool // the options ask for this direction
	steps    *steps
	// destroying counts, by owner, the keys that the plan destroys in to.
	destroying map[string]int
	// leaving are users that the plan deletes in to, if they own nothing there
	// any more.
	leaving []*object
}

// gains tells whether to would change if it took what from has, whose states
// are given.
func (f *flow) gains(p *Plan, o *object) (gains bool, give, take *held) {
	if f == p.forth {
		return o.dstGains || o.class == classSettling && o.dst.uneven, o.src, o.dst
	}
	return o.srcGains || o.class == classSettling && o.src.uneven, o.dst, o.src
}

// decide plans what one side takes of an object. The reason tells why it does
// not take what it would gain; empty if it takes it or gains nothing.
func (p *Plan) decide(f *flow, o *object) (reason string) {
	gains, give, take := f.gains(p, o)
	switch {
	case o.class == classConflict:
		return "two births under one reference are never merged unasked: compare them with key show on both sides, and decide with synckey resolve"
	case !gains:
		return ""
	case !f.wanted || len(give.masked) == 0:
		return p.unwanted(f, o)
	case o.kind != hsm.KindKey && !p.options.Users:
		return "users and policies stay as they are; --users takes them along"
	case o.destroys(take) && !p.options.Destroyed && !o.merged.Destroyed:
		return fmt.Sprintf("at the %s another birth stands above the one that is live at the %s; --destroyed ends it there too, and synckey resolve decides anew", f.from.name, f.to.name)
	case o.destroys(take) && !p.options.Destroyed:
		return fmt.Sprintf("destroyed at the %s, live at the %s; --destroyed destroys it there too", f.from.name, f.to.name)
	}
	if missing := f.needs(o, give); missing != "" {
		reason := p.intern(p.missingText(f, missing))
		p.Result.block(o.ref, reason)
		return reason
	}
	f.take(o, give, take)
	return ""
}

// unwanted says why a side is not given what it would gain.
func (p *Plan) unwanted(f *flow, o *object) string {
	switch {
	case o.class == classSettling || f.wanted:
		return fmt.Sprintf("the HSMs of the %s do not agree yet; server-side sync brings them together", f.to.name)
	case o.class == classChanged && len(o.what()) == 1 && o.what()[0] == "credential":
		return "the credentials differ, and the destination may have the newer one; --both takes it to the source"
	case o.kind != hsm.KindKey:
		return "the destination has changes of its own; --both takes them to the source"
	case o.class == classDestroyedDst:
		return "destroyed at the destination, and stays so; --both and --destroyed destroy it at the source"
	case o.class == classSupersededDst:
		return "at the destination another birth stands above the one that is live at the source; --both and --destroyed end it there too, and synckey resolve decides anew"
	case o.class == classTombstoneDst:
		return "destroyed at the destination, of no life at the source; --both takes the tombstone there"
	case o.src.record == nil:
		return "only at the destination; --both takes it to the source"
	}
	return "the destination has changes of its own; --both takes them to the source"
}

// take plans the insertion of what is given.
func (f *flow) take(o *object, give, take *held) {
	dies := o.destroys(take)
	switch {
	case o.kind == hsm.KindUser && dies:
		f.leaving = append(f.leaving, o)
	case o.merged.Destroyed:
		f.steps.add(phaseGraves, o.ref, give)
	case o.kind == hsm.KindUser:
		f.steps.add(phaseUsers, o.ref, give)
	case o.kind != hsm.KindKey:
		f.steps.add(phasePolicies, o.ref, give)
	default:
		f.steps.add(phaseKeys, o.ref, give)
	}
	if dies && o.kind == hsm.KindKey {
		f.destroying[take.record.Core.Owner]++
	}
}

// needs lists the users that a key cannot do without and that the side will not
// have: its owner, and those it is shared with. A share with someone who will not
// be where the key comes from either means nothing, and asks for nobody.
func (f *flow) needs(o *object, give *held) string {
	if o.kind != hsm.KindKey || o.class == classSettling || o.merged.Destroyed {
		return ""
	}
	record, missing := give.record, []string(nil)
	if give.torn { // it goes as what the other side's record makes of it
		record = o.merged
	}
	if owner := record.Core.Owner; !f.to.after[owner] {
		missing = append(missing, owner+" (owner)")
	}
	for _, user := range record.Shares() {
		if f.from.after[user] && !f.to.after[user] {
			missing = append(missing, user+" (shared user)")
		}
	}
	return strings.Join(missing, ", ")
}

// intern keeps one copy of a reason that many keys share.
func (p *Plan) intern(reason string) string {
	if known, ok := p.reasons[reason]; ok {
		return known
	}
	p.reasons[reason] = reason
	return reason
}

func (p *Plan) missingText(f *flow, who string) string {
	if p.options.Users {
		return fmt.Sprintf("needs %s, deleted at the %s; create the user there again, or destroy the key", who, f.to.name)
	}
	return fmt.Sprintf("needs %s, unknown at the %s; create the user there, or run with --users", who, f.to.name)
}

// release plans the deletion of users, last of all. A user who keeps a key
// stays, as it does when an admin deletes one: the key would be nobody's.
func (p *Plan) release(ctx context.Context, f *flow) error {
	for _, o := range f.leaving {
		kept, err := f.kept(ctx, o.owner())
		if err != nil {
			return err
		}
		if kept == 0 {
			_, give, _ := f.gains(p, o)
			f.steps.add(phaseLeavers, o.ref, give)
			p.open(o)
			continue
		}
		reason := fmt.Sprintf("user %s was deleted at the %s and still owns %d keys at the %s; destroy them, or create the user at the %s again",
			o.owner(), f.from.name, kept, f.to.name, f.from.name)
		p.Result.block(o.ref, reason)
		p.Result.leave(o, reason)
		if p.why != nil {
			p.why[o.ref] = reason
		}
	}
	return nil
}

// kept counts the keys that a user will own when the plan has been applied.
func (f *flow) kept(ctx context.Context, user string) (int, error) {
	n := -f.destroying[user]
	for _, err := range f.to.Keys(ctx, hsm.Filter{Owner: user}) {
		if err != nil {
			return 0, f.to.wrap(fmt.Errorf("keys of %s: %w", user, err))
		}
		n++
	}
	return max(n, 0), nil
}
