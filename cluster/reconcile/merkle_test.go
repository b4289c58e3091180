package reconcile_test

import (
	"crypto/sha256"
	"slices"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// merkle is a hash tree over the same items, to compare the sketch with: nodes
// by the leading bits of the reference, each with 2^bits children, down to leaves
// of some 8 to 15 items. Both sides have the same shape, which favours it.
type merkle struct {
	bits, depth int
	levels      [][][nodeBytes]byte // of hashes, from the root down
	leaves      [][]reconcile.Item  // ascending
}

const nodeBytes = 16 // a hash, as long as a digest

// leafItems is how many items a leaf has at most, on average.
const leafItems = 16

func newMerkle(bits int, sets ...[]hsm.Object) *merkle {
	m := &merkle{bits: bits}
	for len(sets[0])>>(bits*m.depth) >= leafItems {
		m.depth++
	}
	m.leaves = make([][]reconcile.Item, 1<<(bits*m.depth))
	for _, set := range sets {
		for _, o := range set {
			i := m.leaf(o.Ref)
			m.leaves[i] = append(m.leaves[i], reconcile.ItemOf(o))
		}
	}
	for level := range m.depth + 1 {
		m.levels = append(m.levels, make([][nodeBytes]byte, 1<<(bits*level)))
	}
	for i := range m.leaves {
		slices.SortFunc(m.leaves[i], func(a, b reconcile.Item) int { return slices.Compare(a[:], b[:]) })
		m.hashLeaf(i)
	}
	for level := m.depth - 1; level >= 0; level-- {
		for i := range m.levels[level] {
			m.hashNode(level, i)
		}
	}
	return m
}

// leaf is where a reference, 63 bits, belongs.
func (m *merkle) leaf(ref hsm.KeyRef) int { return int(uint64(ref) << 1 >> 1 >> (63 - m.bits*m.depth)) }

func (m *merkle) hashLeaf(i int) {
	h := sha256.New()
	for _, item := range m.leaves[i] {
		h.Write(item[:])
	}
	copy(m.levels[m.depth][i][:], h.Sum(nil))
}

func (m *merkle) hashNode(level, i int) {
	h := sha256.New()
	for _, child := range m.levels[level+1][i<<m.bits : (i+1)<<m.bits] {
		h.Write(child[:])
	}
	copy(m.levels[level][i][:], h.Sum(nil))
}

// update replaces an item by one of the same object.
func (m *merkle) update(before, after reconcile.Item) {
	i := m.leaf(before.Ref())
	m.leaves[i][slices.Index(m.leaves[i], before)] = after
	m.hashLeaf(i)
	for level := m.depth - 1; level >= 0; level-- {
		i >>= m.bits
		m.hashNode(level, i)
	}
}

// exchange finds the items in which two trees differ, one level in each round
// trip, all nodes of a level at once: whoever asks names the nodes that differ by
// one bit for each child it was shown, and is shown their children, or a leaf's
// items. The bytes are those of one side, as the sketch's are.
func (m *merkle) exchange(o *merkle, trip func()) (differ []reconcile.Item, bytes int64, trips int) {
	ask := func() { trips++; trip() }
	ask()
	bytes += nodeBytes
	open := []int{0}
	if m.levels[0][0] == o.levels[0][0] {
		return nil, bytes, trips
	}
	for level := 1; level <= m.depth; level++ {
		ask()
		var next []int
		for _, i := range open {
			bytes += int64(nodeBytes<<m.bits) + int64(max(1<<m.bits/8, 1))
			for c := i << m.bits; c < (i+1)<<m.bits; c++ {
				if m.levels[level][c] != o.levels[level][c] {
					next = append(next, c)
				}
			}
		}
		open = next
	}
	ask()
	for _, i := range open {
		bytes += 1 + int64(len(o.leaves[i])*len(reconcile.Item{}))
		differ = append(differ, without(m.leaves[i], o.leaves[i])...)
		differ = append(differ, without(o.leaves[i], m.leaves[i])...)
	}
	return differ, bytes, trips
}

func without(a, b []reconcile.Item) (out []reconcile.Item) {
	for _, item := range a {
		if !slices.Contains(b, item) {
			out = append(out, item)
		}
	}
	return out
}

// The baseline finds what differs, so that its figures are those of a tree that
// works.
func TestMerkle(t *testing.T) {
	t.Parallel()
	for _, bits := range []int{1, 4} {
		for _, d := range []int{0, 1, 30, 1000} {
			common, extra := randomObjects(1, 3000), randomObjects(2, d)
			a, b := newMerkle(bits, common, extra), newMerkle(bits, common)
			got, bytes, trips := a.exchange(b, func() {})
			if len(got) != d || bytes == 0 || d > 0 && trips != a.depth+2 {
				t.Errorf("%d bits, %d differences: it finds %d, in %d round trips", bits, d, len(got), trips)
			}
			for _, o := range extra {
				if !slices.Contains(got, reconcile.ItemOf(o)) {
					t.Errorf("%d bits: %s is not found", bits, o.Ref)
				}
			}
			after := common[0]
			after.Digest[0]++
			b.update(reconcile.ItemOf(common[0]), reconcile.ItemOf(after))
			if want := newMerkle(bits, append([]hsm.Object{after}, common[1:]...)); b.levels[0][0] != want.levels[0][0] {
				t.Errorf("%d bits: an update leads to another root", bits)
			}
		}
	}
}

// BenchmarkFigureUpdateMerkle is BenchmarkUpdate of the baseline, among a million.
func BenchmarkFigureUpdateMerkle(b *testing.B) {
	objects := million()
	m := newMerkle(4, objects)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		before := objects[i%1024]
		after := before
		after.Digest[i%16]++
		m.update(reconcile.ItemOf(before), reconcile.ItemOf(after))
		m.update(reconcile.ItemOf(after), reconcile.ItemOf(before))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/2, "ns/update")
}
