package synckey

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

func minCopies(n int) cluster.Option { return cluster.WithPolicy(cluster.Policy{MinCopies: n}) }

func TestDestinationHSMDown(t *testing.T) {
	setUp := func(t *testing.T, copies int) *pair {
		a := newRegion(t, 2)
		b := a.clone(3)
		a.keys(10)
		b.boxes[2].down.Store(true)
		return &pair{a, b, a.open(appliance), b.open(appliance, minCopies(copies))}
	}
	t.Run("enough copies", func(t *testing.T) {
		p := setUp(t, 2)
		r := p.run(t, Options{})
		if r.Applied != 10 || !r.RootsEqual || r.Dst.HSMs != 2 || len(r.Dst.Away) != 1 || r.Dst.Away[0] != p.b.boxes[2].id {
			t.Errorf("%+v", r)
		}
		p.b.heal()
		r, err := run(t.Context(), p.a.open(appliance), p.b.open(appliance), Options{})
		if err != nil || r.Settling != 10 || r.Missing != 0 || r.OnlyAtDst != 0 || r.Applied != 10 || !r.RootsEqual {
			t.Errorf("the HSM is back: %v, %+v", err, r)
		}
	})
	t.Run("too few copies", func(t *testing.T) {
		p := setUp(t, 3)
		before := p.b.root(0)
		r, err := run(t.Context(), p.src, p.dst, Options{})
		if !errors.Is(err, cluster.ErrMinCopies) || !strings.Contains(err.Error(), "destination") {
			t.Fatalf("%v; want ErrMinCopies", err)
		}
		if r.Applied != 0 || r.Missing != 10 || r.Remaining != 10 || r.RootsEqual || p.b.root(0) != before {
			t.Errorf("%+v", r)
		}
		p.b.heal()
		if r, err = run(t.Context(), p.src, p.b.open(appliance, minCopies(3)), Options{}); err != nil || !r.RootsEqual || r.Applied != 10 {
			t.Errorf("the HSM is back: %v, %+v", err, r)
		}
	})
}

// TestDestinationHSMDies kills an HSM of the destination half way.
func TestDestinationHSMDies(t *testing.T) {
	for copies, want := range map[int]error{1: nil, 2: cluster.ErrMinCopies} {
		t.Run(fmt.Sprintf("min-copies %d", copies), func(t *testing.T) {
			a := newRegion(t, 1)
			b := a.clone(2)
			a.keys(1000)
			var calls atomic.Int32
			dying := b.boxes[1]
			dying.onCall(func(method string) error {
				if method == "Insert" && calls.Add(1) == 2 {
					dying.down.Store(true)
				}
				return nil
			})
			src := a.open(appliance)
			r, err := run(t.Context(), src, b.open(appliance, minCopies(copies)), Options{})
			if !errors.Is(err, want) {
				t.Fatalf("%v; want %v", err, want)
			}
			if copies == 1 && r.Applied != 1000 || copies == 2 && r.Applied > 256 { // one insertion was through, at most
				t.Errorf("applied %d", r.Applied)
			}
			b.heal()
			if r, err = run(t.Context(), src, b.open(appliance, minCopies(copies)), Options{}); err != nil || !r.RootsEqual {
				t.Errorf("run again: %v, %+v", err, r)
			}
			if b.root(0).Count != a.root(0).Count {
				t.Error("something was doubled or lost")
			}
		})
	}
}

func TestSourceHSMDies(t *testing.T) {
	a := newRegion(t, 2)
	b := a.clone(1)
	a.keys(50)
	src, dst := a.open(appliance), b.open(appliance)
	for _, method := range []string{"Sign", "Root", "Cells", "Extract"} {
		a.keys(20)
		for i, dying := range a.boxes {
			dying.onCall(func(m string) error {
				if m == method {
					dying.down.Store(true)
				}
				return nil
			})
			if r, err := run(t.Context(), src, dst, Options{}); err != nil || !r.RootsEqual {
				t.Errorf("HSM %d dies at %s: %v, %+v", i, method, err, r)
			}
			a.heal()
		}
	}
}

func TestSilentHSM(t *testing.T) {
	a := newRegion(t, 2)
	b := a.clone(1)
	a.keys(3)
	block := make(chan struct{})
	a.boxes[0].onCall(func(method string) error {
		if method == "Root" {
			<-block
			return hsm.ErrUnavailable
		}
		return nil
	})
	src, dst, err := newSides(a.open(appliance), b.open(appliance), Options{})
	if err != nil {
		t.Fatal(err)
	}
	src.patience = 2 * time.Second // the others have answered by then
	time.AfterFunc(src.patience+200*time.Millisecond, func() { close(block) })
	p, err := newPlan(t.Context(), src, dst, Options{}, false)
	if err != nil || p.Result.Missing != 3 || p.Result.Src.HSMs != 1 {
		t.Errorf("an HSM that does not answer: %v, %+v", err, p)
	}
}

func TestNobodyAnswers(t *testing.T) {
	p := newPair(t)
	for _, b := range p.b.boxes {
		b.down.Store(true)
	}
	if _, err := run(t.Context(), p.src, p.dst, Options{}); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), "destination") {
		t.Errorf("%v; want ErrUnavailable that names the destination", err)
	}
}

// TestCancelled stops a run half way; the next one continues.
func TestCancelled(t *testing.T) {
	p := newPair(t)
	p.a.keys(4000)
	before := p.a.root(0)
	ctx, cancel := context.WithCancel(t.Context())
	var calls atomic.Int32
	p.b.boxes[0].onCall(func(method string) error {
		if method == "Insert" && calls.Add(1) == insertsAhead+4 {
			cancel()
		}
		return nil
	})
	r, err := run(ctx, p.src, p.dst, Options{})
	if !errors.Is(err, context.Canceled) || r.Applied < 3*sliceObjects || r.Applied == 4000 {
		t.Fatalf("%v, applied %d", err, r.Applied)
	}
	p.b.heal()
	r = p.run(t, Options{})
	if !r.RootsEqual || r.Applied == 0 || r.Applied > 4000-3*sliceObjects || p.a.root(0) != before {
		t.Errorf("run again: applied %d, %+v", r.Applied, r.Left)
	}
}

// TestFailAnywhere lets every call to an HSM in its turn fail, on either side,
// and the next run must bring both sides together.
func TestFailAnywhere(t *testing.T) {
	calls := func(b *box, f func() error) {
		b.onCall(func(string) error { return f() })
	}
	tests := map[string]func(a, b *region, step int64, count *atomic.Int64){
		"call lost": func(a, b *region, step int64, count *atomic.Int64) {
			for _, box := range append(a.boxes, b.boxes...) {
				calls(box, func() error {
					if count.Add(1) == step {
						return fmt.Errorf("%w: lost", hsm.ErrUnavailable)
					}
					return nil
				})
			}
		},
		"HSM dies": func(a, b *region, step int64, count *atomic.Int64) {
			for _, box := range append(a.boxes, b.boxes...) {
				calls(box, func() error {
					if count.Add(1) == step {
						box.down.Store(true)
					}
					return nil
				})
			}
		},
		"answer lost": func(a, b *region, step int64, count *atomic.Int64) {
			for _, box := range append(a.boxes, b.boxes...) {
				box.onAnswer(func(string) error {
					if count.Add(1) == step {
						return fmt.Errorf("%w: lost", hsm.ErrUnavailable)
					}
					return nil
				})
			}
		},
	}
	for name, arm := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newRegion(t, 2)
			keys := a.keys(400)
			b := a.clone(2)
			for step := int64(1); !t.Failed(); step++ {
				a.keys(2)
				b.keys(1)
				a.setLabel(keys[step], fmt.Sprint(step))
				b.destroy("alice", keys[399-step])
				src, dst := a.open(appliance), b.open(appliance, minCopies(2))
				var count atomic.Int64
				arm(a, b, step, &count)
				o := Options{Both: true, Destroyed: true}
				r, err := run(t.Context(), src, dst, o)
				if err == nil && check(r) != nil {
					t.Errorf("step %d: %v", step, check(r))
				}
				reached := count.Load() >= step
				a.heal()
				b.heal()
				r, err = run(t.Context(), a.open(appliance), b.open(appliance), o)
				a.sync()
				b.sync()
				if err != nil || !equal(a, b) {
					t.Errorf("step %d: %v, %+v", step, err, r)
				}
				src.Close()
				dst.Close()
				if !reached {
					return
				}
			}
		})
	}
}

// TestConflictAtTheDestination checks a conflict that only the destination
// finds: it came up after the plan.
func TestConflictAtTheDestination(t *testing.T) {
	p := newPair(t)
	m := p.a.birth(hsm.NewKeyRef(), "alice", "one")
	p.a.put([]hsm.MaskedObject{m})
	fine := p.a.key("alice", "fine")
	plan, err := NewPlan(t.Context(), p.src, p.dst, Options{})
	if err != nil || plan.Result.Missing != 2 {
		t.Fatalf("%v, %+v", err, plan)
	}
	plan.settle = 0
	p.b.put([]hsm.MaskedObject{p.b.birth(m.Ref, "alice", "two")})
	before := p.b.get(0, m.Ref).Object
	if err := plan.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := plan.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := plan.Result
	if len(r.Conflicts) != 1 || r.Conflicts[0] != m.Ref || r.Applied != 1 || r.Remaining != 1 || r.RootsEqual {
		t.Errorf("%+v", r)
	}
	if p.b.get(0, m.Ref).Object != before || p.b.get(0, fine).Bytes == nil {
		t.Error("the conflict was settled, or kept another key from arriving")
	}
}

// TestSourceMovesOn checks that what came up during a run is listed and not
// taken for done.
func TestSourceMovesOn(t *testing.T) {
	p := newPair(t)
	p.a.keys(2)
	plan, err := NewPlan(t.Context(), p.src, p.dst, Options{})
	if err != nil {
		t.Fatal(err)
	}
	later := p.a.key("alice", "later")
	if err := plan.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := plan.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := plan.Result
	if r.Applied != 2 || r.RootsEqual || r.Remaining != 1 || len(r.Left) != 1 || r.Left[0].Ref != later || !strings.Contains(r.Left[0].Reason, "run it again") {
		t.Errorf("%+v", r)
	}
}

// TestForeignObject checks that the destination refuses what does not
// authenticate, and says which object it is.
func TestForeignObject(t *testing.T) {
	p := newPair(t)
	ref := p.a.key("alice", "k")
	plan, err := NewPlan(t.Context(), p.src, p.dst, Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := &plan.forth.steps.kept[ref][0]
	m.Bytes = append([]byte(nil), m.Bytes...)
	m.Bytes[len(m.Bytes)-1] ^= 1
	if err := plan.Apply(t.Context()); !errors.Is(err, hsm.ErrCorrupt) || !strings.Contains(err.Error(), ref.String()) {
		t.Errorf("%v; want ErrCorrupt that names %s", err, ref)
	}
	if p.b.get(0, ref).Bytes != nil {
		t.Error("it was inserted")
	}
}

// TestNoSketch checks a crypto user on HSMs that deny it roots and cells: lists
// are compared, on every HSM.
func TestNoSketch(t *testing.T) {
	a := newRegion(t, 2)
	a.keys(3)
	b := a.clone(2)
	a.key("alice", "one", 0)
	a.key("alice", "two", 1)
	for _, box := range append(a.boxes, b.boxes...) {
		box.onCall(func(method string) error {
			if method == "Root" || method == "Cells" {
				return fmt.Errorf("%w: no sketch for you", hsm.ErrDenied)
			}
			return nil
		})
	}
	src, dst := a.open("alice"), b.open("alice")
	r, err := run(t.Context(), src, dst, Options{})
	if err != nil || r.Missing != 2 || r.Applied != 2 || r.SketchBytes != 0 {
		t.Errorf("%v, %+v", err, r)
	}
	a.sync()
	if r, err = run(t.Context(), src, dst, Options{}); err != nil || !r.RootsEqual || r.Src.Root != "" || !equal(a, b) {
		t.Errorf("settled: %v, %+v", err, r)
	}
	if _, err = run(t.Context(), a.open(appliance), dst, Options{}); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("an appliance that is denied roots: %v; want ErrDenied", err)
	}
}

// TestConflictOfACryptoUser checks that a key which somebody else owns on the
// other side is a conflict, and not one that is missing.
func TestConflictOfACryptoUser(t *testing.T) {
	a := newRegion(t, 1)
	b := a.clone(1)
	ref := hsm.NewKeyRef()
	a.put([]hsm.MaskedObject{a.birth(ref, "alice", "one")})
	b.put([]hsm.MaskedObject{b.birth(ref, "bob", "two")})
	r, err := run(t.Context(), a.open("alice"), b.open(admin), Options{Both: true})
	if err != nil || len(r.Conflicts) != 1 || r.Applied != 0 {
		t.Errorf("%v, %+v", err, r)
	}
}

// TestUnaskedObject checks a source that answers with what it was not asked for.
func TestUnaskedObject(t *testing.T) {
	p := newPair(t)
	asked, other := p.a.key("alice", "k"), p.a.key("alice", "other")
	src, dst, err := newSides(p.src, p.dst, Options{})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := newPlan(t.Context(), src, dst, Options{}, false)
	if err != nil {
		t.Fatal(err)
	}
	l := *plan.found.src
	l.views = []hsm.Source{lying{l.views[0], other}, l.views[0]}
	if _, err := l.read(t.Context(), []hsm.KeyRef{asked}); !errors.Is(err, reconcile.ErrPeer) {
		t.Errorf("%v; want ErrPeer", err)
	}
}

// lying answers every Extract with one and the same object.
type lying struct {
	hsm.Source
	with hsm.KeyRef
}

func (l lying) Extract(ctx context.Context, _ iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return l.Source.Extract(ctx, slices.Values([]hsm.KeyRef{l.with}))
}
