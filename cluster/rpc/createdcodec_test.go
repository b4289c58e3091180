package rpc

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

func drawKeyInfo(t *rapid.T) hsm.KeyInfo {
	word, name := rapid.StringN(0, 20, maxWord), rapid.StringN(0, 30, maxName)
	bytes := rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 300), func(b []byte) string { return string(b) })
	k := hsm.KeyInfo{
		Ref: drawRef(t), Class: hsm.Class(word.Draw(t, "class")), Type: word.Draw(t, "type"), Size: int(rapid.Int32().Draw(t, "size")),
		Curve: word.Draw(t, "curve"), Label: bytes.Draw(t, "label"), ID: name.Draw(t, "id"), CheckValue: word.Draw(t, "check value"),
		Attributes: rapid.MapOfN(word, bytes, 0, maxAttributes).Draw(t, "attributes"), Owner: name.Draw(t, "owner"),
		Shares: rapid.SliceOfN(name, 0, 5).Draw(t, "shares"), Token: rapid.Bool().Draw(t, "token"),
		Incarnation: rapid.Uint64().Draw(t, "incarnation"), Digest: drawDigest(t),
	}
	if len(k.Attributes) == 0 {
		k.Attributes = nil // as it arrives
	}
	if rapid.Bool().Draw(t, "pair") {
		k.Pair = drawRef(t)
	}
	if rapid.Bool().Draw(t, "dated") {
		k.Created = time.Unix(0, rapid.Int64Range(1, 1<<62).Draw(t, "created")).UTC()
	}
	return k
}

// TestCreatedCodec: what is written by hand is what protobuf reads, and what protobuf
// writes is read by hand to the same.
func TestCreatedCodec(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := hsm.Created{Keys: rapid.SliceOfN(rapid.Custom(drawKeyInfo), 0, 3).Draw(t, "keys")}
		for range rapid.IntRange(0, 2).Draw(t, "objects") {
			want.Objects = append(want.Objects, hsm.MaskedObject{Object: drawObject(t), Bytes: []byte("masked")})
		}
		if len(want.Keys) == 0 {
			want.Keys = nil
		}
		b, err := appendCreated(nil, want)
		if err != nil {
			t.Fatal(err)
		}
		p := &pb.CreateReply{}
		if err := proto.Unmarshal(b, p); err != nil {
			t.Fatal(err)
		}
		long, err := fromCreated(p)
		if err != nil || !cmp.Equal(want, long) {
			t.Fatalf("protobuf read %v\n%s", err, cmp.Diff(want, long))
		}
		again, err := proto.Marshal(toCreated(want))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range [][]byte{b, again} {
			if got, err := parseCreated(b); err != nil || !cmp.Equal(want, got) {
				t.Fatalf("read by hand %v\n%s", err, cmp.Diff(want, got))
			}
		}
	})
}

// TestCreatedCodecRefuses what protobuf would not write, and what is beyond the limits.
func TestCreatedCodecRefuses(t *testing.T) {
	k := hsm.KeyInfo{Ref: 1, Owner: "alice", Attributes: map[string]string{"label": "x"}}
	for name, change := range map[string]func(*hsm.KeyInfo){
		"class":          func(k *hsm.KeyInfo) { k.Class = "\xff" },
		"owner":          func(k *hsm.KeyInfo) { k.Owner = "\xff" },
		"share":          func(k *hsm.KeyInfo) { k.Shares = []string{"\xff"} },
		"attribute name": func(k *hsm.KeyInfo) { k.Attributes = map[string]string{"\xff": ""} },
	} {
		bad := k
		change(&bad)
		if _, err := appendCreated(nil, hsm.Created{Keys: []hsm.KeyInfo{bad}}); !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("%s is not text and is written: %v", name, err)
		}
	}
	many := map[string]string{}
	for i := range maxAttributes + 1 {
		many[string(rune('a'+i))] = ""
	}
	for name, change := range map[string]func(*hsm.KeyInfo){
		"no reference":    func(k *hsm.KeyInfo) { k.Ref = 0 },
		"large reference": func(k *hsm.KeyInfo) { k.Ref = 1 << 63 },
		"large pair":      func(k *hsm.KeyInfo) { k.Pair = 1 << 63 },
		"large size":      func(k *hsm.KeyInfo) { k.Size = 1 << 40 },
		"long class":      func(k *hsm.KeyInfo) { k.Class = hsm.Class(make([]byte, maxWord+1)) },
		"long owner":      func(k *hsm.KeyInfo) { k.Owner = string(make([]byte, maxName+1)) },
		"long label":      func(k *hsm.KeyInfo) { k.Label = string(make([]byte, maxValue+1)) },
		"long attribute":  func(k *hsm.KeyInfo) { k.Attributes = map[string]string{"label": string(make([]byte, maxValue+1))} },
		"attributes":      func(k *hsm.KeyInfo) { k.Attributes = many },
		"shares":          func(k *hsm.KeyInfo) { k.Shares = make([]string, maxShares+1) },
	} {
		bad := k
		change(&bad)
		b, err := appendCreated(nil, hsm.Created{Keys: []hsm.KeyInfo{bad}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseCreated(b); !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("%s: read, with %v", name, err)
		}
	}
}

// FuzzParseCreated: an answer is read to what protobuf reads, or refused with
// ErrInvalid; what protobuf refuses is refused.
func FuzzParseCreated(f *testing.F) {
	b, err := appendCreated(nil, hsm.Created{
		Keys:    []hsm.KeyInfo{{Ref: 1, Class: hsm.ClassSecret, Owner: "bob", Attributes: map[string]string{"label": "x"}, Shares: []string{"alice"}}},
		Objects: []hsm.MaskedObject{{Object: hsm.Object{Ref: 1, Kind: 1}, Bytes: []byte("x")}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{10, 3, 16, 1, 16})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseCreated(b)
		if err != nil {
			if !errors.Is(err, hsm.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			return
		}
		p := &pb.CreateReply{}
		if err := proto.Unmarshal(b, p); err != nil {
			t.Fatalf("protobuf refuses %x: %v", b, err)
		}
		want, err := fromCreated(p)
		if err != nil || !cmp.Equal(want, got) {
			t.Errorf("%x: %v\n%s", b, err, cmp.Diff(want, got))
		}
	})
}
