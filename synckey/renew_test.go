package synckey

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// stale is a plan that was made long ago.
func (p *pair) stale(t *testing.T, o Options) *Plan {
	t.Helper()
	plan, err := NewPlan(context.Background(), p.src, p.dst, o)
	if err != nil {
		t.Fatal(err)
	}
	plan.fresh, plan.settle = 0, 0
	return plan
}

// TestMoved: what is applied later than it was planned is not applied if a
// person would decide anew; nothing else of the plan is either.
func TestMoved(t *testing.T) {
	for name, move := range map[string]func(*pair, hsm.KeyRef){
		"destroyed at the source since":          func(p *pair, ref hsm.KeyRef) { p.a.destroy("alice", ref) },
		"destroyed at the destination since":     func(p *pair, ref hsm.KeyRef) { p.b.put([]hsm.MaskedObject{p.a.get(0, ref)}); p.b.destroy("alice", ref) },
		"its owner deleted at the destination":   func(p *pair, ref hsm.KeyRef) { p.b.deleteUser("alice") },
		"another birth at the destination since": func(p *pair, ref hsm.KeyRef) { p.b.put([]hsm.MaskedObject{p.b.birth(ref, "alice", "other")}) },
	} {
		t.Run(name, func(t *testing.T) {
			a := newRegion(t, 2)
			b := a.clone(2)
			p := &pair{a, b, a.open(appliance), b.open(appliance)}
			refs := a.keys(3)
			for _, o := range []Options{{}, {Destroyed: true}} {
				plan := p.stale(t, o)
				if !o.Destroyed {
					move(p, refs[1])
					before := b.root(0)
					if err := plan.Apply(context.Background()); !errors.Is(err, ErrMoved) || plan.Result.Applied != 0 || b.root(0) != before {
						t.Errorf("%v, %d applied", err, plan.Result.Applied)
					}
				} else if err := plan.Apply(context.Background()); err != nil {
					t.Errorf("another plan: %v", err)
				}
			}
		})
	}
}

// TestMovedHarmlessly: a change, a new key or the same work done by somebody else
// is no reason to refuse; what changed is applied as it is by now.
func TestMovedHarmlessly(t *testing.T) {
	a := newRegion(t, 2)
	b := a.clone(2)
	p := &pair{a, b, a.open(appliance), b.open(appliance)}
	refs := a.keys(3)
	plan := p.stale(t, Options{})
	a.setLabel(refs[0], "by now")
	b.put([]hsm.MaskedObject{a.get(0, refs[1])})
	later := a.keys(1)[0]
	if err := plan.Apply(context.Background()); err != nil || plan.Result.Applied != 2 {
		t.Fatalf("%v, %d applied", err, plan.Result.Applied)
	}
	if got, want := b.get(0, refs[0]), a.get(0, refs[0]); got.Object != want.Object {
		t.Errorf("the state before was applied")
	}
	if got := b.get(0, later); got.Bytes != nil {
		t.Errorf("a key that was not planned was applied")
	}
}

// TestMovedForACryptoUser: whose login shows no roots; everything planned is
// looked at again.
func TestMovedForACryptoUser(t *testing.T) {
	a := newRegion(t, 1)
	b := a.clone(1)
	p := &pair{a, b, a.open("alice"), b.open("alice")}
	a.keys(2)
	plan := p.stale(t, Options{})
	if err := plan.Apply(context.Background()); err != nil || plan.Result.Applied != 2 {
		t.Fatalf("unmoved: %v, %d applied", err, plan.Result.Applied)
	}
	refs := a.keys(2)
	plan = p.stale(t, Options{})
	a.destroy("alice", refs[0])
	if err := plan.Apply(context.Background()); !errors.Is(err, ErrMoved) {
		t.Errorf("moved: %v", err)
	}
}

// TestRunPlansAgain: Run shows its plan to nobody, so it makes another one.
func TestRunPlansAgain(t *testing.T) {
	a := newRegion(t, 1)
	b := a.clone(1)
	refs := a.keys(2)
	src, dst := a.open(appliance), b.open(appliance)
	plans := 0
	p, err := planAndApply(context.Background(), src, dst, Options{}, func(p *Plan) {
		if p.fresh = 0; plans == 0 {
			a.destroy("alice", refs[0])
		}
		plans++
	})
	if err != nil || plans != 2 || p.Result.Missing != 1 || p.Result.Applied != 2 {
		t.Errorf("%v: %+v", err, p.Result)
	}
}

// TestTimes: a key is selected by when it was made and last changed, on either
// side; what is left out is counted.
func TestTimes(t *testing.T) {
	a := newRegion(t, 1)
	b := a.clone(1)
	p := &pair{a, b, a.open(appliance), b.open(appliance)}
	old := a.keys(2)
	time.Sleep(2 * time.Millisecond) // so that the clock, which counts milliseconds, is another
	cut := time.Now().Truncate(time.Millisecond)
	time.Sleep(2 * time.Millisecond)
	a.keys(3)
	a.setLabel(old[0], "changed later")
	for name, c := range map[string]struct {
		times            Times
		missing, outside int
	}{
		"created since": {Times{CreatedSince: cut}, 3, 2},
		"created until": {Times{CreatedUntil: cut}, 2, 3},
		"changed since": {Times{ChangedSince: cut}, 4, 1},
		"changed until": {Times{ChangedUntil: cut}, 1, 4},
		"both":          {Times{CreatedUntil: cut, ChangedSince: cut}, 1, 4},
		"none":          {Times{CreatedSince: time.Now().Add(time.Hour)}, 0, 5},
	} {
		plan := p.stale(t, Options{Times: c.times})
		if plan.Result.Missing != c.missing || plan.Result.Outside != c.outside {
			t.Errorf("%s: %d new and %d outside, want %d and %d", name, plan.Result.Missing, plan.Result.Outside, c.missing, c.outside)
		}
	}
	if _, err := NewPlan(context.Background(), p.src, p.dst, Options{Times: Times{CreatedSince: cut, CreatedUntil: cut}}); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("times that no key is of: %v", err)
	}
	if r := p.run(t, Options{Times: Times{ChangedSince: cut}}); r.Applied != 4 || r.Remaining != 1 || r.Outside != 1 {
		t.Errorf("%+v", r)
	}
}
