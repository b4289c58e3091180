package synckey

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func TestParseLimit(t *testing.T) {
	for text, allowed := range map[string]uint64{"0": 0, "7": 7, "5%": 10, "0%": 0, "0.5%": 1, "100%": 200, "unlimited": ^uint64(0)} {
		l, err := ParseLimit(text)
		if err != nil || l.of(200) != allowed || l.String() != text {
			t.Errorf("%s: %d of 200, %v, %s", text, l.of(200), err, l)
		}
	}
	for _, text := range []string{"", "-1", "1.5", "101%", "-1%", "%", "NaN%", "Inf%", "many", "9223372036854775808"} {
		if _, err := ParseLimit(text); !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestLimits: a plan beyond a limit changes nothing on either side, and the
// refusal names the counts.
func TestLimits(t *testing.T) {
	p := newPair(t)
	for _, ref := range p.a.keys(15) {
		p.b.put([]hsm.MaskedObject{p.a.get(0, ref)})
		p.a.destroy("alice", ref)
	}
	p.a.keys(3)
	roots := [2]hsm.Root{p.a.root(0), p.b.root(0)}
	for name, c := range map[string]struct {
		o    Options
		says string // empty: allowed
	}{
		"changes":                             {Options{MaxChanges: AtMost(2)}, "changes 3 objects at the destination, max-changes is 2"},
		"changes, share":                      {Options{MaxChanges: Limit{set: true, share: true, percent: 10}}, "changes 3 objects at the destination, max-changes is 10% of 20 keys"},
		"destroyed, by default":               {Options{Destroyed: true}, "destroys 15 objects that are live at the destination, max-destroyed is 10% of 20 keys"},
		"destroyed, number":                   {Options{Destroyed: true, MaxDestroyed: AtMost(14)}, "destroys 15 objects that are live at the destination, max-destroyed is 14"},
		"destroyed, share":                    {Options{Destroyed: true, MaxDestroyed: Limit{set: true, share: true, percent: 74.9}}, "max-destroyed is 74.9% of 20 keys"},
		"destroyed at the source, by default": {Options{Both: true, Destroyed: true}, "destroys 15 objects"},
	} {
		r, err := run(context.Background(), p.src, p.dst, c.o)
		if !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), c.says) || r.Applied != 0 {
			t.Errorf("%s: %v", name, err)
		} else if r.Refused != err.Error() {
			t.Errorf("%s: the result says %q", name, r.Refused)
		}
		if roots != [2]hsm.Root{p.a.root(0), p.b.root(0)} {
			t.Fatalf("%s: something was applied", name)
		}
	}
	r := p.run(t, Options{Destroyed: true, MaxDestroyed: Limit{set: true, share: true, percent: 75}, MaxChanges: AtMost(18)})
	if !r.RootsEqual || r.Applied != 18 {
		t.Errorf("within the limits: %+v", r)
	}
}

// TestLimitPerSide: with --both each side has its own count, and a crypto user's
// share is of the keys it owns.
func TestLimitPerSide(t *testing.T) {
	p := newPair(t)
	for _, ref := range p.b.keys(12) {
		p.a.put([]hsm.MaskedObject{p.b.get(0, ref)})
		p.b.destroy("alice", ref)
	}
	p.b.key("bob", "of bob")
	if _, err := run(context.Background(), p.src, p.dst, Options{Both: true, Destroyed: true}); !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "live at the source") {
		t.Errorf("the appliance: %v", err)
	}
	src, dst := p.a.open("alice"), p.b.open("alice")
	if _, err := run(context.Background(), src, dst, Options{Both: true, Destroyed: true}); !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "10% of 17 keys") {
		t.Errorf("alice: %v", err)
	}
	p.run(t, Options{})
}

// TestDestroyedSinceIsNotDestroyed: what the plan would change and could not keep in
// memory is read again when its turn comes, hours later where a rate bounds the run. What
// was destroyed by then, or has come to stand above another birth, counts in no limit,
// and is left to the next plan.
func TestDestroyedSinceIsNotDestroyed(t *testing.T) {
	p := newPair(t)
	refs := p.a.keys(15)
	for _, ref := range refs {
		p.b.put([]hsm.MaskedObject{p.a.get(0, ref)})
		p.a.setLabel(ref, "later")
	}
	o := Options{Destroyed: true, MaxDestroyed: AtMost(0)}
	plan, err := NewPlan(t.Context(), p.src, p.dst, o)
	if err != nil || plan.Result.Changed != len(refs) {
		t.Fatalf("%+v, %v", plan, err)
	}
	clear(plan.forth.steps.kept)
	for _, ref := range refs[1:] {
		p.a.destroy("alice", ref)
	}
	if err := plan.Apply(t.Context()); err != nil || plan.Result.Applied != 1 {
		t.Errorf("%d applied, %v", plan.Result.Applied, err)
	}
	for _, ref := range refs {
		if !live(p.b, ref) {
			t.Fatalf("key %s, which the plan did not destroy, is destroyed at the destination", ref)
		}
	}
	if r, err := run(t.Context(), p.src, p.dst, o); !errors.Is(err, ErrLimit) || r.Applied != 0 {
		t.Errorf("the next plan: %+v, %v", r, err)
	}
}
