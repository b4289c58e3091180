package reconcile

import (
	"errors"
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// ErrUndecodable: the cells are not those of two sets under one key. Diff
// lists both sides when it sees it.
var ErrUndecodable = errors.New("sketch does not decode")

// Decoder finds the items that only one of two sets has, from the cells of
// both. Cells may come from a hostile peer: whatever they hold, the work done
// for a cell is bounded, no more items are found than cells were added, and a
// Decoder that is Done explains every cell to the bit. It is not safe for
// concurrent use.
type Decoder struct {
	hash  hasher
	cells []hsm.Cell // those of from less those of to, less what was found
	dirty int        // cells that are not zero
	queue []int      // cells that may hold one item alone
	found []foundItem
	later schedule // cells to come that found items are mapped to
	seen  map[Item]struct{}
	err   error
}

type foundItem struct {
	item  Item
	sign  int64 // 1: only from has it; -1: only to
	check uint64
}

// NewDecoder returns a decoder of cells made with these keys.
func NewDecoder(keys hsm.FingerprintKeys) *Decoder {
	return &Decoder{hash: newHasher(keys), seen: map[Item]struct{}{}}
}

// Add takes the next cell of both sets, beginning with cell 0, and finds what
// can be found. ErrUndecodable, now and at every later call, if no two sets
// have these cells.
func (d *Decoder) Add(from, to hsm.Cell) error {
	if d.err != nil {
		return d.err
	}
	i := len(d.cells)
	c := subtract(from, to)
	for m := d.later.at(uint64(i)); m != nil; m = d.later.at(uint64(i)) {
		f := &d.found[m.found]
		toggle(&c, &f.item, f.check, -f.sign)
		d.later.advance()
	}
	d.cells = append(d.cells, c)
	if c != (hsm.Cell{}) {
		d.dirty++
		d.queue = append(d.queue, i)
	}
	d.err = d.peel()
	return d.err
}

// Done tells whether everything is found: no cell is left unexplained, the
// first included, which every item is mapped to.
func (d *Decoder) Done() bool { return d.err == nil && len(d.cells) > 0 && d.dirty == 0 }

// Cells returns the number of cells added.
func (d *Decoder) Cells() int { return len(d.cells) }

// FromOnly and ToOnly return the items found so far, in no order.
func (d *Decoder) FromOnly() []Item { return d.items(1) }
func (d *Decoder) ToOnly() []Item   { return d.items(-1) }

func (d *Decoder) items(sign int64) []Item {
	var items []Item
	for _, f := range d.found {
		if f.sign == sign {
			items = append(items, f.item)
		}
	}
	return items
}

// peel takes items that are alone in a cell out of all cells, until there is
// none.
func (d *Decoder) peel() error {
	for len(d.queue) > 0 {
		i := d.queue[len(d.queue)-1]
		d.queue = d.queue[:len(d.queue)-1]
		c := d.cells[i]
		if c.Count != 1 && c.Count != -1 {
			continue
		}
		f := foundItem{item: c.Item, sign: c.Count, check: c.Check}
		seed, check := d.hash.hash(&f.item)
		if check != c.Check {
			continue
		}
		if err := d.take(f, seed, uint64(i)); err != nil {
			return err
		}
	}
	return nil
}

// take records an item found in cell i and takes it out of every cell it is
// mapped to. Items of honest peers are valid, mapped to the cell they are found
// in, found once, and fewer than the cells: each is worked out from a cell of
// its own. With dishonest ones, that is what ends the work.
func (d *Decoder) take(f foundItem, seed, i uint64) error {
	if _, again := d.seen[f.item]; again || !f.item.valid() || len(d.found) >= len(d.cells) {
		return fmt.Errorf("%w: cell %d holds an item that cannot be there", ErrUndecodable, i)
	}
	d.seen[f.item] = struct{}{}
	mapped := false
	m := newMapping(seed)
	for ; m.index < uint64(len(d.cells)); m.next() {
		mapped = mapped || m.index == i
		d.remove(m.index, f)
	}
	if !mapped {
		return fmt.Errorf("%w: cell %d holds an item that belongs elsewhere", ErrUndecodable, i)
	}
	d.later.add(appointment{mapping: m, found: len(d.found)})
	d.found = append(d.found, f)
	return nil
}

func (d *Decoder) remove(i uint64, f foundItem) {
	c := &d.cells[i]
	wasZero := *c == hsm.Cell{}
	toggle(c, &f.item, f.check, -f.sign)
	isZero := *c == hsm.Cell{}
	switch {
	case wasZero && !isZero:
		d.dirty++
	case !wasZero && isZero:
		d.dirty--
	}
	if c.Count == 1 || c.Count == -1 {
		d.queue = append(d.queue, int(i))
	}
}
