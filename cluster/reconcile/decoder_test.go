package reconcile

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// explains tells whether a decoder that is done found the items that the cells
// are made of, to the bit, and each once.
func explains(t *testing.T, keys hsm.FingerprintKeys, dec *Decoder, cells []hsm.Cell) {
	t.Helper()
	again := make([]hsm.Cell, len(cells))
	seen := map[Item]bool{}
	for sign, items := range map[int64][]Item{1: dec.FromOnly(), -1: dec.ToOnly()} {
		for _, item := range items {
			spread(again, 0, newHasher(keys), &item, sign)
			if seen[item] || !item.valid() {
				t.Errorf("item %x found twice, or impossible", item)
			}
			seen[item] = true
		}
	}
	if !slices.Equal(cells, again) {
		t.Error("done, and the items found do not make the cells")
	}
}

func FuzzDecoder(f *testing.F) {
	keys := testKeys(1)
	f.Add([]byte{}, []byte{})
	f.Add(encodeItems(keys, 5, 20), []byte{})
	f.Add(encodeItems(keys, 9, 30), []byte{1, 2, 3, 200})
	f.Fuzz(func(t *testing.T, data, flips []byte) {
		for i := 0; i+1 < len(flips) && len(data) > 0; i += 2 {
			data[(int(flips[i])*40+int(flips[i+1]))%len(data)] ^= flips[i+1] | 1
		}
		dec := NewDecoder(keys)
		var cells []hsm.Cell
		for len(data) >= 40 && len(cells) < 2000 {
			c := hsm.Cell{Item: [24]byte(data), Check: binary.BigEndian.Uint64(data[24:]), Count: int64(binary.BigEndian.Uint64(data[32:]))}
			data, cells = data[40:], append(cells, c)
			if err := dec.Add(c, hsm.Cell{}); err != nil && !errors.Is(err, ErrUndecodable) {
				t.Fatal(err)
			}
			if len(dec.found) > len(cells) {
				t.Fatalf("%d items from %d cells", len(dec.found), len(cells))
			}
			if dec.Done() && len(cells) < 50 {
				explains(t, keys, dec, cells)
			}
		}
		if dec.Done() {
			explains(t, keys, dec, cells)
		}
	})
}

// FuzzDecoderInsider has an insider make cells: with the key, any item can be
// put into any cell with a check that fits. Each three bytes of data put an item
// into a cell.
func FuzzDecoderInsider(f *testing.F) {
	keys := testKeys(1)
	f.Add([]byte{0, 1, 0, 1, 1, 0})
	f.Add([]byte{0, 1, 0, 0, 2, 1, 3, 2, 0, 3, 1, 1, 7, 9, 9})
	f.Fuzz(func(t *testing.T, data []byte) {
		cells := make([]hsm.Cell, 64)
		for ; len(data) >= 3 && len(data) < 3000; data = data[3:] {
			item := randomItem(rand.New(rand.NewPCG(uint64(data[1]), 8)))
			switch sign := int64(1 - data[2]%2*2); {
			case data[2] < 200: // out of place
				_, check := newHasher(keys).hash(&item)
				toggle(&cells[data[0]%64], &item, check, sign)
			default: // as it should be
				spread(cells, 0, newHasher(keys), &item, sign)
			}
		}
		dec := NewDecoder(keys)
		for i, c := range cells {
			err := dec.Add(c, hsm.Cell{})
			if err != nil && !errors.Is(err, ErrUndecodable) {
				t.Fatal(err)
			}
			if len(dec.found) > i+1 {
				t.Fatalf("%d items from %d cells", len(dec.found), i+1)
			}
			if dec.Done() {
				explains(t, keys, dec, cells[:i+1])
			}
		}
	})
}

// encodeItems returns n cells of d random items, as FuzzDecoder reads them.
func encodeItems(keys hsm.FingerprintKeys, d, n int) (b []byte) {
	r := rand.New(rand.NewPCG(uint64(d), 0))
	cells := make([]hsm.Cell, n)
	for range d {
		item := randomItem(r)
		spread(cells, 0, newHasher(keys), &item, 1)
	}
	for _, c := range cells {
		b = append(b, c.Item[:]...)
		b = binary.BigEndian.AppendUint64(b, c.Check)
		b = binary.BigEndian.AppendUint64(b, uint64(c.Count))
	}
	return b
}

func TestDecoderExplains(t *testing.T) {
	for d := range 60 {
		keys, r := testKeys(uint64(d)), rand.New(rand.NewPCG(uint64(d), 0))
		cells := make([]hsm.Cell, 400)
		for i := range d {
			item := randomItem(r)
			spread(cells, 0, newHasher(keys), &item, int64(1-i%2*2))
		}
		dec := NewDecoder(keys)
		for i, c := range cells {
			if err := dec.Add(c, hsm.Cell{}); err != nil {
				t.Fatal(err)
			}
			if dec.Done() {
				explains(t, keys, dec, cells[:i+1])
				if found := len(dec.FromOnly()) + len(dec.ToOnly()); found != d {
					t.Errorf("done after %d cells with %d of %d items", i+1, found, d)
				}
				break
			}
		}
		if !dec.Done() {
			t.Errorf("%d items do not decode from %d cells", d, len(cells))
		}
	}
}

// alone is a cell that holds nothing but the item.
func alone(keys hsm.FingerprintKeys, item Item, sign int64) (c hsm.Cell) {
	_, check := newHasher(keys).hash(&item)
	toggle(&c, &item, check, sign)
	return c
}

// elsewhere draws an item that is not mapped to cell 1.
func elsewhere(keys hsm.FingerprintKeys, r *rand.Rand) Item {
	for {
		item := randomItem(r)
		seed, _ := newHasher(keys).hash(&item)
		if m := newMapping(seed); true {
			if m.next(); m.index != 1 {
				return item
			}
		}
	}
}

// An insider, who has the key, cannot make the decoder find what is not there,
// nor one item twice, nor keep it busy.
func TestDecoderHostile(t *testing.T) {
	keys, r := testKeys(3), rand.New(rand.NewPCG(3, 3))
	item, other := elsewhere(keys, r), elsewhere(keys, r)
	impossible := item
	impossible[0] |= 0x80
	zero := hsm.Cell{}
	both := alone(keys, item, 1)
	_, check := newHasher(keys).hash(&other)
	toggle(&both, &other, check, 1)
	for name, cells := range map[string][]hsm.Cell{
		"item in a cell it is not mapped to": {both, alone(keys, item, 1)},
		"item twice":                         {alone(keys, item, 1), alone(keys, item, 1)},
		"item twice, then undone":            {alone(keys, item, 1), alone(keys, item, -1)},
		"item only in a later cell":          {zero, alone(keys, other, 1)},
		"impossible item":                    {alone(keys, impossible, 1)},
	} {
		t.Run(name, func(t *testing.T) {
			dec := NewDecoder(keys)
			var err error
			for _, c := range cells {
				err = dec.Add(c, hsm.Cell{})
			}
			if !errors.Is(err, ErrUndecodable) || dec.Done() {
				t.Errorf("got %v, done %v", err, dec.Done())
			}
			if again := dec.Add(zero, zero); again != err {
				t.Errorf("and then %v", again)
			}
		})
	}
}

// Items that both sides have leave no trace.
func TestDecoderEqualSets(t *testing.T) {
	keys, r := testKeys(4), rand.New(rand.NewPCG(4, 4))
	p := NewPrefix(keys, 10)
	for range 1000 {
		p.Add(randomItem(r))
	}
	dec := NewDecoder(keys)
	if dec.Done() {
		t.Error("done before the first cell")
	}
	c := p.Cells()[0]
	if err := dec.Add(c, c); err != nil || !dec.Done() || dec.FromOnly() != nil || dec.ToOnly() != nil {
		t.Errorf("got %v, done %v", err, dec.Done())
	}
}
