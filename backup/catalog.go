package backup

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
)

// layer is the items of one pack, ascending by reference.
type layer struct {
	items     []hsm.Object
	alternate bool
}

func (l layer) find(ref hsm.KeyRef) (int, bool) {
	return slices.BinarySearchFunc(l.items, ref, func(o hsm.Object, r hsm.KeyRef) int { return compareRefs(o.Ref, r) })
}

func compareRefs(a, b hsm.KeyRef) int { return cmp.Compare(a, b) }

// catalog knows the items of a sequence of packs, of which the later replace
// the earlier. It reads the indexes when they are first asked for: a small
// difference never needs them. It is safe for concurrent use.
type catalog struct {
	store   storage.Store
	lineage hsm.Lineage
	packs   []format.PackEntry
	index   func(context.Context, format.PackEntry) (format.Index, error) // nil: loadIndex alone

	mu     sync.Mutex
	have   map[format.Name][]hsm.Object // by index: items that are at hand
	loaded []layer
}

// remember puts the items that are at hand into have.
func (c *catalog) remember(have map[format.Name][]hsm.Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, items := range c.have {
		have[name] = items
	}
	for i, l := range c.loaded {
		have[c.packs[i].Index] = l.items
	}
}

// indexWorkers is how many indexes are fetched at a time.
const indexWorkers = 4

// layers returns the items of all packs, in the order of packs. ErrCorrupt.
func (c *catalog) layers(ctx context.Context) ([]layer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loaded != nil || len(c.packs) == 0 {
		return c.loaded, nil
	}
	load := c.index
	if load == nil {
		load = func(ctx context.Context, p format.PackEntry) (format.Index, error) {
			return loadIndex(ctx, c.store, c.lineage, p)
		}
	}
	out := make([]layer, len(c.packs))
	err := parallel(ctx, indexWorkers, len(c.packs), func(ctx context.Context, i int) error {
		items, ok := c.have[c.packs[i].Index]
		if !ok {
			x, err := load(ctx, c.packs[i])
			if err != nil {
				return err
			}
			items = x.Items
		}
		out[i] = layer{items: items, alternate: c.packs[i].Alternate}
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.loaded, c.have = out, nil
	return out, nil
}

// loadIndex reads the index of a pack and checks that it fits the manifest's
// entry.
func loadIndex(ctx context.Context, store storage.Store, lineage hsm.Lineage, p format.PackEntry) (format.Index, error) {
	path := format.IndexPath(p.Index)
	stored, err := fetch(ctx, store, path, p.Index, format.MaxIndex)
	if err != nil {
		return format.Index{}, err
	}
	x, err := format.DecodeIndex(stored)
	if err != nil {
		return format.Index{}, fmt.Errorf("%s: %w", path, err)
	}
	if x.Pack != p.Pack || x.PackSize != p.Size || uint64(len(x.Items)) != p.Objects || uint64(len(stored)) != p.IndexSize || x.Lineage != lineage {
		return format.Index{}, fmt.Errorf("%w: %s: it is the index of another pack than the manifest says", ErrCorrupt, path)
	}
	return x, nil
}

// lookup finds the current state of one object.
func lookup(layers []layer, ref hsm.KeyRef) (hsm.Object, bool) {
	o, _, ok := locate(layers, ref)
	return o, ok
}

// locate finds the current state of one object and the layer that holds it.
func locate(layers []layer, ref hsm.KeyRef) (o hsm.Object, at int, ok bool) {
	for at, l := range slices.Backward(layers) {
		if l.alternate {
			continue
		}
		if i, ok := l.find(ref); ok {
			return l.items[i], at, true
		}
	}
	return hsm.Object{}, 0, false
}

// position is where an object lies.
type position struct{ layer, item int }

// merged yields the current objects, ascending by reference, and where they lie.
func merged(layers []layer) iter.Seq2[hsm.Object, position] {
	return func(yield func(hsm.Object, position) bool) {
		h := cursors{}
		for i, l := range layers {
			if !l.alternate && len(l.items) > 0 {
				h = append(h, cursor{items: l.items, position: position{layer: i}})
			}
		}
		heap.Init(&h)
		var last hsm.KeyRef
		for len(h) > 0 {
			c := &h[0]
			o, at := c.items[c.item], c.position
			if c.item++; c.item < len(c.items) {
				heap.Fix(&h, 0)
			} else {
				heap.Pop(&h)
			}
			if o.Ref == last { // an older state
				continue
			}
			last = o.Ref
			if !yield(o, at) {
				return
			}
		}
	}
}

type cursor struct {
	items []hsm.Object
	position
}

// cursors is a heap: the least reference first, and of equal ones the newest.
type cursors []cursor

func (h cursors) Len() int { return len(h) }
func (h cursors) Less(i, j int) bool {
	a, b := h[i].items[h[i].item].Ref, h[j].items[h[j].item].Ref
	return a < b || a == b && h[i].layer > h[j].layer
}
func (h cursors) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *cursors) Push(x any)   { *h = append(*h, x.(cursor)) }
func (h *cursors) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}

// parallel calls f for 0 ≤ i < n in a few goroutines and returns the first
// error, after all have ended.
func parallel(ctx context.Context, workers, n int, f func(context.Context, int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(workers, n) {
		wg.Go(func() {
			for i := range next {
				if err := f(ctx, i); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	for i := 0; i < n && ctx.Err() == nil; i++ {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}
