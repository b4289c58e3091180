package rpc

import (
	"context"
	"sync"
)

// room bounds the bytes that requests hold from their arrival until they are answered.
type room struct {
	mu    sync.Mutex
	free  int
	freed chan struct{} // closed at the next give
}

func newRoom(n int) *room { return &room{free: n, freed: make(chan struct{})} }

// take waits until there is room for n bytes, which must fit when nobody else is there.
func (r *room) take(ctx context.Context, n int) error {
	for {
		r.mu.Lock()
		if r.free >= n {
			r.free -= n
			r.mu.Unlock()
			return nil
		}
		freed := r.freed
		r.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *room) give(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free += n
	close(r.freed)
	r.freed = make(chan struct{})
}

// hold waits until there is room for a request, first among those of its connection and
// then among those of all. The caller calls done when it is answered.
func (c *conn) hold(ctx context.Context, n int) (done func(), err error) {
	if n <= smallFrame {
		return func() {}, nil
	}
	mine := min(n, connRoom) // a larger one comes alone
	if err := c.room.take(ctx, mine); err != nil {
		return nil, err
	}
	if err := c.all.take(ctx, n); err != nil {
		c.room.give(mine)
		return nil, err
	}
	return func() { c.all.give(n); c.room.give(mine) }, nil
}
