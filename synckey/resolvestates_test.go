package synckey

import (
	"crypto/rand"
	"errors"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestResolveDestroysNothing that its plan shows as live: a birth that is to stand, live
// at one side and destroyed at the other.
func TestResolveDestroysNothing(t *testing.T) {
	w := newTwins(t, "alice", "alice")
	if _, err := w.resolve(ResolveOptions{Keep: "src"}); err != nil {
		t.Fatal(err)
	}
	w.b.destroy("alice", w.ref)
	if _, err := w.resolve(ResolveOptions{Keep: "src"}); !errors.Is(err, hsm.ErrDestroyed) {
		t.Errorf("after a decision: %v, want ErrDestroyed", err)
	}
	if !live(w.a, w.ref) {
		t.Error("the key that was live at the source is destroyed")
	}

	a := newRegion(t, 1)
	b := a.clone(2)
	x, y := a.birth(w.ref, "alice", "x"), a.birth(w.ref, "alice", "y")
	a.put([]hsm.MaskedObject{x})
	b.put([]hsm.MaskedObject{x}, 0)
	b.put([]hsm.MaskedObject{b.changeOn(0, hsm.RoleCryptoUser, "alice", hsm.Change{Kind: hsm.ChangeDestroy, Ref: w.ref})}, 0)
	b.put([]hsm.MaskedObject{y}, 1)
	if _, err := NewResolution(t.Context(), a.open(admin), b.open(admin), ResolveOptions{Ref: w.ref, Keep: "src"}); !errors.Is(err, hsm.ErrDestroyed) || !live(a, w.ref) {
		t.Errorf("at the first decision: %v, want ErrDestroyed; live %t", err, live(a, w.ref))
	}
}

// TestResolveKeepsNothingDestroyed: what gives way and is destroyed on one HSM is
// destroyed, though another HSM has not heard of it.
func TestResolveKeepsNothingDestroyed(t *testing.T) {
	a := newRegion(t, 2)
	b := a.clone(1)
	ref := hsm.NewKeyRef()
	x, y := a.birth(ref, "alice", "x"), a.birth(ref, "alice", "y")
	a.put([]hsm.MaskedObject{y}, 0)
	a.changeOn(0, hsm.RoleCryptoUser, "alice", hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
	a.put([]hsm.MaskedObject{x}, 1)
	b.put([]hsm.MaskedObject{y})
	w := &twins{t: t, a: a, b: b, ref: ref, src: a.open(admin), dst: b.open(admin), ofA: x, ofB: y}
	r, err := w.resolve(ResolveOptions{Keep: birthOf(t, x), KeepBoth: true})
	if err != nil || len(r.Kept) != 0 || live(b, w.kept(y)) {
		t.Errorf("%v; kept %v", err, r.Kept)
	}
}

// TestResolveBringsEdits of the birth that stands to both sides, and decisions about
// other births, wherever they were made.
func TestResolveBringsEdits(t *testing.T) {
	w := newTwins(t, "alice", "alice")
	if _, err := w.resolve(ResolveOptions{Keep: "dst"}); err != nil {
		t.Fatal(err)
	}
	w.b.setLabel(w.ref, "edited at b")
	if r, err := w.resolve(ResolveOptions{Keep: "dst"}); err != nil || !r.Resolved || r.Remaining != 0 {
		t.Errorf("after an edit: %v, %+v", err, r)
	}

	w = newTwins(t, "alice", "alice")
	third, stands := w.a.birth(w.ref, "alice", "third"), birthOf(t, w.ofA)
	w.a.put([]hsm.MaskedObject{w.a.changeOn(0, hsm.RoleAdmin, admin, hsm.Change{Kind: hsm.ChangeSupersede, Ref: w.ref, Masked: &third, Value: stands})})
	w.b.put([]hsm.MaskedObject{w.b.changeOn(0, hsm.RoleAdmin, admin, hsm.Change{Kind: hsm.ChangeSupersede, Ref: w.ref, Masked: &w.ofA, Value: stands})})
	if r, err := w.resolve(ResolveOptions{Keep: stands}); err != nil || !r.Resolved || r.Remaining != 0 {
		t.Errorf("with other rivals: %v, %+v", err, r)
	}
}

// TestResolveRefusesBeforeItDecides: a login on one side that would be refused there
// after the decision was made on the other.
func TestResolveRefusesBeforeItDecides(t *testing.T) {
	w := newTwins(t, "alice", "bob")
	w.src = w.a.open("alice")
	before := w.b.get(0, w.ref)
	if _, err := w.resolve(ResolveOptions{Keep: "dst"}); !errors.Is(err, hsm.ErrDenied) || w.b.get(0, w.ref).Object != before.Object {
		t.Errorf("%v, want ErrDenied, and nothing done", err)
	}
}

// TestTrustedPairGivesNotWay: a crypto user's decision does not end a key whose other
// half is trusted, where the HSM that decides does not hold that half.
func TestTrustedPairGivesNotWay(t *testing.T) {
	for _, both := range []bool{false, true} {
		w := newTwins(t, "alice", "alice")
		public, private := hsm.NewKeyRef(), hsm.NewKeyRef()
		w.b.put([]hsm.MaskedObject{half(w.a, public, private, hsm.ClassPublic), half(w.a, private, public, hsm.ClassPrivate)})
		w.a.put([]hsm.MaskedObject{w.a.birth(private, "alice", "other")})
		before := w.b.get(0, private)
		w.src, w.dst = w.a.open("alice"), w.b.open("alice")
		if _, err := w.resolve(ResolveOptions{Ref: private, Keep: "src", KeepBoth: both}); err == nil || w.b.get(0, private).Object != before.Object {
			t.Errorf("keep both %t: %v; want it refused, and the key as it was", both, err)
		}
	}
}

// half makes one half of a pair; the public half is trusted.
func half(r *region, ref, other hsm.KeyRef, class hsm.Class) hsm.MaskedObject {
	r.t.Helper()
	at := clock.Next()
	k := &hsm.Record{
		Kind: hsm.KindKey, Ref: ref, Registers: map[string]hsm.Register{}, Hidden: map[string]hsm.Register{},
		Core: hsm.Core{Class: class, Type: "rsa", Size: 2048, Origin: hsm.MethodGenerate, Created: at, Owner: "alice", Pair: other, Public: []byte{1, 2, 3}},
	}
	if class == hsm.ClassPrivate {
		material := make([]byte, 48)
		rand.Read(material)
		k.Core.SensitiveAtBirth, k.Material = true, hsm.NewSecret(material)
	} else {
		k.Set(hsm.AttributeRegister("trusted"), hsm.BoolValue(true), at)
	}
	k.Set(hsm.AttributeRegister("destroyable"), hsm.BoolValue(true), at)
	var err error
	if k.Birth, err = r.keyring.Birth(k); err != nil {
		r.t.Fatal(err)
	}
	m, err := r.keyring.Mask(k)
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// TestKeptTwiceIsNotTrusted: a key that was kept under another reference and came to
// stand all the same is not the only one of its material.
func TestKeptTwiceIsNotTrusted(t *testing.T) {
	w := newTwins(t, "alice", "alice")
	p, err := NewResolution(t.Context(), w.src, w.dst, ResolveOptions{Ref: w.ref, Keep: "src", KeepBoth: true})
	if err != nil {
		t.Fatal(err)
	}
	interrupted := errors.New("interrupted")
	p.done = func(step string) error {
		if step == "kept on both sides" {
			return interrupted
		}
		return nil
	}
	if err := p.Apply(t.Context()); !errors.Is(err, interrupted) {
		t.Fatal(err)
	}
	if _, err := w.resolve(ResolveOptions{Keep: "dst"}); err != nil {
		t.Fatal(err)
	}
	set := func(as, name, value string) error {
		_, err := w.b.open(as).Change(t.Context(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: w.ref, Name: name, Value: value})
		return err
	}
	if err := set("alice", "encrypt", "false"); err != nil {
		t.Fatal(err)
	}
	if err := set(admin, "trusted", "true"); !errors.Is(err, hsm.ErrAttribute) {
		t.Errorf("trusted beside a live copy: %v, want ErrAttribute", err)
	}
	w.b.destroy("alice", w.kept(w.ofB))
	if err := set(admin, "trusted", "true"); err != nil {
		t.Errorf("trusted when the copy is gone: %v", err)
	}
}
