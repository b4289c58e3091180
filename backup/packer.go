package backup

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
	"github.com/hsmbackup/hsmbackup/storage"
)

// packer extracts objects from a source and stores them as packs. Each worker
// fills a pack of its own and stores it while the others go on; what is in
// memory is one pack and one block for each.
type packer struct {
	store      storage.Store
	lineage    hsm.Lineage
	keys       hsm.FingerprintKeys
	recipients []Recipient
	target     int // stored size at which a pack is finished
	workers    int
	progress   func(objects, bytes int)

	mu      sync.Mutex
	writers []*format.PackWriter // idle, with their buffers
	objects int64                // in packs so far
	stored  int64                // bytes of them
}

// run stores what src holds of refs, which ascend strictly. It returns the packs
// in no particular order; each reference is in one of them, and each pack holds a
// stretch of the references that no other pack has any of: so a restore writes
// its tables in order. Every pack and index it returns is durable. An object that
// src does not answer with is an error: objects do not vanish, they leave
// tombstones.
func (p *packer) run(ctx context.Context, src NamedSource, refs iter.Seq2[hsm.KeyRef, error], expected int, alternate bool) ([]packed, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stretches := make(chan []hsm.KeyRef)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var out []packed
	for range min(p.workers, 1+expected/(p.target/usualObject)) {
		wg.Go(func() {
			w := &packWorker{packer: p, src: src, alternate: alternate, reserve: min(p.target+2*format.BlockBytes, expected*usualObject+64<<10)}
			if err := w.run(ctx, stretches); err != nil {
				cancel(err)
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, w.done...)
		})
	}
	if err := p.cut(ctx, refs, stretches); err != nil {
		cancel(at(src, err))
	}
	close(stretches)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return out, nil
}

// usualObject is what an object takes, as long as nothing better is known.
const usualObject = 1 << 10

// cut sends the references in stretches that fill a pack each, in order.
func (p *packer) cut(ctx context.Context, refs iter.Seq2[hsm.KeyRef, error], stretches chan<- []hsm.KeyRef) error {
	var stretch []hsm.KeyRef
	var last hsm.KeyRef
	length := p.stretch()
	for ref, err := range refs {
		if err != nil {
			return err
		}
		if ref <= last {
			return fmt.Errorf("%w: it lists %s after %s", reconcile.ErrPeer, ref, last)
		}
		last = ref
		if stretch = append(stretch, ref); len(stretch) < length {
			continue
		}
		if err := send(ctx, stretches, stretch); err != nil {
			return err
		}
		stretch, length = nil, p.stretch()
	}
	if len(stretch) == 0 {
		return nil
	}
	return send(ctx, stretches, stretch)
}

func send(ctx context.Context, stretches chan<- []hsm.KeyRef, stretch []hsm.KeyRef) error {
	select {
	case stretches <- stretch:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// stretch estimates how many objects fill a pack, from those packed so far.
func (p *packer) stretch() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.objects < format.BlockObjects {
		return p.target / usualObject
	}
	return max(1, int(int64(p.target)*p.objects/max(p.stored, 1))*31/32) // rather one pack than one and a bit
}

func (p *packer) writer() (*format.PackWriter, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.writers); n > 0 {
		w := p.writers[n-1]
		p.writers = p.writers[:n-1]
		return w, nil
	}
	return format.NewPackWriter(p.lineage, p.recipients)
}

func (p *packer) recycle(w *format.PackWriter) {
	w.Reset()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writers = append(p.writers, w)
}

// packWorker fills one pack after the other.
type packWorker struct {
	*packer
	src       NamedSource
	alternate bool
	reserve   int // bytes that a pack is expected to have
	pack      *format.PackWriter
	block     []hsm.MaskedObject
	bytes     int // of the block
	done      []packed
}

func (w *packWorker) run(ctx context.Context, stretches <-chan []hsm.KeyRef) (err error) {
	if w.pack, err = w.writer(); err != nil {
		return err
	}
	defer w.recycle(w.pack)
	w.pack.Reserve(w.reserve)
	for refs := range stretches {
		for m, err := range extractExactly(ctx, w.src, refs) {
			if err != nil {
				return at(w.src, err)
			}
			if err := w.take(ctx, m); err != nil {
				return err
			}
		}
		if err := w.finish(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (w *packWorker) take(ctx context.Context, m hsm.MaskedObject) error {
	w.block = append(w.block, m)
	if w.bytes += len(m.Bytes); w.bytes < format.BlockBytes && len(w.block) < format.BlockObjects {
		return nil
	}
	if err := w.endBlock(); err != nil {
		return err
	}
	if w.pack.Size() < w.target {
		return nil
	}
	return w.finish(ctx)
}

func (w *packWorker) endBlock() error {
	if err := w.pack.Append(w.block); err != nil {
		return at(w.src, fmt.Errorf("extract: %w", err))
	}
	w.progress(len(w.block), w.bytes)
	clear(w.block)
	w.block, w.bytes = w.block[:0], 0
	return nil
}

// finish stores the pack and then its index. If we die between the two, or
// after, an object lies in the store that no manifest names: it costs space
// until it is pruned, and nothing else.
func (w *packWorker) finish(ctx context.Context) error {
	if err := w.endBlock(); err != nil || w.pack.Size() == 0 {
		return err
	}
	pack, err := w.pack.Finish()
	if err != nil {
		return err
	}
	defer w.pack.Reset()
	index := format.EncodeIndex(pack.Index)
	if err := putNamed(ctx, w.store, format.PackPath(pack.Name), pack.Stored, pack.Name); err != nil {
		return err
	}
	indexName := format.NameOf(index)
	if err := putNamed(ctx, w.store, format.IndexPath(indexName), index, indexName); err != nil {
		return err
	}
	w.count(pack)
	root, cells := fingerprints(w.keys, pack.Index.Items)
	w.done = append(w.done, packed{
		entry: format.PackEntry{
			Pack: pack.Name, Size: uint64(len(pack.Stored)), Objects: uint64(len(pack.Index.Items)),
			Index: indexName, IndexSize: uint64(len(index)), Alternate: w.alternate,
		},
		items: pack.Index.Items, epochs: pack.Epochs, root: root, cells: cells,
	})
	return nil
}

func (p *packer) count(pack format.Pack) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.objects += int64(len(pack.Index.Items))
	p.stored += int64(len(pack.Stored))
}

// fingerprints returns the root and the sketch prefix of the items alone. Both
// are linear: those of a snapshot are the sums over its packs, and each worker
// computes its share.
func fingerprints(keys hsm.FingerprintKeys, items []hsm.Object) (hsm.Root, []hsm.Cell) {
	root, prefix := reconcile.NewRootState(keys), reconcile.NewPrefix(keys, format.MaxCells)
	some := make([]reconcile.Item, 0, min(len(items), 256)) // few enough to stay in the cache
	for _, o := range items {
		item := reconcile.ItemOf(o)
		root.Add(item)
		if some = append(some, item); len(some) == cap(some) {
			prefix.AddAll(some)
			some = some[:0]
		}
	}
	prefix.AddAll(some)
	return root.Root(), prefix.Cells()
}

// extractExactly yields the objects of refs, in their order. reconcile.ErrPeer
// if the source answers otherwise. Whether each is what it says it is, the pack's
// writer checks.
func extractExactly(ctx context.Context, src hsm.Source, refs []hsm.KeyRef) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		n := 0
		for m, err := range src.Extract(ctx, slices.Values(refs)) {
			if err == nil && (n >= len(refs) || m.Ref != refs[n]) {
				err = fmt.Errorf("%w: it answers with %s, which was not asked for now", reconcile.ErrPeer, m.Ref)
			}
			if err != nil {
				yield(hsm.MaskedObject{}, fmt.Errorf("extract: %w", err))
				return
			}
			if n++; !yield(m, nil) {
				return
			}
		}
		if n < len(refs) {
			yield(hsm.MaskedObject{}, fmt.Errorf("extract: %w: it lists %s and does not hold it", reconcile.ErrPeer, refs[n]))
		}
	}
}

// checkObject compares an object with what its bytes claim. Whether the claim
// is true only an HSM can tell.
func checkObject(m hsm.MaskedObject, lineage hsm.Lineage) error {
	claim, err := hsm.PeekMasked(m.Bytes)
	switch {
	case err != nil:
		return fmt.Errorf("object %s: %w", m.Ref, err)
	case claim.Object != m.Object:
		return fmt.Errorf("%w: object %s does not match its bytes", hsm.ErrCorrupt, m.Ref)
	case claim.Lineage != lineage || m.Lineage != lineage:
		return fmt.Errorf("%w: object %s is of %s, not of %s", hsm.ErrLineage, m.Ref, claim.Lineage, lineage)
	}
	return nil
}
