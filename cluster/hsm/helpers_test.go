package hsm

import (
	"bytes"
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sequence returns n bytes that count up from first.
func sequence(first byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

// testKeyring is the keyring of the vectors: fixed bytes, which nothing else
// may ever use. The lineage secret is 00…1f, the masking key of epoch 1 is
// 20…3f and that of epoch 2 is 40…5f.
func testKeyring(t testing.TB, epochs ...uint64) *Keyring {
	t.Helper()
	masking := map[uint64]Secret{}
	for _, e := range epochs {
		masking[e] = NewSecret(sequence(byte(e)*0x20, KeySize))
	}
	return result(OpenKeyring(NewSecret(sequence(0, KeySize)), masking))(t)
}

// result fails the test on an error.
func result[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func equal[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// sameRecord compares records field by field.
func sameRecord(a, b *Record) bool {
	x, y := *a, *b
	return x.Kind == y.Kind && x.Ref == y.Ref && x.Cluster == y.Cluster && x.Birth == y.Birth && x.Incarnation == y.Incarnation &&
		x.Destroyed == y.Destroyed && x.Core.equal(&y.Core) && x.Material.Equal(y.Material) &&
		sameRegisters(x.Registers, y.Registers) && sameRegisters(x.Hidden, y.Hidden) &&
		x.Standing == y.Standing && maps.EqualFunc(x.Rivals, y.Rivals, (*Rival).Equal)
}

func sameRegisters(a, b map[string]Register) bool {
	if len(a) != len(b) {
		return false
	}
	for name, x := range a {
		y, ok := b[name]
		if !ok || x.Stamp != y.Stamp || !bytes.Equal(x.Value, y.Value) {
			return false
		}
	}
	return true
}

const (
	testRef  = KeyRef(0x0123456789abcdef)
	testHSM  = HSMID(0x1122334455667789)
	testTime = uint64(0x019a_b3c4_d5e6_0001) // 2025-11-24
)

func at(n uint64) Stamp { return Stamp{Time: testTime + n, HSM: testHSM} }

// aesRecord is the key of the worked example of FORMAT.md.
func aesRecord(t testing.TB, k *Keyring) *Record {
	t.Helper()
	r := &Record{
		Kind: KindKey, Ref: testRef,
		Core: Core{
			Class: ClassSecret, Type: "aes", Size: 32, Origin: MethodGenerate, Created: at(0), Owner: "alice",
			Check: []byte{0xaa, 0xbb, 0xcc}, SensitiveAtBirth: true, ExtractableAtBirth: true,
		},
		Material: NewSecret(sequence(0xc0, 32)),
	}
	r.Set(AttributeRegister("label"), []byte("payments"), at(1))
	r.Set(AttributeRegister("sign"), BoolValue(true), at(1))
	r.Set(ShareRegister("bob"), BoolValue(true), at(2))
	return born(t, k, r)
}

// born completes a record.
func born(t testing.TB, k *Keyring, r *Record) *Record {
	t.Helper()
	for _, m := range []*map[string]Register{&r.Registers, &r.Hidden} {
		if *m == nil {
			*m = map[string]Register{}
		}
	}
	r.Birth = result(k.Birth(r))(t)
	return r
}

// ecRecord has every field of a core and all attributes.
func ecRecord(t testing.TB, k *Keyring) *Record {
	t.Helper()
	r := &Record{
		Kind: KindKey, Ref: testRef + 1, Incarnation: 3,
		Core: Core{
			Class: ClassPrivate, Type: "ec", Size: 256, Curve: "secp256r1", Origin: MethodImport, Created: at(3), Owner: "alice",
			Public: sequence(1, 91), Check: []byte{1, 2, 3}, Pair: testRef, SensitiveAtBirth: true, ExtractableAtBirth: true,
		},
		Material: NewSecret(sequence(0x6c, 138)),
	}
	for name, v := range DefaultAttributes(ClassPrivate, "ec") {
		a := result(LookupAttribute(name))(t)
		r.Set(AttributeRegister(name), result(ParseAttribute(a, v))(t), at(4))
	}
	return born(t, k, r)
}

func userRecord(t testing.TB, k *Keyring) *Record {
	t.Helper()
	return born(t, k, &Record{
		Kind: KindUser, Ref: UserRef("alice"), Core: Core{Type: "crypto-user", Owner: "alice"},
		Hidden: map[string]Register{"verifier": {Stamp: at(9), Value: sequence(0x80, 64)}},
	})
}

func memberRecord(t testing.TB, k *Keyring) *Record {
	t.Helper()
	r := &Record{Kind: KindMember, Ref: testRef + 2, Cluster: 0x8877665544332211, Core: Core{Owner: "hsm-1"}}
	r.Set("address", []byte("192.0.2.1:2223"), at(1))
	return born(t, k, r)
}

func tombstone(t testing.TB, k *Keyring) *Record {
	t.Helper()
	r := aesRecord(t, k)
	r.Destroy()
	return r
}

// strictTombstone keeps every register that a tombstone can.
func strictTombstone(t testing.TB, k *Keyring) *Record {
	t.Helper()
	r := aesRecord(t, k)
	r.Core.SensitiveAtBirth = false
	for name, v := range map[string]bool{"sensitive": true, "extractable": false, "modifiable": false, "wrap-with-trusted": true, "trusted": true} {
		r.Set(AttributeRegister(name), BoolValue(v), at(7))
	}
	r = born(t, k, r)
	r.Destroy()
	return r
}

func mask(t testing.TB, k *Keyring, r *Record) MaskedObject {
	t.Helper()
	return result(k.Mask(r))(t)
}

// claimOf is the masked object that b claims to be, or one with k's lineage
// alone.
func claimOf(k *Keyring, b []byte) MaskedObject {
	m, _, err := ParseMasked(b)
	if err != nil {
		return MaskedObject{Lineage: k.Lineage(), Bytes: b}
	}
	return m
}

// fakeWall is a wall clock set by hand.
type fakeWall struct{ time.Time }

func (w *fakeWall) now() time.Time { return w.Time }
