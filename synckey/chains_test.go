package synckey

import (
	"context"
	"testing"

	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestFailoverAndFailback: the clone takes over, lives its own life, and hands back
// to a region that had gone on for a while; no change of either is lost, and
// nothing destroyed on either returns.
func TestFailoverAndFailback(t *testing.T) {
	a := newRegion(t, 2)
	refs := a.keys(6)
	b := a.clone(2)
	east, west := a.open(appliance), b.open(appliance)

	a.setLabel(refs[0], "changed before the loss")
	lost := a.keys(1)[0] // made after the last run, before the loss
	a.destroy("alice", refs[1])

	made := b.keys(2) // b is in charge
	b.setLabel(refs[2], "changed after the loss")
	b.share(refs[0], "bob")
	b.destroy("alice", refs[3])
	b.setPassword("alice", "since-the-loss")
	b.user("carol")

	r, err := run(context.Background(), west, east, Options{Users: true, Destroyed: true})
	if err != nil || r.RootsEqual {
		t.Fatalf("failback one way: %v, %+v", err, r)
	}
	if live(b, lost) || !live(b, refs[1]) {
		t.Error("one way changed the source")
	}
	if r, err = run(context.Background(), east, west, Options{Users: true, Destroyed: true}); err != nil || !r.RootsEqual || len(r.Conflicts) > 0 {
		t.Fatalf("and the other way: %v, %+v", err, r)
	}
	for _, at := range []*region{a, b} {
		for _, ref := range append([]hsm.KeyRef{refs[0], refs[2], refs[4], refs[5], lost, hsm.UserRef("carol")}, made...) {
			if !live(at, ref) {
				t.Errorf("%s is lost at %s", ref, at.name)
			}
		}
		if live(at, refs[1]) || live(at, refs[3]) {
			t.Errorf("a destroyed key returned at %s", at.name)
		}
	}
	if !equal(a, b) {
		t.Error("the regions differ")
	}
}

// TestAttributesMerge: edits of one key on both sides merge, each attribute by
// itself; of one attribute the later edit wins, on both.
func TestAttributesMerge(t *testing.T) {
	p := newPair(t)
	ref := p.a.key("alice", "before")
	p.run(t, Options{})
	set := func(r *region, name, value string) {
		r.put([]hsm.MaskedObject{r.changeOn(0, hsm.RoleCryptoUser, "alice", hsm.Change{Kind: hsm.ChangeAttribute, Ref: ref, Name: name, Value: value})})
	}
	set(p.a, "decrypt", "true")
	set(p.b, "encrypt", "false")
	set(p.b, "label", "earlier")
	set(p.a, "label", "on the other side")
	if r := p.run(t, Options{Both: true}); !r.RootsEqual || r.Changed != 1 || r.Applied != 2 {
		t.Fatalf("%+v", r)
	}
	for _, at := range []*region{p.a, p.b} {
		k, err := at.as(0, hsm.RoleCryptoUser, "alice").Key(context.Background(), ref)
		if err != nil || k.Attributes["decrypt"] != "true" || k.Attributes["encrypt"] != "false" || (k.Label != "on the other side" && k.Label != "earlier") {
			t.Errorf("%s: %v, %q, %v", at.name, err, k.Label, k.Attributes)
		}
	}
}

// TestAnyOrder: whichever side begins, two histories of one lineage come to one and
// the same root.
func TestAnyOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a := newRegion(t, 1)
		b := a.clone(1)
		h := newHistory(rt, a, b, "bob", "carol")
		rt.Repeat(h.steps())
		again, bgain := a.clone(1), b.clone(1)
		regions := []*region{a, b, again, bgain}
		defer func() {
			for _, r := range regions {
				r.stop()
			}
		}()
		o := Options{Both: true, Users: true, Destroyed: true, MaxDestroyed: Unlimited()}
		both := func(x, y *region) bool {
			from, to := x.open(appliance), y.open(appliance)
			defer from.Close()
			defer to.Close()
			r, err := run(context.Background(), from, to, o)
			if err != nil {
				rt.Fatal(err)
			}
			return r.RootsEqual
		}
		one, two := both(a, b), both(bgain, again)
		if one != two {
			rt.Fatalf("equal from a: %t, from b: %t", one, two)
		}
		if one && (a.root(0) != b.root(0) || a.root(0) != again.root(0) || a.root(0) != bgain.root(0)) {
			rt.Fatal("another order, another root")
		}
	})
}

// TestDifferenceSizes: of no keys, of one, of everything; and clusters without keys.
func TestDifferenceSizes(t *testing.T) {
	a := newRegion(t, 1)
	b := a.clone(1)
	p := &pair{a, b, a.open(appliance), b.open(appliance)}
	for _, n := range []int{0, 1, 2, 3, 10, 100} {
		a.keys(n)
		if r := p.run(t, Options{}); r.Missing != n || r.Applied != n || !r.RootsEqual {
			t.Errorf("%d: %+v", n, r)
		}
	}
	empty := start(t, "empty", a.keyring, 1)
	// Everything, users and policy included, into a cluster that holds nothing.
	q := &pair{a, empty, a.open(appliance), empty.open(appliance)}
	if r := q.run(t, Options{Users: true}); !r.RootsEqual || r.Missing != 116 {
		t.Errorf("everything: %+v", r)
	}
	a.keys(10_000)
	if r := p.run(t, Options{}); r.Missing != 10_000 || r.Applied != 10_000 || !r.RootsEqual {
		t.Errorf("10,000: %d missing, %d applied, roots equal: %t", r.Missing, r.Applied, r.RootsEqual)
	}
}

// TestTwoBirths: destroying one of two births settles nothing and loses nothing: the
// other stays as it is where it is, and all other keys pass.
func TestTwoBirths(t *testing.T) {
	p := newPair(t)
	ref := hsm.NewKeyRef()
	p.a.put([]hsm.MaskedObject{p.a.birth(ref, "alice", "one")})
	p.b.put([]hsm.MaskedObject{p.b.birth(ref, "alice", "other")})
	kept := p.a.get(0, ref)
	p.b.destroy("alice", ref)
	p.a.keys(2)
	for _, o := range []Options{{}, {Both: true, Destroyed: true}} {
		if r := p.run(t, o); len(r.Conflicts) != 1 || r.Conflicts[0] != ref || r.Remaining != 1 || p.a.get(0, ref).Object != kept.Object || live(p.b, ref) {
			t.Errorf("%+v: %+v", o, r)
		}
	}
}
