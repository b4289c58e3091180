package reconcile

import "math"

// mapping walks the cells that one item is mapped to, in ascending order. Cell
// i is among them with probability 1/(1+i/2), and cell 0 always is: the density
// of the paper, section 4.2, drawn by its approximate inversion. A jump from cell i is
//
//	ceil((i + 3/2) · (1/sqrt(u) - 1)), u uniform in (0, 1]
//
// Every operation on floating point numbers in it is rounded correctly under
// IEEE 754 on its own, so that all platforms map alike (TestFormatVectors).
type mapping struct {
	index uint64 // of the current cell
	state uint64 // of the generator
}

// never is an index that no sketch reaches.
const never = 1 << 48

func newMapping(seed uint64) mapping { return mapping{state: seed} }

// next moves to the item's next cell, or to never.
func (m *mapping) next() {
	spread := float64(1<<32)/math.Sqrt(float64(m.random())+1) - 1
	jump := math.Ceil((float64(m.index) + 1.5) * spread)
	if !(jump < never) {
		m.index = never
		return
	}
	m.index = min(m.index+max(uint64(jump), 1), never)
}

// random is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
func (m *mapping) random() uint64 {
	m.state += 0x9e3779b97f4a7c15
	z := m.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
