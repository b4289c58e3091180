package reconcile

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func testKeys(seed uint64) (k hsm.FingerprintKeys) {
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range k.Root {
		k.Root[i] = byte(r.Uint32())
	}
	for i := range k.Sketch {
		k.Sketch[i] = byte(r.Uint32())
	}
	return k
}

func randomItem(r *rand.Rand) (i Item) {
	binary.BigEndian.PutUint64(i[:8], r.Uint64()>>1|1)
	binary.BigEndian.PutUint64(i[8:16], r.Uint64())
	binary.BigEndian.PutUint64(i[16:], r.Uint64())
	return i
}

// cellsNeeded returns how many cells decode d random items.
func cellsNeeded(t testing.TB, seed uint64, d int) int {
	t.Helper()
	keys, r := testKeys(seed), rand.New(rand.NewPCG(seed, 2))
	cells := make([]hsm.Cell, 2*d+64)
	for i := range d {
		item := randomItem(r)
		spread(cells, 0, newHasher(keys), &item, int64(1-i%2*2))
	}
	dec := NewDecoder(keys)
	for _, c := range cells {
		if err := dec.Add(c, hsm.Cell{}); err != nil {
			t.Fatal(err)
		}
		if dec.Done() {
			if len(dec.FromOnly())+len(dec.ToOnly()) != d {
				t.Fatalf("done with %d+%d items, want %d", len(dec.FromOnly()), len(dec.ToOnly()), d)
			}
			return dec.Cells()
		}
	}
	t.Fatalf("seed %d: %d items do not decode from %d cells", seed, d, len(cells))
	return 0
}

func TestCellsPerDifference(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		d, trials int
		most      float64 // mean cells per difference
	}{
		{1, 50, 1}, {10, 50, 2}, {100, 50, 1.5}, {1000, 50, 1.5}, {10000, 5, 1.5},
	} {
		sum := 0
		for seed := range uint64(c.trials) {
			sum += cellsNeeded(t, seed, c.d)
		}
		mean := float64(sum) / float64(c.trials*c.d)
		t.Logf("%d differences: %.3f cells each", c.d, mean)
		if mean > c.most {
			t.Errorf("%d differences: %.3f cells each, want at most %.1f", c.d, mean, c.most)
		}
	}
}

// The share of items mapped to cell i is 1/(1+i/2), as near as the paper's
// inversion comes: cell 1 has 0.64 of them rather than 0.67.
func TestMappingDensity(t *testing.T) {
	const items = 40000
	p := NewPrefix(testKeys(1), 64)
	r := rand.New(rand.NewPCG(1, 1))
	for range items {
		p.Add(randomItem(r))
	}
	for i, c := range p.Cells() {
		share, want := float64(c.Count)/items, 1/(1+float64(i)/2)
		if math.Abs(share-want) > 0.03*want+5*math.Sqrt(want/items) {
			t.Errorf("cell %d: %.4f of all items, want %.4f", i, share, want)
		}
	}
}

// Whatever the generator yields, a mapping moves forward and stops.
func TestMappingAdvances(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	for range 10000 {
		m := newMapping(r.Uint64())
		for last := uint64(0); m.index < never; last = m.index {
			if m.next(); m.index <= last {
				t.Fatalf("from cell %d to %d", last, m.index)
			}
		}
	}
	for _, at := range []uint64{0, 1, never - 1} {
		for _, state := range []uint64{0, 1, math.MaxUint64} {
			if m := (mapping{index: at, state: state}); true {
				if m.next(); m.index <= at || m.index > never {
					t.Errorf("from cell %d to %d", at, m.index)
				}
			}
		}
	}
}
