package cluster

import (
	"context"
	"errors"
	"iter"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// merger walks several lists in ascending order of reference at once, and stops
// at each reference with the items that carry it. It holds one item per list.
type merger[T any] struct {
	lists []cursor[T]
	ref   func(T) hsm.KeyRef
	items []T   // those with the lowest reference
	from  []int // the lists they come from
}

type cursor[T any] struct {
	pull  func() (T, error, bool)
	stop  func()
	item  T
	valid bool // item has not been consumed
	ended bool
	err   error
}

func newMerger[T any](lists []iter.Seq2[T, error], ref func(T) hsm.KeyRef) *merger[T] {
	m := &merger[T]{ref: ref, lists: make([]cursor[T], len(lists))}
	for i, l := range lists {
		m.lists[i].pull, m.lists[i].stop = iter.Pull2(l)
	}
	return m
}

// next moves to the next reference. False at the end, and when every list has
// failed.
func (m *merger[T]) next() bool {
	m.items, m.from = m.items[:0], m.from[:0]
	var lowest hsm.KeyRef
	for i := range m.lists {
		l := &m.lists[i]
		if !l.fill() {
			continue
		}
		switch r := m.ref(l.item); {
		case len(m.from) > 0 && r > lowest:
			continue
		case len(m.from) > 0 && r < lowest:
			m.items, m.from = m.items[:0], m.from[:0]
		}
		lowest = m.ref(l.item)
		m.items, m.from = append(m.items, l.item), append(m.from, i)
	}
	for _, i := range m.from {
		m.lists[i].valid = false
	}
	return len(m.from) > 0
}

func (l *cursor[T]) fill() bool {
	if l.valid || l.ended {
		return l.valid
	}
	item, err, ok := l.pull()
	if !ok || err != nil {
		l.ended, l.err = true, err
		return false
	}
	l.item, l.valid = item, true
	return true
}

// live counts the lists that have not failed.
func (m *merger[T]) live() int {
	n := 0
	for i := range m.lists {
		if m.lists[i].err == nil {
			n++
		}
	}
	return n
}

// failure joins the errors of the lists that failed.
func (m *merger[T]) failure() error {
	var errs []error
	for i := range m.lists {
		if err := m.lists[i].err; err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (m *merger[T]) stop() {
	for i := range m.lists {
		m.lists[i].stop()
	}
}

// listOn reads a list from one HSM and takes the HSM out of use if it breaks off.
func listOn[T any](ctx context.Context, r *remote, list func(hsm.Session) iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		l := r.current()
		if l == nil {
			var none T
			yield(none, r.downError())
			return
		}
		r.load.Add(1)
		defer r.load.Add(-1)
		for v, err := range list(l.session) {
			if err != nil {
				err = r.judge(ctx, ctx, l, err)
			}
			if !yield(v, err) || err != nil {
				return
			}
		}
	}
}
