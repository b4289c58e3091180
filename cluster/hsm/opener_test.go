package hsm

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func TestSealKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) [32]byte {
			return [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, name))
		}
		masking, siv := draw("masking"), draw("siv")
		want, err := hkdf.Key(sha256.New, masking[:], siv[:], "hsmbackup v1 seal", 32)
		if got := sealKey(&masking, &siv); err != nil || !bytes.Equal(got[:], want) {
			t.Fatalf("%x, want %x", got, want)
		}
	})
}

// sameGlance sees that an opener says of an object what Unmask has said.
func sameGlance(t testing.TB, o *Opener, m MaskedObject, r *Record, unmaskErr error) {
	t.Helper()
	g, err := o.Glance(m)
	if (err == nil) != (unmaskErr == nil) || err != nil && err.Error() != unmaskErr.Error() {
		t.Fatalf("Glance: %v; Unmask: %v", err, unmaskErr)
	}
	want := Glance{}
	if r != nil {
		want = r.Glance()
	}
	if diff := cmp.Diff(want, g, cmpopts.EquateEmpty()); diff != "" {
		t.Fatal(diff)
	}
	if bytes.ContainsFunc(o.hidden[:cap(o.hidden)], func(r rune) bool { return r != 0 }) {
		t.Fatal("something of what is sealed is left behind")
	}
}

// TestGlanceIsUnmask: one opener, all vectors, whole, with a bit of any byte
// flipped, and cut off.
func TestGlanceIsUnmask(t *testing.T) {
	k := testKeyring(t, 1, 2)
	o := k.NewOpener()
	eachVector(t, func(v vector) {
		check := func(b []byte) {
			m := claimOf(k, b)
			r, err := k.Unmask(m)
			sameGlance(t, o, m, r, err)
		}
		check(v.masked.Bytes)
		for i := range v.masked.Bytes {
			b := bytes.Clone(v.masked.Bytes)
			b[i] ^= 1 << (i % 8)
			check(b)
			check(v.masked.Bytes[:i])
		}
	})
}

// TestGlanceOfRecords: whatever a record holds, and if its header lies.
func TestGlanceOfRecords(t *testing.T) {
	k := testKeyring(t, 1, 2)
	o, other := k.NewOpener(), NewKeyring()
	gen := states(k, ecRecord(t, k))
	rapid.Check(t, func(rt *rapid.T) {
		m, err := k.Mask(gen.Draw(rt, "record"))
		if err != nil {
			rt.Fatal(err)
		}
		back, err := k.Unmask(m)
		if err != nil {
			rt.Fatal(err)
		}
		sameGlance(t, o, m, back, nil)
		m.Digest[0] ^= 1
		if _, err := o.Glance(m); !errors.Is(err, ErrCorrupt) {
			rt.Fatal(err)
		}
		m.Digest[0] ^= 1
		if _, err := other.NewOpener().Glance(m); !errors.Is(err, ErrLineage) {
			rt.Fatal(err)
		}
	})
}

// TestGlanceKeepsTheReadersChecks: clear parts that authenticate, since whoever has the keys
// made them, and that no HSM writes.
func TestGlanceKeepsTheReadersChecks(t *testing.T) {
	k := testKeyring(t, 1, 2)
	o := k.NewOpener()
	forge := func(clearPart, hidden []byte) MaskedObject {
		env := envelope{version: versionPlain, epoch: k.epoch, clear: clearPart, siv: k.siv(clearPart, hidden)}
		b, err := k.seal(&env, hidden)
		if err != nil {
			t.Fatal(err)
		}
		return claimOf(k, b)
	}
	r := ecRecord(t, k)
	clearPart, hidden := k.encodeClear(r), encodeHidden(r)
	for _, sealed := range [][]byte{hidden, append(bytes.Clone(hidden), 0), hidden[:len(hidden)-1], {0xa0}, {0xa1, 1, 0x40}, {0xa1, 3, 1}} {
		m := forge(clearPart, sealed)
		back, err := k.Unmask(m)
		sameGlance(t, o, m, back, err)
	}
	for bit := range 8 * len(clearPart) {
		c := bytes.Clone(clearPart)
		c[bit/8] ^= 1 << (bit % 8)
		m := forge(c, hidden)
		back, err := k.Unmask(m)
		sameGlance(t, o, m, back, err)
	}
}

func BenchmarkGlance(b *testing.B) {
	k := testKeyring(b, 1)
	m := mask(b, k, ecRecord(b, k))
	o := k.NewOpener()
	b.SetBytes(int64(len(m.Bytes)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := o.Glance(m); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPeekMasked(b *testing.B) {
	k := testKeyring(b, 1)
	m := mask(b, k, ecRecord(b, k))
	b.SetBytes(int64(len(m.Bytes)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := PeekMasked(m.Bytes); err != nil {
			b.Fatal(err)
		}
	}
}
