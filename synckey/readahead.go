package synckey

import (
	"context"
	"slices"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// readBatch is how many objects are read from a side at a time, and aheadBatches
// how many such batches are on their way.
const (
	readBatch    = 256
	aheadBatches = 8
)

// readAhead fetches references batch by batch, several batches at a time, so that a
// long link is kept busy, and uses what comes in the order of the references, one
// after the other. It ends with the first error, when nothing is under way any more.
func readAhead[T any](ctx context.Context, refs []hsm.KeyRef, fetch func(context.Context, []hsm.KeyRef) (T, error), use func([]hsm.KeyRef, T) error) error {
	type fetched struct {
		value T
		err   error
	}
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	batches := slices.Collect(slices.Chunk(refs, readBatch))
	var coming []chan fetched
	for i, batch := range batches {
		for next := i + len(coming); next < len(batches) && len(coming) < aheadBatches; next++ {
			came := make(chan fetched, 1)
			coming = append(coming, came)
			running.Go(func() {
				v, err := fetch(ctx, batches[next])
				came <- fetched{v, err}
			})
		}
		got := <-coming[0]
		coming = coming[1:]
		if got.err != nil {
			return got.err
		}
		if err := use(batch, got.value); err != nil {
			return err
		}
	}
	return nil
}
