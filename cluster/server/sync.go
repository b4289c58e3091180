package server

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
)

// SyncInterval is the default time between two rounds of server-side sync. Each
// round is jittered by a quarter, so that HSMs do not march in step.
const SyncInterval = time.Second

// Dial reaches another member of the cluster as an HSM, and nobody else at its
// address.
type Dial func(ctx context.Context, m hsm.Member) (hsm.Module, error)

// syncer is server-side sync: every interval it compares roots with each peer,
// and pulls what differs. Since every HSM pulls from every other, all converge.
// An idle round costs one small message per peer. Each peer has a goroutine of
// its own: one that is slow, or does not answer, holds up no other.
type syncer struct {
	seed     uint64 // of the jitter
	self     hsm.HSMID
	session  hsm.Session // the local HSM, as RoleHSM
	local    Local
	dial     Dial
	interval time.Duration
	log      *slog.Logger
	expelled chan struct{}             // holds one token once a peer knows that we were removed
	after    func(ctx context.Context) // called after each round
	keys     func(ctx context.Context, peer hsm.Session, theirs hsm.Info) error
	caught   atomic.Bool
	greeting func() rpc.Greeting // nil: peers are not greeted
	setBack  func(ctx context.Context, peer hsm.HSMID, lost uint64)
	copied   atomic.Int64 // until when another HSM runs under the same identity, Unix nanoseconds
	gone     int          // members removed, as far as is known
	left     time.Time    // when the last of them was seen to be
	clockOff bool         // that the clock is off was said

	mu      sync.Mutex
	members []hsm.Member // nil until they were read once
	peers   map[hsm.HSMID]*peer
	shown   map[hsm.HSMID]*progress // of the members, for those who watch
}

func newSyncer(self hsm.HSMID, session hsm.Session, local Local, dial Dial, interval time.Duration, log *slog.Logger) *syncer {
	var seed [8]byte
	rand.Read(seed[:])
	return &syncer{
		seed: binary.LittleEndian.Uint64(seed[:]), self: self, session: session, local: local, dial: dial, interval: interval, log: log,
		expelled: make(chan struct{}, 1), peers: map[hsm.HSMID]*peer{}, shown: map[hsm.HSMID]*progress{},
		after: func(context.Context) {}, keys: func(context.Context, hsm.Session, hsm.Info) error { return nil },
	}
}

// run syncs until the context ends, and returns nil; or until it learns that
// this HSM was removed from the cluster: hsm.ErrDenied. When it returns nothing
// of it runs any more.
func (s *syncer) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var peers sync.WaitGroup
	defer peers.Wait()
	defer cancel()
	pause := s.pauses(s.self)
	for {
		if s.follow(ctx, &peers) {
			s.farewell(ctx, s.list())
			return removed(s.self)
		}
		s.settle(ctx)
		s.catchUp()
		s.tellClock()
		s.after(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-s.expelled:
			return removed(s.self)
		case <-time.After(pause()):
		}
	}
}

// pauses returns the times between rounds of one goroutine. Each goroutine has
// its own chance, which follows from the syncer's seed and a name, so that in a
// simulation it does not depend on the order in which goroutines run.
func (s *syncer) pauses(name hsm.HSMID) func() time.Duration {
	chance := mathrand.New(mathrand.NewPCG(s.seed, uint64(name)))
	return func() time.Duration {
		return s.interval - s.interval/4 + time.Duration(chance.Int64N(int64(s.interval/2)+1))
	}
}

// follow follows the member list: it starts to sync with new members, and stops
// with removed ones and with those that have moved, to begin anew at their new
// address. Those that join come to it themselves, when they have. It tells whether
// this HSM itself was removed.
func (s *syncer) follow(ctx context.Context, running *sync.WaitGroup) (gone bool) {
	members, err := s.session.Members(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Error("server-side sync: members", "error", err)
		}
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members = members
	if n := countRemoved(members); n != s.gone {
		s.gone, s.left = n, time.Now()
	}
	wanted := map[hsm.HSMID]hsm.Member{}
	for _, m := range members {
		if m.Counts() {
			wanted[m.ID] = m
		}
	}
	for id, p := range s.peers {
		if m, ok := wanted[id]; !ok || m.Address != p.member.Address {
			p.stop()
			delete(s.peers, id)
		}
	}
	for id := range s.shown {
		if _, ok := wanted[id]; !ok {
			delete(s.shown, id)
		}
	}
	for id, m := range wanted {
		if id != s.self && s.peers[id] == nil {
			if s.shown[id] == nil {
				s.shown[id] = &progress{}
			}
			ctx, stop := context.WithCancel(ctx)
			p := &peer{member: m, stop: stop, progress: s.shown[id]}
			s.peers[id] = p
			running.Go(func() { s.keepUp(ctx, p) })
		}
	}
	return slices.ContainsFunc(members, s.isSelfRemoved)
}

// list returns the members as they were read last.
func (s *syncer) list() []hsm.Member {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.members
}

func (s *syncer) isSelfRemoved(m hsm.Member) bool { return m.ID == s.self && m.Removed }

// expel ends run: a peer lists this HSM as removed.
func (s *syncer) expel() {
	select {
	case s.expelled <- struct{}{}:
	default:
	}
}

// lastSync returns the moment of which this HSM has everything that any peer
// had: now in a cluster of one, never (zero) before it has synced with each.
func (s *syncer) lastSync() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.members == nil {
		return time.Time{}
	}
	last := time.Now()
	for _, p := range s.peers {
		if at := p.lastSync(); at.Before(last) {
			last = at
		}
	}
	return last
}

// caughtUp tells whether this HSM knows what can be known: it has tried to sync
// with every peer since it was started, and is in the middle of that with none.
// An HSM that was down would otherwise serve keys that were destroyed meanwhile.
// One that reaches nobody serves: it cannot know better.
func (s *syncer) caughtUp() bool { return s.caught.Load() }

// catchUp finds out whether it has caught up now.
func (s *syncer) catchUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.members == nil || s.caught.Load() {
		return
	}
	for _, p := range s.peers {
		if !p.isTried() || p.isBehind() {
			return
		}
	}
	s.caught.Store(true)
}

// isDuplicate tells whether a peer has said lately that another HSM runs under the
// same identity.
func (s *syncer) isDuplicate() bool {
	until := s.copied.Load()
	return until != 0 && time.Now().UnixNano() < until
}

// synced is caughtUp with at least one peer that has answered: what an HSM needs
// that joins.
func (s *syncer) synced() bool {
	if !s.caughtUp() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		if !p.lastSync().IsZero() {
			return true
		}
	}
	return false
}

// connected returns the peers that can be asked now.
func (s *syncer) connected() map[hsm.HSMID]hsm.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	sessions := map[hsm.HSMID]hsm.Session{}
	for id, p := range s.peers {
		if session := p.current(); session != nil {
			sessions[id] = session
		}
	}
	return sessions
}

// poll calls f with each of these peers, all at once, and returns what failed.
func (s *syncer) poll(ctx context.Context, ids []hsm.HSMID, f func(context.Context, hsm.Session) error) error {
	sessions := s.connected()
	errs := make([]error, len(ids))
	var g sync.WaitGroup
	for i, id := range ids {
		session, ok := sessions[id]
		switch {
		case id == s.self:
		case !ok:
			errs[i] = fmt.Errorf("%w: %s is not connected", hsm.ErrUnavailable, id)
		default:
			g.Go(func() { errs[i] = f(ctx, session) })
		}
	}
	g.Wait()
	return errors.Join(errs...)
}

// tell brings objects of the cluster to all peers at once, instead of in their
// next round.
func (s *syncer) tell(ctx context.Context, refs ...hsm.KeyRef) error {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	ids := slices.Collect(maps.Keys(s.connected()))
	return s.poll(ctx, ids, func(ctx context.Context, peer hsm.Session) error { return s.give(ctx, peer, refs...) })
}

// share is tell, and takes what each peer has made of these objects. It returns how many
// peers it was shared with.
func (s *syncer) share(ctx context.Context, refs ...hsm.KeyRef) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	var done atomic.Int64
	ids := slices.Collect(maps.Keys(s.connected()))
	err = s.poll(ctx, ids, func(ctx context.Context, peer hsm.Session) error {
		err := s.give(ctx, peer, refs...)
		if err == nil {
			theirs := peer.Scoped(hsm.ScopeCluster).Extract(ctx, slices.Values(refs))
			_, err = s.session.Scoped(hsm.ScopeCluster).Insert(ctx, theirs)
		}
		if err == nil {
			done.Add(1)
		}
		return err
	})
	return int(done.Load()), err
}

// farewell tells the others that this HSM was removed: nobody but its admin may know, who
// may have died since. One that cannot be told, or knows, is passed over.
func (s *syncer) farewell(ctx context.Context, members []hsm.Member) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), peerTimeout)
	defer cancel()
	var g sync.WaitGroup
	for _, m := range members {
		if m.Counts() && m.ID != s.self {
			g.Go(func() {
				err := s.visit(ctx, m)
				if errors.Is(err, hsm.ErrUnavailable) { // it cuts the connection as soon as it knows: then it denies the next
					err = s.visit(ctx, m)
				}
				if err != nil && !errors.Is(err, hsm.ErrDenied) {
					s.log.Warn("an HSM could not be told that this one was removed", "hsm", m.ID.String(), "error", err)
				}
			})
		}
	}
	g.Wait()
}

// visit brings this HSM's member record to another, over a connection of its own.
func (s *syncer) visit(ctx context.Context, m hsm.Member) error {
	module, err := s.dial(ctx, m)
	if err != nil {
		return err
	}
	defer module.Close()
	session, err := module.Session(ctx)
	if err != nil {
		return err
	}
	return errors.Join(s.give(ctx, session, hsm.MemberRef(s.self)), session.Close())
}

// give brings objects of the cluster to one peer, which merges them with what it
// has.
func (s *syncer) give(ctx context.Context, peer hsm.Session, refs ...hsm.KeyRef) error {
	own := s.session.Scoped(hsm.ScopeCluster).Extract(ctx, slices.Values(refs))
	_, err := peer.Scoped(hsm.ScopeCluster).Insert(ctx, own)
	return err
}

func countRemoved(members []hsm.Member) (n int) {
	for _, m := range members {
		if m.Removed {
			n++
		}
	}
	return n
}
