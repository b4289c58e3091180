//go:build linux

package module

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"
)

// responses are the signatures of answers that the liar knows; it makes up the rest.
var responses = map[uint32]string{
	1: "", 2: "", 3: "vsusv", 4: "au", 5: "ssuvv", 6: "ssssuuuuuuuuuuuvvs", 7: "au", 8: "uuu", 10: "u", 23: "u", 24: "aAu", 27: "au", 30: "ay",
	36: "ay", 43: "ay", 49: "", 58: "u", 59: "uu", 64: "ay", 65: "u",
}

// liar answers in the right form with wrong values, in the wrong form, and not at all.
type liar struct {
	mu   sync.Mutex
	rand *rand.Rand
	n    int
}

// count is a number that a length may be: small, at a limit, or huge.
func (l *liar) count() uint32 {
	return []uint32{0, 1, 2, 3, 5, 10, 11, 24, 48, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff, l.rand.Uint32()}[l.rand.IntN(14)]
}

func (l *liar) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(l.rand.Uint32())
	}
	return b
}

// lengthed are bytes with their length, which is mostly true.
func (l *liar) lengthed(b []byte, n int) []byte {
	length := uint32(n)
	if l.rand.IntN(6) == 0 {
		length = l.count()
	}
	return append(binary.BigEndian.AppendUint32(b, length), l.bytes(n)...)
}

// attributes answers C_GetAttributeValue with the types the program asks for.
func (l *liar) attributes(b []byte) []byte {
	types := []uint32{0, 3, 1, 0x40000211, 0x40000600, 0x11}
	b = binary.BigEndian.AppendUint32(b, uint32(len(types)))
	for _, class := range types {
		b = binary.BigEndian.AppendUint32(b, class)
		if l.rand.IntN(5) == 0 {
			b = append(b, 0)
			continue
		}
		b = binary.BigEndian.AppendUint32(append(b, 1), l.count())
		switch class {
		case 0:
			b = binary.BigEndian.AppendUint64(b, l.rand.Uint64())
		case 1:
			b = append(b, 1)
		case 0x40000211:
			b = l.nested(b, l.rand.IntN(12))
		case 0x40000600:
			n := l.rand.IntN(4)
			b = append(binary.BigEndian.AppendUint32(b, uint32(n)), l.bytes(8*n)...)
		default:
			b = l.lengthed(b, l.rand.IntN(8))
		}
	}
	return b
}

// nested are templates in templates, deep ones among them.
func (l *liar) nested(b []byte, depth int) []byte {
	n := l.rand.IntN(3)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	for range n {
		if depth > 0 {
			b = append(binary.BigEndian.AppendUint32(b, 0x40000212), 1)
			b = l.nested(binary.BigEndian.AppendUint32(b, 24), depth-1)
			continue
		}
		b = append(binary.BigEndian.AppendUint32(b, 3), 1)
		b = l.lengthed(binary.BigEndian.AppendUint32(b, l.count()), l.rand.IntN(6))
	}
	return b
}

// values follow the signature.
func (l *liar) values(signature string) []byte {
	var b []byte
	for len(signature) > 0 {
		letter := signature[:1]
		if letter == "a" {
			letter = signature[:2]
		}
		signature = signature[len(letter):]
		switch letter {
		case "u":
			b = binary.BigEndian.AppendUint64(b, uint64(l.rand.IntN(400)))
		case "v":
			b = append(b, l.bytes(2)...)
		case "s":
			b = l.lengthed(b, []int{16, 32, 64}[l.rand.IntN(3)])
		case "ay":
			b = l.lengthed(append(b, byte(l.rand.IntN(2))), l.rand.IntN(14))
		case "au":
			n := l.rand.IntN(5)
			b = binary.BigEndian.AppendUint32(append(b, byte(l.rand.IntN(2))), uint32(n))
			b = append(b, l.bytes(8*n)...)
		case "aA":
			b = l.attributes(b)
		}
	}
	return b
}

// answer is a whole answer.
func (l *liar) answer(r request) ([]byte, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	signature := responses[r.id]
	honest := frame(r.code, r.id, signature, l.values(signature))
	if r.id <= 2 && l.rand.IntN(10) != 0 {
		return honest, true
	}
	switch l.rand.IntN(24) {
	case 0:
		return honest[:l.rand.IntN(len(honest))], false
	case 1:
		return frame(r.code, r.id, signature, append(l.values(signature), 0)), true
	case 2:
		return frame(r.code+1, r.id, signature, nil), true
	case 3:
		return frame(r.code, 0, "u", l.bytes(8)), true
	case 4:
		return frame(r.code, 0, "u", make([]byte, 8)), true
	case 5: // a body, or options, of any size
		b := l.bytes(12)
		binary.BigEndian.PutUint32(b, r.code)
		return append(b, l.bytes(64)...), false
	case 6:
		b := binary.BigEndian.AppendUint32(nil, r.code)
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, l.count()), l.count()), false
	case 7, 8:
		for range 1 + l.rand.IntN(4) {
			honest[12+l.rand.IntN(len(honest)-12)] ^= byte(1 << l.rand.IntN(8))
		}
	}
	return honest, true
}

// TestHostileDaemon runs calls of every kind against a server that lies, with all
// sanitizers. The program ends with an error if a result is longer than its place.
func TestHostileDaemon(t *testing.T) {
	const seeds = 3
	asked := 0
	for seed := range uint64(seeds) {
		l := &liar{rand: rand.New(rand.NewPCG(seed, 1))}
		run(t, build(t, sanitizers), fake{version: 0x48, answer: l.answer}.listen(t), "hostile")
		asked += l.n
	}
	if asked < 1000*seeds {
		t.Errorf("only %d calls arrived", asked)
	}
}
