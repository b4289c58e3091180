package reconcile_test

import (
	"context"
	"iter"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// source overrides what a Sketcher answers.
type source struct {
	hsm.Sketcher
	lineage *hsm.Lineage
	keys    func() (hsm.FingerprintKeys, error)
	root    func() (hsm.Root, error)
	cells   func(iter.Seq2[hsm.Cell, error]) iter.Seq2[hsm.Cell, error]
	objects func(iter.Seq2[hsm.Object, error]) iter.Seq2[hsm.Object, error]
	extract func(iter.Seq2[hsm.MaskedObject, error]) iter.Seq2[hsm.MaskedObject, error]
}

func (s source) Lineage() hsm.Lineage {
	if s.lineage != nil {
		return *s.lineage
	}
	return s.Sketcher.Lineage()
}

func (s source) FingerprintKeys(ctx context.Context) (hsm.FingerprintKeys, error) {
	if s.keys != nil {
		return s.keys()
	}
	return s.Sketcher.FingerprintKeys(ctx)
}

func (s source) Root(ctx context.Context) (hsm.Root, error) {
	if s.root != nil {
		return s.root()
	}
	return s.Sketcher.Root(ctx)
}

func (s source) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	seq := s.Sketcher.Cells(ctx, from)
	if s.cells != nil {
		return s.cells(seq)
	}
	return seq
}

func (s source) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	seq := s.Sketcher.Objects(ctx)
	if s.objects != nil {
		return s.objects(seq)
	}
	return seq
}

func (s source) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	seq := s.Sketcher.Extract(ctx, refs)
	if s.extract != nil {
		return s.extract(seq)
	}
	return seq
}

// plain hides that a source keeps a sketch.
type plain struct{ hsm.Source }

// failAfter yields n elements of seq, then err; or simply ends if err is nil.
func failAfter[T any](n int, err error) func(iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(seq iter.Seq2[T, error]) iter.Seq2[T, error] {
		return func(yield func(T, error) bool) {
			left := n
			for v, e := range seq {
				if left == 0 {
					break
				}
				left--
				if !yield(v, e) {
					return
				}
			}
			if err != nil {
				var zero T
				yield(zero, err)
			}
		}
	}
}

// mapped changes each element of a sequence.
func mapped[T any](f func(int, T) T) func(iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(seq iter.Seq2[T, error]) iter.Seq2[T, error] {
		return func(yield func(T, error) bool) {
			i := 0
			for v, err := range seq {
				if !yield(f(i, v), err) {
					return
				}
				i++
			}
		}
	}
}

// far is a source one round trip away.
type far struct {
	hsm.Sketcher
	trip time.Duration
}

func (f far) wait(ctx context.Context) error {
	select {
	case <-time.After(f.trip):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f far) FingerprintKeys(ctx context.Context) (hsm.FingerprintKeys, error) {
	if err := f.wait(ctx); err != nil {
		return hsm.FingerprintKeys{}, err
	}
	return f.Sketcher.FingerprintKeys(ctx)
}

func (f far) Root(ctx context.Context) (hsm.Root, error) {
	if err := f.wait(ctx); err != nil {
		return hsm.Root{}, err
	}
	return f.Sketcher.Root(ctx)
}

func (f far) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return delayed(ctx, f, f.Sketcher.Cells(ctx, from))
}

func (f far) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return delayed(ctx, f, f.Sketcher.Objects(ctx))
}

func delayed[T any](ctx context.Context, f far, seq iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		if err := f.wait(ctx); err != nil {
			var zero T
			yield(zero, err)
			return
		}
		seq(yield)
	}
}
