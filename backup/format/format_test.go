package format

import (
	"bytes"
	"errors"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func TestPackRoundTrip(t *testing.T) {
	objects := testObjects(t, 50)
	p := testPack(t, objects[:10], objects[10:11], objects[11:])
	got, err := readPack(p.Stored, vectorIdentity(t))
	if err != nil || len(got) != len(objects) {
		t.Fatalf("%d objects, %v", len(got), err)
	}
	for i, m := range objects {
		if !bytes.Equal(m.Bytes, got[i]) || p.Index.Items[i] != m.Object {
			t.Fatalf("object %d differs", i)
		}
	}
	if p.Name != NameOf(p.Stored) || len(p.Epochs) != 1 || p.Epochs[0] != 1 || len(p.Index.Blocks) != 3 || p.Index.Blocks[0].Objects != 10 {
		t.Fatalf("%+v", p.Index)
	}
}

func TestPackWriterStartsOver(t *testing.T) {
	objects := testObjects(t, 4)
	w, err := NewPackWriter(testKeyring(t).Lineage(), []age.Recipient{vectorIdentity(t).Recipient()})
	if err != nil {
		t.Fatal(err)
	}
	w.Reserve(1 << 16)
	for range 3 {
		if w.Size() != 0 {
			t.Fatal("not empty")
		}
		if err := w.Append(objects); err != nil {
			t.Fatal(err)
		}
		p, err := w.Finish()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := readPack(p.Stored, vectorIdentity(t)); err != nil || len(got) != 4 {
			t.Fatalf("%d, %v", len(got), err)
		}
		w.Reset()
	}
	if _, err := w.Finish(); err == nil {
		t.Fatal("an empty pack")
	}
}

func TestPackWriterRefuses(t *testing.T) {
	objects := testObjects(t, 3)
	foreign := objects[2]
	foreign.Lineage = hsm.Lineage{9}
	garbage := objects[2]
	garbage.Bytes = []byte("garbage")
	for name, bad := range map[string][]hsm.MaskedObject{
		"descending": {objects[1], objects[0]}, "twice": {objects[1], objects[1]}, "foreign": {foreign}, "garbage": {garbage},
	} {
		w, _ := NewPackWriter(testKeyring(t).Lineage(), []age.Recipient{vectorIdentity(t).Recipient()})
		if err := w.Append(bad); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if _, err := NewPackWriter(hsm.Lineage{}, nil); err == nil {
		t.Error("a pack for nobody")
	}
}

func TestIndexRoundTrip(t *testing.T) {
	p := testPack(t, testObjects(t, 20))
	got, err := DecodeIndex(EncodeIndex(p.Index))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(p.Index, got); d != "" {
		t.Fatal(d)
	}
}

func TestManifestRoundTrip(t *testing.T) {
	m := testManifest(t)
	body, err := EncodeManifestBody(m)
	if err != nil {
		t.Fatal(err)
	}
	got, gotBody, s, err := DecodeManifest(signManifest(t, body))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, got); d != "" {
		t.Fatal(d)
	}
	if err := s.Verify(got.Lineage, hsm.PurposeManifest, gotBody); err != nil {
		t.Fatal(err)
	}
}

func TestEnvelopeRoundTrip(t *testing.T) {
	for _, e := range []Envelope{
		{Threshold: 1, Custodians: 3, Sealed: []byte{1}},
		{Threshold: 2, Custodians: 2, Shares: [][]byte{{1}, {2}}, Sealed: []byte{1}},
		{Threshold: 1, Custodians: 1, Sealed: []byte{1}, PackRecipients: []string{"age1x"}, Epochs: []uint64{1, 9}},
		{
			Threshold: 1, Custodians: 1, Sealed: []byte{1}, PackRecipients: []string{"age1x"}, Epochs: []uint64{1, 9}, Custody: [32]byte{7},
			Signature: hsm.LineageSignature{Public: make([]byte, 32), Signature: make([]byte, 64)},
		},
	} {
		b, err := EncodeEnvelope(e)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeEnvelope(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(e, got); d != "" {
			t.Fatal(d)
		}
	}
}

func TestNames(t *testing.T) {
	n := NameOf([]byte("x"))
	if got := PackPath(n); got != "packs/2d/2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881" {
		t.Error(got)
	}
	if got := ManifestPath(12); got != "manifests/0000000012" {
		t.Error(got)
	}
	for _, s := range []string{"", "0", "x", "+1", "-1", "00000000001", "99999999999", "1 "} {
		if v, ok := ParseID(s); ok {
			t.Errorf("%q is %d", s, v)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.Uint64Range(1, MaxSequence).Draw(t, "v")
		if got, ok := ParseManifestPath(ManifestPath(v)); !ok || got != v {
			t.Fatalf("%d is read as %d", v, got)
		}
	})
}

func FuzzPack(f *testing.F) {
	id := vectorIdentity(f)
	addVectors(f, "pack")
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := readPack(b, id); err != nil && !known(err) {
			t.Fatal(err)
		}
	})
}

// FuzzPackPlain fuzzes what is inside, past the encryption.
func FuzzPackPlain(f *testing.F) {
	id := vectorIdentity(f)
	for _, v := range packVectors(f) {
		if v.plain != nil {
			f.Add(v.plain)
		}
	}
	f.Fuzz(func(t *testing.T, plain []byte) {
		objects, err := readPack(sealPack(t, plain), id)
		if err != nil && !known(err) {
			t.Fatal(err)
		}
		if len(objects) > MaxPackObjects {
			t.Fatal("too many objects")
		}
	})
}

func FuzzIndex(f *testing.F) {
	addVectors(f, "index")
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := DecodeIndex(b)
		if err != nil && !known(err) {
			t.Fatal(err)
		}
		if err == nil && !bytes.Equal(EncodeIndex(x), b) {
			t.Fatal("a second encoding is accepted")
		}
	})
}

func FuzzManifest(f *testing.F) {
	addVectors(f, "manifest")
	f.Fuzz(func(t *testing.T, b []byte) {
		m, body, s, err := DecodeManifest(b)
		if err != nil {
			if !known(err) {
				t.Fatal(err)
			}
			return
		}
		again, err := EncodeManifestBody(m)
		if err != nil || !bytes.Equal(again, body) {
			t.Fatalf("a second encoding is accepted: %v", err)
		}
		if stored, err := EncodeManifest(body, s); err != nil || !bytes.Equal(stored, b) {
			t.Fatalf("a second encoding is accepted: %v", err)
		}
	})
}

func FuzzEnvelope(f *testing.F) {
	addVectors(f, "envelope")
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEnvelope(b)
		if err != nil {
			if !known(err) {
				t.Fatal(err)
			}
			return
		}
		if again, err := EncodeEnvelope(e); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("a second encoding is accepted: %v", err)
		}
	})
}

func known(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion) || errors.Is(err, ErrIdentity)
}
