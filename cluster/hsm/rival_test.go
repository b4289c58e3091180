package hsm

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

// births are three keys born under one reference.
func births(t testing.TB, k *Keyring) []*Record {
	t.Helper()
	third := aesRecord(t, k)
	third.Core.Owner, third.Material = "carol", NewSecret(sequence(0x90, 32))
	return []*Record{aesRecord(t, k), otherBirth(t, k), born(t, k, third)}
}

// plainStates draws states of several births that nobody has decided on.
func plainStates(k *Keyring, of []*Record) *rapid.Generator[*Record] {
	return rapid.Custom(func(t *rapid.T) *Record {
		r := states(k, rapid.SampledFrom(of).Draw(t, "birth")).Draw(t, "state")
		r.Hidden = map[string]Register{} // keys have none
		return r
	})
}

// decidedStates draws states that replicas come to hold: a few states of several
// births, merged and decided on in some order.
func decidedStates(k *Keyring, of []*Record) *rapid.Generator[*Record] {
	return rapid.Custom(func(t *rapid.T) *Record {
		r := plainStates(k, of).Draw(t, "first")
		for range rapid.IntRange(0, 4).Draw(t, "steps") {
			o := plainStates(k, of).Draw(t, "next")
			if m, err := Merge(r, o); err == nil {
				r = m
				continue
			}
			stands := rapid.SampledFrom([][16]byte{r.Birth, o.Birth}).Draw(t, "stands")
			if m, err := Supersede(r, o, stands); err == nil {
				r = m
			}
		}
		return r
	})
}

// TestMergeLawsAcrossBirths: where mergers of states with rivals are defined, they
// obey the same laws as those of one birth, and whoever merges decides nothing.
func TestMergeLawsAcrossBirths(t *testing.T) {
	k := testKeyring(t, 1)
	gen := decidedStates(k, births(t, k))
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := gen.Draw(t, "a"), gen.Draw(t, "b"), gen.Draw(t, "c")
		before := a.Clone()
		ab, err := Merge(a, b)
		ba, errBA := Merge(b, a)
		if (err == nil) != (errBA == nil) || err == nil && !sameRecord(ab, ba) {
			t.Fatalf("not commutative: %v, %v", err, errBA)
		}
		if !sameRecord(merged(t, a, a), a) {
			t.Fatal("not idempotent")
		}
		if err != nil {
			if !errors.Is(err, ErrConflict) {
				t.Fatal(err)
			}
			return
		}
		if !sameRecord(merged(t, ab, b), ab) || !sameRecord(merged(t, a, ab), ab) {
			t.Fatal("not absorbing")
		}
		if !sameRecord(a, before) {
			t.Fatal("a has changed")
		}
		if err := ab.check(); err != nil {
			t.Fatal(err)
		}
		if !a.Names(b.Birth) && !b.Names(a.Birth) || !ab.Names(a.Birth) || !ab.Names(b.Birth) {
			t.Fatal("a birth gave way that nobody has decided on, or is forgotten")
		}
		bc, err := Merge(b, c)
		if err != nil {
			return
		}
		left, err := Merge(ab, c)
		right, err2 := Merge(a, bc)
		if err == nil && err2 == nil && !sameRecord(left, right) {
			t.Fatal("not associative")
		}
	})
}

// TestDecisionsConverge: several replicas hold several births and hear of each other
// in any order, while people decide here and there, also against each other. A
// replica never takes another birth without a decision that names both, and once one
// more person has decided between what is left, all hold the same bytes.
func TestDecisionsConverge(t *testing.T) {
	k := testKeyring(t, 1)
	of := births(t, k)
	rapid.Check(t, func(t *rapid.T) {
		replicas := rapid.SliceOfN(plainStates(k, of), 2, 4).Draw(t, "replicas")
		pick := func(name string) int { return rapid.IntRange(0, len(replicas)-1).Draw(t, name) }
		for range rapid.IntRange(0, 12).Draw(t, "events") {
			i, j := pick("i"), pick("j")
			if rapid.Bool().Draw(t, "hear") {
				hear(replicas, i, j)
				continue
			}
			stands := rapid.SampledFrom([]*Record{replicas[i], replicas[j]}).Draw(t, "stands").Birth
			if m, err := Supersede(replicas[i], replicas[j], stands); err == nil {
				replicas[i] = m
			}
		}
		for range len(replicas) { // the last word
			gossip(replicas)
			for i := range replicas {
				if _, err := Merge(replicas[0], replicas[i]); err == nil {
					continue
				}
				m, err := Supersede(replicas[0], replicas[i], replicas[0].Birth)
				if errors.Is(err, ErrConflict) { // revived where the other stands: only that one has material
					m, err = Supersede(replicas[0], replicas[i], replicas[i].Birth)
				}
				if err != nil {
					t.Fatal(err)
				}
				replicas[0] = m
			}
		}
		gossip(replicas)
		for i := range replicas {
			if !sameRecord(replicas[i], replicas[0]) {
				t.Fatalf("replica %d holds another state", i)
			}
			if _, err := k.Unmask(mask0(t, k, replicas[i])); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func mask0(t *rapid.T, k *Keyring, r *Record) MaskedObject {
	m, err := k.Mask(r)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func hear(replicas []*Record, i, j int) {
	if m, err := Merge(replicas[i], replicas[j]); err == nil {
		replicas[i] = m
	}
}

func gossip(replicas []*Record) {
	for range len(replicas) {
		for i := range replicas {
			for j := range replicas {
				hear(replicas, i, j)
			}
		}
	}
}

func TestSupersede(t *testing.T) {
	k := testKeyring(t, 1)
	a, b := aesRecord(t, k), otherBirth(t, k)
	w := result(Supersede(a, b, a.Birth))(t)
	if w.Birth != a.Birth || w.Standing != 1 || len(w.Rivals) != 1 || w.Rivals[b.Birth].Core.Owner != "bob" || !w.Material.Equal(a.Material) {
		t.Fatalf("%+v", w)
	}
	if again := result(Supersede(b, w, a.Birth))(t); !sameRecord(again, w) {
		t.Error("a repetition changes something")
	}
	if m, err := Merge(w, b); err != nil || !sameRecord(m, w) {
		t.Error("the other birth comes back:", err)
	}
	other := result(Supersede(b, w, b.Birth))(t) // somebody thinks better of it
	if m, err := Merge(w, other); err != nil || !sameRecord(m, other) || m.Standing != 2 || !m.Material.Equal(b.Material) {
		t.Error("the later decision does not count:", err)
	}
	edited := b.Clone()
	edited.Set(AttributeRegister("extractable"), BoolValue(false), at(30))
	late := result(Merge(w, edited))(t)
	if m, err := Merge(late, other); err != nil || m.Birth != b.Birth || m.Registers["attr/extractable"].Value[0] != 0 {
		t.Error("an edit of a birth that had to give way is lost when it comes back:", err)
	}
	third := births(t, k)[2]
	_, err := Merge(w, third)
	wantErr(t, "a birth that nobody has decided on", err, ErrConflict)

	_, err = Supersede(a, b, third.Birth)
	wantErr(t, "a birth of neither", err, ErrNotFound)
	elsewhere := b.Clone()
	elsewhere.Ref++
	_, err = Supersede(a, elsewhere, a.Birth)
	wantErr(t, "two references", err, ErrInvalid)
	user := userRecord(t, k)
	_, err = Supersede(user, user, user.Birth)
	wantErr(t, "users", err, ErrInvalid)
	most := w.Clone()
	most.Standing = MaxStanding
	_, err = Supersede(most, b, b.Birth)
	wantErr(t, "one decision too many", err, ErrInvalid)
}

// A destroyed key that stands above another one stays destroyed, whichever way the
// states are heard of; and a birth that was revived where another stands is not
// made to stand without its material.
func TestSupersedeAndTombstones(t *testing.T) {
	k := testKeyring(t, 1)
	a, b := aesRecord(t, k), otherBirth(t, k)
	w := result(Supersede(a, b, a.Birth))(t)
	dead := a.Clone()
	dead.Destroy()
	for _, m := range []*Record{result(Merge(w, dead))(t), result(Merge(dead, w))(t)} {
		if !m.Destroyed || m.Standing != 1 || m.Rivals[b.Birth] == nil {
			t.Errorf("destroyed while it was decided on: %v", m)
		}
		if n, err := Merge(m, b); err != nil || !sameRecord(n, m) {
			t.Error("what it stands above comes back:", err)
		}
	}
	grave := result(Supersede(dead, b, dead.Birth))(t) // the tombstone is to stand
	if !grave.Destroyed || grave.Material.Len() != 0 {
		t.Error("a tombstone that stands is none any more")
	}
	revived := a.Clone()
	revived.Incarnation = 1
	over := result(Supersede(revived, b, b.Birth))(t)
	over = result(Supersede(over, b, b.Birth))(t)
	_, err := Supersede(dead, over, a.Birth)
	wantErr(t, "its material is in neither", err, ErrConflict)
}
