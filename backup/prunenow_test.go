package backup

import "testing"

// TestPruneNowOftenerThanTheGracePeriod: whoever removes a snapshot at once again and again,
// each time within the grace period of the last one, frees nothing, and the plan says what waits
// for it. One run that removes nothing, a grace period later, frees all of it.
func TestPruneNowOftenerThanTheGracePeriod(t *testing.T) {
	p := newPruned(t, 1)
	o := PruneOptions{Policy: Policy{Last: 1}, Grace: DefaultGrace, Now: true}
	for n := range 4 {
		p.full(t)
		plan, r := p.prune(t, o)
		if len(r.Removed) != 1 || r.Objects != 0 || plan.Later < n {
			t.Fatalf("run %d: %+v, %d objects later", n, r, plan.Later)
		}
		p.store.tick(DefaultGrace / 2)
	}
	p.store.tick(DefaultGrace / 2)
	if plan, r := p.prune(t, o); len(r.Removed) != 0 || r.Objects == 0 || plan.Later != 0 || count(t, p.store, "packs/") != 1 {
		t.Fatalf("after the grace period: %+v, %d packs", r, count(t, p.store, "packs/"))
	}
	p.restorable(t)
}
