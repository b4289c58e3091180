package rpc

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// TestCreateCodec: a request that is written by hand is what protobuf reads, and what
// protobuf writes is read by hand to the same.
func TestCreateCodec(t *testing.T) {
	word := rapid.StringN(0, 20, maxWord)
	value := rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 300), func(b []byte) string { return string(b) })
	rapid.Check(t, func(t *rapid.T) {
		table := func(name string) map[string]string {
			if m := rapid.MapOfN(word, value, 0, maxAttributes).Draw(t, name); len(m) > 0 {
				return m
			}
			return nil // as it arrives
		}
		want := hsm.CreateRequest{
			Method: hsm.MethodGenerate, Token: rapid.Bool().Draw(t, "token"), Type: rapid.SampledFrom([]string{"aes", "generic-secret", "ec"}).Draw(t, "type"),
			Size: int(rapid.Int32().Draw(t, "size")), Curve: word.Draw(t, "curve"), Class: hsm.Class(word.Draw(t, "class")),
			Attributes: table("attributes"), Public: table("public"), Lease: time.Duration(rapid.Int64Range(0, int64(maxLease)).Draw(t, "lease")),
		}
		if rapid.Bool().Draw(t, "with a key") {
			want.Key = drawRef(t)
		}
		op := hsm.OpID(drawDigest(t))
		if !smallCreate(&want) {
			t.Fatal("it is not small")
		}
		long, err := proto.Marshal(toCreate(op, want))
		if err != nil {
			t.Fatal(err)
		}
		p := &pb.CreateRequest{}
		short := appendCreate(nil, op, &want)
		if err := proto.Unmarshal(short, p); err != nil {
			t.Fatal(err)
		}
		gotOp, got, err := fromCreate(p)
		if err != nil || gotOp != op || !cmp.Equal(want, got, secretComparer) {
			t.Fatalf("protobuf read %v\n%s", err, cmp.Diff(want, got, secretComparer))
		}
		for _, b := range [][]byte{short, withoutParams(t, long)} {
			keyType, curve, plain := createHead(b)
			if !plain || keyType != want.Type || curve != want.Curve {
				t.Fatalf("head %q %q %t", keyType, curve, plain)
			}
			gotOp, got, err := parseCreate(b)
			if err != nil || gotOp != op || !cmp.Equal(want, got, secretComparer) {
				t.Fatalf("read by hand %v\n%s", err, cmp.Diff(want, got, secretComparer))
			}
		}
	})
}

// withoutParams leaves out the empty message that toCreate puts there.
func withoutParams(t *rapid.T, b []byte) []byte {
	p := &pb.CreateRequest{}
	if err := proto.Unmarshal(b, p); err != nil {
		t.Fatal(err)
	}
	p.Params = nil
	b, err := proto.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSmallCreate: requests with key material, and others that are not made from
// nothing, are calls of their own; in a frame they are read by protobuf.
func TestSmallCreate(t *testing.T) {
	small := hsm.CreateRequest{Method: hsm.MethodGenerate, Type: "aes", Size: 32}
	for name, change := range map[string]func(*hsm.CreateRequest){
		"import":          func(r *hsm.CreateRequest) { r.Method = hsm.MethodImport },
		"rsa":             func(r *hsm.CreateRequest) { r.Type = "rsa" },
		"data":            func(r *hsm.CreateRequest) { r.Data = hsm.NewSecret([]byte("key")) },
		"masked":          func(r *hsm.CreateRequest) { r.Masked = []hsm.MaskedObject{{Bytes: []byte("x")}} },
		"share":           func(r *hsm.CreateRequest) { r.Shares = []string{"bob"} },
		"approval":        func(r *hsm.CreateRequest) { r.Approvals = []hsm.Approval{{}} },
		"mechanism":       func(r *hsm.CreateRequest) { r.Params.Mechanism = "hkdf" },
		"info":            func(r *hsm.CreateRequest) { r.Params.SharedInfo = []byte("x") },
		"curve":           func(r *hsm.CreateRequest) { r.Curve = "\xff" },
		"attribute":       func(r *hsm.CreateRequest) { r.Attributes = map[string]string{"\xff": ""} },
		"public":          func(r *hsm.CreateRequest) { r.Public = map[string]string{"\xff": ""} },
		"salt":            func(r *hsm.CreateRequest) { r.Params.SaltLength = 1 },
		"digest":          func(r *hsm.CreateRequest) { r.Params.Digest = true },
		"class not a one": func(r *hsm.CreateRequest) { r.Class = "\xff" },
	} {
		r := small
		if !smallCreate(&r) {
			t.Fatal("a plain request is not small")
		}
		if change(&r); smallCreate(&r) {
			t.Errorf("%s: small", name)
		}
	}
	s := newSite(t)
	s.users("bob")
	bob := loginAs(t, s.hsm.Module(hsm.Principal{}), hsm.RoleCryptoUser, "bob")
	b, err := proto.Marshal(toCreate(newOp(), hsm.CreateRequest{Method: hsm.MethodImport, Type: "aes", Data: hsm.NewSecret([]byte(strings.Repeat("k", 32)))}))
	if err != nil {
		t.Fatal(err)
	}
	made, err := createIn(context.WithValue(t.Context(), sessionKey{}, bob), b)
	if err != nil || len(made.Keys) != 1 || made.Keys[0].Size != 32 {
		t.Errorf("an import in a frame: %v, %v", made.Keys, err)
	}
	if bytes.Contains(b, []byte("kkkk")) {
		t.Error("the key material of an import stays in the frame")
	}
}

// FuzzParseCreate: a plain request is read to what protobuf reads, or refused with
// ErrInvalid; what protobuf refuses is refused.
func FuzzParseCreate(f *testing.F) {
	f.Add(appendCreate(nil, hsm.OpID{1}, &hsm.CreateRequest{Method: hsm.MethodGenerate, Type: "ec", Curve: "secp256r1", Attributes: map[string]string{"sign": "true"}, Public: map[string]string{"verify": "true"}}))
	f.Add([]byte{10, 3, 16, 1, 16})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, plain := createHead(b); !plain {
			return
		}
		op, got, err := parseCreate(b)
		if err != nil {
			if !errors.Is(err, hsm.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			return
		}
		p := &pb.CreateRequest{}
		if err := proto.Unmarshal(b, p); err != nil {
			t.Fatalf("protobuf refuses %x: %v", b, err)
		}
		wantOp, want, err := fromCreate(p)
		if err != nil || wantOp != op || !cmp.Equal(want, got, secretComparer) {
			t.Errorf("%x: %v\n%s", b, err, cmp.Diff(want, got, secretComparer))
		}
	})
}
