package rpc

import (
	"context"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// A CreateRequest in a Call is written and read by hand, as its answer is
// (createdcodec.go). That is for keys made from nothing: what has other fields is left to
// protobuf.

// appendCreate is the message of toCreate for a request that smallCreate lets through.
func appendCreate(b []byte, op hsm.OpID, r *hsm.CreateRequest) []byte {
	w := wireWriter{b: b}
	w.data(1, string(op[:]))
	w.data(2, string(r.Method))
	if r.Token {
		w.varint(3, 1)
	}
	w.data(4, r.Type)
	w.varint(5, uint64(r.Size))
	w.data(6, r.Curve)
	w.data(7, string(r.Class))
	for name, v := range r.Attributes {
		w.entry(8, name, v)
	}
	for name, v := range r.Public {
		w.entry(9, name, v)
	}
	w.fixed(12, uint64(r.Key))
	w.varint(15, uint64(r.Lease))
	return w.b
}

// smallCreate tells whether a request may travel with others: it is for keys that are
// made in no time, from nothing, since what carries key material never waits in a queue,
// and its words are text.
func smallCreate(r *hsm.CreateRequest) bool {
	switch r.Type {
	case "aes", "generic-secret", "ec":
	default:
		return false
	}
	if r.Method != hsm.MethodGenerate || r.Data.Len()+len(r.Masked)+len(r.Shares)+len(r.Approvals) > 0 || !noParams(&r.Params) {
		return false
	}
	for _, table := range []map[string]string{r.Attributes, r.Public} {
		for name := range table {
			if !utf8.ValidString(name) {
				return false
			}
		}
	}
	return utf8.ValidString(r.Curve) && utf8.ValidString(string(r.Class))
}

func noParams(p *hsm.Params) bool {
	return p.Mechanism == "" && p.Hash == "" && !p.Digest && p.SaltLength == 0 && p.TagLength == 0 && p.CounterBits == 0 &&
		len(p.AAD)+len(p.Peer)+len(p.SharedInfo)+len(p.Context)+len(p.IV) == 0
}

// createHead reads the type and curve of a request. plain tells that it has no field but
// those that appendCreate writes.
func createHead(b []byte) (keyType, curve string, plain bool) {
	plain = true
	for len(b) > 0 {
		field, form, n := protowire.ConsumeField(b)
		if n < 0 {
			return "", "", false
		}
		switch {
		case field == 4 && form == protowire.BytesType:
			keyType = lastBytes(b[:n])
		case field == 6 && form == protowire.BytesType:
			curve = lastBytes(b[:n])
		case field > 9 && field != 12 && field != 15:
			plain = false
		}
		b = b[n:]
	}
	return keyType, curve, plain
}

// lastBytes is the value of a field of bytes, tag included, that is whole.
func lastBytes(field []byte) string {
	_, _, n := protowire.ConsumeTag(field)
	v, _ := protowire.ConsumeBytes(field[n:])
	return string(v)
}

// parseCreate is fromCreate of a plain request as it came; b is not retained.
func parseCreate(b []byte) (op hsm.OpID, r hsm.CreateRequest, err error) {
	c := &checker{}
	in := wireReader{text: string(b), b: b}
	var opBytes []byte
	r.Data = hsm.NewSecret(nil)
	for in.next() && c.err == nil {
		switch in.field {
		case 1:
			in.want(protowire.BytesType)
			opBytes = in.value
		case 2:
			r.Method = hsm.Method(c.word("method", in.words()))
		case 3:
			r.Token = in.varint() != 0
		case 4:
			r.Type = c.word("key type", in.words())
		case 5:
			r.Size = c.small("size", int64(in.varint()))
		case 6:
			r.Curve = c.word("curve", in.words())
		case 7:
			r.Class = hsm.Class(c.word("class", in.words()))
		case 8:
			c.add(&r.Attributes, "attributes", &in)
		case 9:
			c.add(&r.Public, "public attributes", &in)
		case 12:
			r.Key = c.noneOrRef(in.fixed())
		case 15:
			r.Lease = c.lease(int64(in.varint()))
		}
	}
	op = fixed[hsm.OpID](c, "operation", opBytes)
	c.note(in.err)
	return op, r, c.err
}

// add adds an entry to a table of attributes.
func (c *checker) add(to *map[string]string, what string, in *wireReader) {
	name, value := in.entry()
	if *to == nil {
		*to = map[string]string{}
	}
	(*to)[c.word("name of "+what, name)] = c.text("one of "+what, value, maxValue)
	c.count(what, len(*to), maxAttributes)
}

// createIn does what a call of Create in a frame asks for.
func createIn(ctx context.Context, b []byte) (hsm.Created, error) {
	if _, _, plain := createHead(b); !plain {
		defer clear(b) // key material, perhaps
		p := &pb.CreateRequest{}
		if proto.Unmarshal(b, p) != nil {
			return hsm.Created{}, invalid("a request to create does not decode")
		}
		return createdBy(ctx, p)
	}
	op, req, err := parseCreate(b)
	return unary(ctx, req, err, func(s hsm.Session, req hsm.CreateRequest) (hsm.Created, error) { return s.Create(ctx, op, req) })
}
