package hsmtest

import (
	"encoding/hex"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// twins are two keys born under one reference, each on an HSM of its own.
type twins struct {
	*world
	a, b         *node
	ref          hsm.KeyRef
	stays, yield hsm.MaskedObject // on a, on b
}

func (w *world) twins(ownerA, ownerB string) *twins {
	a, b := w.pair()
	t := &twins{world: w, a: a, b: b, ref: hsm.NewKeyRef()}
	t.stays = w.mask(w.key(t.ref, ownerA, w.now()))
	t.yield = w.mask(w.key(t.ref, ownerB, w.now().Add(time.Second)))
	w.must(w.insertOne(a, t.stays))
	w.must(w.insertOne(b, t.yield))
	return t
}

func birthOf(w *world, m hsm.MaskedObject) string {
	w.Helper()
	_, r, err := hsm.ParseMasked(m.Bytes)
	w.ok(err)
	return hex.EncodeToString(r.Birth[:])
}

// decide is a change that decides between the twins, on one of the HSMs.
func (t *twins) decide(n *node, s hsm.Session, kind hsm.ChangeKind, shown hsm.MaskedObject, birth string) (hsm.MaskedObject, error) {
	return s.Change(n.ctx(), hsm.Change{Kind: kind, Ref: t.ref, Masked: &shown, Value: birth})
}

// testSupersede: of two births under one reference the one stands that a person
// says, on whatever HSM it is said, and the other gives way wherever it gets.
func testSupersede(w *world) {
	t := w.twins(alice, alice)
	a, b, stands := t.a, t.b, birthOf(w, t.stays)
	got, err := w.insert(b.hsm(), t.stays)
	w.ok(err)
	w.equal("two births", got, hsm.Inserted{Conflicts: []hsm.KeyRef{t.ref}})
	for _, bad := range []struct {
		what  string
		birth string
		shown hsm.MaskedObject
		want  error
	}{
		{"no birth", "", t.yield, hsm.ErrInvalid},
		{"a birth of neither", "00112233445566778899aabbccddeeff", t.yield, hsm.ErrNotFound},
		{"nothing but what is here", birthOf(w, t.yield), t.stays, hsm.ErrNotFound},
		{"another key", stands, w.extractOne(a.hsm(), a.aes(a.user(alice)).Ref), hsm.ErrInvalid},
	} {
		_, err := t.decide(a, a.admin(), hsm.ChangeSupersede, bad.shown, bad.birth)
		w.want(bad.what, err, bad.want)
	}
	_, err = t.decide(a, a.user(bob), hsm.ChangeSupersede, t.yield, stands)
	w.want("by another user", err, hsm.ErrNotFound)

	here, err := t.decide(a, a.admin(), hsm.ChangeSupersede, t.yield, stands)
	w.ok(err)
	there, err := t.decide(b, b.user(alice), hsm.ChangeSupersede, t.stays, stands)
	w.ok(err)
	w.equal("decided on two HSMs", there, here)
	again, err := t.decide(a, a.user(alice), hsm.ChangeSupersede, t.yield, stands)
	w.ok(err)
	w.equal("decided again", again, here)
	got, err = w.insert(b.hsm(), t.yield)
	w.ok(err)
	w.equal("what gave way", got, hsm.Inserted{Unchanged: 1})
	w.sync(a, b)
	w.equal("roots", w.root(b.hsm()), w.root(a.hsm()))
	w.equal("usable", w.visible(b.user(alice), t.ref), true)

	tombstone, err := a.user(alice).Change(a.ctx(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: t.ref})
	w.ok(err)
	w.must(w.insertOne(b, tombstone))
	for _, old := range []hsm.MaskedObject{t.stays, t.yield, here} {
		got, err = w.insert(b.hsm(), old)
		w.ok(err)
		w.equal("an old state after the destruction", got, hsm.Inserted{Unchanged: 1})
	}
	revived, err := a.user(alice).Change(a.ctx(), hsm.Change{Kind: hsm.ChangeRevive, Ref: t.ref, Masked: &t.stays})
	w.ok(err)
	w.must(w.insertOne(b, revived))
	got, err = w.insert(b.hsm(), t.yield)
	w.ok(err)
	w.equal("what gave way, after the revival", got, hsm.Inserted{Unchanged: 1})
}

// testKeepCopy: what has to give way can be kept under a reference of its own, and
// nothing but that, and only once.
func testKeepCopy(w *world) {
	t := w.twins(alice, alice)
	b, birth := t.b, birthOf(w, t.yield)
	_, err := t.decide(b, b.admin(), hsm.ChangeKeepCopy, t.yield, birth)
	w.want("no conflict is shown", err, hsm.ErrInvalid)
	_, err = t.decide(b, b.admin(), hsm.ChangeKeepCopy, t.stays, birthOf(w, t.stays))
	w.want("the one that is not here", err, hsm.ErrNotFound)
	_, err = t.decide(b, b.user(bob), hsm.ChangeKeepCopy, t.stays, birth)
	w.want("by another user", err, hsm.ErrNotFound)

	w.must(b.user(alice).Change(b.ctx(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: t.ref, Name: "destroyable", Value: "false"}))
	_, err = t.decide(b, b.admin(), hsm.ChangeSupersede, t.stays, birthOf(w, t.stays))
	w.want("not destroyable, not kept", err, hsm.ErrAttribute)

	kept, err := t.decide(b, b.admin(), hsm.ChangeKeepCopy, t.stays, birth)
	w.ok(err)
	again, err := t.decide(b, b.user(alice), hsm.ChangeKeepCopy, t.stays, birth)
	w.ok(err)
	w.equal("kept twice", again, kept)
	was, err := b.user(alice).Key(b.ctx(), t.ref)
	w.ok(err)
	is, err := b.user(alice).Key(b.ctx(), kept.Ref)
	w.ok(err)
	is.Ref, is.Digest = was.Ref, was.Digest
	w.equal("what is kept", is, was)
	w.must(t.decide(b, b.admin(), hsm.ChangeSupersede, t.stays, birthOf(w, t.stays)))
	_, err = t.decide(b, b.admin(), hsm.ChangeKeepCopy, t.stays, birth)
	w.want("it has given way", err, hsm.ErrNotFound)
	w.equal("the kept key", w.visible(b.user(alice), kept.Ref), true)
}

// testSupersedeRights: a crypto user decides between keys it owns, and its login
// brings no decision that ends another user's key.
func testSupersedeRights(w *world) {
	t := w.twins(alice, bob)
	a, b, stands := t.a, t.b, birthOf(w, t.stays)
	for name, s := range map[string]hsm.Session{"the owner of one": a.user(alice), "the owner of the other": a.user(bob)} {
		_, err := t.decide(a, s, hsm.ChangeSupersede, t.yield, stands)
		w.want(name, err, hsm.ErrNotFound)
	}
	decided, err := t.decide(a, a.admin(), hsm.ChangeSupersede, t.yield, stands)
	w.ok(err)
	got, err := w.insert(b.user(alice), decided)
	w.ok(err)
	w.equal("brought by the owner of one", got, hsm.Inserted{Conflicts: []hsm.KeyRef{t.ref}})
	w.equal("the key of the other", w.visible(b.user(bob), t.ref), true)
	got, err = w.insert(b.appliance(), decided)
	w.ok(err)
	w.equal("brought by the appliance", got, hsm.Inserted{Changed: 1})
	w.equal("the key that gave way", w.visible(b.user(bob), t.ref), false)
	w.equal("the key that stands", w.visible(b.user(alice), t.ref), true)
	w.equal("roots", w.root(b.hsm()), w.root(a.hsm()))
}

// testSupersedeTrusted: a trusted key does not give way, nor becomes another one.
func testSupersedeTrusted(w *world) {
	t := w.twins(alice, alice)
	b := t.b
	for _, name := range []string{"encrypt", "decrypt", "extractable"} {
		w.must(b.user(alice).Change(b.ctx(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: t.ref, Name: name, Value: "false"}))
	}
	w.must(b.admin().Change(b.ctx(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: t.ref, Name: "trusted", Value: "true"}))
	trusted := w.extractOne(b.hsm(), t.ref)
	_, err := t.decide(b, b.admin(), hsm.ChangeSupersede, t.stays, birthOf(w, t.stays))
	w.want("a trusted key gives way", err, hsm.ErrAttribute)
	_, err = t.decide(b, b.admin(), hsm.ChangeKeepCopy, t.stays, birthOf(w, t.yield))
	w.want("a trusted key becomes another", err, hsm.ErrAttribute)
	_, err = t.decide(t.a, t.a.user(alice), hsm.ChangeSupersede, trusted, birthOf(w, t.yield))
	w.want("its owner brings it in", err, hsm.ErrDenied)
}

// testKeptTrusted: what was kept is trusted once its original has given way, and not
// before: there it may decrypt what the other one wraps. While it is trusted the
// original does not come back.
func testKeptTrusted(w *world) {
	t := w.twins(alice, alice)
	b := t.b
	set := func(s hsm.Session, ref hsm.KeyRef, name, value string) error {
		_, err := s.Change(b.ctx(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: ref, Name: name, Value: value})
		return err
	}
	kept, err := t.decide(b, b.admin(), hsm.ChangeKeepCopy, t.stays, birthOf(w, t.yield))
	w.ok(err)
	for _, name := range []string{"encrypt", "decrypt", "extractable"} {
		w.ok(set(b.user(alice), kept.Ref, name, "false"))
	}
	w.want("the original is live", set(b.admin(), kept.Ref, "trusted", "true"), hsm.ErrAttribute)
	w.must(w.insertOne(t.a, kept))
	_, err = t.a.admin().Change(t.a.ctx(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: kept.Ref, Name: "trusted", Value: "true"})
	w.want("where it is not heard of that the original gave way", err, hsm.ErrAttribute)

	w.must(t.decide(b, b.admin(), hsm.ChangeSupersede, t.stays, birthOf(w, t.stays)))
	w.ok(set(b.admin(), kept.Ref, "trusted", "true"))
	_, err = t.decide(b, b.admin(), hsm.ChangeSupersede, t.yield, birthOf(w, t.yield))
	w.want("the original comes to stand again", err, hsm.ErrAttribute)
	w.ok(set(b.admin(), kept.Ref, "trusted", "false"))
	w.must(t.decide(b, b.admin(), hsm.ChangeSupersede, t.yield, birthOf(w, t.yield)))
	w.want("the original is live again", set(b.admin(), kept.Ref, "trusted", "true"), hsm.ErrAttribute)

	// Trusted where the original had given way, and brought here.
	w.ok(set(b.user(alice), t.ref, "decrypt", "false"))
	w.must(t.decide(t.a, t.a.admin(), hsm.ChangeSupersede, t.yield, birthOf(w, t.stays)))
	w.must(w.insertOne(t.a, w.extractOne(b.hsm(), kept.Ref)))
	w.must(t.a.admin().Change(t.a.ctx(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: kept.Ref, Name: "trusted", Value: "true"}))
	w.must(w.insertOne(b, w.extractOne(t.a.hsm(), kept.Ref)))
	w.want("the original begins to decrypt", set(b.user(alice), t.ref, "decrypt", "true"), hsm.ErrAttribute)
}
