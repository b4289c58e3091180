package reconcile

import (
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// DefaultPrefix is the number of cells a State keeps up to date by default:
// enough for some 3,000 differing items, in 160 KiB.
const DefaultPrefix = 4096

// Prefix keeps the first cells of a sketch as items come and go; an update
// touches about 2·ln(cells/2) of them. It is not safe for concurrent use.
type Prefix struct {
	hash  hasher
	cells []hsm.Cell
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
func (p *Prefix) Add(item Item) { spread(p.cells, 0, p.hash, &item, 1) }

// AddAll adds items, each as Add does, in less time.
func (p *Prefix) AddAll(items []Item) {
	for ; len(items) >= lanes; items = items[lanes:] {
		spreadLanes(p.cells, 0, p.hash, (*[lanes]Item)(items), nil)
	}
	for _, item := range items {
		p.Add(item)
	}
}

// Remove takes an item out. The caller sees to it that the set holds it.
func (p *Prefix) Remove(item Item) { spread(p.cells, 0, p.hash, &item, -1) }

// Cells returns a copy of the cells.
func (p *Prefix) Cells() []hsm.Cell { return slices.Clone(p.cells) }

// join adds the cells of another set.
func (p *Prefix) join(cells []hsm.Cell) {
	for i := range p.cells {
		xor(&p.cells[i].Item, &cells[i].Item)
		p.cells[i].Check ^= cells[i].Check
		p.cells[i].Count += cells[i].Count
	}
}
