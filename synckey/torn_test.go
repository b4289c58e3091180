package synckey

import (
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// tornPair is two regions: in one a birth stands above another, in the other one HSM
// holds the first of them and the other HSM the second, and none knows of the decision.
func tornPair(t *testing.T) (settled, torn *region, stands, gives hsm.MaskedObject) {
	t.Helper()
	settled = newRegion(t, 2)
	torn = settled.clone(3)
	ref := hsm.NewKeyRef()
	x, y := settled.birth(ref, "alice", "x"), settled.birth(ref, "alice", "y")
	settled.put([]hsm.MaskedObject{x})
	settled.put([]hsm.MaskedObject{settled.changeOn(0, hsm.RoleAdmin, admin, hsm.Change{Kind: hsm.ChangeSupersede, Ref: ref, Masked: &y, Value: birthOf(t, x)})})
	torn.put([]hsm.MaskedObject{x}, 0)
	torn.put([]hsm.MaskedObject{y}, 1) // and the third HSM has none
	return settled, torn, x, y
}

// TestTornClusterIsSettledByItsPeer: births between which the HSMs of one cluster
// cannot decide are no conflict if the other cluster's record says which one stands.
func TestTornClusterIsSettledByItsPeer(t *testing.T) {
	t.Run("at the destination", func(t *testing.T) {
		a, b, x, _ := tornPair(t)
		p := &pair{a, b, a.open(appliance), b.open(appliance)}
		r, err := run(t.Context(), p.src, p.dst, Options{})
		if err != nil || len(r.Conflicts) != 0 || r.Applied != 0 || len(r.Left) != 1 || r.Left[0].Class != classSuperseded.String() {
			t.Fatalf("without --destroyed: %v, %+v", err, r)
		}
		if r := p.run(t, Options{Destroyed: true}); r.Applied != 1 || len(r.Conflicts) != 0 {
			t.Errorf("%+v", r)
		}
		settledAs(t, b, x)
	})
	t.Run("at the source", func(t *testing.T) {
		a, b, x, _ := tornPair(t)
		p := &pair{b, a, b.open(appliance), a.open(appliance)}
		if r := p.run(t, Options{Both: true, Destroyed: true}); len(r.Conflicts) != 0 || r.Applied == 0 {
			t.Errorf("%+v", r)
		}
		settledAs(t, b, x)
		settledAs(t, a, x)
	})
	t.Run("by a third HSM of its own", func(t *testing.T) {
		a, b, x, _ := tornPair(t)
		b.put([]hsm.MaskedObject{a.get(0, x.Ref)}, 2)
		plan, err := NewPlan(t.Context(), a.open(appliance), b.open(appliance), Options{})
		if err != nil || len(plan.Result.Conflicts) != 0 || plan.Result.Settling != 1 {
			t.Errorf("%v, %+v", err, plan.Result)
		}
	})
	t.Run("not where there is a third birth", func(t *testing.T) {
		a, b, x, _ := tornPair(t)
		b.put([]hsm.MaskedObject{a.birth(x.Ref, "alice", "z")}, 2)
		r, err := run(t.Context(), a.open(appliance), b.open(appliance), Options{Both: true, Destroyed: true})
		if err != nil || len(r.Conflicts) != 1 || r.Applied != 0 {
			t.Errorf("%v, %+v", err, r)
		}
	})
}

// TestTornDestroysWithinTheLimit: what gives way in a cluster that is torn counts as
// destroyed.
func TestTornDestroysWithinTheLimit(t *testing.T) {
	a, b, _, _ := tornPair(t)
	plan, err := NewPlan(t.Context(), a.open(appliance), b.open(appliance), Options{Destroyed: true, MaxDestroyed: AtMost(0)})
	if err != nil || plan.Result.Refused == "" {
		t.Errorf("%v, %+v", err, plan.Result)
	}
}

// settledAs checks that all HSMs of a region hold the same key under its reference.
func settledAs(t *testing.T, r *region, m hsm.MaskedObject) {
	t.Helper()
	want, err := r.keyring.Unmask(m)
	if err != nil {
		t.Fatal(err)
	}
	for i := range r.boxes {
		if r.material(i, m.Ref) != string(want.Material.Reveal()) {
			t.Errorf("HSM %d of %s holds another key", i, r.name)
		}
	}
	for i := range r.boxes {
		if r.root(i) != r.root(0) {
			t.Errorf("the roots of %s differ", r.name)
		}
	}
}
