package cluster

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// known returns what an HSM knows of a member.
func (b *box) known(id hsm.HSMID) hsm.Member {
	b.w.t.Helper()
	members, err := b.peer().Members(context.Background())
	if err != nil {
		b.w.t.Fatal(err)
	}
	for _, m := range members {
		if m.ID == id {
			return m
		}
	}
	return hsm.Member{}
}

// TestRemovalThatFailsAtTheEnd: an HSM whose removal was refused stays a member like
// the others; if it may be known as removed somewhere, it goes on to take nothing.
func TestRemovalThatFailsAtTheEnd(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault   fault
		leaving bool
		want    error
	}{
		"refused everywhere":      {full, false, hsm.ErrFull},
		"done, and no answer":     {lose, true, hsm.ErrUnavailable},
		"not done, and no answer": {drop, true, hsm.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 3, 2, false)
			c := w.open(Credential{Role: hsm.RoleAdmin, Name: adminName, Password: secret(adminPassword)})
			m := w.boxes[2].member
			m.Leaving = true
			if _, err := c.Change(t.Context(), hsm.Change{Kind: hsm.ChangeMember, Member: &m}); err != nil {
				t.Fatal(err)
			}
			var calls atomic.Int64
			w.setFaults(func(_ *box, call string) fault {
				if call == "Change" && calls.Add(1) <= 3 {
					return tc.fault
				}
				return pass
			})
			_, err := c.finishRemoval(t.Context(), m, true, false)
			if !errors.Is(err, tc.want) || strings.Contains(err.Error(), "stays LEAVING") != tc.leaving {
				t.Errorf("%v, want %v; it stays LEAVING: %t", err, tc.want, tc.leaving)
			}
			w.setFaults(nil)
			w.sync()
			got := w.boxes[0].known(m.ID)
			if stays := got.Leaving || got.Removed; stays != tc.leaving {
				t.Errorf("leaving %t, removed %t; want a member like the others: %t", got.Leaving, got.Removed, !tc.leaving)
			}
		})
	}
}

// generated makes a key on two HSMs.
func (c *Cluster) generated(t *testing.T) hsm.KeyRef {
	t.Helper()
	made, err := c.Create(t.Context(), aes(), Policy{MinCopies: 2})
	if err != nil {
		t.Fatal(err)
	}
	return made.Keys[0].Ref
}

// orders lists the orders in which so many steps of two come, each a list of 0 and 1. The
// first step is that of 0: the two are alike.
func orders(steps int) (all [][]int) {
	for _, rest := range interleavings(steps-1, steps) {
		all = append(all, append([]int{0}, rest...))
	}
	return all
}

func interleavings(a, b int) [][]int {
	if a == 0 && b == 0 {
		return [][]int{nil}
	}
	var all [][]int
	if a > 0 {
		for _, rest := range interleavings(a-1, b) {
			all = append(all, append([]int{0}, rest...))
		}
	}
	if b > 0 {
		for _, rest := range interleavings(a, b-1) {
			all = append(all, append([]int{1}, rest...))
		}
	}
	return all
}

// removal is one Remove, step by step.
type removal struct {
	c       *Cluster
	m       hsm.Member
	session hsm.Session
	staying int
	force   bool
	err     error
	did     int
}

func (w *world) removalOf(b *box, force bool) *removal {
	r := &removal{c: w.open(asAdmin), m: b.member, force: force}
	session, end, err := r.c.visit(w.t.Context(), r.m)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(end)
	r.session = session
	return r
}

// step does the next step, unless one has failed.
func (r *removal) step(t *testing.T) {
	if r.err != nil {
		return
	}
	switch r.did++; r.did {
	case 1:
		r.err = r.c.announce(t.Context(), &r.m, r.session)
	case 2:
		r.staying, r.err = r.c.recheck(t.Context(), r.m, r.session, r.force)
	case 3:
		if r.err = r.c.evacuate(t.Context(), r.m, r.session, r.staying); r.err != nil && r.force {
			r.err = nil
		}
	}
}

// TestTwoRemovalsAtOnce: whichever step of one removal comes between which of another,
// the two do not both take the other's HSM for one that stays. What is on those two alone
// is copied to an HSM that stays, or one removal is refused; and so it is if fewer HSMs
// would be left than the policy wants copies.
func TestTwoRemovalsAtOnce(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		copies int
		full   bool // the HSM that stays takes nothing
		deaf   bool // nobody hears of a removal at first but the HSM itself
	}{
		"a key is on these two alone":               {1, true, false},
		"a key is on these two alone, nobody hears": {1, true, true},
		"one HSM would be left":                     {2, false, false},
	} {
		for _, order := range orders(3) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, 3, tc.copies, false)
				w.boxes[2].away.Store(true)
				key := w.open(asUser).generated(t)
				w.boxes[2].away.Store(false)
				if w.holders(key) != 2 {
					t.Fatalf("the key is on %d HSMs", w.holders(key))
				}
				both := []*removal{w.removalOf(w.boxes[0], false), w.removalOf(w.boxes[1], false)}
				var mine atomic.Pointer[box]
				w.setFaults(func(b *box, call string) fault {
					switch {
					case tc.full && b == w.boxes[2] && call == "Insert":
						return full
					case tc.deaf && mine.Load() != nil && (call == "Change" && b != mine.Load() || call == "Members" && b != w.boxes[2]):
						return drop
					}
					return pass
				})
				for _, i := range order {
					if mine.Store(nil); both[i].did < 2 {
						mine.Store(w.boxes[i])
					}
					both[i].step(t)
				}
				for _, r := range both {
					if r.err != nil && !errors.Is(r.err, ErrRemoval) && !away(r.err) && !errors.Is(r.err, ErrNoHSM) {
						t.Errorf("order %v: %v", order, r.err)
					}
				}
				if both[0].err == nil && both[1].err == nil {
					t.Errorf("order %v: both HSMs are removed", order)
				}
			})
		}
	}
}

// TestTheLastTwoAreNotRemovedAtOnce, by force either.
func TestTheLastTwoAreNotRemovedAtOnce(t *testing.T) {
	t.Parallel()
	for _, order := range orders(3) {
		w := newWorld(t, 2, 1, false)
		both := []*removal{w.removalOf(w.boxes[0], true), w.removalOf(w.boxes[1], true)}
		for _, i := range order {
			both[i].step(t)
		}
		if both[0].err == nil && both[1].err == nil {
			t.Errorf("order %v: no HSM is left", order)
		}
	}
}

// TestRemovalCopiesWhatIsOnTwoThatLeave: one after the other takes everything along.
func TestRemovalCopiesWhatIsOnTwoThatLeave(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4, 2, false)
	w.boxes[2].away.Store(true)
	w.boxes[3].away.Store(true)
	key := w.open(asUser).generated(t)
	w.heal()
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i := range errs {
		c := w.open(asAdmin)
		wg.Go(func() { _, errs[i] = c.Remove(t.Context(), w.boxes[i].member.ID, false) })
	}
	wg.Wait()
	stays := 2
	for i, err := range errs {
		if err != nil {
			stays++
			t.Logf("HSM %d: %v", i, err)
		}
	}
	if n := w.holders(key); n < stays {
		t.Errorf("the key is on %d HSMs, %d stay", n, stays)
	}
	for _, b := range w.boxes[2:] {
		if live, _ := b.keysOn(); len(live) != 1 {
			t.Errorf("an HSM that stays holds %v", live)
		}
	}
}

// TestARemovalThatAnotherTakesBack: whichever step of one removal comes between which of
// another that is refused, and its undoing, what the HSM takes in between is copied, or it
// stays.
func TestARemovalThatAnotherTakesBack(t *testing.T) {
	t.Parallel()
	var removed, refused atomic.Int64
	t.Cleanup(func() {
		if removed.Load() == 0 || refused.Load() == 0 {
			t.Errorf("%d removed, %d refused: both should come about", removed.Load(), refused.Load())
		}
	})
	for _, order := range interleavings(4, 3) {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 3, 1, false)
			b := w.boxes[0]
			r, other := w.removalOf(b, false), w.removalOf(b, false)
			var departure uint64
			steps := []func() error{
				func() (err error) {
					if err = r.c.announce(t.Context(), &r.m, r.session); err == nil {
						r.staying, err = r.c.recheck(t.Context(), r.m, r.session, false)
					}
					return err
				},
				func() (err error) { departure, err = r.c.awaitLeaving(t.Context(), r.m.ID, r.session); return err },
				func() error { return r.c.evacuate(t.Context(), r.m, r.session, r.staying) },
				func() error { return r.c.depart(t.Context(), r.m, r.session, departure) },
			}
			var key hsm.KeyRef
			others := []func(){
				func() { other.err = other.c.announce(t.Context(), &other.m, other.session) },
				func() {
					_ = other.c.stay(t.Context(), other.m)
					if !b.leaves.Load() { // otherwise it takes nothing
						key = b.creates(t)
					}
				},
				func() {
					m := b.member
					_ = other.c.announce(t.Context(), &m, other.session)
				},
			}
			for _, who := range order {
				switch {
				case who == 1:
					others[0]()
					others = others[1:]
				default:
					if r.err == nil {
						r.err = steps[0]()
					}
					steps = steps[1:]
				}
			}
			if r.err != nil {
				refused.Add(1)
				return
			}
			removed.Add(1)
			if key != 0 && w.holders(key) < 2 {
				t.Errorf("order %v: a key went down with the HSM", order)
			}
		})
	}
}

// creates makes a key on one HSM, and on no other.
func (b *box) creates(t *testing.T) hsm.KeyRef {
	t.Helper()
	s, op := b.as(hsm.RoleCryptoUser, userName), hsm.OpID{1}
	made, err := s.Create(t.Context(), op, aes())
	if err == nil {
		err = s.Commit(t.Context(), op)
	}
	if err != nil {
		t.Fatal(err)
	}
	return made.Keys[0].Ref
}

// TestALastStepWithoutAnAnswer: an HSM that may know itself as removed stays LEAVING; one
// that does not stays a member like the others.
func TestALastStepWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault   fault
		leaving bool
		want    error
	}{
		"refused":                 {full, false, hsm.ErrFull},
		"done, and no answer":     {lose, true, hsm.ErrUnavailable},
		"not done, and no answer": {drop, true, hsm.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 3, 2, false)
			b := w.boxes[2]
			c := w.open(asAdmin)
			var copied, told atomic.Bool
			w.setFaults(func(to *box, call string) fault {
				switch {
				case to == b && call == "Cells":
					copied.Store(true)
				case to == b && call == "Change" && copied.Load() && !told.Swap(true): // the last step
					return tc.fault
				}
				return pass
			})
			_, err := c.Remove(t.Context(), b.member.ID, false)
			if !errors.Is(err, tc.want) || errors.Is(err, errUnsure) != tc.leaving {
				t.Errorf("%v, want %v; it stays LEAVING: %t", err, tc.want, tc.leaving)
			}
			w.setFaults(nil)
			w.sync()
			got := w.boxes[0].known(b.member.ID)
			if stays := got.Leaving || got.Removed; stays != tc.leaving {
				t.Errorf("leaving %t, removed %t; want a member like the others: %t", got.Leaving, got.Removed, !tc.leaving)
			}
		})
	}
}

// joining makes an HSM one that joins, as far as the others have heard. If it has joined
// nobody but itself knows.
func (w *world) joining(b *box, hasJoined bool) {
	w.t.Helper()
	m, was := b.member, b.member
	m.ID, m.Name, m.Joining = hsm.NewHSMID(), "hsm-9", true
	was.Removed = true
	b.kill()
	b.member, b.fs = m, memFS()
	b.start()
	for _, other := range w.boxes {
		w.change(other.peer(), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
		w.change(other.peer(), hsm.Change{Kind: hsm.ChangeMember, Member: &was})
	}
	for _, other := range w.boxes {
		for _, scope := range []hsm.Scope{hsm.ScopeCluster, hsm.ScopeLineage} {
			if _, err := reconcile.Sync(context.Background(), other.peer().Scoped(scope), b.peer().Scoped(scope)); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	if hasJoined {
		m.Joining = false
		w.change(b.peer(), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
	}
}

// TestARemovalOfWhoHasJustJoined: what an HSM holds that has joined, as nobody but it knows
// yet, is copied; of one that cannot be asked, force is wanted where others cannot either.
func TestARemovalOfWhoHasJustJoined(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		hasJoined, deaf, away bool // deaf: the HSM does not answer; away: another one neither
		force                 bool
		want                  error
		drained               bool
	}{
		"it joins":                           {drained: true},
		"it joins, and does not answer":      {deaf: true, drained: true},
		"it has joined":                      {hasJoined: true, drained: true},
		"another does not answer":            {away: true, want: ErrRemoval},
		"another does not answer, by force":  {away: true, force: true},
		"neither answers":                    {hasJoined: true, deaf: true, away: true, want: ErrRemoval},
		"it has joined, and another is away": {hasJoined: true, away: true, drained: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 4, 1, false)
			b := w.boxes[3]
			w.joining(b, tc.hasJoined)
			var key hsm.KeyRef
			if tc.hasJoined {
				key = b.creates(t)
			}
			b.away.Store(tc.deaf)
			w.boxes[2].away.Store(tc.away)
			c := w.open(asAdmin)
			removed, err := c.Remove(t.Context(), b.member.ID, tc.force)
			if !errors.Is(err, tc.want) || err == nil && removed.Drained != tc.drained {
				t.Fatalf("%+v, %v; want drained %t, %v", removed, err, tc.drained, tc.want)
			}
			if m := w.boxes[0].known(b.member.ID); m.Removed != (tc.want == nil) || m.Leaving {
				t.Errorf("it is %+v", m)
			}
			if key != 0 && tc.want == nil && w.holders(key) < 2 {
				t.Error("its key is gone")
			}
		})
	}
}
