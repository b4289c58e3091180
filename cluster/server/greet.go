package server

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
)

// In every round of server-side sync an HSM greets its peers: with the random id
// of this start, how far its object store is, and the starts before it. From that
// a peer knows two things that an HSM cannot know by itself.
//
// # Two under one identity
//
// Each answer carries a nonce, and the next greeting echoes it: who does was alive
// after the nonce was given. If of two starts of one HSM each has proved that it
// was alive after the other had, both lived at once: the folder was copied. Both
// are told and serve nobody until one of them has been silent for a while. An
// ordinary restart never looks so, however fast: the start before is dead and
// echoes nothing that was given later; a delayed message of its echoes what was
// given before.
//
// # Set back
//
// The peer remembers, on disk, how far the start was that it last heard of. An HSM
// whose starts do not lead there, or had come less far, was set back to an older
// state: an old disk image, an old copy of the folder. It must not serve before it
// has pulled what its peers know: CATCHING-UP. When it has, it says so, and the
// peer forgets what was before.

// sighting is what this HSM has seen of one other.
type sighting struct {
	loaded bool
	seen   soft.Boot // the start and how far it was; zero: nothing
	clock  uint64    // counts events, to order them
	alive  map[rpc.BootID]*life
	told   bool // the log knows that there are two
}

// life is one start, as far as it has proved to be alive.
type life struct {
	nonce  [16]byte
	given  uint64    // when the nonce was
	first  uint64    // when it was first proved that the start lives; 0: not yet
	until  uint64    // until when it is known to have lived
	proved time.Time // when that was last proved
}

// sightings of all other HSMs.
type sightings struct {
	mu  sync.Mutex
	all map[hsm.HSMID]*sighting
}

// maxLives bounds the starts of one HSM that are kept; the stalest goes.
const maxLives = 8

// Greet implements rpc.Greeter.
func (s servedSession) Greet(ctx context.Context, g rpc.Greeting) (rpc.Greeted, error) {
	id, err := hsm.ParseHSMID(s.Principal().Name)
	if err != nil || !s.isHSM() {
		return rpc.Greeted{}, fmt.Errorf("%w: only HSMs greet each other", hsm.ErrDenied)
	}
	info, err := s.Info(ctx)
	if err != nil {
		return rpc.Greeted{}, err
	}
	r, err := s.server.sighted(id, g)
	r.Info = info
	return r, err
}

// sighted judges a greeting.
func (s *Server) sighted(id hsm.HSMID, g rpc.Greeting) (r rpc.Greeted, err error) {
	s.sightings.mu.Lock()
	defer s.sightings.mu.Unlock()
	if s.sightings.all == nil {
		s.sightings.all = map[hsm.HSMID]*sighting{}
	}
	x := s.sightings.all[id]
	if x == nil {
		x = &sighting{alive: map[rpc.BootID]*life{}}
		s.sightings.all[id] = x
	}
	r.Nonce = x.lives(g)
	r.Duplicate = x.overlap(g.Boot.ID, time.Now(), s.duplicateWindow())
	s.tellOfDuplicate(id, x, r.Duplicate)
	r.Behind, r.Lost, err = s.setBack(id, x, g)
	return r, err
}

// duplicateWindow is how long a start counts as alive that has fallen silent.
func (s *Server) duplicateWindow() time.Duration {
	return max(10*s.options.SyncInterval, 2*time.Second)
}

func (s *Server) tellOfDuplicate(id hsm.HSMID, x *sighting, duplicate bool) {
	if duplicate && !x.told {
		s.options.Log.Error("two processes run as one HSM: its folder was copied; stop one of them", "hsm", id.String())
	}
	x.told = duplicate
}

// lives takes note of a start that greets, and gives it a new nonce.
func (x *sighting) lives(g rpc.Greeting) (nonce [16]byte) {
	x.clock++
	l := x.alive[g.Boot.ID]
	if l == nil {
		x.makeRoom()
		l = &life{}
		x.alive[g.Boot.ID] = l
	}
	if l.given > 0 && g.Echo == l.nonce {
		l.until, l.proved = l.given, time.Now()
		if l.first == 0 {
			l.first = x.clock
		}
	}
	x.clock++
	rand.Read(l.nonce[:])
	l.given = x.clock
	return l.nonce
}

func (x *sighting) makeRoom() {
	for len(x.alive) >= maxLives {
		var stalest rpc.BootID
		for id, l := range x.alive {
			if s := x.alive[stalest]; s == nil || l.proved.Before(s.proved) {
				stalest = id
			}
		}
		delete(x.alive, stalest)
	}
}

// overlap tells whether another start of the HSM lived at the same time as this
// one, and not long ago.
func (x *sighting) overlap(id rpc.BootID, now time.Time, window time.Duration) bool {
	me := x.alive[id]
	if me.first == 0 {
		return false
	}
	for other, l := range x.alive {
		if other != id && l.first > 0 && me.until >= l.first && l.until >= me.first && now.Sub(l.proved) < window {
			return true
		}
	}
	return false
}

// setBack compares a greeting with what is remembered, and remembers it if it is
// not behind.
func (s *Server) setBack(id hsm.HSMID, x *sighting, g rpc.Greeting) (behind bool, lost uint64, err error) {
	if !x.loaded {
		if x.seen, _, err = s.device.soft.Seen(id); err != nil {
			return false, 0, err
		}
		x.loaded = true
	}
	behind, lost = isBehind(x.seen, g)
	if behind && !g.CaughtUp {
		return true, lost, nil
	}
	now := soft.Boot{ID: soft.BootID(g.Boot.ID), Writes: g.Boot.Writes}
	if now == x.seen {
		return false, 0, nil
	}
	if err := s.device.soft.See(id, now); err != nil {
		return false, 0, err
	}
	x.seen = now
	return false, 0, nil
}

// isBehind tells whether the store of who greets is older than what was seen, and
// by how many changes; 0 if that is not known.
func isBehind(seen soft.Boot, g rpc.Greeting) (bool, uint64) {
	if seen == (soft.Boot{}) {
		return false, 0
	}
	for _, b := range append([]rpc.Boot{g.Boot}, g.Before...) {
		if soft.BootID(b.ID) == seen.ID {
			return b.Writes < seen.Writes, seen.Writes - min(seen.Writes, b.Writes)
		}
	}
	return true, 0
}

// greeting is what this HSM says of itself.
func (s *Server) greeting() rpc.Greeting {
	now, before := s.device.soft.Boots()
	g := rpc.Greeting{Boot: rpc.Boot{ID: rpc.BootID(now.ID), Writes: now.Writes}}
	for _, b := range before {
		g.Before = append(g.Before, rpc.Boot{ID: rpc.BootID(b.ID), Writes: b.Writes})
	}
	return g
}

// resolvePause is how long an HSM that was set back does not say what became of
// operations: its peers must know first that it may have forgotten.
const resolvePause = time.Minute

// setBackBy is called when a peer says that this HSM was set back. What it says of
// operations that began until now does not count any more (hsm.Member.Doubt): it
// may have committed what it does not remember.
func (s *Server) setBackBy(ctx context.Context, peer hsm.HSMID, lost uint64) {
	what := "by an unknown number of changes"
	if lost > 0 {
		what = fmt.Sprintf("by %d changes", lost)
	}
	s.place.mu.Lock()
	first := s.place.setBack == ""
	s.place.setBack = fmt.Sprintf("its object store was set back %s, as %s remembers, at %s", what, peer, time.Now().UTC().Format(time.RFC3339))
	s.place.resolves = time.Now().Add(resolvePause)
	s.place.mu.Unlock()
	s.options.Log.Error("this HSM was set back to an older state; it serves when it has pulled what its peers know, and what only it held is lost", "lost", what, "peer", peer.String())
	if !first {
		return
	}
	s.device.record("set-back", s.device.principal(), 0, what+", as "+peer.String()+" remembers", nil)
	me := s.place.now.Load().self
	me.Doubt = time.Now().UnixMilli()
	_, err := s.device.self.Change(ctx, hsm.Change{Kind: hsm.ChangeMember, Member: &me})
	if err == nil {
		err = s.sync.tell(ctx, hsm.MemberRef(me.ID))
	}
	if err != nil {
		s.options.Log.Error("its peers do not know yet that this HSM was set back", "error", err)
	}
}

// resolves refuses to say what became of operations for a while after the HSM was
// set back.
func (s *Server) resolves() error {
	if err := s.serves(); err != nil {
		return err
	}
	s.place.mu.Lock()
	defer s.place.mu.Unlock()
	if time.Now().Before(s.place.resolves) {
		return fmt.Errorf("%w: HSM %s was set back, and may not know what became of an operation", hsm.ErrUnavailable, s.config.ID)
	}
	return nil
}
