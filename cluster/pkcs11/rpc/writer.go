package rpc

import (
	"encoding/binary"
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
)

// writer builds a frame.
type writer struct{ b []byte }

func (w *writer) u8(v byte)    { w.b = append(w.b, v) }
func (w *writer) u32(v uint32) { w.b = binary.BigEndian.AppendUint32(w.b, v) }
func (w *writer) u64(v uint64) { w.b = binary.BigEndian.AppendUint64(w.b, v) }

func (w *writer) bytes(b []byte) {
	w.u32(uint32(len(b)))
	w.b = append(w.b, b...)
}

const headerSize = 12

// begin leaves room for the header.
func (w *writer) begin() { w.b = append(w.b[:0], make([]byte, headerSize)...) }

// end fills in the header.
func (w *writer) end(code uint32) []byte {
	binary.BigEndian.PutUint32(w.b, code)
	binary.BigEndian.PutUint32(w.b[8:], uint32(len(w.b)-headerSize))
	return w.b
}

// value writes what one letter of a signature stands for. What does not fit the
// letter is a mistake of the server: it panics.
func (w *writer) value(letter string, v any) {
	switch v := v.(type) {
	case byte:
		expect(letter, "y")
		w.u8(v)
	case uint64:
		expect(letter, "u")
		w.u64(v)
	case Version:
		expect(letter, "v")
		w.b = append(w.b, v.Major, v.Minor)
	case string:
		expect(letter, "s")
		w.bytes([]byte(v))
	case []byte:
		expect(letter, "ay")
		w.u8(1)
		w.bytes(v)
	case []uint64:
		expect(letter, "au")
		w.u8(1)
		w.u32(uint32(len(v)))
		for _, n := range v {
			w.u64(n)
		}
	case Size: // of ay or au
		w.u8(0)
		w.u32(uint32(v))
	case []Attribute:
		expect(letter, "aA")
		w.attributes(v)
	default:
		panic(fmt.Sprintf("rpc: %T for %q", v, letter))
	}
}

func expect(letter, want string) {
	if letter != want {
		panic(fmt.Sprintf("rpc: %q where the signature has %q", want, letter))
	}
}

// encode writes the answer to a call as a whole frame.
func encode(code uint32, call Call, values []any) []byte {
	list := responseLetters[call]
	if len(list) != len(values) {
		panic(fmt.Sprintf("rpc: %d values in an answer to %s, want %d", len(values), call, len(list)))
	}
	w := &writer{}
	w.begin()
	w.u32(uint32(call))
	w.bytes([]byte(signatures[call].Response))
	for i, l := range list {
		w.value(l, values[i])
	}
	return w.end(code)
}

// encodeError writes any return value but CKR_OK.
func encodeError(code uint32, rv ck.RV) []byte {
	if rv == ck.OK {
		rv = ck.GeneralError
	}
	w := &writer{}
	w.begin()
	w.u32(uint32(callError))
	w.bytes([]byte("u"))
	w.u64(uint64(rv))
	return w.end(code)
}
