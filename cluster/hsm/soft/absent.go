package soft

import (
	"hash/maphash"
	"math/bits"
	"sync"
	"sync/atomic"
)

// absent tells of most rows of the store that were never added that they were not, without
// a look into it: nearly all that are looked up before they are written are new. It
// is a list of Bloom filters, each larger than the one before (Almeida et al., Scalable
// Bloom Filters, 2007), each in blocks of one cache line (Putze et al., Cache-, Hash- and
// Space-Efficient Bloom Filters, 2007). What was added stays, though its row may go. It is
// safe for concurrent use: what was added before surely began is found.
type absent struct {
	seed  maphash.Seed
	limit int // of what the filters hold together; beyond it they tell less and less

	mu      sync.Mutex // for another filter
	filters atomic.Pointer[[]*filter]
}

// filter is one Bloom filter. With so many keys as it has room for it is wrong about one
// in a hundred others.
type filter struct {
	blocks []block
	room   int64
	added  atomic.Int64
}

// block is a cache line.
type block [8]atomic.Uint64

const (
	bitsPerKey = 12
	bitsSet    = 6 // of each key
)

// absentRoom is the room of the first filter, and how many times as much each has as the
// one before.
const (
	absentRoom   = 1 << 16
	absentGrowth = 4
)

// newAbsent makes room for a few keys, and later for limit.
func newAbsent(limit int) *absent {
	a := &absent{seed: maphash.MakeSeed(), limit: limit}
	a.filters.Store(&[]*filter{newFilter(min(absentRoom, limit))})
	return a
}

func newFilter(room int) *filter {
	return &filter{room: int64(room), blocks: make([]block, room*bitsPerKey/512+1)}
}

// add adds a key.
func (a *absent) add(key []byte) {
	all := *a.filters.Load()
	last := all[len(all)-1]
	last.set(maphash.Bytes(a.seed, key))
	if last.added.Add(1) == last.room {
		a.grow()
	}
}

func (a *absent) grow() {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := *a.filters.Load()
	a.extend(absentGrowth * int(all[len(all)-1].room))
}

// expect makes room for so many keys at once.
func (a *absent) expect(keys int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if keys > absentRoom {
		a.extend(keys)
	}
}

// extend adds a filter, as far as the limit allows.
func (a *absent) extend(room int) {
	all, now := *a.filters.Load(), 0
	for _, f := range all {
		now += int(f.room)
	}
	if room = min(room, a.limit-now); room > 0 {
		more := append(all[:len(all):len(all)], newFilter(room))
		a.filters.Store(&more)
	}
}

// surely tells that a key was not added. False says nothing.
func (a *absent) surely(key []byte) bool {
	h := maphash.Bytes(a.seed, key)
	for _, f := range *a.filters.Load() {
		if f.has(h) {
			return false
		}
	}
	return true
}

func (f *filter) set(hash uint64) {
	b, which := f.place(hash)
	for range bitsSet {
		b[which/64%8].Or(1 << (which % 64))
		which >>= 9
	}
}

func (f *filter) has(hash uint64) bool {
	b, which := f.place(hash)
	for range bitsSet {
		if b[which/64%8].Load()&(1<<(which%64)) == 0 {
			return false
		}
		which >>= 9
	}
	return true
}

// place returns a key's block, and which bits of it are the key's, nine bits for each. The
// two are drawn from different mixtures of the hash.
func (f *filter) place(hash uint64) (b *block, which uint64) {
	n, _ := bits.Mul64(hash, uint64(len(f.blocks)))
	hi, lo := bits.Mul64(hash, 0x9e3779b97f4a7c15) // 2^64 over the golden ratio
	return &f.blocks[n], hi ^ lo
}
