package reconcile

import (
	"encoding/binary"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// CellBytes is what one cell costs on the wire, framing included; ObjectBytes
// what one listed object costs. Diff chooses by them.
const (
	CellBytes   = 48
	ObjectBytes = 34
)

// toggle puts an item into a cell (sign 1) or takes it out (sign -1).
func toggle(c *hsm.Cell, item *Item, check uint64, sign int64) {
	xor(&c.Item, (*[24]byte)(item))
	c.Check ^= check
	c.Count += sign
}

// spread puts an item into those cells of [base, base+len(cells)) that it is
// mapped to, or takes it out.
func spread(cells []hsm.Cell, base uint64, h hasher, item *Item, sign int64) {
	seed, check := h.hash(item)
	end := base + uint64(len(cells))
	for m := newMapping(seed); m.index < end; m.next() {
		if m.index >= base {
			toggle(&cells[m.index-base], item, check, sign)
		}
	}
}

// lanes is how many items spreadLanes goes on with in turn. The walk of one item over
// the cells is a chain of slow operations; those of others fill the gaps.
const lanes = 4

// spreadLanes puts some items into cells as spread does, and into whole, which
// may be nil.
func spreadLanes(cells []hsm.Cell, base uint64, h hasher, items *[lanes]Item, whole *hsm.Cell) {
	var walk [lanes]mapping
	var check [lanes]uint64
	for i := range items {
		var seed uint64
		seed, check[i] = h.hash(&items[i])
		walk[i] = newMapping(seed)
		if whole != nil {
			toggle(whole, &items[i], check[i], 1)
		}
	}
	end := base + uint64(len(cells))
	for left := true; left; {
		left = false
		for i := range items {
			m := &walk[i]
			if m.index >= end {
				continue
			}
			if m.index >= base {
				toggle(&cells[m.index-base], &items[i], check[i], 1)
			}
			m.next()
			left = true
		}
	}
}

// subtract returns the cell of the items that only one of two sets has.
func subtract(a, b hsm.Cell) hsm.Cell {
	xor(&a.Item, &b.Item)
	a.Check ^= b.Check
	a.Count -= b.Count
	return a
}

// JoinCells adds to cells those of the same indices of items that they do not have: coded
// symbols are linear. other has at least as many.
func JoinCells(own, other []hsm.Cell) {
	for i := range own {
		join(&own[i], &other[i])
	}
}

// join adds the cell of items that own does not have.
func join(own, other *hsm.Cell) {
	xor(&own.Item, &other.Item)
	own.Check ^= other.Check
	own.Count += other.Count
}

func xor(dst, src *[24]byte) {
	e := binary.LittleEndian
	e.PutUint64(dst[0:], e.Uint64(dst[0:])^e.Uint64(src[0:]))
	e.PutUint64(dst[8:], e.Uint64(dst[8:])^e.Uint64(src[8:]))
	e.PutUint64(dst[16:], e.Uint64(dst[16:])^e.Uint64(src[16:]))
}
