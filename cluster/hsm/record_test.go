package hsm

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// states draws states of one object: few stamps, HSMs and values, so that ties
// of every kind happen.
func states(k *Keyring, base *Record) *rapid.Generator[*Record] {
	return rapid.Custom(func(t *rapid.T) *Record {
		r := base.Clone()
		r.Incarnation = uint64(rapid.IntRange(0, 2).Draw(t, "incarnation"))
		r.Registers, r.Hidden = drawRegisters(t, "clear"), drawRegisters(t, "hidden")
		if rapid.IntRange(0, 4).Draw(t, "destroyed") == 0 {
			r.Destroy()
		}
		return r
	})
}

var registerNames = []string{
	"attr/label", "attr/id", "attr/sign", "attr/extractable", "attr/sensitive", "attr/wrap-with-trusted", "attr/modifiable", "attr/trusted", "share/bob", "verifier",
}

func drawRegisters(t *rapid.T, what string) map[string]Register {
	value := rapid.SampledFrom([][]byte{nil, {}, {0}, {1}, {2}, {1, 0}, []byte("label")})
	stamp := rapid.Custom(func(t *rapid.T) Stamp {
		return Stamp{Time: uint64(rapid.IntRange(1, 3).Draw(t, "time")), HSM: HSMID(rapid.IntRange(1, 2).Draw(t, "hsm"))}
	})
	register := rapid.Custom(func(t *rapid.T) Register {
		return Register{Stamp: stamp.Draw(t, "stamp"), Value: value.Draw(t, "value")}
	})
	return rapid.MapOf(rapid.SampledFrom(registerNames), register).Draw(t, what)
}

func merged(t rapid.TB, a, b *Record) *Record {
	t.Helper()
	m, err := Merge(a, b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMergeLaws(t *testing.T) {
	k := testKeyring(t, 1)
	loose := aesRecord(t, k)
	loose.Core.Created, loose.Core.SensitiveAtBirth = Stamp{Time: 1, HSM: 1}, false
	for name, base := range map[string]*Record{"born sensitive": aesRecord(t, k), "born loose": loose} {
		t.Run(name, func(t *testing.T) { checkMergeLaws(t, states(k, born(t, k, base))) })
	}
}

func checkMergeLaws(t *testing.T, gen *rapid.Generator[*Record]) {
	same := func(t *rapid.T, law string, a, b *Record) {
		if !sameRecord(a, b) {
			t.Fatalf("not %s", law)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := gen.Draw(t, "a"), gen.Draw(t, "b"), gen.Draw(t, "c")
		beforeA, beforeB := a.Clone(), b.Clone()
		ab := merged(t, a, b)
		same(t, "commutative", ab, merged(t, b, a))
		same(t, "associative", merged(t, ab, c), merged(t, a, merged(t, b, c)))
		same(t, "idempotent", merged(t, a, a), a)
		same(t, "absorbing", merged(t, ab, b), ab)
		same(t, "free of side effects on a", a, beforeA)
		same(t, "free of side effects on b", b, beforeB)
		checkState(t, a, b, ab)
		checkOneWay(t, a, b, ab)
	})
}

// checkState: the higher incarnation wins, destroyed wins within one.
func checkState(t *rapid.T, a, b, m *Record) {
	if m.Incarnation != max(a.Incarnation, b.Incarnation) {
		t.Fatalf("incarnations %d and %d merge to %d", a.Incarnation, b.Incarnation, m.Incarnation)
	}
	dead := a.Incarnation == m.Incarnation && a.Destroyed || b.Incarnation == m.Incarnation && b.Destroyed
	if m.Destroyed != dead {
		t.Fatalf("destroyed %v, want %v", m.Destroyed, dead)
	}
	if dead && !m.erased() {
		t.Fatal("the tombstone still holds something")
	}
}

// checkOneWay: a one-way attribute never returns, whatever has been destroyed and
// revived; unless the birth says it, a tombstone says it too.
func checkOneWay(t *rapid.T, a, b, m *Record) {
	for name, winner := range oneWay {
		for _, r := range []*Record{a, b} {
			reg, ok := r.Registers[name]
			if !ok || reg.Bool() != winner || r.bornWith(name, reg) && (m.Destroyed || r.Incarnation < m.Incarnation) {
				continue
			}
			if kept, ok := m.Registers[name]; !ok || kept.Bool() != winner {
				t.Fatalf("%s went back to %v", name, !winner)
			}
		}
	}
}

// TestRevivedIsNoLooser: what lasted in the tombstone holds in the next life.
func TestRevivedIsNoLooser(t *testing.T) {
	k := testKeyring(t, 1)
	old := aesRecord(t, k)
	old.Core.SensitiveAtBirth = false
	for name, winner := range map[string]bool{"sensitive": true, "extractable": false, "modifiable": false, "wrap-with-trusted": true} {
		old.Set(AttributeRegister(name), BoolValue(!winner), at(1))
	}
	old.Set(registerTrusted, BoolValue(false), at(0))
	old = born(t, k, old)
	last := old.Clone()
	for name, winner := range map[string]bool{"sensitive": true, "extractable": false, "modifiable": false, "wrap-with-trusted": true, "trusted": true} {
		last.Set(AttributeRegister(name), BoolValue(winner), at(5))
	}
	last.Destroy()
	back := result(k.Unmask(mask(t, k, last)))(t)
	next := back.Revived(old)
	if next.Incarnation != 1 || next.Destroyed || !next.Material.Equal(old.Material) {
		t.Errorf("revived: %v", next)
	}
	for _, r := range []*Record{next, merged(t, merged(t, next, old), last)} {
		if !r.Flag("sensitive") || r.Flag("extractable") || r.Flag("modifiable") || !r.Flag("wrap-with-trusted") || !r.Flag("trusted") {
			t.Errorf("looser than before: %v", r.Registers)
		}
	}
	bare := last.Clone() // as it was written before registers lasted
	bare.Registers = map[string]Register{}
	if got := result(k.Unmask(mask(t, k, bare)))(t); !sameRecord(got, bare) || !sameRecord(merged(t, bare, last), last) {
		t.Error("a tombstone without registers does not merge")
	}
}

// Replicas that hear of the same states in any order hold the same bytes, also
// when each opened its keyring for itself.
func TestMergeOrderGivesEqualBytes(t *testing.T) {
	k1 := testKeyring(t, 1, 2)
	k2 := result(OpenKeyring(k1.Export()))(t)
	gen := rapid.SliceOfN(states(k1, aesRecord(t, k1)), 2, 6)
	rapid.Check(t, func(t *rapid.T) {
		heard := gen.Draw(t, "states")
		again := rapid.Permutation(slices.Concat(heard, heard[:1])).Draw(t, "order")
		x, y := mergeAll(t, k1, heard), mergeAll(t, k2, again)
		if !bytes.Equal(x.Bytes, y.Bytes) || x.Object != y.Object {
			t.Fatalf("two orders, two results: %x and %x", x.Bytes, y.Bytes)
		}
	})
}

// mergeAll passes every state through its masked form, as replicas do.
func mergeAll(t *rapid.T, k *Keyring, heard []*Record) MaskedObject {
	var have *Record
	var m MaskedObject
	for _, r := range heard {
		if have != nil {
			r = merged(t, have, r)
		}
		var err error
		if m, err = k.Mask(r); err != nil {
			t.Fatal(err)
		}
		if have, err = k.Unmask(m); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestMergeConflicts(t *testing.T) {
	k := testKeyring(t, 1)
	for name, change := range map[string]func(*Record){
		"birth":         func(r *Record) { r.Birth[3] ^= 1 },
		"kind":          func(r *Record) { r.Kind = KindPolicy },
		"reference":     func(r *Record) { r.Ref++ },
		"cluster":       func(r *Record) { r.Cluster = 9 },
		"core":          func(r *Record) { r.Core.Size = 16 },
		"public key":    func(r *Record) { r.Core.Public = []byte{1} },
		"material":      func(r *Record) { r.Material = NewSecret(sequence(0, 32)) },
		"no material":   func(r *Record) { r.Material = Secret{} },
		"destroyed too": func(r *Record) { r.Birth[0] ^= 1; r.Destroy() },
	} {
		a, b := aesRecord(t, k), aesRecord(t, k)
		change(b)
		for _, pair := range [][2]*Record{{a, b}, {b, a}} {
			if m, err := Merge(pair[0], pair[1]); !errors.Is(err, ErrConflict) || m != nil {
				t.Errorf("%s: got %v, %v, want ErrConflict", name, m, err)
			}
		}
	}
}

func TestMergeRegisters(t *testing.T) {
	early, late, lateOther := Stamp{Time: 1, HSM: 9}, Stamp{Time: 2, HSM: 1}, Stamp{Time: 2, HSM: 2}
	for _, c := range []struct {
		what, name string
		win, lose  Register
	}{
		{"the later stamp", "attr/label", Register{late, []byte("a")}, Register{early, []byte("b")}},
		{"the larger HSM of one time", "attr/label", Register{lateOther, []byte("a")}, Register{late, []byte("b")}},
		{"the larger bytes of one stamp", "attr/label", Register{late, []byte("b")}, Register{late, []byte("a")}},
		{"the longer of one stamp", "attr/label", Register{late, []byte("aa")}, Register{late, []byte("a")}},
		{"extractable=false", "attr/extractable", Register{early, BoolValue(false)}, Register{late, BoolValue(true)}},
		{"sensitive=true", "attr/sensitive", Register{early, BoolValue(true)}, Register{late, BoolValue(false)}},
		{"wrap-with-trusted=true", "attr/wrap-with-trusted", Register{early, BoolValue(true)}, Register{late, BoolValue(false)}},
		{"modifiable=false", "attr/modifiable", Register{early, BoolValue(false)}, Register{late, BoolValue(true)}},
		{"the later of one one-way value", "attr/sensitive", Register{late, BoolValue(true)}, Register{early, BoolValue(true)}},
		{"trusted is a common register", "attr/trusted", Register{late, BoolValue(false)}, Register{early, BoolValue(true)}},
		{"unsharing", "share/bob", Register{late, BoolValue(false)}, Register{early, BoolValue(true)}},
	} {
		a, b := &Record{Registers: map[string]Register{c.name: c.win}}, &Record{Registers: map[string]Register{c.name: c.lose}}
		for _, pair := range [][2]*Record{{a, b}, {b, a}} {
			equal(t, c.what, merged(t, pair[0], pair[1]).Registers[c.name], c.win)
		}
	}
}

func TestDestroyErases(t *testing.T) {
	k := testKeyring(t, 1)
	a, b := aesRecord(t, k), aesRecord(t, k)
	b.Set("attr/label", []byte("other"), at(7))
	a.Destroy()
	b.Destroy()
	if !sameRecord(a, b) || !a.erased() || a.Core.Owner != "alice" || a.Latest() != (Stamp{}) {
		t.Error("tombstones of one key differ, or hold more than the owner")
	}
	revived := aesRecord(t, k)
	revived.Incarnation = 1
	if m := merged(t, a, revived); m.Destroyed || m.Material.Len() != 32 {
		t.Error("a higher incarnation does not beat the tombstone")
	}
}

// A record owns its bytes: neither wiping nor writing reaches another's.
func TestRecordsShareNothing(t *testing.T) {
	k := testKeyring(t, 1)
	want := ecRecord(t, k)
	want.Hidden["x"] = Register{Stamp: at(1), Value: []byte("hidden")}
	a, m := want.Clone(), mask(t, k, want)
	bytesBefore := slices.Clone(m.Bytes)
	for what, got := range map[string]*Record{"clone": a.Clone(), "merge": merged(t, a, a), "unmask": result(k.Unmask(m))(t)} {
		scribble(got)
		if !sameRecord(a, want) || !bytes.Equal(m.Bytes, bytesBefore) {
			t.Fatalf("%s shares memory", what)
		}
	}
}

func scribble(r *Record) {
	r.Material.Wipe()
	clear(r.Core.Public)
	clear(r.Core.Check)
	for _, m := range []map[string]Register{r.Registers, r.Hidden} {
		for _, reg := range m {
			for i := range reg.Value {
				reg.Value[i] ^= 0xff
			}
			_ = append(reg.Value, 0xff)
		}
		clear(m)
	}
}

func TestRecordAccessors(t *testing.T) {
	k := testKeyring(t, 1)
	r := aesRecord(t, k)
	r.Set(ShareRegister("anna"), BoolValue(true), at(3))
	r.Set(ShareRegister("carl"), BoolValue(false), at(3))
	equal(t, "shares", r.Shares(), []string{"anna", "bob"})
	if !r.SharedWith("bob") || r.SharedWith("carl") || r.SharedWith("eve") || !r.Flag("sign") || r.Flag("wrap") || r.Text("label") != "payments" {
		t.Error("an accessor reads something else")
	}
	r.Hidden["verifier"] = Register{Stamp: at(8)}
	equal(t, "latest", r.Latest(), at(8))
	if r.Core.CreatedAt().UnixMilli() != int64(testTime>>16) || !(Core{}).CreatedAt().IsZero() {
		t.Error("created at", r.Core.CreatedAt())
	}
}
