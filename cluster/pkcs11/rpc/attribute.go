package rpc

import "github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"

// attributeMemory is the size of CK_ATTRIBUTE with 8-byte longs.
const attributeMemory = 24

// attributes reads a template; depth is how many levels may still follow.
func (r *reader) attributes(depth int) []Attribute {
	if depth == 0 {
		r.fail("templates in templates in more than %d levels", maxDepth)
		return nil
	}
	n := r.count(5, maxAttributes)
	out := make([]Attribute, 0, n)
	for range n {
		out = append(out, r.attribute(depth))
		if r.err != nil {
			return nil
		}
	}
	return out
}

func (r *reader) attribute(depth int) Attribute {
	a := Attribute{Type: ck.Attr(r.u32())}
	if a.Valid = r.flag(); !a.Valid {
		return a
	}
	a.Length = r.u32()
	switch a.Type.Kind() {
	case ck.KindBool:
		a.Num = uint64(r.u8())
	case ck.KindNumber:
		a.Num = r.u64()
	case ck.KindAttributes:
		a.Attrs = r.attributes(depth - 1)
	case ck.KindMechanisms:
		n := r.count(8, maxMechanisms)
		a.Mechs = make([]ck.Mech, n)
		for i := range a.Mechs {
			a.Mechs[i] = mechType(r.u64())
		}
	case ck.KindDate:
		if a.Bytes = r.bytes(); len(a.Bytes) != 0 && len(a.Bytes) != 8 {
			r.fail("a date of %d characters", len(a.Bytes))
		}
	default:
		a.Bytes = r.bytes()
	}
	return a
}

// mechType narrows a number that is a mechanism; one that is too large is none.
func mechType(v uint64) ck.Mech {
	if v > uint64(ck.NoMechanism) {
		return ck.NoMechanism
	}
	return ck.Mech(v)
}

// rooms reads the room for attributes. After an entry of the kind "attributes"
// newer clients send the room for its elements, and older ones do not: if what
// follows is no entry of its own, the nested form is tried.
func (r *reader) rooms(depth int) []AttributeRoom {
	plain := *r
	out := plain.roomsAs(depth, false)
	if plain.err == nil && len(plain.b) == 0 {
		*r = plain
		return out
	}
	return r.roomsAs(depth, true)
}

func (r *reader) roomsAs(depth int, nested bool) []AttributeRoom {
	if depth == 0 {
		r.fail("templates in templates in more than %d levels", maxDepth)
		return nil
	}
	n := r.count(8, maxAttributes)
	out := make([]AttributeRoom, 0, n)
	for range n {
		a := AttributeRoom{Type: ck.Attr(r.u32()), Room: r.u32()}
		if nested && a.Type.Kind() == ck.KindAttributes {
			a.Nested = r.nestedRooms(a, depth)
		}
		if r.err != nil {
			return nil
		}
		out = append(out, a)
	}
	return out
}

// nestedRooms reads the room for a template's elements: always there where there is
// room, and from 0.25.5 clients also where there is none.
func (r *reader) nestedRooms(a AttributeRoom, depth int) []AttributeRoom {
	if a.Room == 0 {
		if len(r.b) >= 4 && [4]byte(r.b[:4]) == [4]byte{} {
			r.u32()
		}
		return nil
	}
	return r.roomsAs(depth-1, true)
}

// attributes writes attributes as an answer.
func (w *writer) attributes(as []Attribute) {
	w.u32(uint32(len(as)))
	for _, a := range as {
		w.attribute(a)
	}
}

func (w *writer) attribute(a Attribute) {
	w.u32(uint32(a.Type))
	if !a.Valid {
		w.u8(0)
		return
	}
	w.u8(1)
	w.u32(a.Length)
	switch a.Type.Kind() {
	case ck.KindBool:
		w.u8(byte(a.Num))
	case ck.KindNumber:
		w.u64(a.Num)
	case ck.KindAttributes:
		w.attributes(a.Attrs)
	case ck.KindMechanisms:
		w.u32(uint32(len(a.Mechs)))
		for _, m := range a.Mechs {
			w.u64(uint64(m))
		}
	default:
		if a.sizeOnly {
			w.u32(^uint32(0))
			return
		}
		w.bytes(a.Bytes)
	}
}

// Answer is the attribute as the answer to a request with so much room: its length
// alone, or its value. small tells that the value does not fit.
func (a Attribute) Answer(want AttributeRoom) (out Attribute, small bool) {
	a.Length = a.memory()
	if want.Room == 0 {
		return Attribute{Type: a.Type, Valid: true, Length: a.Length, sizeOnly: true}, false
	}
	if a.Length > want.Room {
		return Attribute{Type: a.Type}, true
	}
	if a.Type.Kind() == ck.KindAttributes {
		return a.answerNested(want)
	}
	return a, false
}

// answerNested answers a template; its elements too may have too little room.
func (a Attribute) answerNested(want AttributeRoom) (out Attribute, small bool) {
	out = a
	out.Attrs = make([]Attribute, len(a.Attrs))
	for i, e := range a.Attrs {
		var short bool
		room := AttributeRoom{}
		if i < len(want.Nested) {
			room = want.Nested[i]
		}
		out.Attrs[i], short = e.Answer(room)
		small = small || short
	}
	return out, small
}

// memory is the length of the value in the memory of a peer with 8-byte longs.
func (a Attribute) memory() uint32 {
	switch a.Type.Kind() {
	case ck.KindBool:
		return 1
	case ck.KindNumber:
		return 8
	case ck.KindAttributes:
		return uint32(attributeMemory * len(a.Attrs))
	case ck.KindMechanisms:
		return uint32(8 * len(a.Mechs))
	}
	return uint32(len(a.Bytes))
}
