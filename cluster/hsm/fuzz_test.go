package hsm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

// eachVector calls f with every vector.
func eachVector(t testing.TB, f func(vector)) {
	t.Helper()
	for _, file := range result(filepath.Glob(filepath.Join(vectorDir, "*.txt")))(t) {
		f(parseVector(t, string(result(os.ReadFile(file))(t))))
	}
}

func FuzzUnmask(f *testing.F) {
	eachVector(f, func(v vector) { f.Add(v.masked.Bytes) })
	k := testKeyring(f, 1, 2)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := claimOf(k, b)
		r, err := k.Unmask(m)
		sameGlance(t, k.NewOpener(), m, r, err)
		if err != nil {
			if r != nil || !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrLineage) {
				t.Fatalf("%v, %v", r, err)
			}
			return
		}
		if again := mask(t, k, r); again.Object != m.Object {
			t.Fatal("what opens does not mask to the same object")
		}
	})
}

// The types of FORMAT.md for a general CBOR library: a second reading of the
// specification.
type refEnvelope struct {
	_       struct{} `cbor:",toarray"`
	Version uint64
	Epoch   uint64
	SIV     []byte
	Clear   []byte
	Sealed  []byte
}

type refClear struct {
	Kind        uint8                  `cbor:"1,keyasint"`
	Ref         uint64                 `cbor:"2,keyasint"`
	Lineage     []byte                 `cbor:"3,keyasint"`
	Cluster     uint64                 `cbor:"4,keyasint,omitempty"`
	Birth       []byte                 `cbor:"5,keyasint"`
	Incarnation uint64                 `cbor:"6,keyasint,omitempty"`
	Destroyed   bool                   `cbor:"7,keyasint,omitempty"`
	Core        refCore                `cbor:"8,keyasint"`
	Registers   map[string]refRegister `cbor:"9,keyasint,omitempty"`
	Standing    uint64                 `cbor:"10,keyasint,omitempty"`

	Rivals map[cbor.ByteString]refRival `cbor:"11,keyasint,omitempty"`
}

type refRival struct {
	Standing    uint64                 `cbor:"1,keyasint,omitempty"`
	Incarnation uint64                 `cbor:"2,keyasint,omitempty"`
	Destroyed   bool                   `cbor:"3,keyasint,omitempty"`
	Core        refCore                `cbor:"4,keyasint"`
	Registers   map[string]refRegister `cbor:"5,keyasint,omitempty"`
}

type refCore struct {
	Class       string    `cbor:"1,keyasint,omitempty"`
	Type        string    `cbor:"2,keyasint,omitempty"`
	Size        uint32    `cbor:"3,keyasint,omitempty"`
	Curve       string    `cbor:"4,keyasint,omitempty"`
	Origin      string    `cbor:"5,keyasint,omitempty"`
	Created     *refStamp `cbor:"6,keyasint,omitempty"`
	Owner       string    `cbor:"7,keyasint,omitempty"`
	Public      []byte    `cbor:"8,keyasint,omitempty"`
	Check       []byte    `cbor:"9,keyasint,omitempty"`
	Pair        uint64    `cbor:"10,keyasint,omitempty"`
	Sensitive   bool      `cbor:"11,keyasint,omitempty"`
	Extractable bool      `cbor:"12,keyasint,omitempty"`
}

type refStamp struct {
	_         struct{} `cbor:",toarray"`
	Time, HSM uint64
}

type refRegister struct {
	_         struct{} `cbor:",toarray"`
	Time, HSM uint64
	Value     []byte
}

var (
	refEnc = must(cbor.EncOptions{Sort: cbor.SortCoreDeterministic, NilContainers: cbor.NilContainerAsEmpty}.EncMode())
	refDec = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxArrayElements: 1 << 20, MaxMapPairs: 1 << 20, UTF8: cbor.UTF8RejectInvalid,
	}.DecMode())
)

// refDecode accepts what encodes to the same bytes again.
func refDecode(b []byte, into any) bool {
	if refDec.Unmarshal(b, into) != nil {
		return false
	}
	again, err := refEnc.Marshal(into)
	return err == nil && bytes.Equal(again, b)
}

// refParse is ParseMasked by the book.
func refParse(b []byte) bool {
	var e refEnvelope
	var c refClear
	if len(b) > MaxMasked || !refDecode(b, &e) || len(e.SIV) != 32 || !refDecode(e.Clear, &c) {
		return false
	}
	want := uint64(1)
	if len(c.Rivals) > 0 {
		want = 2
	}
	fits := e.Version == want && c.Destroyed == (len(e.Sealed) == 0) && c.Destroyed == (e.Epoch == 0) && len(c.Lineage) == 16 && len(c.Birth) == 16 &&
		c.Kind >= 1 && c.Kind <= 7 && (c.Kind >= 4) == (c.Cluster != 0) && c.Ref != 0 && c.Ref < 1<<63 && refState(c.Kind, c.Destroyed, c.Core, c.Registers) &&
		(c.Standing > 0) == (len(c.Rivals) > 0) && c.Standing <= 1<<32 && (len(c.Rivals) == 0 || c.Kind == 1)
	for birth, v := range c.Rivals {
		above := v.Standing < c.Standing || v.Standing == c.Standing && string(birth) < string(c.Birth)
		fits = fits && len(birth) == 16 && above && refState(c.Kind, v.Destroyed, v.Core, v.Registers)
	}
	return fits
}

// refState checks what is said of one birth.
func refState(kind uint8, destroyed bool, c refCore, registers map[string]refRegister) bool {
	erased := refLasts(kind, registers) && reflect.DeepEqual(c, refCore{Owner: c.Owner})
	return c.Pair < 1<<63 && c.Size < 1<<31 && (c.Created == nil || *c.Created != refStamp{}) && (!destroyed || erased)
}

// refLasts tells whether all registers are such as a tombstone keeps.
func refLasts(kind uint8, registers map[string]refRegister) bool {
	for name, reg := range registers {
		switch name {
		case "attr/trusted":
		case "attr/sensitive", "attr/wrap-with-trusted":
			if string(reg.Value) != "\x01" {
				return false
			}
		case "attr/extractable", "attr/modifiable":
			if string(reg.Value) == "\x01" {
				return false
			}
		default:
			return false
		}
	}
	return len(registers) == 0 || kind == 1
}

// mustPeek demands that a peek and a split without allocation find what the
// full decoders find.
func mustPeek(t *testing.T, b []byte, want MaskedObject, parse error) {
	t.Helper()
	peeked, err := PeekMasked(b)
	if err != nil && !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	if parse == nil && (err != nil || peeked.Object != want.Object || peeked.Lineage != want.Lineage) {
		t.Fatalf("%x: a peek finds %+v, %v; want %+v", b, peeked.Object, err, want.Object)
	}
	columns, splitErr := SplitMasked(b)
	again, epoch, opaque, clear, bothErr := PeekColumns([]byte{7}, b)
	switch {
	case (bothErr == nil) != (err == nil), opaque[0] != 7:
		t.Fatalf("%x: peek says %v, with columns %v", b, err, bothErr)
	case bothErr == nil && (splitErr != nil || again.Object != peeked.Object || !bytes.Equal(opaque[1:], columns.Opaque) || !bytes.Equal(clear, columns.Clear)):
		t.Fatalf("%x: two ways to split differ: %v, %v", b, bothErr, splitErr)
	}
	if env, err := openEnvelope(b); bothErr == nil && (err != nil || epoch != env.epoch) {
		t.Fatalf("%x: epoch %d, %v", b, epoch, err)
	}
}

func FuzzParseMasked(f *testing.F) {
	eachVector(f, func(v vector) { f.Add(v.masked.Bytes) })
	k := testKeyring(f, 1)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, r, err := ParseMasked(b)
		if (err == nil) != refParse(b) {
			t.Fatalf("%x: %v, but a general implementation says %v", b, err, refParse(b))
		}
		mustPeek(t, b, m, err)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		env := result(openEnvelope(b))(t)
		same := *k
		same.lineage = m.Lineage
		if !bytes.Equal(same.encodeClear(r), env.clear) || !bytes.Equal(env.append(nil), b) {
			t.Fatalf("%x: a second encoding of one state", b)
		}
	})
}

func FuzzJoinMasked(f *testing.F) {
	eachVector(f, func(v vector) {
		if c, err := SplitMasked(v.masked.Bytes); err == nil {
			f.Add(c.Clear, c.Opaque)
		}
		f.Add(v.masked.Bytes, []byte{0x84})
	})
	f.Fuzz(func(t *testing.T, clearColumn, opaque []byte) {
		b, err := JoinMasked(Columns{Clear: clearColumn, Opaque: opaque})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		back := result(SplitMasked(b))(t)
		if !bytes.Equal(back.Clear, clearColumn) || !bytes.Equal(back.Opaque, opaque) {
			t.Fatalf("%x and %x come back as %x and %x", clearColumn, opaque, back.Clear, back.Opaque)
		}
	})
}

func FuzzParseFilter(f *testing.F) {
	for _, s := range []string{"", "attr.label=a b", "key-reference=0x1 attr.sign=true owner=bob", "attr.id=0xff  attr.label= ", "owner=", "attr.=x", "key-reference=", "=", "attr.token=1"} {
		f.Add(s, "attr.label=x")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		filter, err := ParseFilter([]string{a, b})
		if err != nil {
			if !errors.Is(err, ErrInvalid) || !reflect.DeepEqual(filter, Filter{}) {
				t.Fatalf("%v, %v", filter, err)
			}
			return
		}
		if filter.Empty() {
			t.Fatalf("%q and %q select everything", a, b)
		}
		k := KeyInfo{Ref: testRef, Owner: filter.Owner, Attributes: filter.Attrs}
		if len(filter.Refs) > 0 {
			k.Ref = filter.Refs[0]
		}
		if !filter.Match(k) {
			t.Fatalf("%+v does not match what it asks for", filter)
		}
	})
}

func FuzzParseIdentifiers(f *testing.F) {
	for _, s := range []string{"0x0000000000000001", "42", "hsm-aaaaaaaaaaaab", "cluster-7777777777776", "lineage-000102030405060708090a0b0c0d0e0f", "0x", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ParseKeyRef(s); err == nil {
			if again := result(ParseKeyRef(r.String()))(t); again != r || !r.valid() {
				t.Fatal(s, r)
			}
		}
		if id, err := ParseHSMID(s); err == nil && id.String() != s {
			t.Fatal(s, id)
		}
		if id, err := ParseClusterID(s); err == nil && id.String() != s {
			t.Fatal(s, id)
		}
		if l, err := ParseLineage(s); err == nil && result(ParseLineage(l.String()))(t) != l {
			t.Fatal(s, l)
		}
		if name, err := CanonicalUserName(s); err == nil && result(CanonicalUserName(name))(t) != name {
			t.Fatal(s, name)
		}
	})
}

// FuzzSealedPart authenticates whatever it is given, as a faulty HSM of the
// lineage might, so that the decoder behind the authentication is reached.
func FuzzSealedPart(f *testing.F) {
	k := testKeyring(f, 1)
	for _, r := range sampleRecords(f, k) {
		if !r.Destroyed {
			f.Add(encodeHidden(r))
		}
	}
	eachVector(f, func(v vector) {
		if env, err := openEnvelope(v.masked.Bytes); err == nil {
			if hidden, err := k.openHidden(&env); err == nil {
				f.Add(hidden)
			}
		}
	})
	clearBytes := k.encodeClear(aesRecord(f, k))
	f.Fuzz(func(t *testing.T, hidden []byte) {
		if len(hidden) == 0 || len(hidden) > MaxMasked/2 {
			return
		}
		m := claimOf(k, authentic(t, k, clearBytes, hidden, 1))
		r, err := k.Unmask(m)
		var ref struct {
			Material []byte                 `cbor:"1,keyasint,omitempty"`
			Hidden   map[string]refRegister `cbor:"2,keyasint,omitempty"`
		}
		if want := refDecode(hidden, &ref); (err == nil) != want {
			t.Fatalf("%x: %v, but a general implementation says %v", hidden, err, want)
		}
		if err == nil && !bytes.Equal(mask(t, k, r).Bytes, m.Bytes) {
			t.Fatalf("%x: a second encoding of one state", hidden)
		}
	})
}
