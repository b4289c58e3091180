package synckey

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// hostile is an HSM that answers as it likes, to someone it has proven its
// lineage to.
type hostile struct {
	hsm.Session
	cells   func(iter.Seq2[hsm.Cell, error]) iter.Seq2[hsm.Cell, error]
	objects func(iter.Seq2[hsm.Object, error]) iter.Seq2[hsm.Object, error]
	extract func(iter.Seq2[hsm.MaskedObject, error]) iter.Seq2[hsm.MaskedObject, error]
	root    func(hsm.Root) hsm.Root
}

func (h hostile) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return changed(h.cells, h.Session.Cells(ctx, from))
}

func (h hostile) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return changed(h.objects, h.Session.Objects(ctx))
}

func (h hostile) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return changed(h.extract, h.Session.Extract(ctx, refs))
}

func (h hostile) Root(ctx context.Context) (hsm.Root, error) {
	r, err := h.Session.Root(ctx)
	if h.root != nil {
		r = h.root(r)
	}
	return r, err
}

func changed[T any](how func(iter.Seq2[T, error]) iter.Seq2[T, error], in iter.Seq2[T, error]) iter.Seq2[T, error] {
	if how == nil {
		return in
	}
	return how(in)
}

type hostileModule struct {
	hsm.Module
	how hostile
}

func (m hostileModule) Session(ctx context.Context) (hsm.Session, error) {
	s, err := m.Module.Session(ctx)
	h := m.how
	h.Session = s
	return h, err
}

// openHostile connects to a region all of whose HSMs are hostile.
func (r *region) openHostile(how hostile) *cluster.Cluster {
	return r.open(appliance, cluster.WithDialer(func(ctx context.Context, m hsm.Member) (hsm.Module, error) {
		module, err := r.dial(ctx, m)
		return hostileModule{module, how}, err
	}))
}

func endless[T any](next func(i int) T) func(iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(iter.Seq2[T, error]) iter.Seq2[T, error] {
		return func(yield func(T, error) bool) {
			for i := 0; yield(next(i), nil); i++ {
			}
		}
	}
}

// TestHostilePeer: whatever a source answers, and for however long, a run ends:
// with a refusal that says so, or with what the lists say.
func TestHostilePeer(t *testing.T) {
	a := newRegion(t, 1)
	a.keys(5)
	b := a.clone(1)
	ref := a.key("alice", "new")
	known := a.get(0, ref)
	random := rand.New(rand.NewPCG(1, 2))
	noise := endless(func(int) (c hsm.Cell) {
		for i := range c.Item {
			c.Item[i] = byte(random.Uint32())
		}
		c.Check, c.Count = random.Uint64(), int64(random.IntN(3))-1
		return c
	})
	stranger := start(t, "stranger", hsm.NewKeyring(), 1)
	foreign := stranger.birth(ref, "alice", "of another lineage")
	other := a.birth(hsm.NewKeyRef(), "alice", "under another name")
	tests := map[string]struct {
		how  hostile
		want error // nil: the run does its work all the same
	}{
		"cells that never decode":          {hostile{cells: noise}, nil},
		"cells without end that are empty": {hostile{cells: endless(func(int) hsm.Cell { return hsm.Cell{} })}, nil},
		"a root that counts too many":      {hostile{root: func(r hsm.Root) hsm.Root { r.Count = 1 << 62; return r }, cells: noise}, nil},
		"lists that stand still": {hostile{cells: noise, objects: endless(func(int) hsm.Object {
			return hsm.Object{Ref: 7, Kind: hsm.KindKey, Digest: hsm.Digest{1}}
		})}, reconcile.ErrPeer},
		"objects without end": {hostile{extract: endless(func(int) hsm.MaskedObject { return known })}, reconcile.ErrPeer},
		"an object of nobody": {hostile{extract: endless(func(int) hsm.MaskedObject { return hsm.MaskedObject{Object: known.Object} })}, hsm.ErrCorrupt},
		"another lineage midway": {hostile{extract: func(iter.Seq2[hsm.MaskedObject, error]) iter.Seq2[hsm.MaskedObject, error] {
			return all([]hsm.MaskedObject{foreign})
		}}, hsm.ErrLineage},
		"an object nobody asked": {hostile{extract: endless(func(int) hsm.MaskedObject { return other })}, reconcile.ErrPeer},
		"an object renamed": {hostile{extract: endless(func(int) hsm.MaskedObject {
			m := other
			m.Ref = ref
			return m
		})}, reconcile.ErrPeer},
		"nothing where there was something": {hostile{extract: func(iter.Seq2[hsm.MaskedObject, error]) iter.Seq2[hsm.MaskedObject, error] {
			return func(func(hsm.MaskedObject, error) bool) {}
		}}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			before := b.root(0)
			src, dst := a.openHostile(tt.how), b.open(appliance)
			p, err := NewPlan(context.Background(), src, dst, Options{})
			if tt.want != nil {
				if !errors.Is(err, tt.want) {
					t.Errorf("%v; want %v", err, tt.want)
				}
			} else if err != nil || p.Result.Missing+p.Result.Remaining > 2 {
				t.Errorf("%v, %+v", err, p)
			}
			if b.root(0) != before {
				t.Error("the destination has changed")
			}
		})
	}
}
