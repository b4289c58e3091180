package synckey

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestResolveRefuses: what is no conflict, nobody's to decide or cannot be done is
// refused with its reason, and nothing changes anywhere.
func TestResolveRefuses(t *testing.T) {
	stranger := newRegion(t, 1)
	for name, tt := range map[string]struct {
		change func(*twins)
		o      ResolveOptions
		want   error
		says   string
	}{
		"no such reference":    {o: ResolveOptions{Ref: 77, Keep: "src"}, want: hsm.ErrNotFound},
		"a user":               {o: ResolveOptions{Ref: hsm.UserRef("alice"), Keep: "src"}, want: hsm.ErrInvalid, says: "is a user"},
		"keep nothing":         {want: hsm.ErrInvalid, says: "want src, dst, or a birth"},
		"keep nonsense":        {o: ResolveOptions{Keep: "\x1b[2Jboth"}, want: hsm.ErrInvalid},
		"keep another birth":   {o: ResolveOptions{Keep: strings.Repeat("ab", 16)}, want: hsm.ErrNotFound},
		"another plan":         {o: ResolveOptions{Keep: "src", Plan: "0011223344556677"}, want: ErrMoved},
		"another lineage":      {change: func(w *twins) { w.dst = stranger.open(admin) }, o: ResolveOptions{Keep: "src"}, want: hsm.ErrLineage},
		"a cluster, itself":    {change: func(w *twins) { w.dst = w.a.open(admin) }, o: ResolveOptions{Keep: "src"}, want: hsm.ErrInvalid, says: "both"},
		"an appliance":         {change: func(w *twins) { w.src = w.a.open(appliance) }, o: ResolveOptions{Keep: "src"}, want: hsm.ErrDenied, says: "a person"},
		"the other's owner":    {change: func(w *twins) { w.src, w.dst = w.a.open("alice"), w.b.open("alice") }, o: ResolveOptions{Keep: "src"}, want: ErrNoConflict},
		"two users":            {change: func(w *twins) { w.src, w.dst = w.a.open("alice"), w.b.open("bob") }, o: ResolveOptions{Keep: "src"}, want: hsm.ErrDenied},
		"an old HSM":           {change: func(w *twins) { w.b.boxes[1].old.Store(true) }, o: ResolveOptions{Keep: "src"}, want: hsm.ErrInvalid, says: "upgrade"},
		"nobody answers":       {change: func(w *twins) { w.b.boxes[0].down.Store(true); w.b.boxes[1].down.Store(true) }, o: ResolveOptions{Keep: "src"}, want: hsm.ErrUnavailable, says: "destination"},
		"the owner is no more": {change: func(w *twins) { w.a.deleteUser("bob") }, o: ResolveOptions{Keep: "dst"}, want: ErrBlocked, says: "bob (owner), unknown at the source"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTwins(t, "alice", "bob")
			if tt.change != nil {
				tt.change(w)
			}
			before := []hsm.Root{w.a.root(0), w.a.root(1), w.b.root(0), w.b.root(1)}
			_, err := w.resolve(tt.o)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "\x1b") {
				t.Errorf("%v; want %v, %q", err, tt.want, tt.says)
			}
			for i, now := range []hsm.Root{w.a.root(0), w.a.root(1), w.b.root(0), w.b.root(1)} {
				if now != before[i] {
					t.Error("something has changed")
				}
			}
		})
	}
	t.Run("no conflict", func(t *testing.T) {
		w := newTwins(t, "alice", "alice")
		ref := w.a.key("alice", "one birth")
		for _, keep := range []string{"src", "dst"} {
			if _, err := w.resolve(ResolveOptions{Ref: ref, Keep: keep}); !errors.Is(err, ErrNoConflict) {
				t.Errorf("keep %s: %v", keep, err)
			}
		}
		w.b.put([]hsm.MaskedObject{w.a.get(0, ref)})
		w.a.setLabel(ref, "another")
		if _, err := w.resolve(ResolveOptions{Ref: ref, Keep: "src"}); !errors.Is(err, ErrNoConflict) {
			t.Errorf("an edit: %v", err)
		}
	})
}

// TestResolveRights: the owner of both decides, as does an admin, and an appliance
// brings over what they have decided.
func TestResolveRights(t *testing.T) {
	w := newTwins(t, "alice", "alice")
	w.src, w.dst = w.a.open("alice"), w.b.open("alice")
	if r, err := w.resolve(ResolveOptions{Keep: "src", KeepBoth: true}); err != nil || !r.Resolved || !r.RootsEqual {
		t.Errorf("the owner of both: %v, %+v", err, r)
	}
	w.stands("by its owner", w.ofA)

	w = newTwins(t, "alice", "bob")
	w.a.put([]hsm.MaskedObject{w.a.changeOn(0, hsm.RoleAdmin, admin, hsm.Change{Kind: hsm.ChangeSupersede, Ref: w.ref, Masked: &w.ofB, Value: birthOf(t, w.ofA)})})
	r, err := run(t.Context(), w.a.open("alice"), w.b.open("alice"), Options{Destroyed: true})
	if err != nil || r.Applied != 0 || !live(w.b, w.ref) || w.b.get(0, w.ref).Object != w.ofB.Object {
		t.Errorf("alice ends a key of bob: %v, %+v", err, r)
	}
	if r, err = run(t.Context(), w.a.open(appliance), w.b.open(appliance), Options{Destroyed: true}); err != nil || !r.RootsEqual {
		t.Errorf("the appliance brings it over: %v, %+v", err, r)
	}
	w.stands("by the appliance", w.ofA)
}

// TestResolveWithDeadHSMs: an HSM that is away is named, and gets the decision when
// it is back; with too few for the policy the command stops, and goes on later.
func TestResolveWithDeadHSMs(t *testing.T) {
	w := newTwins(t, "alice", "alice")
	w.b.boxes[1].down.Store(true)
	w.dst = w.b.open(admin)
	r, err := w.resolve(ResolveOptions{Keep: "src", KeepBoth: true})
	if err != nil || !r.Resolved || len(r.Dst.Away) != 1 || r.Dst.Away[0] != w.b.boxes[1].id {
		t.Fatalf("%v, %+v", err, r)
	}
	w.b.heal()
	w.b.sync()
	w.stands("back again", w.ofA)

	w = newTwins(t, "alice", "alice")
	w.dst = w.b.open(admin, minCopies(2))
	var decided atomic.Bool // the kept key is everywhere, and the decision on its way
	for _, b := range w.a.boxes {
		b.onCall(func(method string) error {
			if method == "Change" {
				decided.Store(true)
			}
			return nil
		})
	}
	dying := w.b.boxes[1]
	dying.onCall(func(method string) error {
		if method == "Insert" && decided.Load() {
			dying.down.Store(true)
		}
		return nil
	})
	if _, err = w.resolve(ResolveOptions{Keep: "src", KeepBoth: true}); !errors.Is(err, cluster.ErrMinCopies) && !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("too few copies: %v", err)
	}
	w.b.heal()
	w.dst = w.b.open(admin, minCopies(2))
	if r, err = w.resolve(ResolveOptions{Keep: "src", KeepBoth: true}); err != nil || !r.Resolved || !r.RootsEqual {
		t.Errorf("again: %v, %+v", err, r)
	}
	w.stands("too few at first", w.ofA)
}

// TestResolveNotDestroyable: what its owner has protected from being destroyed gives
// way only once it is kept.
func TestResolveNotDestroyable(t *testing.T) {
	w := newTwins(t, "alice", "alice")
	w.b.put([]hsm.MaskedObject{w.b.changeOn(0, hsm.RoleCryptoUser, "alice", hsm.Change{Kind: hsm.ChangeAttribute, Ref: w.ref, Name: "destroyable", Value: "false"})})
	if _, err := w.resolve(ResolveOptions{Keep: "src"}); !errors.Is(err, hsm.ErrAttribute) || !strings.Contains(err.Error(), "keep it too") {
		t.Errorf("%v; want ErrAttribute", err)
	}
	if r, err := w.resolve(ResolveOptions{Keep: "src", KeepBoth: true}); err != nil || !r.RootsEqual {
		t.Errorf("kept: %v, %+v", err, r)
	}
	w.stands("not destroyable", w.ofA)
}
