package reconcile

import (
	"context"
	"fmt"
	"iter"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// differing lists both sources at the same time and yields the entries that
// differ, in ascending order of reference, holding a few hundred objects.
// ErrPeer if a source lists out of order. After an error nothing follows.
func differing(ctx context.Context, from, to hsm.Source) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var wg sync.WaitGroup
		defer wg.Wait()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		a := &lister{name: "source", pipe: startPipe(ctx, &wg, from.Objects(ctx))}
		b := &lister{name: "destination", pipe: startPipe(ctx, &wg, to.Objects(ctx))}
		for {
			e, differs, err := mergeStep(ctx, a, b)
			if err != nil {
				yield(Entry{}, err)
				return
			}
			if e.Ref == 0 || differs && !yield(e, nil) {
				return
			}
		}
	}
}

// mergeStep consumes the least reference of both lists; none means the end.
func mergeStep(ctx context.Context, a, b *lister) (e Entry, differs bool, err error) {
	for _, l := range []*lister{a, b} {
		if err := l.peek(ctx); err != nil {
			return Entry{}, false, err
		}
	}
	ref := a.head.Ref
	if ref == 0 || b.head.Ref != 0 && b.head.Ref < ref {
		ref = b.head.Ref
	}
	e = Entry{Ref: ref, From: a.take(ref), To: b.take(ref)}
	return e, e.From != e.To, nil
}

// lister reads one sorted list, distrusting its order.
type lister struct {
	name  string
	pipe  *pipe[hsm.Object]
	head  hsm.Object // reference 0: to be read, or the end
	last  hsm.KeyRef
	ended bool
}

// peek sees to it that head is the next object, if there is one.
func (l *lister) peek(ctx context.Context) error {
	if l.head.Ref != 0 || l.ended {
		return nil
	}
	o, more, err := l.pipe.next(ctx)
	if err != nil {
		return fmt.Errorf("list the %s: %w", l.name, err)
	}
	if !more {
		l.ended = true
		return nil
	}
	if o.Ref <= l.last || o.Ref>>63 != 0 || o.Digest == (hsm.Digest{}) {
		return fmt.Errorf("%w: the %s lists %s with digest %s after %s", ErrPeer, l.name, o.Ref, o.Digest, l.last)
	}
	l.head, l.last = o, o.Ref
	return nil
}

// take consumes the head if it is ref's, and returns its digest.
func (l *lister) take(ref hsm.KeyRef) (d hsm.Digest) {
	if l.head.Ref == ref {
		d, l.head = l.head.Digest, hsm.Object{}
	}
	return d
}
