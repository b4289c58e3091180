package reconcile

import (
	"errors"
	"fmt"
	"iter"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// ErrChanged: the items listed are not those the sketch was begun with. Start
// over, or list.
var ErrChanged = errors.New("source changed while it was sketched")

// Bounds of the cells computed in one scan of all items: 1.3 to 5 MiB. Whoever reads
// past the prefix is about to need thousands; twice the cells cost an item one or two steps
// more, and a second scan costs all of them again.
const (
	minChunk = 1 << 15
	maxChunk = 1 << 17
)

// CellsFrom yields the cells of a set from index from on, without end: those of
// prefix first, which may be empty; then so many more for each scan of all
// items that few scans do, and never more than 5 MiB of cells at a time.
//
// items lists the set that prefix was made of, in any order, the same each time
// it is called; the sequence reads it only past the prefix. If the items turn
// out to be others, it ends with ErrChanged: a source that is written to gives a
// listing of the moment of its prefix. An error of items is yielded, and
// nothing after it.
func CellsFrom(keys hsm.FingerprintKeys, prefix []hsm.Cell, from int, items func() iter.Seq2[hsm.Object, error]) iter.Seq2[hsm.Cell, error] {
	return func(yield func(hsm.Cell, error) bool) {
		from := max(from, 0)
		for ; from < len(prefix); from++ {
			if !yield(prefix[from], nil) {
				return
			}
		}
		e := &Encoder{hash: newHasher(keys), items: items}
		if len(prefix) > 0 {
			e.whole, e.begun = prefix[0], true
		}
		for {
			cells, err := e.scan(uint64(from), min(max(3*from, minChunk), maxChunk))
			if err != nil {
				yield(hsm.Cell{}, err)
				return
			}
			for _, c := range cells {
				if !yield(c, nil) {
					return
				}
			}
			from += len(cells)
		}
	}
}

// Encoder computes cells by reading all items of a set. It is not safe for
// concurrent use.
type Encoder struct {
	hash  hasher
	items func() iter.Seq2[hsm.Object, error]
	cells []hsm.Cell
	whole hsm.Cell // cell 0: every item is in it
	begun bool     // whole is known
}

// NewEncoder returns an encoder of the set that items lists.
func NewEncoder(keys hsm.FingerprintKeys, items func() iter.Seq2[hsm.Object, error]) *Encoder {
	return &Encoder{hash: newHasher(keys), items: items}
}

// Cells computes n cells from index from on in one scan. They are valid until
// the next call. ErrChanged if the items are not those of the call before.
func (e *Encoder) Cells(from, n int) ([]hsm.Cell, error) { return e.scan(uint64(from), n) }

func (e *Encoder) scan(from uint64, n int) ([]hsm.Cell, error) {
	if cap(e.cells) < n {
		e.cells = make([]hsm.Cell, n)
	}
	e.cells = e.cells[:n]
	clear(e.cells)
	var whole hsm.Cell
	var some [lanes]Item
	n = 0
	for o, err := range e.items() {
		if err != nil {
			return nil, fmt.Errorf("sketch cells from %d on: %w", from, err)
		}
		if some[n] = ItemOf(o); n < lanes-1 {
			n++
			continue
		}
		spreadLanes(e.cells, from, e.hash, &some, &whole)
		n = 0
	}
	for i := range n {
		_, check := e.hash.hash(&some[i])
		toggle(&whole, &some[i], check, 1)
		spread(e.cells, from, e.hash, &some[i], 1)
	}
	if e.begun && whole != e.whole {
		return nil, fmt.Errorf("sketch cells from %d on: %w", from, ErrChanged)
	}
	e.whole, e.begun = whole, true
	return e.cells, nil
}
