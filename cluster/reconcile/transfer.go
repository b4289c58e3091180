package reconcile

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// maxBatchBytes bounds what one worker holds of a batch of large objects.
const maxBatchBytes = 4 << 20

// transfer moves objects in batches. A batch is held between Extract and
// Insert rather than streamed through, so that no source waits in the middle of
// an Extract for another's Insert: two HSMs that sync from each other would
// otherwise wait in a circle.
type transfer struct {
	from  hsm.Source
	to    hsm.Replica
	total int
	*options

	mu   sync.Mutex
	done Applied
}

// run moves the missing and changed ones of entries. What it counts is durable.
func (t *transfer) run(ctx context.Context, entries iter.Seq2[Entry, error]) (Applied, error) {
	batches := make(chan []hsm.KeyRef)
	tasks := []func(context.Context) error{func(ctx context.Context) error {
		defer close(batches)
		return t.cut(ctx, entries, batches)
	}}
	for range t.workers {
		tasks = append(tasks, func(ctx context.Context) error { return t.work(ctx, batches) })
	}
	err := together(ctx, tasks...)
	slices.Sort(t.done.Conflicts)
	return t.done, err
}

// cut cuts the entries into batches of references.
func (t *transfer) cut(ctx context.Context, entries iter.Seq2[Entry, error], batches chan<- []hsm.KeyRef) error {
	var batch []hsm.KeyRef
	for e, err := range entries {
		if err != nil {
			return err
		}
		if e.Extra() || t.keep != nil && !t.keep(e) {
			continue
		}
		if batch = append(batch, e.Ref); len(batch) < t.batch {
			continue
		}
		if err := send(ctx, batches, batch); err != nil {
			return err
		}
		batch = nil
	}
	if len(batch) == 0 {
		return nil
	}
	return send(ctx, batches, batch)
}

func send[T any](ctx context.Context, c chan<- T, v T) error {
	select {
	case c <- v:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t *transfer) work(ctx context.Context, batches <-chan []hsm.KeyRef) error {
	for refs := range batches {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := t.move(ctx, refs); err != nil {
			return err
		}
	}
	return nil
}

// move extracts one batch and inserts it.
func (t *transfer) move(ctx context.Context, refs []hsm.KeyRef) error {
	asked := make(map[hsm.KeyRef]bool, len(refs))
	for _, r := range refs {
		asked[r] = true
	}
	var held []hsm.MaskedObject
	size := 0
	for o, err := range t.from.Extract(ctx, slices.Values(refs)) {
		if err != nil {
			return fmt.Errorf("extract: %w", err)
		}
		if _, ok := asked[o.Ref]; !ok || o.Lineage != t.from.Lineage() {
			return fmt.Errorf("%w: it answers with %s of %s, which was not asked for", ErrPeer, o.Ref, o.Lineage)
		}
		asked[o.Ref] = false // a snapshot may hold several states of it
		held, size = append(held, o), size+len(o.Bytes)
		if size < maxBatchBytes {
			continue
		}
		if err := t.insert(ctx, held); err != nil {
			return err
		}
		held, size = held[:0], 0
	}
	for _, open := range asked {
		if open {
			t.gone(1)
		}
	}
	return t.insert(ctx, held)
}

func (t *transfer) insert(ctx context.Context, held []hsm.MaskedObject) error {
	if len(held) == 0 {
		return nil
	}
	inserted, err := t.to.Insert(ctx, func(yield func(hsm.MaskedObject, error) bool) {
		for _, o := range held {
			if !yield(o, nil) {
				return
			}
		}
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done.Inserted.Add(inserted)
	if err != nil {
		return fmt.Errorf("insert: %w", err)
	}
	t.done.Objects += len(held)
	for _, o := range held {
		t.done.Bytes += int64(len(o.Bytes))
	}
	if t.progress != nil {
		t.progress(Progress{Objects: t.done.Objects, Total: t.total, Bytes: t.done.Bytes})
	}
	return nil
}

func (t *transfer) gone(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done.Gone += n
}
