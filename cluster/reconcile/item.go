package reconcile

import (
	"cmp"
	"encoding/binary"

	"github.com/dchest/siphash"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Item stands for one object in roots and sketches: its reference in big
// endian, then its digest.
type Item [24]byte

// ItemOf returns the item of an object.
func ItemOf(o hsm.Object) Item { return newItem(o.Ref, o.Digest) }

func newItem(ref hsm.KeyRef, digest hsm.Digest) (i Item) {
	binary.BigEndian.PutUint64(i[:8], uint64(ref))
	copy(i[8:], digest[:])
	return i
}

// Ref returns the reference of the item's object.
func (i Item) Ref() hsm.KeyRef { return hsm.KeyRef(binary.BigEndian.Uint64(i[:8])) }

// Digest returns the digest of the item's object.
func (i Item) Digest() hsm.Digest { return hsm.Digest(i[8:]) }

// valid tells whether an object can have this item: references are never zero
// and 63 bits wide; digests are HMACs, and zero stands for no object.
func (i Item) valid() bool {
	return i.Ref() != 0 && i.Ref()>>63 == 0 && i.Digest() != hsm.Digest{}
}

func compareRefs(a, b Item) int { return cmp.Compare(a.Ref(), b.Ref()) }

// hasher computes what the sketch needs of an item. The two halves of the
// 128-bit SipHash-2-4 (Aumasson, Bernstein 2012) serve as two independent
// keyed hashes: the seed decides which cells the item is mapped to, the check
// tells whether a cell holds this item alone. Without the key nobody can choose
// items that crowd one cell or that pass for another.
type hasher struct{ k0, k1 uint64 }

func newHasher(keys hsm.FingerprintKeys) hasher {
	return hasher{binary.LittleEndian.Uint64(keys.Sketch[:8]), binary.LittleEndian.Uint64(keys.Sketch[8:])}
}

func (h hasher) hash(i *Item) (seed, check uint64) { return siphash.Hash128(h.k0, h.k1, i[:]) }
