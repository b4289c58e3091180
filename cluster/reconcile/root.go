package reconcile

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"math/bits"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// RootState keeps the root of a set of items as items come and go. The root is
// MSet-Add-Hash (Clarke, Devadas, van Dijk, Gassend, Suh: Incremental Multiset
// Hash Functions and Their Application to Memory Integrity Checking, ASIACRYPT
// 2003): the sum modulo 2^256 of HMAC-SHA-256(key, item) over the items, with
// their number. The paper's random summand is left out, since two replicas must
// arrive at one value; so a root tells whether two sets are equal to whoever
// sees both, which is what it is for.
//
// The order of operations does not matter, and Remove undoes Add. Whoever holds
// the key and can choose very many digests freely can make two sets with one
// root (Wagner's generalized birthday); digests are HMACs under the lineage's
// secret, so that choosing one means holding that secret.
//
// A RootState is not safe for concurrent use. It does not allocate.
type RootState struct {
	mac   hash.Hash
	item  Item
	tag   [sha256.Size]byte
	sum   [4]uint64 // least significant first
	count uint64
}

// NewRootState returns the root of the empty set.
func NewRootState(keys hsm.FingerprintKeys) *RootState {
	return &RootState{mac: hmac.New(sha256.New, keys.Root[:])}
}

// Add adds an item. The caller sees to it that the set does not hold it yet.
func (r *RootState) Add(item Item) {
	var carry uint64
	for i, limb := range r.limbs(item) {
		r.sum[i], carry = bits.Add64(r.sum[i], limb, carry)
	}
	r.count++
}

// Remove takes an item out. The caller sees to it that the set holds it.
func (r *RootState) Remove(item Item) {
	var borrow uint64
	for i, limb := range r.limbs(item) {
		r.sum[i], borrow = bits.Sub64(r.sum[i], limb, borrow)
	}
	r.count--
}

// Root returns the root of the items added and not removed, sum in big endian.
func (r *RootState) Root() hsm.Root {
	root := hsm.Root{Count: r.count}
	for i, limb := range r.sum {
		binary.BigEndian.PutUint64(root.Sum[24-8*i:], limb)
	}
	return root
}

func (r *RootState) limbs(item Item) (limbs [4]uint64) {
	r.item = item // a copy that need not escape
	r.mac.Reset()
	r.mac.Write(r.item[:])
	tag := r.mac.Sum(r.tag[:0])
	for i := range limbs {
		limbs[i] = binary.BigEndian.Uint64(tag[24-8*i:])
	}
	return limbs
}

// join adds the items of another set.
func (r *RootState) join(other hsm.Root) {
	var carry uint64
	for i := range r.sum {
		r.sum[i], carry = bits.Add64(r.sum[i], binary.BigEndian.Uint64(other.Sum[24-8*i:]), carry)
	}
	r.count += other.Count
}
