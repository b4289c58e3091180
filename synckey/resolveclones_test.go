package synckey

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestResolveReachesClones: a third clone that holds what gave way is told, keeps it
// until asked, and counts it among what is destroyed; a fourth one with yet another
// birth stays a conflict.
func TestResolveReachesClones(t *testing.T) {
	w := newTwins(t, "alice", "alice")
	c := w.a.clone(1)
	c.boxes[0].soft.Close()
	c = start(t, "north", w.a.keyring, 1)
	for ref := range map[hsm.KeyRef]bool{hsm.UserRef("alice"): true, hsm.UserRef("bob"): true, hsm.UserRef(admin): true, hsm.PolicyRef("settings"): true} {
		c.put([]hsm.MaskedObject{w.a.get(0, ref)})
	}
	c.put([]hsm.MaskedObject{w.ofB})
	if r, err := w.resolve(ResolveOptions{Keep: "src", KeepBoth: true}); err != nil || !r.RootsEqual {
		t.Fatalf("%v, %+v", err, r)
	}
	third := c.open(admin)
	r, err := run(t.Context(), w.src, third, Options{})
	if err != nil || r.Superseded != 1 || r.Remaining != 1 || c.material(0, w.ref) != w.a.material(0, w.kept(w.ofB)) {
		t.Fatalf("unasked: %v, %+v", err, r)
	}
	if _, err = run(t.Context(), w.src, third, Options{Destroyed: true, MaxDestroyed: AtMost(0)}); !errors.Is(err, ErrLimit) {
		t.Errorf("it counts as destroyed: %v", err)
	}
	if r, err = run(t.Context(), w.src, third, Options{Destroyed: true}); err != nil || !r.RootsEqual || r.DestroyedAtSrc != 0 {
		t.Errorf("asked: %v, %+v", err, r)
	}
	d := start(t, "south", w.a.keyring, 1)
	for _, name := range []string{"alice", "bob", admin} {
		d.put([]hsm.MaskedObject{w.a.get(0, hsm.UserRef(name))})
	}
	d.put([]hsm.MaskedObject{w.a.get(0, hsm.PolicyRef("settings")), w.a.birth(w.ref, "alice", "of d")})
	if r, err = run(t.Context(), w.src, d.open(admin), Options{Destroyed: true, Both: true}); err != nil || !slices.Equal(r.Conflicts, []hsm.KeyRef{w.ref}) {
		t.Errorf("a birth that nobody has decided on: %v, %+v", err, r)
	}
	if r, err := Resolve(t.Context(), d.open(admin), w.src, ResolveOptions{Ref: w.ref, Keep: "src"}); err != nil || !r.Resolved {
		t.Errorf("the third birth is chosen: %v, %+v", err, r)
	}
}

// TestResolveTombstones: what was destroyed under one birth gives way to the other,
// or the reference stays destroyed, as decided; and what stands can be destroyed.
func TestResolveTombstones(t *testing.T) {
	t.Run("the live one stands", func(t *testing.T) {
		w := newTwins(t, "alice", "alice")
		w.a.destroy("alice", w.ref)
		r, err := w.resolve(ResolveOptions{Keep: "dst", KeepBoth: true})
		if err != nil || !r.Resolved || !r.RootsEqual || len(r.Kept) != 0 {
			t.Fatalf("%v, %+v", err, r)
		}
		w.stands("over a tombstone", w.ofB)
		w.a.destroy("alice", w.ref)
		if s, err := run(t.Context(), w.src, w.dst, Options{Destroyed: true}); err != nil || !s.RootsEqual || live(w.b, w.ref) {
			t.Errorf("destroyed afterwards: %v, %+v", err, s)
		}
		w.a.put([]hsm.MaskedObject{w.ofA, w.ofB}) // from an old snapshot, say
		if live(w.a, w.ref) || !equal(w.a, w.b) {
			t.Error("it came back")
		}
	})
	t.Run("the tombstone stands", func(t *testing.T) {
		w := newTwins(t, "alice", "alice")
		w.a.destroy("alice", w.ref)
		r, err := w.resolve(ResolveOptions{Keep: "src", KeepBoth: true})
		if err != nil || !r.Resolved || !r.RootsEqual || len(r.Kept) != 1 || live(w.b, w.ref) || !live(w.a, r.Kept[0]) {
			t.Fatalf("%v, %+v", err, r)
		}
	})
}

// TestResolveWithinACluster: the HSMs of one cluster hold two births. It is decided
// by birth, with a clone or alone.
func TestResolveWithinACluster(t *testing.T) {
	a := newRegion(t, 2)
	b := a.clone(1)
	ref := hsm.NewKeyRef()
	x, y := a.birth(ref, "alice", "x"), a.birth(ref, "alice", "y")
	a.put([]hsm.MaskedObject{x}, 0)
	a.put([]hsm.MaskedObject{y}, 1)
	b.put([]hsm.MaskedObject{x})
	w := &twins{t: t, a: a, b: b, ref: ref, src: a.open(admin), dst: b.open(admin), ofA: x, ofB: y}
	if _, err := w.resolve(ResolveOptions{Keep: "src"}); !errors.Is(err, hsm.ErrInvalid) || !strings.Contains(err.Error(), "2 births") {
		t.Errorf("which of two: %v", err)
	}
	alone, err := Resolve(t.Context(), w.src, nil, ResolveOptions{Ref: ref, Keep: birthOf(t, y), KeepBoth: true})
	if err != nil || !alone.Resolved || len(alone.Kept) != 1 || alone.Dst != nil {
		t.Fatalf("alone: %v, %+v", err, alone)
	}
	if a.root(0) != a.root(1) {
		t.Error("the HSMs differ still")
	}
	if r, err := w.resolve(ResolveOptions{Keep: "src"}); err != nil || !r.Resolved {
		t.Errorf("then with the clone: %v, %+v", err, r)
	}
	if r, err := run(t.Context(), w.src, w.dst, Options{}); err != nil || !r.RootsEqual {
		t.Errorf("and the copy that was kept: %v, %+v", err, r)
	}
	w.stands("within a cluster", y)
}
