package rpc

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// A CreateReply in an Answer is written and read here by hand: tables of attributes
// take protobuf's reflection longer than an HSM takes to make a session key. The bytes
// are those of the message in pb/hsm.proto, and TestCreatedCodec says so.

// appendCreated is the message of toCreated. It fails for what protobuf does not write:
// texts that are none.
func appendCreated(b []byte, made hsm.Created) ([]byte, error) {
	var one []byte
	var err error
	for i := range made.Keys {
		if one, err = appendKeyInfo(one[:0], &made.Keys[i]); err != nil {
			return nil, err
		}
		b = protowire.AppendBytes(protowire.AppendTag(b, 1, protowire.BytesType), one)
	}
	for _, m := range made.Objects {
		if one, err = proto.Marshal(toMasked(m)); err != nil {
			return nil, err
		}
		b = protowire.AppendBytes(protowire.AppendTag(b, 2, protowire.BytesType), one)
	}
	return b, nil
}

// wireWriter appends fields; those that are empty are left out.
type wireWriter struct {
	b   []byte
	err error
}

func (w *wireWriter) text(field protowire.Number, s string) {
	if !utf8.ValidString(s) {
		w.err = invalid("field %d is not UTF-8", field)
	}
	w.data(field, s)
}

func (w *wireWriter) data(field protowire.Number, s string) {
	if s != "" {
		w.b = protowire.AppendString(protowire.AppendTag(w.b, field, protowire.BytesType), s)
	}
}

func (w *wireWriter) varint(field protowire.Number, v uint64) {
	if v != 0 {
		w.b = protowire.AppendVarint(protowire.AppendTag(w.b, field, protowire.VarintType), v)
	}
}

func (w *wireWriter) fixed(field protowire.Number, v uint64) {
	if v != 0 {
		w.b = protowire.AppendFixed64(protowire.AppendTag(w.b, field, protowire.Fixed64Type), v)
	}
}

// entry writes one of a table from names to bytes.
func (w *wireWriter) entry(field protowire.Number, name, value string) {
	if !utf8.ValidString(name) {
		w.err = invalid("a name in field %d is not UTF-8", field)
	}
	w.b = protowire.AppendTag(w.b, field, protowire.BytesType)
	w.b = protowire.AppendVarint(w.b, uint64(2+protowire.SizeBytes(len(name))+protowire.SizeBytes(len(value))))
	w.b = protowire.AppendString(protowire.AppendTag(w.b, 1, protowire.BytesType), name)
	w.b = protowire.AppendString(protowire.AppendTag(w.b, 2, protowire.BytesType), value)
}

// appendKeyInfo is the message of toKeyInfo.
func appendKeyInfo(b []byte, k *hsm.KeyInfo) ([]byte, error) {
	w := wireWriter{b: b}
	w.fixed(1, uint64(k.Ref))
	w.text(2, string(k.Class))
	w.text(3, k.Type)
	w.varint(4, uint64(k.Size))
	w.text(5, k.Curve)
	w.data(6, k.Label)
	w.text(7, k.ID)
	w.text(8, k.CheckValue)
	for name, v := range k.Attributes {
		w.entry(9, name, v)
	}
	w.text(10, k.Owner)
	for _, s := range k.Shares {
		w.b = protowire.AppendTag(w.b, 11, protowire.BytesType)
		w.b = protowire.AppendString(w.b, s)
		if !utf8.ValidString(s) {
			w.err = invalid("a share is not UTF-8")
		}
	}
	w.fixed(12, uint64(k.Pair))
	if k.Token {
		w.varint(13, 1)
	}
	w.varint(14, uint64(toTime(k.Created)))
	w.varint(15, k.Incarnation)
	w.b = protowire.AppendBytes(protowire.AppendTag(w.b, 16, protowire.BytesType), k.Digest[:])
	return w.b, w.err
}

// parseCreated is fromCreated of a message as it came; b is not retained.
func parseCreated(b []byte) (made hsm.Created, err error) {
	in := wireReader{text: string(b), b: b}
	for in.next() {
		switch in.field {
		case 1:
			if len(made.Keys) == maxObjects {
				return hsm.Created{}, invalid("more than %d keys", maxObjects)
			}
			k, err := parseKeyInfo(in.message())
			if err != nil {
				return hsm.Created{}, err
			}
			made.Keys = append(made.Keys, k)
		case 2:
			if len(made.Objects) == maxObjects {
				return hsm.Created{}, invalid("more than %d masked objects", maxObjects)
			}
			p := &pb.Masked{}
			if err := proto.Unmarshal(in.message().b, p); err != nil {
				return hsm.Created{}, invalid("a masked object does not decode")
			}
			m, err := fromMasked(p)
			if err != nil {
				return hsm.Created{}, err
			}
			made.Objects = append(made.Objects, m)
		}
	}
	if in.err != nil {
		return hsm.Created{}, in.err
	}
	return made, nil
}

// wireReader reads fields in turn. A value of another form than its field has is refused,
// as is what does not decode; fields that nobody asks for are passed over.
type wireReader struct {
	text string // b as a string, so that texts are cut out of it
	b    []byte // what is left
	err  error

	field protowire.Number
	form  protowire.Type
	from  int // in text, of value
	value []byte
	num   uint64
}

// next reads one field.
func (r *wireReader) next() bool {
	if r.err != nil || len(r.b) == 0 {
		return false
	}
	field, form, n := protowire.ConsumeTag(r.b)
	if n < 0 {
		return r.fail()
	}
	b := r.b[n:]
	r.field, r.form, r.value, r.num = field, form, nil, 0
	switch form {
	case protowire.VarintType:
		r.num, n = protowire.ConsumeVarint(b)
	case protowire.Fixed64Type:
		r.num, n = protowire.ConsumeFixed64(b)
	case protowire.BytesType:
		r.value, n = protowire.ConsumeBytes(b)
	default:
		n = protowire.ConsumeFieldValue(field, form, b)
	}
	if n < 0 {
		return r.fail()
	}
	r.from = len(r.text) - len(b) + n - len(r.value)
	r.b = b[n:]
	return true
}

func (r *wireReader) fail() bool {
	if r.err == nil {
		r.err = invalid("an answer does not decode")
	}
	return false
}

func (r *wireReader) want(form protowire.Type) bool {
	if r.form != form {
		return r.fail()
	}
	return true
}

// data is a field of bytes as a string.
func (r *wireReader) data() string {
	if !r.want(protowire.BytesType) {
		return ""
	}
	return r.text[r.from : r.from+len(r.value)]
}

// words is a field of text.
func (r *wireReader) words() string {
	s := r.data()
	if !utf8.ValidString(s) {
		r.fail()
	}
	return s
}

// message reads a field that is a message itself.
func (r *wireReader) message() wireReader {
	text := r.data()
	return wireReader{text: text, b: r.value, err: r.err}
}

func (r *wireReader) varint() uint64 {
	r.want(protowire.VarintType)
	return r.num
}

func (r *wireReader) fixed() uint64 {
	r.want(protowire.Fixed64Type)
	return r.num
}

// entry reads one of a table from names to bytes.
func (r *wireReader) entry() (name, value string) {
	in := r.message()
	for in.next() {
		switch in.field {
		case 1:
			name = in.words()
		case 2:
			value = in.data()
		}
	}
	if in.err != nil {
		r.err = in.err
	}
	return name, value
}

// keyAttributes is how many attributes a key has, or some more.
const keyAttributes = 28

// parseKeyInfo is fromKeyInfo of a message as it came.
func parseKeyInfo(in wireReader) (hsm.KeyInfo, error) {
	c := &checker{}
	k := hsm.KeyInfo{Shares: []string{}}
	var ref, digest = uint64(0), []byte(nil)
	for in.next() {
		switch in.field {
		case 1:
			ref = in.fixed()
		case 2:
			k.Class = hsm.Class(c.word("class", in.words()))
		case 3:
			k.Type = c.word("key type", in.words())
		case 4:
			k.Size = c.small("size", int64(in.varint()))
		case 5:
			k.Curve = c.word("curve", in.words())
		case 6:
			k.Label = c.text("label", in.data(), maxValue)
		case 7:
			k.ID = c.text("id", in.words(), maxValue)
		case 8:
			k.CheckValue = c.word("check value", in.words())
		case 9:
			name, value := in.entry()
			if k.Attributes == nil {
				k.Attributes = make(map[string]string, keyAttributes)
			}
			k.Attributes[c.word("name of attributes", name)] = c.text("one of attributes", value, maxValue)
			c.count("attributes", len(k.Attributes), maxAttributes)
		case 10:
			k.Owner = c.name("owner", in.words())
		case 11:
			k.Shares = append(k.Shares, c.name("one of shares", in.words()))
			c.count("shares", len(k.Shares), maxShares)
		case 12:
			k.Pair = c.noneOrRef(in.fixed())
		case 13:
			k.Token = in.varint() != 0
		case 14:
			k.Created = fromTime(int64(in.varint()))
		case 15:
			k.Incarnation = in.varint()
		case 16:
			in.want(protowire.BytesType)
			digest = in.value
		}
		if c.err != nil {
			return hsm.KeyInfo{}, c.err
		}
	}
	k.Ref, k.Digest = c.ref(ref), fixed[hsm.Digest](c, "digest", digest)
	c.note(in.err)
	return k, c.err
}
