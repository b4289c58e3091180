package sim

import (
	"encoding/binary"
	"hash/fnv"
	"time"
)

// dice are a stream of chance that depends on nothing but the seed and a name.
type dice struct{ state uint64 }

// dice returns the dice of one event. Events have names of their own, so that the
// chance of one does not depend on how many came before it.
func (w *world) dice(name ...string) *dice {
	h := fnv.New64a()
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], w.seed)
	h.Write(b[:])
	for _, n := range name {
		h.Write([]byte(n))
		h.Write([]byte{0})
	}
	return &dice{h.Sum64()}
}

// next is SplitMix64 (Steele, Lea, Flood 2014).
func (d *dice) next() uint64 {
	d.state += 0x9e3779b97f4a7c15
	z := d.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// n returns a number below n.
func (d *dice) n(n int) int { return int(d.next() % uint64(n)) }

// hit tells, with a probability in thousandths.
func (d *dice) hit(thousandths int) bool { return d.n(1000) < thousandths }

// between returns a time from a to b, to the nanosecond.
func (d *dice) between(a, b time.Duration) time.Duration {
	return a + time.Duration(d.next()%uint64(b-a+1))
}
