package server

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// leave is the first step of a removal, everywhere.
func (w *world) leave(b *box) hsm.Member {
	w.t.Helper()
	m := w.boxes[0].member(b.id())
	m.Leaving = true
	for _, other := range w.up() {
		w.change(other.root(), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
	}
	w.eventually("it does not leave", func() bool { return b.info().State == hsm.StateLeaving })
	return m
}

// TestAnHSMThatLeavesTakesNothingNew and goes on to use what it holds.
func TestAnHSMThatLeavesTakesNothingNew(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.createAlice()
	b := w.boxes[1]
	alice := b.alice()
	ref := w.createKey(alice, "a")
	op := newOp()
	if _, err := alice.Create(t.Context(), op, aesRequest("under way")); err != nil {
		t.Fatal(err)
	}
	m := w.leave(b)
	if _, err := alice.Create(t.Context(), newOp(), aesRequest("b")); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), "LEAVING") {
		t.Errorf("a key: %v, want ErrUnavailable", err)
	}
	if err := alice.Commit(t.Context(), op); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("a commit: %v, want ErrUnavailable", err)
	}
	if _, err := alice.Change(t.Context(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref}); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("a change: %v, want ErrUnavailable", err)
	}
	if _, err := alice.Key(t.Context(), ref); err != nil {
		t.Errorf("a look: %v", err)
	}
	m.Leaving = false
	w.change(b.root(), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
	w.eventually("it does not stay", func() bool { return b.info().State == hsm.StateActive })
	w.createKey(alice, "c")
}

// TestARemovalEndsWhatIsOpen: connections of the removed HSM end at once, it is
// refused when it comes back, and both say so.
func TestARemovalEndsWhatIsOpen(t *testing.T) {
	t.Parallel()
	var said logged
	w := newWorld(t, 2)
	w.boxes[0].stop()
	w.log = newLogger(&said)
	w.boxes[0].start()
	gone := w.boxes[1]
	cfg, err := gone.server.tls.Client(w.boxes[0].id())
	if err != nil {
		t.Fatal(err)
	}
	module := w.dialWith(w.boxes[0], cfg)
	session, err := module.Session(t.Context())
	if err != nil || session.Principal().Role != hsm.RoleHSM {
		t.Fatal(session, err)
	}
	m := w.boxes[0].member(gone.id())
	m.Removed = true
	w.change(w.boxes[0].root(), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
	w.eventually("its session goes on", func() bool {
		_, err := session.Info(t.Context())
		return err != nil
	})
	again, err := module.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Root(t.Context()); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("a new session: %v, want ErrDenied", err)
	}
	ended := <-gone.served // by itself
	if gone.served <- nil; !errors.Is(ended, hsm.ErrDenied) || !errors.Is(ended, ErrRemoved) {
		t.Errorf("it ends with %v, want ErrRemoved and ErrDenied", ended)
	}
	if !strings.Contains(said.String(), "removed HSM refused") {
		t.Errorf("the cluster's log does not say so: %s", said.String())
	}
}

// TestDoubtAfterARemoval: when all that a removed HSM had committed is on the
// others, doubt ends as if it had never been; when that is not known an admin's
// word ends it, and only for what began until then.
func TestDoubtAfterARemoval(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name             string
		drained, settled bool
		keep             bool
		keys             uint64
	}{
		{name: "drained", drained: true},
		{name: "settled, drop", settled: true},
		{name: "settled, keep", settled: true, keep: true, keys: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 3)
			w.createAlice()
			gone := w.boxes[2]
			m := w.boxes[0].member(gone.id())
			m.Removed, m.Drained = true, tc.drained
			if err := gone.stop(); err != nil {
				t.Fatal(err)
			}
			p := w.prepare(testLease)
			p.vanish()
			w.change(w.boxes[0].root(), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
			if tc.settled {
				w.eventually("the operation is not in doubt", func() bool { return w.boxes[0].inDoubt() == 1 && w.boxes[1].inDoubt() == 1 })
				m.Settled, m.Keep = time.Now().UnixMilli(), tc.keep
				w.change(w.boxes[0].root(), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
			}
			w.eventually("the operation stays in doubt", func() bool {
				a, b := w.boxes[0].info(), w.boxes[1].info()
				return a.InDoubt+b.InDoubt == 0 && a.Keys == tc.keys && b.Keys == tc.keys
			})
			if !tc.settled {
				return
			}
			later := w.prepare(testLease) // an HSM that is cut off may still serve somebody
			later.vanish()
			w.eventually("the later one is not in doubt", func() bool { return w.boxes[0].inDoubt() == 1 && w.boxes[1].inDoubt() == 1 })
			w.rounds()
			if w.boxes[0].inDoubt() != 1 || w.boxes[1].inDoubt() != 1 {
				t.Error("the later one was decided with the earlier")
			}
		})
	}
}

// TestARevocationUnderWayWhenTheHSMLeaves: neither waits for the other.
func TestARevocationUnderWayWhenTheHSMLeaves(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	b := w.boxes[1]
	root, m := b.root(), w.boxes[0].member(b.id())
	m.Leaving = true
	b.server.place.reading.Lock() // it does not know yet that it leaves
	w.change(root, hsm.Change{Kind: hsm.ChangeMember, Member: &m})
	ended := make(chan error, 1)
	go func() {
		_, err := root.Change(t.Context(), hsm.Change{Kind: hsm.ChangeRevoke, Revoked: &hsm.Revocation{Kind: "client", Name: "old", Until: time.Now()}})
		ended <- err
	}()
	w.eventually("no revocation", func() bool {
		r, err := b.server.device.soft.Revocations(t.Context())
		return err == nil && len(r) == 1
	})
	b.server.place.reading.Unlock()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patienceOfTest):
		t.Fatal("the revocation and the removal wait for each other")
	}
	w.eventually("it does not leave", func() bool { return b.info().State == hsm.StateLeaving })
}

// TestAnOpenStreamDoesNotHoldUpARemoval: a caller that begins to insert and does not
// go on is no reason for the HSM not to leave; what it has sent is in or refused.
func TestAnOpenStreamDoesNotHoldUpARemoval(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.createAlice()
	b := w.boxes[1]
	ref := w.createKey(w.boxes[0].alice(), "a")
	w.converge()
	var m hsm.MaskedObject
	for object, err := range b.self().Extract(t.Context(), slices.Values([]hsm.KeyRef{ref})) {
		if err != nil {
			t.Fatal(err)
		}
		m = object
	}
	open, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	resume := sync.OnceFunc(func() { close(goOn) })
	t.Cleanup(resume)
	// As the network's side calls it: the stream is open, and nothing more comes.
	appliance, err := served{Module: b.server.device.soft.Module(hsm.Principal{Role: hsm.RoleAppliance, Name: "backup"}), server: b.server}.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := appliance.Insert(t.Context(), func(yield func(hsm.MaskedObject, error) bool) {
			if yield(m, nil) {
				close(open)
				<-goOn
			}
		})
		ended <- err
	}()
	<-open
	w.leave(b)
	resume()
	if err := <-ended; !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), "LEAVING") {
		t.Errorf("the rest of the stream: %v, want ErrUnavailable", err)
	}
}

// departs asks an HSM to know itself as removed.
func (b *box) departs(m hsm.Member, departure uint64) error {
	m.Removed, m.Leaving, m.Drained = true, false, true
	_, err := b.root().Change(b.w.t.Context(), hsm.Change{Kind: hsm.ChangeMember, Member: &m, Departure: departure})
	return err
}

// TestADepartureThatIsOver: an HSM that took something after it was copied does not go, and
// one that did not goes, and tells the others itself.
func TestADepartureThatIsOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.createAlice()
	b := w.boxes[1]
	m := w.leave(b)
	first := b.info().Departure
	stays := m
	stays.Leaving = false
	w.change(b.root(), hsm.Change{Kind: hsm.ChangeMember, Member: &stays})
	w.eventually("it does not stay", func() bool { return b.info().State == hsm.StateActive })
	if d := b.info().Departure; first == 0 || d != 0 {
		t.Errorf("departure %d while it left, %d when it stays; want one and none", first, d)
	}
	if err := b.departs(m, first); !errors.Is(err, hsm.ErrLate) {
		t.Errorf("while it stays: %v, want ErrLate", err)
	}
	w.createKey(b.alice(), "taken meanwhile")
	w.leave(b)
	if err := b.departs(m, first); !errors.Is(err, hsm.ErrLate) {
		t.Errorf("with the departure before: %v, want ErrLate", err)
	}
	w.eventually("it does not leave as the others know", func() bool { m := w.boxes[0].member(b.id()); return m.Leaving && !m.Removed })
	if err := b.departs(w.boxes[0].member(w.boxes[2].id()), b.info().Departure); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("of another HSM: %v, want ErrInvalid", err)
	}
	if err := b.departs(m, b.info().Departure); err != nil {
		t.Fatal(err)
	}
	w.othersKnow(m.ID)
	ended := <-b.served
	if b.served <- nil; !errors.Is(ended, ErrRemoved) {
		t.Errorf("it ends with %v, want ErrRemoved", ended)
	}
}

// othersKnow waits until all others know that an HSM was removed.
func (w *world) othersKnow(id hsm.HSMID) {
	w.t.Helper()
	for _, other := range w.up() {
		if other.id() != id {
			w.eventually("it tells nobody that it was removed", func() bool { m := other.member(id); return m.Removed && m.Drained })
		}
	}
}

// TestARemovedHSMTellsTheOthersWhenItStarts: if it, and the admin, died before it could.
func TestARemovedHSMTellsTheOthersWhenItStarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	b := w.boxes[1]
	m := w.leave(b)
	b.stop()
	s, err := Open(t.Context(), b.folder, b.options())
	if err != nil {
		t.Fatal(err)
	}
	m.Removed, m.Leaving, m.Drained = true, false, true
	if _, err := s.device.self.Change(t.Context(), hsm.Change{Kind: hsm.ChangeMember, Member: &m}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), b.folder, b.options()); !errors.Is(err, ErrRemoved) {
		t.Errorf("%v, want ErrRemoved", err)
	}
	w.othersKnow(m.ID)
}
