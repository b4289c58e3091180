package synckey

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// twins are two regions with one reference under which each has a key of its own.
type twins struct {
	t        testing.TB
	a, b     *region
	src, dst *cluster.Cluster // as admin
	ref      hsm.KeyRef
	ofA, ofB hsm.MaskedObject
}

func newTwins(t testing.TB, ownerA, ownerB string) *twins {
	t.Helper()
	a := newRegion(t, 2)
	a.keys(3)
	b := a.clone(2)
	w := &twins{t: t, a: a, b: b, ref: hsm.NewKeyRef(), src: a.open(admin), dst: b.open(admin)}
	w.ofA, w.ofB = a.birth(w.ref, ownerA, "of a"), a.birth(w.ref, ownerB, "of b")
	a.put([]hsm.MaskedObject{w.ofA})
	b.put([]hsm.MaskedObject{w.ofB})
	return w
}

func (w *twins) resolve(o ResolveOptions) (*Resolved, error) {
	if o.Ref == 0 {
		o.Ref = w.ref
	}
	return Resolve(context.Background(), w.src, w.dst, o)
}

func birthOf(t testing.TB, m hsm.MaskedObject) string {
	t.Helper()
	_, r, err := hsm.ParseMasked(m.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(r.Birth[:])
}

// material opens what a region holds under a reference; nothing of a tombstone.
func (r *region) material(i int, ref hsm.KeyRef) string {
	r.t.Helper()
	m := r.get(i, ref)
	if m.Bytes == nil {
		return ""
	}
	rec, err := r.keyring.Unmask(m)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(rec.Material.Reveal())
}

// stands checks that a masked object's key is what both regions hold under the
// reference, on all HSMs, and that nothing else differs.
func (w *twins) stands(what string, m hsm.MaskedObject) {
	w.t.Helper()
	rec, err := w.a.keyring.Unmask(m)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range []*region{w.a, w.b} {
		for i := range r.boxes {
			if r.material(i, w.ref) != string(rec.Material.Reveal()) {
				w.t.Errorf("%s: HSM %d of %s holds another key", what, i, r.name)
			}
		}
	}
	if !equal(w.a, w.b) {
		w.t.Errorf("%s: the roots differ", what)
	}
}

// kept is where a birth is kept.
func (w *twins) kept(m hsm.MaskedObject) hsm.KeyRef {
	rec, err := w.a.keyring.Unmask(m)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.a.keyring.KeptRef(rec.Ref, rec.Birth)
}

func TestResolve(t *testing.T) {
	for _, tt := range []struct {
		keep string
		both bool
	}{{"src", false}, {"dst", false}, {"src", true}, {"dst", true}} {
		t.Run(fmt.Sprintf("keep %s, both %t", tt.keep, tt.both), func(t *testing.T) {
			w := newTwins(t, "alice", "bob")
			wins, loses := w.ofA, w.ofB
			if tt.keep == "dst" {
				wins, loses = loses, wins
			}
			plan, err := NewResolution(t.Context(), w.src, w.dst, ResolveOptions{Ref: w.ref, Keep: tt.keep, KeepBoth: tt.both})
			if err != nil {
				t.Fatal(err)
			}
			shown := map[string]string{}
			for _, b := range plan.Result.Births {
				shown[b.Birth] = fmt.Sprint(b.At, b.Fate, b.Owner, b.Label)
			}
			lost := map[bool]string{true: FateKept, false: FateLost}[tt.both]
			fate := map[bool]string{true: FateStands, false: lost}
			want := map[string]string{
				birthOf(t, w.ofA): fmt.Sprint([]string{"source"}, fate[tt.keep == "src"], "alice", "of a"),
				birthOf(t, w.ofB): fmt.Sprint([]string{"destination"}, fate[tt.keep == "dst"], "bob", "of b"),
			}
			if d := cmp.Diff(want, shown); d != "" {
				t.Error("the plan:", d)
			}
			r, err := w.resolve(ResolveOptions{Keep: tt.keep, KeepBoth: tt.both, Plan: plan.Result.Plan})
			if err != nil || !r.Resolved || !r.RootsEqual || r.Remaining != 0 {
				t.Fatalf("%v, %+v", err, r)
			}
			w.stands("resolved", wins)
			ref := w.kept(loses)
			for _, at := range []*region{w.a, w.b} {
				if is := live(at, ref); is != tt.both || is && at.material(0, ref) == at.material(0, w.ref) {
					t.Errorf("kept at %s: %t", at.name, is)
				}
			}
			if want := map[bool][]hsm.KeyRef{true: {ref}, false: {}}[tt.both]; !slices.Equal(r.Kept, want) {
				t.Errorf("kept %v; want %v", r.Kept, want)
			}
			again, err := w.resolve(ResolveOptions{Keep: tt.keep, KeepBoth: tt.both})
			if err != nil || !again.Resolved || !again.RootsEqual {
				t.Errorf("again: %v, %+v", err, again)
			}
			w.stands("resolved again", wins)
			if r, err := run(t.Context(), w.src, w.dst, Options{Both: true}); err != nil || !r.RootsEqual || len(r.Conflicts) != 0 || r.Applied != 0 {
				t.Errorf("a run afterwards: %v, %+v", err, r)
			}
			if _, err := w.resolve(ResolveOptions{Keep: birthOf(t, loses)}); !errors.Is(err, hsm.ErrNotFound) {
				t.Errorf("the one that is gone: %v", err)
			}
		})
	}
}

// TestResolveDies lets a resolution die after each of its steps, and then anywhere
// between the client and the HSMs, in each of three ways. Nothing is ever lost that
// the person keeps, and the same command brings everything to its end, once.
func TestResolveDies(t *testing.T) {
	died := errors.New("died")
	unharmed := func(w *twins, what string) {
		w.t.Helper()
		a, b := w.a.keyring, w.kept(w.ofB)
		rec, err := a.Unmask(w.ofB)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, at := range []hsm.KeyRef{w.ref, b} {
			for _, r := range []*region{w.a, w.b} {
				for i := range r.boxes {
					if r.material(i, at) == string(rec.Material.Reveal()) {
						return
					}
				}
			}
		}
		w.t.Errorf("%s: the key that is to be kept is nowhere", what)
	}
	finish := func(w *twins, what string) {
		w.t.Helper()
		unharmed(w, what)
		before := w.a.root(0).Count
		w.a.heal()
		w.b.heal()
		w.a.sync()
		w.b.sync()
		w.src, w.dst = w.a.open(admin), w.b.open(admin)
		r, err := w.resolve(ResolveOptions{Keep: "src", KeepBoth: true})
		if err != nil || !r.Resolved || !r.RootsEqual {
			w.t.Errorf("%s, then again: %v, %+v", what, err, r)
			return
		}
		w.stands(what, w.ofA)
		if !live(w.a, w.kept(w.ofB)) || !live(w.b, w.kept(w.ofB)) || w.a.root(0).Count > before+1 {
			w.t.Errorf("%s: what is kept is lost or doubled", what)
		}
	}
	t.Run("after each step", func(t *testing.T) {
		for n := 1; ; n++ {
			w := newTwins(t, "alice", "alice")
			r, err := NewResolution(t.Context(), w.src, w.dst, ResolveOptions{Ref: w.ref, Keep: "src", KeepBoth: true})
			if err != nil {
				t.Fatal(err)
			}
			count, at := 0, ""
			r.done = func(step string) error {
				if at = step; count == n-1 {
					return died
				}
				count++
				return nil
			}
			err = r.Apply(t.Context())
			if err == nil {
				if n != 5 {
					t.Errorf("%d steps; want 4", n-1)
				}
				return
			}
			if !errors.Is(err, died) {
				t.Fatal(err)
			}
			finish(w, "died when "+at)
			w.a.stop()
			w.b.stop()
		}
	})
	for name, fail := range map[string]func(b *box) (before, after error){
		"call lost":   func(*box) (error, error) { return fmt.Errorf("%w: lost", hsm.ErrUnavailable), nil },
		"answer lost": func(*box) (error, error) { return nil, fmt.Errorf("%w: lost", hsm.ErrUnavailable) },
		"HSM dies":    func(b *box) (error, error) { b.down.Store(true); return nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			for step := int64(1); ; step++ {
				w := newTwins(t, "alice", "alice")
				var count, hit atomic.Int64
				for _, b := range append(w.a.boxes, w.b.boxes...) {
					b.onCall(func(string) error {
						if count.Add(1) != step {
							return nil
						}
						hit.Store(1)
						before, after := fail(b)
						if after != nil {
							b.onAnswer(func(string) error { b.lost.Store(nil); return after })
						}
						return before
					})
				}
				_, err := w.resolve(ResolveOptions{Keep: "src", KeepBoth: true})
				if err != nil && !errors.Is(err, hsm.ErrUnavailable) && !errors.Is(err, cluster.ErrMinCopies) {
					t.Errorf("step %d: %v", step, err)
				}
				finish(w, fmt.Sprintf("%s at call %d", name, step))
				w.a.stop()
				w.b.stop()
				if hit.Load() == 0 || t.Failed() {
					return
				}
			}
		})
	}
}

// TestResolveBothWaysAtOnce: two people decide differently, each on a side, while the
// other side cannot be reached. Nothing gives way unasked; the two decisions are
// listed, and come to one key by --both and --destroyed, or by a third decision.
func TestResolveBothWaysAtOnce(t *testing.T) {
	cut := func(w *twins, keep string) {
		w.t.Helper()
		r, err := NewResolution(w.t.Context(), w.src, w.dst, ResolveOptions{Ref: w.ref, Keep: keep})
		if err != nil {
			w.t.Fatal(err)
		}
		r.done = func(string) error { return errors.New("the link is cut") }
		if r.Apply(w.t.Context()) == nil {
			w.t.Fatal("not cut")
		}
	}
	setUp := func(t *testing.T) *twins {
		w := newTwins(t, "alice", "alice")
		// Both have looked before either decides.
		first, err := NewResolution(t.Context(), w.src, w.dst, ResolveOptions{Ref: w.ref, Keep: "src"})
		if err != nil {
			t.Fatal(err)
		}
		cut(w, "dst")
		if err := first.Apply(t.Context()); !errors.Is(err, ErrMoved) {
			t.Errorf("a plan from before another decision: %v", err)
		}
		// The HSMs of a are told otherwise before they hear of it.
		w.a.put([]hsm.MaskedObject{w.a.changeOn(0, hsm.RoleAdmin, admin, hsm.Change{Kind: hsm.ChangeSupersede, Ref: w.ref, Masked: &w.ofB, Value: birthOf(t, w.ofA)})})
		return w
	}
	t.Run("by the run that may destroy", func(t *testing.T) {
		w := setUp(t)
		r, err := run(t.Context(), w.src, w.dst, Options{Both: true})
		if err != nil || r.Superseded != 1 || w.a.material(0, w.ref) == w.b.material(0, w.ref) || r.Remaining != 1 || len(r.Left) != 1 || !strings.Contains(r.Left[0].Reason, "synckey resolve") {
			t.Fatalf("unasked: %v, %+v", err, r)
		}
		if r, err = run(t.Context(), w.src, w.dst, Options{Both: true, Destroyed: true}); err != nil || !r.RootsEqual {
			t.Fatalf("asked: %v, %+v", err, r)
		}
		wins := w.ofA
		if birthOf(t, w.ofB) > birthOf(t, w.ofA) {
			wins = w.ofB
		}
		w.stands("two decisions", wins)
	})
	for keep, wins := range map[string]func(*twins) hsm.MaskedObject{"src": func(w *twins) hsm.MaskedObject { return w.ofA }, "dst": func(w *twins) hsm.MaskedObject { return w.ofB }} {
		t.Run("by a third decision for "+keep, func(t *testing.T) {
			w := setUp(t)
			if r, err := w.resolve(ResolveOptions{Keep: keep}); err != nil || !r.Resolved || !r.RootsEqual {
				t.Fatalf("%v, %+v", err, r)
			}
			w.stands("a third decision", wins(w))
		})
	}
}
