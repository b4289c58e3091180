package hsm

import (
	"bytes"
	"encoding/binary"
	"slices"
	"unicode/utf8"
)

// The deterministic CBOR (RFC 8949 §4.2.1) of masked objects, written and read
// by hand: the vocabulary is six types, a reader that accepts one encoding only
// needs no second encoding to compare with (a general library took two thirds
// of Unmask for that), and key material stays out of a library's buffer pools.
// FuzzParseMasked compares it with a general implementation.

// CBOR major types, shifted into place, and the one simple value in use.
const (
	cborUint  = 0 << 5
	cborBytes = 2 << 5
	cborText  = 3 << 5
	cborArray = 4 << 5
	cborMap   = 5 << 5
	cborTrue  = 0xf5
)

// appendHead appends a major type and its argument in the shortest form.
func appendHead(b []byte, major byte, v uint64) []byte {
	switch {
	case v < 24:
		return append(b, major|byte(v))
	case v < 1<<8:
		return append(b, major|24, byte(v))
	case v < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(v))
	case v < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(v))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), v)
}

func appendUint(b []byte, v uint64) []byte { return appendHead(b, cborUint, v) }

func appendBytes(b, v []byte) []byte {
	return append(appendHead(b, cborBytes, uint64(len(v))), v...)
}

func appendText(b []byte, s string) []byte {
	return append(appendHead(b, cborText, uint64(len(s))), s...)
}

// fieldWriter writes a map of small integer keys, ascending. Zero values are
// left out.
type fieldWriter struct {
	b  []byte
	at int
}

func writeFields(b []byte) *fieldWriter {
	return &fieldWriter{b: append(b, cborMap), at: len(b)}
}

// key starts a field; at most 23 fit the one-byte heads.
func (w *fieldWriter) key(k byte) {
	w.b[w.at]++
	w.b = append(w.b, k)
}

func (w *fieldWriter) uint(k byte, v uint64) {
	if v != 0 {
		w.key(k)
		w.b = appendUint(w.b, v)
	}
}

func (w *fieldWriter) bytes(k byte, v []byte) {
	if len(v) != 0 {
		w.key(k)
		w.b = appendBytes(w.b, v)
	}
}

func (w *fieldWriter) text(k byte, s string) {
	if s != "" {
		w.key(k)
		w.b = appendText(w.b, s)
	}
}

func (w *fieldWriter) flag(k byte, v bool) {
	if v {
		w.key(k)
		w.b = append(w.b, cborTrue)
	}
}

func (w *fieldWriter) registers(k byte, m map[string]Register) {
	if len(m) == 0 {
		return
	}
	w.key(k)
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.SortFunc(names, compareNames)
	w.b = appendHead(w.b, cborMap, uint64(len(names)))
	for _, name := range names {
		reg := m[name]
		w.b = appendBytes(appendStamp(appendHead(appendText(w.b, name), cborArray, 3), reg.Stamp), reg.Value)
	}
}

// appendStamp appends the two numbers of a stamp, without an array head.
func appendStamp(b []byte, s Stamp) []byte { return appendUint(appendUint(b, s.Time), uint64(s.HSM)) }

// compareNames orders text keys as their encodings are ordered: the head of a
// shorter text is smaller.
func compareNames(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	if a < b {
		return -1
	} else if a > b {
		return 1
	}
	return 0
}

// reader reads the one encoding that the writers above produce. The first
// deviation sets bad and empties the input; everything read afterwards is
// zero. Byte strings alias the input.
type reader struct {
	b   []byte
	at  int // what is read next: a number, since moving a pointer is dear while memory is collected
	bad bool
}

func (r *reader) fail() { r.at, r.bad = len(r.b), true }

// skipRest leaves the rest of the input as if it were read.
func (r *reader) skipRest() { r.at = len(r.b) }

// rest is what was not read yet.
func (r *reader) rest() []byte { return r.b[r.at:] }

// done tells whether everything was read and was well.
func (r *reader) done() bool { return !r.bad && r.at == len(r.b) }

// head reads a head of the major type, in its shortest form.
func (r *reader) head(major byte) uint64 {
	if r.at < len(r.b) { // most of them, and small enough to be inlined
		if v := r.b[r.at] - major; v < 24 {
			r.at++
			return uint64(v)
		}
	}
	return r.longHead(major)
}

func (r *reader) longHead(major byte) uint64 {
	b := r.rest()
	if len(b) == 0 || b[0]&0xe0 != major {
		r.fail()
		return 0
	}
	info := b[0] & 0x1f
	b = b[1:]
	var v, least uint64
	size := 0
	switch { // least is what half the bytes cannot hold
	case info < 24:
		r.at++
		return uint64(info)
	case info == 24 && len(b) >= 1:
		v, least, size = uint64(b[0]), 24, 1
	case info == 25 && len(b) >= 2:
		v, least, size = uint64(binary.BigEndian.Uint16(b)), 1<<8, 2
	case info == 26 && len(b) >= 4:
		v, least, size = uint64(binary.BigEndian.Uint32(b)), 1<<16, 4
	case info == 27 && len(b) >= 8:
		v, least, size = binary.BigEndian.Uint64(b), 1<<32, 8
	}
	r.at += 1 + size
	if v < least || least == 0 {
		r.fail()
		return 0
	}
	return v
}

func (r *reader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)-r.at) {
		r.fail()
		return nil
	}
	end := r.at + int(n)
	v := r.b[r.at:end:end]
	r.at = end
	return v
}

func (r *reader) uint() uint64 { return r.head(cborUint) }

// count reads a number that would have been left out were it zero.
func (r *reader) count() uint64 {
	v := r.uint()
	if v == 0 {
		r.fail()
	}
	return v
}

func (r *reader) bytes() []byte { return r.take(r.head(cborBytes)) }

// data reads a byte string that would have been left out were it empty.
func (r *reader) data() []byte {
	v := r.bytes()
	if len(v) == 0 {
		r.fail()
	}
	return v
}

// fixed reads a byte string of n bytes; the result has that length even after
// a failure.
func (r *reader) fixed(n int) []byte {
	v := r.bytes()
	if len(v) != n {
		r.fail()
		return make([]byte, n)
	}
	return v
}

// rawText reads a text string.
func (r *reader) rawText() []byte {
	v := r.take(r.head(cborText))
	if !utf8.Valid(v) {
		r.fail()
		return nil
	}
	return v
}

// text reads a text that would have been left out were it empty.
func (r *reader) text() string {
	v := r.rawText()
	if len(v) == 0 {
		r.fail()
	}
	return intern(v)
}

func (r *reader) flag() bool {
	if r.at == len(r.b) || r.b[r.at] != cborTrue {
		r.fail()
		return false
	}
	r.at++
	return true
}

func (r *reader) stamp() Stamp {
	const long = cborUint | 27                                       // eight bytes follow
	if b := r.rest(); len(b) >= 18 && b[0] == long && b[9] == long { // as of nearly all of them
		s := Stamp{Time: binary.BigEndian.Uint64(b[1:]), HSM: HSMID(binary.BigEndian.Uint64(b[10:]))}
		if s.Time >= 1<<32 && s.HSM >= 1<<32 {
			r.at += 18
			return s
		}
	}
	return Stamp{Time: r.uint(), HSM: HSMID(r.uint())}
}

// array reads the head of an array of n elements.
func (r *reader) array(n uint64) {
	if r.head(cborArray) != n {
		r.fail()
	}
}

// fields reads a map of ascending integer keys; read must consume the value of
// each key, or fail. It returns the set of keys seen.
func (r *reader) fields(read func(key uint64)) (seen uint64) {
	n, last := r.head(cborMap), uint64(0)
	for i := uint64(0); i < n && !r.bad; i++ {
		key := r.uint()
		if key <= last || key > 23 {
			r.fail()
			return seen
		}
		last = key
		seen |= 1 << key
		read(key)
	}
	return seen
}

// registers reads a map of registers that would have been left out were it
// empty.
func (r *reader) registers() map[string]Register {
	ahead := *r
	m := make(map[string]Register, min(ahead.head(cborMap), 64))
	r.eachRegister(func(name []byte, reg Register) { m[intern(name)] = reg })
	return m
}

// eachRegister calls f for every register that registers reads, in order. They count only
// if the input is well in the end.
func (r *reader) eachRegister(f func(name []byte, reg Register)) {
	n := r.head(cborMap)
	if n == 0 || n > uint64(len(r.b)-r.at) {
		r.fail()
		return
	}
	var last []byte
	for i := uint64(0); i < n && !r.bad; i++ {
		name := r.rawText()
		if i > 0 && (len(name) < len(last) || len(name) == len(last) && bytes.Compare(name, last) <= 0) {
			r.fail()
			return
		}
		last = name
		r.array(3)
		f(name, Register{Stamp: r.stamp(), Value: r.bytes()})
	}
}

// interned are the texts that nearly every object holds.
var interned = internTable()

func internTable() map[string]string {
	t := map[string]string{}
	for _, a := range attributes {
		t[AttributeRegister(a.Name)] = AttributeRegister(a.Name)
	}
	for _, s := range []string{
		string(ClassSecret), string(ClassPublic), string(ClassPrivate), string(MethodGenerate), string(MethodImport),
		string(MethodUnwrap), string(MethodDerive), "aes", "generic-secret", "rsa", "ec", "ed25519", "ml-dsa", "ml-kem", "des3", "secp256r1", "secp384r1", "secp521r1", "secp256k1",
	} {
		t[s] = s
	}
	return t
}

func intern(b []byte) string {
	if s, ok := interned[string(b)]; ok {
		return s
	}
	return string(b)
}
