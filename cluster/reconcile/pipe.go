package reconcile

import (
	"context"
	"iter"
	"sync"
)

// pipe reads a sequence ahead of its reader, in a goroutine of its own, so that
// two sources answer at the same time. It holds at most limit elements, and
// hands over whatever there is as soon as the reader asks.
type pipe[T any] struct {
	limit int
	ready chan struct{} // there are elements, or the end
	space chan struct{} // there is room

	mu    sync.Mutex
	buf   []T
	err   error
	ended bool

	taken []T // the reader's
	pos   int
}

const readAhead = 256

// startPipe starts reading. The goroutine is counted in wg and ends when the
// sequence does or ctx is over, at the sequence's next element.
func startPipe[T any](ctx context.Context, wg *sync.WaitGroup, seq iter.Seq2[T, error]) *pipe[T] {
	p := &pipe[T]{limit: readAhead, ready: make(chan struct{}, 1), space: make(chan struct{}, 1)}
	wg.Go(func() { p.fill(ctx, seq) })
	return p
}

func (p *pipe[T]) fill(ctx context.Context, seq iter.Seq2[T, error]) {
	for v, err := range seq {
		if err != nil {
			p.end(err)
			return
		}
		if !p.put(ctx, v) {
			return
		}
	}
	p.end(nil)
}

func (p *pipe[T]) put(ctx context.Context, v T) bool {
	for {
		p.mu.Lock()
		room := len(p.buf) < p.limit
		if room {
			p.buf = append(p.buf, v)
		}
		p.mu.Unlock()
		if room {
			signal(p.ready)
			return true
		}
		select {
		case <-p.space:
		case <-ctx.Done():
			return false
		}
	}
}

func (p *pipe[T]) end(err error) {
	p.mu.Lock()
	p.err, p.ended = err, true
	p.mu.Unlock()
	signal(p.ready)
}

// next returns the next element; ok is false at the end, which err explains
// unless the sequence simply ended.
func (p *pipe[T]) next(ctx context.Context) (v T, ok bool, err error) {
	if p.pos == len(p.taken) {
		if ended, err := p.refill(ctx); ended || err != nil {
			return v, false, err
		}
	}
	v = p.taken[p.pos]
	p.pos++
	return v, true, nil
}

// refill swaps buffers with the filling goroutine, waiting for elements.
func (p *pipe[T]) refill(ctx context.Context) (ended bool, err error) {
	for {
		p.mu.Lock()
		p.taken, p.buf, p.pos = p.buf, p.taken[:0], 0
		ended, err := p.ended, p.err
		p.mu.Unlock()
		if len(p.taken) > 0 {
			signal(p.space)
			return false, nil
		}
		if ended {
			return true, err
		}
		select {
		case <-p.ready:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// together runs the functions at the same time, cancels the others when one
// fails, waits for all, and returns the first error.
func together(ctx context.Context, run ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg    sync.WaitGroup
		once  sync.Once
		first error
	)
	for _, f := range run {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				once.Do(func() { first = err; cancel(err) })
			}
		})
	}
	wg.Wait()
	return first
}
