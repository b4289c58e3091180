package reconcile

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func someItems(n int) []Item {
	items := make([]Item, n)
	for i := range items {
		binary.BigEndian.PutUint64(items[i][:], uint64(i)*0x9e3779b97f4a7c15+1)
	}
	return items
}

// TestAddAllIsAdd of each.
func TestAddAllIsAdd(t *testing.T) {
	keys := hsm.FingerprintKeys{Sketch: [16]byte{1, 2, 3}}
	for n := range 3*lanes + 2 {
		for _, size := range []int{1, 2, 64, 1024} {
			one, all := NewPrefix(keys, size), NewPrefix(keys, size)
			items := someItems(n)
			for _, item := range items {
				one.Add(item)
			}
			if all.AddAll(items); !slices.Equal(one.Cells(), all.Cells()) {
				t.Fatalf("%d items in %d cells: AddAll differs from Add", n, size)
			}
		}
	}
}

func BenchmarkPrefixAdd(b *testing.B) {
	p, items := NewPrefix(hsm.FingerprintKeys{}, 1024), someItems(256)
	for b.Loop() {
		for _, item := range items {
			p.Add(item)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/256, "ns/item")
}

func BenchmarkPrefixAddAll(b *testing.B) {
	p, items := NewPrefix(hsm.FingerprintKeys{}, 1024), someItems(256)
	for b.Loop() {
		p.AddAll(items)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/256, "ns/item")
}

// Cells that were handed out stay as they were, whatever is added in whatever way.
func TestCellsStay(t *testing.T) {
	for name, add := range map[string]func(*Prefix, []Item){
		"Add":    func(p *Prefix, items []Item) { p.Add(items[0]) },
		"AddAll": func(p *Prefix, items []Item) { p.AddAll(items) },
		"Remove": func(p *Prefix, items []Item) { p.Remove(items[0]) },
		"join": func(p *Prefix, items []Item) {
			o := NewPrefix(hsm.FingerprintKeys{}, 64)
			o.AddAll(items)
			p.join(o.Cells())
		},
	} {
		p, items := NewPrefix(hsm.FingerprintKeys{}, 64), someItems(2*lanes)
		cells := p.Cells()
		if add(p, items); slices.ContainsFunc(cells, func(c hsm.Cell) bool { return c != hsm.Cell{} }) || p.Cells()[0] == (hsm.Cell{}) {
			t.Errorf("%s changes what was handed out, or nothing", name)
		}
	}
}
