package reconcile

import (
	"errors"
	"fmt"
	"iter"
	"runtime"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// ErrChanged: the items listed are not those the sketch was begun with. Start
// over, or list.
var ErrChanged = errors.New("source changed while it was sketched")

// Bounds of the cells computed in one scan of all items: 1.3 to 5 MiB for each worker. Whoever reads
// past the prefix is about to need thousands; twice the cells cost an item one or two steps
// more, and a second scan costs all of them again.
const (
	minChunk = 1 << 15
	maxChunk = 1 << 17
)

// CellsFrom yields the cells of a set from index from on, without end: those of
// prefix first, which may be empty; then so many more for each scan of all
// items that few scans do, and never more than 5 MiB of cells at a time for each of up to
// four workers.
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
	sums  []*sums // of this scan, one for each worker
	room  [maxSummers]sums
	whole hsm.Cell // cell 0: every item is in it
	begun bool     // whole is known
}

// sums are cells of some of the items. Cells are linear, so that each worker takes
// whatever items come.
type sums struct {
	cells []hsm.Cell
	whole hsm.Cell
}

// maxSummers bounds the workers of one scan, and with them its memory; batchItems is what
// one of them takes at a time.
const (
	maxSummers = 4
	batchItems = 1024
)

// NewEncoder returns an encoder of the set that items lists.
func NewEncoder(keys hsm.FingerprintKeys, items func() iter.Seq2[hsm.Object, error]) *Encoder {
	return &Encoder{hash: newHasher(keys), items: items}
}

// Cells computes n cells from index from on in one scan. They are valid until
// the next call. ErrChanged if the items are not those of the call before.
func (e *Encoder) Cells(from, n int) ([]hsm.Cell, error) { return e.scan(uint64(from), n) }

func (e *Encoder) scan(from uint64, n int) ([]hsm.Cell, error) {
	if err := e.sum(from, n); err != nil {
		return nil, fmt.Errorf("sketch cells from %d on: %w", from, err)
	}
	all := e.sums[0]
	for _, s := range e.sums[1:] {
		join(&all.whole, &s.whole)
		JoinCells(all.cells, s.cells)
	}
	if e.begun && all.whole != e.whole {
		return nil, fmt.Errorf("sketch cells from %d on: %w", from, ErrChanged)
	}
	e.whole, e.begun = all.whole, true
	return all.cells, nil
}

// sum reads the items once, in batches that workers take. A set of less than a batch needs
// none.
func (e *Encoder) sum(from uint64, n int) error {
	e.sums = e.sums[:0]
	var work sync.WaitGroup
	batches, free := make(chan []Item), make(chan []Item, maxSummers+1) // as many as there can be
	rest, err := e.eachBatch(func(batch []Item) []Item {
		if len(e.sums) < min(maxSummers, runtime.GOMAXPROCS(0)) {
			s := e.summer(n)
			work.Go(func() {
				for b := range batches {
					s.add(e.hash, from, b)
					free <- b
				}
			})
		}
		batches <- batch
		select {
		case b := <-free:
			return b
		default:
			return make([]Item, 0, batchItems)
		}
	})
	close(batches)
	work.Wait()
	if err != nil {
		return err
	}
	if len(e.sums) == 0 {
		e.summer(n)
	}
	e.sums[0].add(e.hash, from, rest)
	return nil
}

// eachBatch gives every full batch away for another.
func (e *Encoder) eachBatch(give func([]Item) []Item) (rest []Item, err error) {
	batch := make([]Item, 0, batchItems)
	for o, err := range e.items() {
		if err != nil {
			return nil, err
		}
		if batch = append(batch, ItemOf(o)); len(batch) == batchItems {
			batch = give(batch)[:0]
		}
	}
	return batch, nil
}

// summer adds an empty sum of n cells to those of this scan.
func (e *Encoder) summer(n int) *sums {
	s := &e.room[len(e.sums)]
	if cap(s.cells) < n {
		s.cells = make([]hsm.Cell, n)
	}
	s.cells, s.whole = s.cells[:n], hsm.Cell{}
	clear(s.cells)
	e.sums = append(e.sums, s)
	return s
}

// add adds items to the cells from index from on.
func (s *sums) add(h hasher, from uint64, items []Item) {
	for ; len(items) >= lanes; items = items[lanes:] {
		spreadLanes(s.cells, from, h, (*[lanes]Item)(items), &s.whole)
	}
	for i := range items {
		_, check := h.hash(&items[i])
		toggle(&s.whole, &items[i], check, 1)
		spread(s.cells, from, h, &items[i], 1)
	}
}
