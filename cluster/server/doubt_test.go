package server

import (
	"errors"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// testLease is the lease of operations that are to fall in doubt. It is over when
// the client has long gone, and not before a busy machine has prepared them everywhere.
const testLease = 4 * time.Second

// prepared is an operation that a client has prepared on every HSM.
type prepared struct {
	op       hsm.OpID
	ref      hsm.KeyRef
	sessions []hsm.Session
}

// prepare makes a key provisional on all HSMs that are up.
func (w *world) prepare(lease time.Duration) prepared {
	w.t.Helper()
	p := prepared{op: newOp()}
	for _, b := range w.up() {
		p.sessions = append(p.sessions, b.alice())
	}
	r := aesRequest("in doubt")
	r.Lease = lease
	made, err := p.sessions[0].Create(w.t.Context(), p.op, r)
	if err != nil {
		w.t.Fatal(err)
	}
	p.ref = made.Keys[0].Ref
	for _, s := range p.sessions[1:] {
		if err := s.Prepare(w.t.Context(), p.op, lease, made.Objects); err != nil {
			w.t.Fatal(err)
		}
	}
	return p
}

// vanish is what a client does that dies.
func (p prepared) vanish() {
	for _, s := range p.sessions {
		_ = s.Close()
	}
}

func (b *box) inDoubt() int { return len(b.server.device.soft.InDoubt()) }

// settled waits until no HSM that is up has anything in doubt or pending.
func (w *world) settled(ref hsm.KeyRef, want error) {
	w.t.Helper()
	for i, b := range w.up() {
		w.eventually("an operation stays in doubt", func() bool {
			_, err := b.alice().Key(w.t.Context(), ref)
			return b.inDoubt() == 0 && (want == nil) == (err == nil)
		})
		if _, err := b.alice().Key(w.t.Context(), ref); !errors.Is(err, want) {
			w.t.Errorf("HSM %d: %v, want %v", i+1, err, want)
		}
	}
}

// mustResolve demands what every HSM knows of an operation in the end.
func (w *world) mustResolve(op hsm.OpID, want hsm.OpState) {
	w.t.Helper()
	for i, b := range w.up() {
		w.eventually("an HSM does not settle an operation", func() bool {
			state, err := b.self().Resolve(w.t.Context(), op)
			if err != nil {
				w.t.Fatalf("HSM %d: %v", i+1, err)
			}
			return state == want && b.inDoubt() == 0
		})
	}
}

func TestAnOperationNobodyCommittedIsDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.createAlice()
	p := w.prepare(testLease)
	p.vanish()
	w.mustResolve(p.op, hsm.OpAborted)
	w.settled(p.ref, hsm.ErrNotFound)
	late := w.boxes[1].alice()
	if err := late.Commit(t.Context(), p.op); !errors.Is(err, hsm.ErrOp) {
		t.Errorf("a late commit: %v, want ErrOp", err)
	}
	w.createKey(w.boxes[0].alice(), "the next one")
	w.converge()
}

func TestAnOperationOfOneHSMIsDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.createAlice()
	p := w.prepare(testLease)
	p.vanish()
	w.mustResolve(p.op, hsm.OpAborted)
	w.settled(p.ref, hsm.ErrNotFound)
}

func TestAnOperationCommittedOnceIsCommittedEverywhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.createAlice()
	p := w.prepare(time.Minute) // long enough that its lease is never the reason
	if err := p.sessions[1].Commit(t.Context(), p.op); err != nil {
		t.Fatal(err)
	}
	p.vanish()
	w.mustResolve(p.op, hsm.OpCommitted)
	w.settled(p.ref, nil)
	w.converge()
}

// TestAnOperationWaitsForWhoeverMayHaveCommittedIt: a member that is down.
func TestAnOperationWaitsForWhoeverMayHaveCommittedIt(t *testing.T) {
	t.Parallel()
	for name, commit := range map[string]bool{"dropped": false, "committed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 3)
			w.createAlice()
			away := w.boxes[2]
			for _, b := range w.boxes[:2] { // so that the commit reaches nobody else
				if err := b.stop(); err != nil {
					t.Fatal(err)
				}
			}
			var others []*Server
			for _, b := range w.boxes[:2] {
				s, err := Open(t.Context(), b.folder, b.options())
				if err != nil {
					t.Fatal(err)
				}
				others = append(others, s)
			}
			op, ref := prepareOffline(t, w, away, others, commit)
			if err := away.stop(); err != nil {
				t.Fatal(err)
			}
			for i, s := range others {
				w.boxes[i].serve(s)
			}
			w.eventually("the operation is not in doubt", func() bool { return w.boxes[0].info().InDoubt == 1 && w.boxes[1].info().InDoubt == 1 })
			time.Sleep(10 * testInterval) // rounds in which it must stay so
			for i, b := range w.up() {
				if n := b.info().InDoubt; n != 1 {
					t.Fatalf("HSM %d shows %d operations in doubt while a member is away, want 1", i+1, n)
				}
			}
			away.start()
			if commit {
				w.mustResolve(op, hsm.OpCommitted)
				w.settled(ref, nil)
				return
			}
			w.mustResolve(op, hsm.OpAborted)
			w.settled(ref, hsm.ErrNotFound)
		})
	}
}

// prepareOffline prepares an operation on an HSM that serves and on others that
// are open only, so that they learn nothing of each other.
func prepareOffline(t *testing.T, w *world, first *box, others []*Server, commit bool) (hsm.OpID, hsm.KeyRef) {
	t.Helper()
	op, alice := newOp(), hsm.Principal{Role: hsm.RoleCryptoUser, Name: "alice"}
	r := aesRequest("in doubt")
	r.Lease = testLease
	s := first.alice()
	made, err := s.Create(t.Context(), op, r)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range others {
		s, err := o.device.soft.Module(alice).Session(t.Context())
		if err == nil {
			err = s.Prepare(t.Context(), op, testLease, made.Objects)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if commit {
		if err := s.Commit(t.Context(), op); err != nil {
			t.Fatal(err)
		}
	}
	_ = s.Close()
	return op, made.Keys[0].Ref
}

// TestARestartOfAllEndsOperations: provisional keys are in memory alone. What one
// HSM has committed server-side sync brings to all; the rest is gone, and not in
// doubt.
func TestARestartOfAllEndsOperations(t *testing.T) {
	t.Parallel()
	for name, commit := range map[string]bool{"dropped": false, "committed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 3)
			w.createAlice()
			p := w.prepare(time.Minute)
			if commit {
				if err := p.sessions[2].Commit(t.Context(), p.op); err != nil {
					t.Fatal(err)
				}
			}
			for _, b := range w.boxes {
				b.server.lis.Close() // no goodbye: what a client began is not finished
				if err := b.stop(); err != nil {
					t.Log(err) // the listener
				}
			}
			for _, b := range w.boxes {
				b.start()
			}
			if commit {
				w.settled(p.ref, nil)
				return
			}
			w.settled(p.ref, hsm.ErrNotFound)
		})
	}
}

// TestARemovedMemberNeverCausesADrop: it may have the key, and nobody can ask.
func TestARemovedMemberNeverCausesADrop(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.createAlice()
	gone := w.boxes[2]
	m := hsm.Member{ID: gone.server.config.ID, Name: gone.server.config.Name, Address: gone.server.Address(), Zone: gone.server.config.Zone, Removed: true}
	if err := gone.stop(); err != nil {
		t.Fatal(err)
	}
	w.change(w.boxes[0].root(), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
	w.converge()
	p := w.prepare(testLease)
	p.vanish()
	w.eventually("the operation is not in doubt", func() bool { return w.boxes[0].inDoubt() == 1 && w.boxes[1].inDoubt() == 1 })
	w.rounds()
	time.Sleep(10 * testInterval) // rounds in which it must stay so
	for i, b := range w.up() {
		if n := b.info().InDoubt; n != 1 {
			t.Errorf("HSM %d shows %d operations in doubt, want 1", i+1, n)
		}
	}
}
