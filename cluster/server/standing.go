package server

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// standing is what the HSM knows of its place in the cluster: who is a member,
// which certificates are revoked, and whether it may serve. It is read on every
// call and at every handshake, and replaced when anything of it changes.
type standing struct {
	members map[hsm.HSMID]hsm.Member
	revoked map[string]time.Time // by kind/name
	self    hsm.Member
}

// place holds the current standing.
type place struct {
	now     atomic.Pointer[standing]
	changed chan struct{} // holds one token when it must be read anew
	reading turn          // held while it is, so that no older reading replaces a newer

	announcing sync.Mutex // held while the HSM's own member record is written
	joining    sync.Mutex // held while the HSM says that it has joined

	// changing counts what adds or changes something, so that an HSM that leaves
	// knows when nothing of that is under way any more.
	changing underWay
	left     atomic.Uint64 // it leaves, and nothing is: hsm.Info.Departure; otherwise 0
	entering atomic.Bool   // it has joined, and serves when peers have said that nothing is against it

	mu   sync.Mutex
	said hsm.State // the state that the log was told last
	// setBack says that, how far, and as whom peers remember; empty if it was not.
	setBack  string
	resolves time.Time // before that it says nothing of operations
}

func newPlace() *place { return &place{changed: make(chan struct{}, 1), reading: make(turn, 1)} }

// turn is a lock that is waited for on a channel, as underWay is.
type turn chan struct{}

func (t turn) Lock()   { t <- struct{}{} }
func (t turn) Unlock() { <-t }

// poke says that it must be read anew.
func (p *place) poke() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// locate reads the standing from the object store.
func (s *Server) locate(ctx context.Context) error {
	s.place.reading.Lock()
	defer s.place.reading.Unlock()
	members, err := s.device.self.Members(ctx)
	if err != nil {
		return err
	}
	revocations, err := s.device.soft.Revocations(ctx)
	if err != nil {
		return err
	}
	next := &standing{members: map[hsm.HSMID]hsm.Member{}, revoked: map[string]time.Time{}}
	for _, m := range members {
		next.members[m.ID] = m
	}
	for _, r := range revocations {
		next.revoked[r.Kind+"/"+r.Name] = r.Until
	}
	next.self = next.members[s.config.ID]
	s.place.now.Store(next)
	if !next.self.Leaving {
		s.place.left.Store(0)
		return nil
	}
	s.place.changing.wait() // what began before has ended
	if s.place.left.Load() == 0 {
		s.place.left.Store(randomDeparture())
	}
	return nil
}

func randomDeparture() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return max(binary.LittleEndian.Uint64(b[:]), 1)
}

// depart is the last step of this HSM's removal: it knows itself as removed, durably, if
// it has taken nothing since the departure that the caller names, when all that it held
// was copied. Only this HSM knows that, so it is asked first, and of a removal and one that
// takes the removal back, one comes to nothing. If it dies here it tells the others when it
// is started again (farewell).
func (s *Server) depart(ctx context.Context, session hsm.Session, c hsm.Change) (m hsm.MaskedObject, err error) {
	late := fmt.Errorf("%w: the removal of %s was taken back by somebody else", hsm.ErrLate, s.config.ID)
	switch {
	case c.Member == nil || c.Member.ID != s.config.ID || !c.Member.Removed:
		return m, fmt.Errorf("%w: a departure is of %s alone", hsm.ErrInvalid, s.config.ID)
	case s.place.left.Load() != c.Departure:
		return m, late
	}
	s.place.reading.Lock() // it does not learn meanwhile that it stays
	if s.place.left.Load() == c.Departure {
		m, err = session.Change(ctx, c)
	} else {
		err = late
	}
	s.place.reading.Unlock()
	if err != nil {
		return m, err
	}
	return m, s.locate(context.WithoutCancel(ctx))
}

// keepPlace follows the cluster's changes until the context ends: who is no
// member any more, or whose certificate was revoked, loses its connections at
// once, with the sessions on them and the calls under way.
func (s *Server) keepPlace(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.place.changed:
		}
		if err := s.locate(ctx); err != nil {
			if ctx.Err() == nil {
				s.options.Log.Error("members and revocations cannot be read", "error", err)
			}
			continue
		}
		if n := s.endConnections(); n > 0 {
			s.options.Log.Warn("connections ended: their certificates are revoked, or their HSMs removed", "connections", n)
		}
		s.announceState()
	}
}

// expelled tells whether a caller has lost its place.
func (s *Server) expelled(id pki.Identity, issued time.Time) bool {
	if hsmID, ok := id.HSM(); ok {
		m, known := s.place.now.Load().members[hsmID]
		return known && m.Removed
	}
	return s.revoked(id, issued) != nil
}

// revoked refuses certificates that were revoked. It is called during handshakes.
func (s *Server) revoked(id pki.Identity, issued time.Time) error {
	until, ok := s.place.now.Load().revoked[string(id.Kind)+"/"+id.Name]
	if !ok || issued.After(until) {
		return nil
	}
	return fmt.Errorf("%w: that of %s %s at %s; issue a new one with credential issue", pki.ErrRevoked, id.Kind, id.Name, until.UTC().Format(time.RFC3339))
}

// inviteKey returns the key of an invitation, for handshakes. One that has
// expired or was used still opens a connection, on which the joiner learns that.
func (s *Server) inviteKey(name string) ([32]byte, error) {
	id, err := hsm.ParseInviteID(name)
	if err != nil {
		return [32]byte{}, err
	}
	i, err := s.device.soft.FindInvite(context.Background(), id)
	if err != nil {
		return [32]byte{}, err
	}
	return i.Key, nil
}

// state is what the HSM does at the moment, and what an operator should know.
func (s *Server) state() (state hsm.State, notice string) { return s.stateOf(s.place.left.Load()) }

// stateOf is state, with what left was.
func (s *Server) stateOf(left uint64) (state hsm.State, notice string) {
	switch state = s.phase(); {
	case state == hsm.StateLeaving && left == 0:
		state = hsm.StateActive // until what is under way has ended
	case state == hsm.StateActive && s.recordable() != nil:
		state = hsm.StateDegraded
	}
	return state, s.notice()
}

// notice is what an operator should know, whatever the state.
func (s *Server) notice() string {
	s.place.mu.Lock()
	notices := []string{s.place.setBack}
	s.place.mu.Unlock()
	notices = append(notices, s.certificateNotice())
	return strings.Join(slices.DeleteFunc(notices, func(n string) bool { return n == "" }), "; ")
}

// phase is the state apart from what fails. It is asked for on every call.
func (s *Server) phase() hsm.State {
	self := s.place.now.Load().self
	switch {
	case self.Removed:
		return hsm.StateRemoved // it ends in its next round of sync
	case s.sync.isDuplicate():
		return hsm.StateDuplicate
	case s.joins():
		return hsm.StateJoining
	case !s.sync.caughtUp():
		return hsm.StateCatchingUp
	case self.Leaving:
		return hsm.StateLeaving
	}
	return hsm.StateActive
}

// reasons say why an HSM in a state does not serve.
var reasons = map[hsm.State]string{
	hsm.StateRemoved:    "it was removed from the cluster, and stops",
	hsm.StateDuplicate:  "another HSM runs under the same identity: a copy of its folder; stop one of them",
	hsm.StateJoining:    "it joins and has not every key yet",
	hsm.StateCatchingUp: "it was away and learns what its peers know",
	hsm.StateLeaving:    "it is being removed and takes nothing new",
}

// serves refuses what an HSM in its present state does not do. ErrUnavailable:
// callers go to another HSM.
func (s *Server) serves() error {
	if state := s.phase(); !state.Serves() {
		return s.notNow(state)
	}
	return nil
}

// takes is serves for what adds or changes keys, users or settings. The caller
// calls done when that has ended.
func (s *Server) takes() (done func(), err error) {
	refused := func() error {
		if state := s.phase(); !state.Serves() || state == hsm.StateLeaving {
			return s.notNow(state)
		}
		return nil
	}
	if err := refused(); err != nil { // not after what is under way has ended
		return nil, err
	}
	s.place.changing.begin()
	if err := refused(); err != nil {
		s.place.changing.end()
		return nil, err
	}
	return s.place.changing.end, nil
}

func (s *Server) notNow(state hsm.State) error {
	err := fmt.Errorf("%w: HSM %s is %s: %s", hsm.ErrUnavailable, s.config.ID, state, reasons[state])
	if state == hsm.StateCatchingUp {
		return startingError{err}
	}
	return err
}

// startingError is hsm.ErrStarting beside what it says.
type startingError struct{ error }

func (e startingError) Unwrap() error { return e.error }

func (e startingError) Is(target error) bool { return target == hsm.ErrStarting }

// announceState tells the log when the state has changed.
func (s *Server) announceState() {
	state, notice := s.state()
	s.place.mu.Lock()
	before := s.place.said
	s.place.said = state
	s.place.mu.Unlock()
	if state == before {
		return
	}
	if why, bad := reasons[state]; bad {
		s.options.Log.Warn("HSM does not serve as usual", "state", state, "reason", why, "notice", notice)
		return
	}
	s.options.Log.Info("HSM serves", "state", state, "notice", notice)
}

// joins tells whether this HSM has still to join.
func (s *Server) joins() bool {
	return s.place.now.Load().self.Joining || s.place.entering.Load()
}

// settleIn runs after each round of server-side sync: an HSM that joins says that
// it has every key as soon as it has.
func (s *Server) settleIn(ctx context.Context) {
	if s.joins() && s.sync.synced() && s.place.joining.TryLock() { // rounds end side by side
		if s.joins() {
			if err := s.joined(ctx, s.place.now.Load().self); err != nil {
				s.options.Log.Error("HSM cannot say that it has joined", "error", err)
			}
		}
		s.place.joining.Unlock()
	}
	s.announceAgain(ctx)
	s.announceState()
	if s.phase().Serves() {
		s.isReady()
	}
}

// announceAgain puts the HSM's own member record right where somebody else has changed it:
// a copy of its folder that ran at another address, or an admin who had not heard yet that
// it has moved. While a copy runs the two do not contend for it.
func (s *Server) announceAgain(ctx context.Context) {
	m := s.place.now.Load().self
	as := m.Name == s.config.Name && m.Address == s.advertised() && m.Zone == s.config.Zone
	if as || m.ID == 0 || m.Removed || s.sync.isDuplicate() || !s.sync.caughtUp() || !s.place.announcing.TryLock() {
		return
	}
	defer s.place.announcing.Unlock()
	err := s.announce(ctx)
	if err == nil {
		err = errors.Join(s.locate(ctx), s.sync.tell(ctx, hsm.MemberRef(m.ID)))
	}
	if err != nil && ctx.Err() == nil {
		s.options.Log.Warn("some HSMs do not know yet where this one is reached", "address", s.advertised(), "error", err)
	}
}

// joined makes the HSM a member that counts. Whoever it replaces is removed first:
// if we die in between, it is removed, and this one goes on to join when it is
// started again.
//
// It serves once a peer has heard of it, and has said that it is not being removed. A
// removal is said to the peers first, and then this HSM is asked whether it has joined
// (cluster.Remove): whichever is later learns of the other. If we die before the peers have
// heard, it catches up with them when it is started again, and serves then.
func (s *Server) joined(ctx context.Context, self hsm.Member) error {
	if old, ok := s.place.now.Load().members[self.Replaces]; ok && !old.Removed {
		old.Removed = true
		if _, err := s.device.self.Change(ctx, hsm.Change{Kind: hsm.ChangeMember, Member: &old}); err != nil {
			return err
		}
		s.options.Log.Warn("HSM removed: this one takes its place", "removed", old.ID.String())
	}
	s.place.entering.Store(true)
	self.Joining = false
	if _, err := s.device.self.Change(ctx, hsm.Change{Kind: hsm.ChangeMember, Member: &self}); err != nil {
		return err
	}
	// A reference that there is no object for is passed over.
	heard, err := s.sync.share(ctx, hsm.MemberRef(self.ID), hsm.MemberRef(self.Replaces))
	if heard == 0 {
		return errors.Join(err, fmt.Errorf("%w: no other HSM could be told", hsm.ErrUnavailable)) // the next round tells them
	}
	if err := s.locate(ctx); err != nil {
		return err
	}
	s.place.entering.Store(false)
	s.options.Log.Info("HSM has joined: it has every key", "hsm", self.ID.String())
	return err
}
