package sim

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Streams travel in pieces, each a message with a fate of its own. The HSM reads
// on while the pieces are on their way, so that it may change, die or be cut off
// in the middle of a stream.

// pieceSize is how many items one piece of a stream holds.
const pieceSize = 16

// piece is some items of a stream, or its end.
type piece[T any] struct {
	items []T
	err   error
	end   bool
}

// stream carries what f yields on the HSM.
func stream[T any](ctx context.Context, s *session, method string, f func(context.Context) iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		pieces := make(chan piece[T], 1)
		s.n.w.background(func() { serve(ctx, s, method, f, pieces) })
		for {
			p, err := receive(ctx, s, pieces)
			if err != nil {
				p = piece[T]{err: err, end: true}
			}
			for _, v := range p.items {
				if !yield(v, nil) {
					return
				}
			}
			if p.err != nil {
				var none T
				yield(none, p.err)
			}
			if p.end {
				return
			}
		}
	}
}

// receive waits for the next piece.
func receive[T any](ctx context.Context, s *session, pieces <-chan piece[T]) (piece[T], error) {
	broken := time.NewTimer(silence + time.Duration(s.life)*time.Microsecond)
	defer broken.Stop()
	select {
	case p := <-pieces:
		return p, nil
	case <-broken.C:
		return piece[T]{}, gone(s.to)
	case <-s.from.dead:
		return piece[T]{}, gone(s.to)
	case <-ctx.Done():
		return piece[T]{}, ctx.Err()
	}
}

// serve is the HSM's side of a stream.
func serve[T any](ctx context.Context, s *session, method string, f func(context.Context) iter.Seq2[T, error], out chan<- piece[T]) {
	if !s.travel(ctx, method, 0, true, breaks(ctx, out)) {
		return
	}
	var items []T
	n := 0
	flush := func(err error, end bool) bool {
		n++
		s.n.w.checker.onTheWire(masked(items)...)
		if !s.travel(ctx, method, n, false, breaks(ctx, out)) {
			return false
		}
		select {
		case out <- piece[T]{items, err, end}:
			items = nil
			return true
		case <-ctx.Done():
			return false
		}
	}
	for v, err := range f(ctx) {
		if err != nil {
			flush(err, true)
			return
		}
		if items = append(items, v); len(items) == pieceSize && !flush(nil, false) {
			return
		}
	}
	flush(nil, true)
}

// breaks makes of a stream's channel a way to say that the stream is broken.
func breaks[T any](ctx context.Context, out chan<- piece[T]) func(error) {
	return func(err error) {
		select {
		case out <- piece[T]{err: err, end: true}:
		case <-ctx.Done():
		}
	}
}

// masked lists those of the items that are masked objects.
func masked[T any](items []T) (objects []hsm.MaskedObject) {
	for _, v := range items {
		if m, ok := any(v).(hsm.MaskedObject); ok {
			objects = append(objects, m)
		}
	}
	return objects
}

// travel is the way of the request of a stream, or of a piece. False: it does not
// arrive; broken was told, if the other side notices.
func (s *session) travel(ctx context.Context, method string, n int, request bool, broken func(error)) bool {
	f := s.n.fate(call{from: s.from, to: s.to, method: method, about: fmt.Sprintf("piece %d", n)})
	time.Sleep(f.there)
	from, to := s.to.name, s.from.name
	if request {
		from, to = to, from
	}
	h, _ := s.to.running()
	switch {
	case ctx.Err() != nil || s.from.isDead():
		return false
	case f.lost || s.n.isCut(from, to):
		s.n.w.trace.add("%s: lost", f.id)
		if f.noticed {
			broken(gone(s.to))
		}
		return false
	case h == nil || !s.to.alive(s.life) || s.conn.ended.Load():
		s.n.w.trace.add("%s: another life", f.id)
		broken(fmt.Errorf("%w: %s was started again", hsm.ErrSession, s.to.name))
		return false
	}
	s.n.w.trace.add("%s: ok", f.id)
	return true
}

func (s *session) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return stream(ctx, s, "Objects", s.replica().Objects)
}

func (s *session) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	list := slices.Collect(refs) // the request
	return stream(ctx, s, "Extract", func(ctx context.Context) iter.Seq2[hsm.MaskedObject, error] {
		return s.replica().Extract(ctx, slices.Values(list))
	})
}

func (s *session) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return stream(ctx, s, "Cells", func(ctx context.Context) iter.Seq2[hsm.Cell, error] { return s.replica().Cells(ctx, from) })
}

func (s *session) Keys(ctx context.Context, f hsm.Filter) iter.Seq2[hsm.KeyInfo, error] {
	return stream(ctx, s, "Keys", func(ctx context.Context) iter.Seq2[hsm.KeyInfo, error] { return s.inner.Keys(ctx, f) })
}

// Insert sends the objects in pieces. What was inserted when a piece is lost
// stays inserted, as the contract has it.
func (s *session) Insert(ctx context.Context, objects iter.Seq2[hsm.MaskedObject, error]) (total hsm.Inserted, err error) {
	var items []hsm.MaskedObject
	sent := false
	flush := func() error {
		if len(items) == 0 && sent {
			return nil
		}
		sent = true
		send := items
		items = nil
		n, err := s.insert(ctx, send)
		total.Add(n)
		return err
	}
	for m, err := range objects {
		if err != nil {
			return total, err
		}
		if items = append(items, m); len(items) == pieceSize {
			if err := flush(); err != nil {
				return total, err
			}
		}
	}
	return total, flush()
}

func (s *session) insert(ctx context.Context, objects []hsm.MaskedObject) (hsm.Inserted, error) {
	about := "nothing"
	if len(objects) > 0 {
		about = objects[0].Ref.String() + " " + objects[0].Digest.String()[:8]
	}
	s.n.w.checker.onTheWire(objects...)
	return ask(ctx, s, "Insert", about, true, func(ctx context.Context) (hsm.Inserted, error) {
		return s.n.w.insert(ctx, s, objects)
	})
}

func each(objects []hsm.MaskedObject) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		for _, m := range objects {
			if !yield(m, nil) {
				return
			}
		}
	}
}
