package rpc

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

func drawCell(t *rapid.T) (c hsm.Cell) {
	copy(c.Item[:], rapid.SliceOfN(rapid.Byte(), 24, 24).Draw(t, "item"))
	c.Check, c.Count = rapid.Uint64().Draw(t, "check"), rapid.Int64().Draw(t, "count")
	return c
}

func drawDigest(t *rapid.T) (d [16]byte) {
	copy(d[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "digest"))
	return d
}

func drawRef(t *rapid.T) hsm.KeyRef {
	return hsm.KeyRef(rapid.Uint64Range(1, math.MaxInt64).Draw(t, "ref"))
}

func drawObject(t *rapid.T) hsm.Object {
	return hsm.Object{
		Ref: drawRef(t), Kind: hsm.Kind(rapid.IntRange(0, 127).Draw(t, "kind")),
		Tombstone: rapid.Bool().Draw(t, "tombstone"), Digest: drawDigest(t),
	}
}

func TestCellsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOf(rapid.Custom(drawCell)).Draw(t, "cells")
		var b []byte
		for _, c := range want {
			b = appendCell(b, c)
		}
		var got []hsm.Cell
		for len(b) > 0 {
			c, rest, err := parseCell(b)
			if err != nil {
				t.Fatal(err)
			}
			got, b = append(got, c), rest
		}
		if len(want) > 0 && !cmp.Equal(want, got) {
			t.Fatal(cmp.Diff(want, got))
		}
	})
}

// The issue wants at most 46 bytes per cell up to a million items.
func TestCellSize(t *testing.T) {
	for count, want := range map[int64]int{0: 33, 63: 33, -64: 33, 8191: 34, 1_000_000: 35, -1_000_000: 35, math.MinInt64: 42} {
		if got := len(appendCell(nil, hsm.Cell{Count: count})); got != want {
			t.Errorf("a cell with count %d takes %d bytes, want %d", count, got, want)
		}
	}
}

func TestObjectsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawObject(t)
		got, rest, err := parseObject(append(appendObject(nil, want), 7))
		if err != nil || got != want || len(rest) != 1 {
			t.Fatalf("got %v, %d bytes left, %v; want %v", got, len(rest), err, want)
		}
	})
}

func FuzzParseCell(f *testing.F) {
	f.Add(appendCell(nil, hsm.Cell{Count: -3}))
	f.Add(make([]byte, 32))
	f.Add([]byte(strings.Repeat("\xff", 45)))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, rest, err := parseCell(b)
		if err != nil {
			if !errors.Is(err, hsm.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			return
		}
		if len(rest) >= len(b) {
			t.Fatal("no progress")
		}
		if again, _, err := parseCell(appendCell(nil, c)); err != nil || again != c {
			t.Errorf("%v became %v, %v", c, again, err)
		}
	})
}

func FuzzParseObject(f *testing.F) {
	f.Add(appendObject(nil, hsm.Object{Ref: 1, Kind: hsm.KindKey}))
	f.Add(make([]byte, objectSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, rest, err := parseObject(b); err == nil && string(appendObject(nil, o))+string(rest) != string(b) {
			t.Errorf("%x became %v", b, o)
		}
	})
}

// FuzzParseMasked: what parses is an object that says of itself what the parser
// says, and parsing goes on behind it.
func FuzzParseMasked(f *testing.F) {
	m, err := probeKeys.Mask(&hsm.Record{Kind: hsm.KindKey, Ref: 9, Destroyed: true, Core: hsm.Core{Owner: "bob"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(appendMasked(nil, m), 7))
	f.Add([]byte{0x80})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, rest, err := parseMasked(b)
		if err != nil {
			if !errors.Is(err, hsm.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			return
		}
		if peeked, err := hsm.PeekMasked(m.Bytes); err != nil || peeked.Object != m.Object || peeked.Lineage != m.Lineage || len(rest)+len(m.Bytes) >= len(b) {
			t.Errorf("%x became %+v, %d bytes left", b, m.Object, len(rest))
		}
	})
}

// FuzzConverters feeds arbitrary messages to every converter of both sides:
// they refuse with ErrInvalid or convert, and never panic.
func FuzzConverters(f *testing.F) {
	seed := func(m proto.Message) {
		b, _ := proto.Marshal(m)
		f.Add(b)
	}
	seed(toMasked(hsm.MaskedObject{Object: hsm.Object{Ref: 1, Kind: 1}, Bytes: []byte("x")}))
	seed(toKeyInfo(hsm.KeyInfo{Ref: 1, Attributes: map[string]string{"label": "x"}}))
	seed(toCreate(hsm.OpID{1}, hsm.CreateRequest{Method: hsm.MethodGenerate, Attributes: map[string]string{"label": "x"}}))
	seed(toUse(hsm.Use{Kind: hsm.UseSign, Key: 5}))
	seed(toInfo(hsm.Info{ID: 5}))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, err := range convertEverything(b) {
			if err != nil && !errors.Is(err, hsm.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
		}
	})
}

func convertEverything(b []byte) (errs []error) {
	try := func(m proto.Message, convert func() error) {
		if proto.Unmarshal(b, m) == nil {
			errs = append(errs, convert())
		}
	}
	masked, info, created := &pb.Masked{}, &pb.InfoReply{}, &pb.CreateReply{}
	key, user, members := &pb.KeyInfo{}, &pb.UserInfo{}, &pb.MembersReply{}
	create, change, use := &pb.CreateRequest{}, &pb.ChangeRequest{}, &pb.UseRequest{}
	filter, envelope, inserted := &pb.KeysRequest{}, &pb.EnvelopeRequest{}, &pb.InsertReply{}
	prints, failure := &pb.FingerprintKeysReply{}, &pb.Failure{}
	try(masked, func() error { _, err := fromMasked(masked); return err })
	try(info, func() error { _, err := fromInfo(info); return err })
	try(created, func() error { _, err := fromCreated(created); return err })
	try(key, func() error { _, err := fromKeyInfo(key); return err })
	try(user, func() error { _, err := fromUser(user); return err })
	try(members, func() error { _, err := fromMembers(members); return err })
	try(create, func() error { _, _, err := fromCreate(create); return err })
	try(change, func() error { _, err := fromChange(change); return err })
	try(use, func() error { _, err := fromUse(use); return err })
	try(filter, func() error { _, err := fromFilter(filter); return err })
	try(envelope, func() error { _, _, err := fromEnvelope(envelope); return err })
	try(inserted, func() error { _, err := fromInserted(inserted); return err })
	try(prints, func() error { _, err := fromFingerprintKeys(prints); return err })
	try(failure, func() error {
		if fromFailure(failure) == nil {
			return errors.New("a failure became nil")
		}
		return nil
	})
	return errs
}

var secretComparer = cmp.Comparer(hsm.Secret.Equal)

// wire sends a message through its bytes.
func wire[M proto.Message](t *testing.T, in, out M) M {
	t.Helper()
	b, err := proto.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRequestsRoundTrip(t *testing.T) {
	params := hsm.Params{Mechanism: "rsa-pss", Hash: "sha256", Digest: true, SaltLength: 32, AAD: []byte("aad"), Peer: []byte("peer"), SharedInfo: []byte("si"), Context: []byte("ctx")}
	create := hsm.CreateRequest{
		Method: hsm.MethodImport, Token: true, Type: "aes", Size: 32, Curve: "p256", Class: hsm.ClassSecret,
		Attributes: map[string]string{"label": "not UTF-8: \xff"}, Public: map[string]string{"id": "01"}, Shares: []string{"alice"},
		Data: hsm.NewSecret([]byte("material")), Key: 7, Params: params, Lease: time.Minute,
		Masked: []hsm.MaskedObject{{Object: hsm.Object{Ref: 9, Kind: hsm.KindKey, Tombstone: true, Digest: hsm.Digest{1}}, Lineage: hsm.Lineage{2}, Bytes: []byte("b")}},
	}
	op, got, err := fromCreate(wire(t, toCreate(hsm.OpID{3}, create), &pb.CreateRequest{}))
	if err != nil || op != (hsm.OpID{3}) {
		t.Fatal(op, err)
	}
	if diff := cmp.Diff(create, got, secretComparer); diff != "" {
		t.Error(diff)
	}
	change := hsm.Change{
		Kind: hsm.ChangeSettings, Ref: 4, Name: "label", Value: "v\xff", User: "bob", Role: hsm.RoleCryptoUser, Password: hsm.NewSecret([]byte("pw")),
		Settings: &hsm.Settings{MinCopies: 3, MinZones: 2, CheckOnUse: true, Custodians: []string{"age1"}, Threshold: 1},
		Member:   &hsm.Member{ID: 5, Name: "one", Address: "127.0.0.1:1", Zone: "a", Removed: true, Joining: true, Leaving: true, Drained: true, Replaces: 6, Doubt: 7, Settled: 8, Keep: true},
		Invite:   &hsm.Invite{ID: hsm.InviteID{1}, Key: [32]byte{2}, Expires: time.UnixMilli(1_700_000_000_123).UTC(), Voters: []hsm.HSMID{3, 4}, Replaces: 5},
		Claim:    &hsm.Claim{Joiner: 6, Proof: [32]byte{7}},
		Revoked:  &hsm.Revocation{Kind: "client", Name: "app", Until: time.UnixMilli(1_700_000_000_123).UTC()},
		After:    9,
		Life:     10,

		Departure: 11,
	}
	gotChange, err := fromChange(wire(t, toChange(change), &pb.ChangeRequest{}))
	if diff := cmp.Diff(change, gotChange, secretComparer); diff != "" || err != nil {
		t.Error(diff, err)
	}
	use := hsm.Use{Kind: hsm.UseWrap, Key: 1, Params: params, Data: []byte("d"), Signature: []byte("s"), Payload: 2, Length: 3}
	gotUse, err := fromUse(wire(t, toUse(use), &pb.UseRequest{}))
	if diff := cmp.Diff(use, gotUse); diff != "" || err != nil {
		t.Error(diff, err)
	}
	filter := hsm.Filter{Refs: []hsm.KeyRef{1, 2}, Attrs: map[string]string{"label": "x"}, Owner: "bob"}
	gotFilter, err := fromFilter(wire(t, toFilter(filter), &pb.KeysRequest{}))
	if diff := cmp.Diff(filter, gotFilter); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestRepliesRoundTrip(t *testing.T) {
	at := time.Unix(1_700_000_000, 123).UTC()
	key := hsm.KeyInfo{
		Ref: 1, Class: hsm.ClassPrivate, Type: "ec", Size: 256, Curve: "secp256r1", Label: "l\xff", ID: "0102", CheckValue: "abcdef",
		Attributes: map[string]string{"label": "l\xff", "sign": "true"}, Owner: "bob", Shares: []string{"eve"}, Pair: 2, Token: true,
		Created: at, Incarnation: 3, Digest: hsm.Digest{4},
	}
	gotKey, err := fromKeyInfo(wire(t, toKeyInfo(key), &pb.KeyInfo{}))
	if diff := cmp.Diff(key, gotKey); diff != "" || err != nil {
		t.Error(diff, err)
	}
	info := hsm.Info{
		ID: 1, Cluster: 2, ClusterName: "c", Region: "r", Zone: "z", Lineage: hsm.Lineage{3}, Version: "v", State: "ACTIVE", Notice: "n", Time: at,
		Root: hsm.Root{Sum: [32]byte{4}, Count: 5}, ClusterRoot: hsm.Root{Sum: [32]byte{6}, Count: 7}, Keys: 8, InDoubt: 9, Sessions: 10, Format: 11,
		Started: at, Doubts: []hsm.Doubt{{Op: hsm.OpID{1}, Refs: []hsm.KeyRef{2, 3}, Since: at}}, Settings: hsm.Settings{MinCopies: 2, MinZones: 1, CheckOnUse: true, Custodians: []string{"age1x"}, Threshold: 1},
		Timeouts: hsm.QuorumTimeouts{Generated: time.Minute, Approved: time.Second}, Departure: 12, OutOfTouch: true,
	}
	gotInfo, err := fromInfo(wire(t, toInfo(info), &pb.InfoReply{}))
	if diff := cmp.Diff(info, gotInfo); diff != "" || err != nil {
		t.Error(diff, err)
	}
	user := hsm.UserInfo{Name: "bob", Role: hsm.RoleAdmin, Locked: true, Ref: 5, Digest: hsm.Digest{6}}
	if got, err := fromUser(wire(t, toUser(user), &pb.UserInfo{})); got != user || err != nil {
		t.Error(got, err)
	}
}

func TestConvertersRefuse(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	good := func() *pb.Masked { return toMasked(hsm.MaskedObject{Object: hsm.Object{Ref: 1}, Bytes: []byte("x")}) }
	bad := map[string]func(*pb.Masked){
		"reference 0": func(m *pb.Masked) { m.Ref = 0 }, "64-bit reference": func(m *pb.Masked) { m.Ref = 1 << 63 },
		"kind": func(m *pb.Masked) { m.Kind = 256 + 1 }, "short digest": func(m *pb.Masked) { m.Digest = m.Digest[:15] },
		"no lineage": func(m *pb.Masked) { m.Lineage = nil }, "no bytes": func(m *pb.Masked) { m.Bytes = nil },
		"too many bytes": func(m *pb.Masked) { m.Bytes = make([]byte, maxMasked+1) },
	}
	for name, spoil := range bad {
		m := good()
		spoil(m)
		if _, err := fromMasked(m); !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("masked object, %s: %v", name, err)
		}
	}
	attributes := map[string][]byte{}
	for i := range maxAttributes + 1 {
		attributes[fmt.Sprint(i)] = nil
	}
	op := make([]byte, 16)
	for name, m := range map[string]*pb.CreateRequest{
		"no operation": {}, "method": {Op: op, Method: long}, "attributes": {Op: op, Attributes: attributes},
		"value": {Op: op, Attributes: map[string][]byte{"label": []byte(long)}}, "lease": {Op: op, Lease: -1}, "long lease": {Op: op, Lease: math.MaxInt64},
		"shares": {Op: op, Shares: make([]string, maxShares+1)}, "share": {Op: op, Shares: []string{long}}, "size": {Op: op, Size: 1 << 40},
		"key": {Op: op, Key: math.MaxUint64}, "masked": {Op: op, Masked: []*pb.Masked{nil}}, "mechanism": {Op: op, Params: &pb.Params{Mechanism: long}},
	} {
		if _, _, err := fromCreate(m); !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("create, %s: %v", name, err)
		}
	}
	for name, m := range map[string]*pb.UseRequest{"negative": {Length: -1}, "large": {Length: maxLength + 1}, "kind": {Kind: long}} {
		if _, err := fromUse(m); !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("use, %s: %v", name, err)
		}
	}
	if _, err := fromFilter(&pb.KeysRequest{Refs: make([]uint64, maxRefs+1)}); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("filter: %v", err)
	}
	if _, err := fromChange(&pb.ChangeRequest{Password: []byte(long)}); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("change: %v", err)
	}
	if _, err := checkScope(2); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("scope: %v", err)
	}
}

// sentinels reads the names of the contract's sentinels from its source.
func sentinels(t *testing.T) (names []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../hsm/errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			for _, name := range v.Names {
				names = append(names, name.Name)
			}
		}
		return true
	})
	return names
}

func TestEverySentinelHasACode(t *testing.T) {
	if n := len(sentinels(t)); n+1 != len(table) {
		t.Errorf("the contract has %d sentinels, the wire knows %d", n, len(table)-1)
	}
	for i, c := range table {
		if int(c.code) != i+1 {
			t.Errorf("%s has code %d at place %d", c.name, c.code, i)
		}
	}
}

func TestErrorsRoundTrip(t *testing.T) {
	for _, c := range table {
		for _, in := range []error{c.sentinel, fmt.Errorf("key 0x12: %w: with a ü and \xff", c.sentinel)} {
			st, known := toStatus(in)
			out := fromStatus(t.Context(), st, "addr", nil)
			if !known || !errors.Is(out, c.sentinel) || out.Error() != strings.ToValidUTF8(in.Error(), "�") {
				t.Errorf("%q became %q", in, out)
			}
			for _, other := range table {
				if other.code != c.code && errors.Is(out, other.sentinel) {
					t.Errorf("%q became %q, which is also %s", in, out, other.name)
				}
			}
		}
		if codeName(c.sentinel) != c.name {
			t.Errorf("%v is called %s", c.sentinel, codeName(c.sentinel))
		}
	}
}

func TestErrorOfTwoKinds(t *testing.T) {
	st, _ := toStatus(fmt.Errorf("%w: %w", hsm.ErrDenied, hsm.ErrAttribute))
	if err := fromStatus(t.Context(), st, "addr", nil); !errors.Is(err, hsm.ErrDenied) || !errors.Is(err, hsm.ErrAttribute) {
		t.Error(err)
	}
}

func TestUnknownErrorsStayInside(t *testing.T) {
	st, known := toStatus(errors.New("the secret is 1234"))
	err := fromStatus(t.Context(), st, "addr", nil)
	if known || !errors.Is(err, ErrInternal) || strings.Contains(st.Error()+err.Error(), "1234") {
		t.Errorf("%v, known %v", err, known)
	}
}

func TestContextErrorsRoundTrip(t *testing.T) {
	st, _ := toStatus(fmt.Errorf("x: %w", context.DeadlineExceeded))
	if err := fromStatus(t.Context(), st, "addr", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	st, _ = toStatus(context.Canceled)
	if err := fromStatus(ctx, st, "addr", nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// Canceled by the other side alone: whether it was done is not known.
	if err := fromStatus(t.Context(), st, "addr", nil); !errors.Is(err, hsm.ErrUnavailable) {
		t.Error(err)
	}
}

func TestLongErrorsAreClipped(t *testing.T) {
	st, _ := toStatus(fmt.Errorf("%w: %s", hsm.ErrInvalid, strings.Repeat("é", 100_000)))
	if err := fromStatus(t.Context(), st, "addr", nil); len(err.Error()) > maxFailure+8 || !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("%d bytes", len(err.Error()))
	}
}

func TestHostileFailure(t *testing.T) {
	codes := make([]uint32, 100_000)
	for i := range codes {
		codes[i] = uint32(i)
	}
	if err := fromFailure(&pb.Failure{Codes: codes}).(*textError); len(err.is) > len(table) {
		t.Errorf("%d sentinels", len(err.is))
	}
	if err := fromFailure(&pb.Failure{}); !errors.Is(err, ErrInternal) {
		t.Error(err)
	}
}

func drawReply(t *rapid.T) *pb.ExtractReply {
	p := &pb.ExtractReply{Done: rapid.Bool().Draw(t, "done"), Packed: rapid.SliceOf(rapid.Byte()).Draw(t, "packed")}
	for range rapid.IntRange(0, 3).Draw(t, "objects") {
		p.Objects = append(p.Objects, &pb.Masked{Ref: rapid.Uint64().Draw(t, "ref"), Bytes: rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")})
	}
	return p
}

func sameReply(t interface{ Errorf(string, ...any) }, p *pb.ExtractReply, got extractReply) {
	same := p.GetDone() == got.done && string(p.GetPacked()) == string(got.packed) && len(p.GetObjects()) == len(got.objects)
	for i := 0; same && i < len(got.objects); i++ {
		same = proto.Equal(p.GetObjects()[i], got.objects[i])
	}
	if !same {
		t.Errorf("%v, want %v", got, p)
	}
}

// TestExtractRepliesAreProtobuf: what goes past protobuf is what protobuf makes of it, so
// that HSMs and callers of other versions understand it; in both directions.
func TestExtractRepliesAreProtobuf(t *testing.T) {
	c := newCodec()
	rapid.Check(t, func(t *rapid.T) {
		want := drawReply(t)
		data, err := c.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if n := data.Len(); n > 1 { // as it arrives: in pieces
			whole := data.Materialize()
			cut := rapid.IntRange(0, n).Draw(t, "cut")
			data = mem.BufferSlice{mem.SliceBuffer(whole[:cut]), mem.SliceBuffer(whole[cut:])}
		}
		var got extractReply
		if err := c.Unmarshal(data, &got); err != nil {
			t.Fatal(err)
		}
		sameReply(t, want, got)

		packed := append(*extractBuffers.Get(0), want.GetPacked()...)
		if data, err = c.Marshal(&packedReply{packed: &packed, done: want.GetDone()}); err != nil {
			t.Fatal(err)
		}
		var back pb.ExtractReply
		if err := c.Unmarshal(data, &back); err != nil {
			t.Fatal(err)
		}
		want.Objects = nil
		if !proto.Equal(want, &back) {
			t.Errorf("%v, want %v", &back, want)
		}
		data.Free()
	})
}

// FuzzExtractReply: a reply that protobuf refuses is refused, and any other read as it reads it.
func FuzzExtractReply(f *testing.F) {
	for _, p := range []*pb.ExtractReply{{}, {Done: true}, {Packed: []byte("packed"), Done: true}, {Objects: []*pb.Masked{{Ref: 7, Bytes: []byte("bytes")}, {}}}} {
		b, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(append(b, 0x22, 1, 'x')) // a field of a later version
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var want pb.ExtractReply
		var got extractReply
		wantErr, gotErr := proto.Unmarshal(b, &want), got.unmarshal(b)
		if (wantErr == nil) != (gotErr == nil) {
			t.Fatalf("%v, protobuf says %v", gotErr, wantErr)
		}
		if wantErr == nil {
			sameReply(t, &want, got)
		}
	})
}
