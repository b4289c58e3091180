package reconcile

import (
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// DefaultPrefix is the number of cells a State keeps up to date by default:
// enough for some 23,000 differing items, in 1.25 MiB. (Of a million keys of which one
// in a hundred was changed, 20,000 items differ: each as it was and as it is.)
const DefaultPrefix = 32768

// Prefix keeps the first cells of a sketch as items come and go; an update
// touches about 2·ln(cells/2) of them. It is not safe for concurrent use.
type Prefix struct {
	hash  hasher
	cells []hsm.Cell
	shown bool // cells were handed out, and are copied before the next change
}

// NewPrefix returns the cells of the empty set. A size of 0 or less means
// DefaultPrefix.
func NewPrefix(keys hsm.FingerprintKeys, size int) *Prefix {
	if size <= 0 {
		size = DefaultPrefix
	}
	return &Prefix{hash: newHasher(keys), cells: make([]hsm.Cell, size)}
}

// Add adds an item. The caller sees to it that the set does not hold it yet.
func (p *Prefix) Add(item Item) { spread(p.own(), 0, p.hash, &item, 1) }

// AddAll adds items, each as Add does, in less time.
func (p *Prefix) AddAll(items []Item) {
	for ; len(items) >= lanes; items = items[lanes:] {
		spreadLanes(p.own(), 0, p.hash, (*[lanes]Item)(items), nil)
	}
	for _, item := range items {
		p.Add(item)
	}
}

// Remove takes an item out. The caller sees to it that the set holds it.
func (p *Prefix) Remove(item Item) { spread(p.own(), 0, p.hash, &item, -1) }

// Cells returns the cells of this moment, which the caller does not change. They
// are copied by the change that follows, if one does: to look costs nothing.
func (p *Prefix) Cells() []hsm.Cell {
	p.shown = true
	return p.cells
}

// own returns the cells to be changed.
func (p *Prefix) own() []hsm.Cell {
	if p.shown {
		p.cells, p.shown = slices.Clone(p.cells), false
	}
	return p.cells
}

// join adds the cells of another set.
func (p *Prefix) join(cells []hsm.Cell) { JoinCells(p.own(), cells) }
