package rpc

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// errMalformed: a body is not what its signature says. The connection ends.
var errMalformed = errors.New("malformed request")

// reader takes values from a body. After an error all it returns is zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: "+format, append([]any{errMalformed}, args...)...)
	}
	r.b = nil
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.fail("%d bytes are missing", n-len(r.b))
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u8() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// flag is a byte that is 0 or 1.
func (r *reader) flag() bool {
	v := r.u8()
	if v > 1 {
		r.fail("byte %d where 0 or 1 stands", v)
	}
	return v == 1
}

// bytes is a length and that many bytes; nil for a null pointer.
func (r *reader) bytes() []byte {
	n := r.u32()
	if n == ^uint32(0) {
		return nil
	}
	if uint64(n) > uint64(len(r.b)) {
		r.fail("%d bytes announced, %d are there", n, len(r.b))
		return nil
	}
	return r.take(int(n))
}

// array is the value ay: a null pointer and an empty array are nil.
func (r *reader) array() []byte {
	if !r.flag() {
		r.u32()
		return nil
	}
	return r.bytes()
}

func (r *reader) room() Room {
	switch n := r.u32(); n {
	case 0:
		return Room{Query: true}
	case ^uint32(0):
		return Room{}
	default:
		return Room{N: n}
	}
}

// count reads a number of items that take at least size bytes each.
func (r *reader) count(size, most int) int {
	n := r.u32()
	if uint64(n)*uint64(size) > uint64(len(r.b)) || uint64(n) > uint64(most) {
		r.fail("%d items announced in %d bytes; at most %d", n, len(r.b), most)
		return 0
	}
	return int(n)
}

// value reads what one letter of a signature stands for.
func (r *reader) value(letter string, form Form) any {
	switch letter {
	case "y":
		return r.u8()
	case "u":
		return r.u64()
	case "s", "z":
		return string(r.bytes())
	case "ay":
		return r.array()
	case "fy", "fu":
		return r.room()
	case "aA":
		return r.attributes(maxDepth)
	case "fA":
		return r.rooms(maxDepth)
	case "M":
		return r.mechanism(form)
	}
	panic("rpc: no letter " + letter)
}

// decode reads a request's values, to the last byte.
func decode(call Call, body []byte, form Form) (Args, error) {
	r := &reader{b: body}
	args := make(Args, 0, 6)
	for _, l := range requestLetters[call] {
		args = append(args, r.value(l, form))
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes are left over", len(r.b))
	}
	return args, r.err
}

// decodeAny reads a request of a peer of p11-kit whose form may be the other one:
// distributors build new clients that offer an old version.
func decodeAny(call Call, body []byte, form Form) (Args, error) {
	args, err := decode(call, body, form)
	if err == nil || form == FormModule {
		return args, err
	}
	if other, otherErr := decode(call, body, 1-form); otherErr == nil {
		return other, nil
	}
	return nil, err
}
