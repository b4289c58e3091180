package soft

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestExtractInAnyOrder asks for many objects, in order and not, for some twice
// and for some that are not there.
func TestExtractInAnyOrder(t *testing.T) {
	o := testOptions(nil)
	o.Dir = t.TempDir()
	s := peer(t, open(t, o))
	held := map[hsm.KeyRef]hsm.MaskedObject{}
	var objects []hsm.MaskedObject
	for range 300 {
		m := handmade(t, o.Keyring, "alice", time.Now())
		held[m.Ref], objects = m, append(objects, m)
	}
	if _, err := s.Insert(t.Context(), each(objects)); err != nil {
		t.Fatal(err)
	}
	var asked []hsm.KeyRef
	for i, m := range objects {
		asked = append(asked, m.Ref, hsm.NewKeyRef())
		if i%7 == 0 {
			asked = append(asked, m.Ref)
		}
	}
	for _, order := range []func([]hsm.KeyRef){
		slices.Sort[[]hsm.KeyRef],
		func(r []hsm.KeyRef) { rand.Shuffle(len(r), func(i, j int) { r[i], r[j] = r[j], r[i] }) },
		func(r []hsm.KeyRef) { slices.Sort(r); slices.Reverse(r) },
	} {
		order(asked)
		want := slices.DeleteFunc(slices.Clone(asked), func(r hsm.KeyRef) bool { return held[r].Bytes == nil })
		var got []hsm.MaskedObject
		for m, err := range s.Extract(t.Context(), slices.Values(asked)) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, m)
		}
		if len(got) != len(want) {
			t.Fatalf("%d objects, want %d", len(got), len(want))
		}
		for i, m := range got { // all are looked at again, after the last was read
			if m.Ref != want[i] || m.Object != held[m.Ref].Object || m.Lineage != o.Keyring.Lineage() || !bytes.Equal(m.Bytes, held[m.Ref].Bytes) {
				t.Fatalf("object %d is %s, want %s", i, m.Ref, want[i])
			}
		}
	}
}
