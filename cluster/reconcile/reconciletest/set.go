package reconciletest

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// Set is an hsm.Sketcher of references and digests with nothing behind them. It
// is not to be changed while it is read.
type Set struct {
	objects []hsm.Object // ascending by reference
	keys    hsm.FingerprintKeys
	state   *reconcile.State
}

var _ hsm.Sketcher = (*Set)(nil)

// NewSet returns a set of the objects. A prefix of 0 means the default.
func NewSet(keys hsm.FingerprintKeys, prefix int, objects []hsm.Object) *Set {
	s := &Set{objects: slices.Clone(objects), keys: keys, state: reconcile.NewState(keys, prefix)}
	slices.SortFunc(s.objects, compareObjects)
	for i := range s.objects {
		s.state.Update(nil, &s.objects[i])
	}
	return s
}

// RandomObject draws an object.
func RandomObject(r *rand.Rand) hsm.Object {
	o := hsm.Object{Ref: hsm.KeyRef(r.Uint64()>>1 | 1), Kind: hsm.KindKey}
	binary.BigEndian.PutUint64(o.Digest[:], r.Uint64())
	binary.BigEndian.PutUint64(o.Digest[8:], r.Uint64())
	return o
}

func compareObjects(a, b hsm.Object) int {
	if a.Ref < b.Ref {
		return -1
	} else if a.Ref > b.Ref {
		return 1
	}
	return 0
}

func (s *Set) find(ref hsm.KeyRef) (int, bool) {
	return slices.BinarySearchFunc(s.objects, hsm.Object{Ref: ref}, compareObjects)
}

// Put adds or replaces an object.
func (s *Set) Put(o hsm.Object) {
	i, held := s.find(o.Ref)
	if held {
		s.state.Update(&s.objects[i], &o)
		s.objects[i] = o
		return
	}
	s.state.Update(nil, &o)
	s.objects = slices.Insert(s.objects, i, o)
}

// Remove drops an object.
func (s *Set) Remove(ref hsm.KeyRef) {
	if i, held := s.find(ref); held {
		s.state.Update(&s.objects[i], nil)
		s.objects = slices.Delete(s.objects, i, i+1)
	}
}

// All returns the objects, ascending by reference, not to be written to.
func (s *Set) All() []hsm.Object { return s.objects }

// Lineage implements hsm.Source: all sets are of one lineage.
func (s *Set) Lineage() hsm.Lineage { return hsm.Lineage{1} }

// Objects implements hsm.Source.
func (s *Set) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return func(yield func(hsm.Object, error) bool) { yieldAll(ctx, s.objects, yield) }
}

// Extract implements hsm.Source; there is nothing to extract, which it says.
func (s *Set) Extract(context.Context, iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		yield(hsm.MaskedObject{}, fmt.Errorf("%w: a set of digests has no masked objects", hsm.ErrNotFound))
	}
}

// FingerprintKeys implements hsm.Sketcher.
func (s *Set) FingerprintKeys(ctx context.Context) (hsm.FingerprintKeys, error) {
	return s.keys, ctx.Err()
}

// Root implements hsm.Sketcher.
func (s *Set) Root(ctx context.Context) (hsm.Root, error) { return s.state.Root(), ctx.Err() }

// Cells implements hsm.Sketcher.
func (s *Set) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	items := func() iter.Seq2[hsm.Object, error] { return s.Objects(ctx) }
	return func(yield func(hsm.Cell, error) bool) {
		reconcile.CellsFrom(s.keys, s.state.Cells(), from, items)(yield)
	}
}
