package server

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
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
	self     hsm.HSMID
	session  hsm.Session // the local HSM, as RoleHSM
	local    Local
	dial     Dial
	interval time.Duration
	log      *slog.Logger
	expelled chan struct{} // holds one token once a peer knows that we were removed

	mu      sync.Mutex
	members []hsm.Member // nil until they were read once
	peers   map[hsm.HSMID]*peer
	shown   map[hsm.HSMID]*progress // of the members, for those who watch
}

func newSyncer(self hsm.HSMID, session hsm.Session, local Local, dial Dial, interval time.Duration, log *slog.Logger) *syncer {
	return &syncer{
		self: self, session: session, local: local, dial: dial, interval: interval, log: log,
		expelled: make(chan struct{}, 1), peers: map[hsm.HSMID]*peer{}, shown: map[hsm.HSMID]*progress{},
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
	for {
		if s.follow(ctx, &peers) {
			return removed(s.self)
		}
		s.settle(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-s.expelled:
			return removed(s.self)
		case <-time.After(s.pause()):
		}
	}
}

// pause is the time until the next round.
func (s *syncer) pause() time.Duration {
	return s.interval - s.interval/4 + rand.N(s.interval/2+1)
}

// follow follows the member list: it starts to sync with new members, and stops
// with removed ones and with those that have moved, to begin anew at their new
// address. It tells whether this HSM itself was removed.
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
	wanted := map[hsm.HSMID]hsm.Member{}
	for _, m := range members {
		if !m.Removed {
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
