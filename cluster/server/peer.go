package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
)

// peerTimeout bounds an exchange in which nothing has to be moved.
const peerTimeout = 5 * time.Second

// syncTimeout bounds a reconciliation; an interrupted one keeps what it moved.
const syncTimeout = 10 * time.Minute

// patience is how many rounds a peer may fail before it is called away: HSMs
// that start together do not all come up at once.
const patience = 3

// peer is another member, and the connection to it.
type peer struct {
	member   hsm.Member
	stop     context.CancelFunc
	failures int // rounds in a row
	// keysRefused: it has no room for masking keys, and that was said.
	keysRefused bool
	clocked     hsm.Session // in which it was asked for its clock, and when
	clockedAt   time.Time
	progress    *progress // outlives the peer's change of address
	refusals    refusals

	mu      sync.Mutex
	module  hsm.Module
	session hsm.Session // nil: not connected
	synced  time.Time   // beginning of the last exchange that ended well
	tried   bool        // an exchange has ended, well or not
	behind  bool        // it remembers more of this HSM than this HSM does
	pulled  bool        // since it said so, all it has was pulled
	nonce   [16]byte    // of its last answer
	greeted hsm.Session // in which it has answered
}

// keepUp syncs with one peer until the context ends.
func (s *syncer) keepUp(ctx context.Context, p *peer) {
	defer p.disconnect()
	pause := s.pauses(p.member.ID)
	for {
		stale := p.current() != nil
		err := s.exchange(ctx, p)
		if err != nil && stale && ctx.Err() == nil {
			p.disconnect() // the connection may be what failed: the peer was started again, or this HSM stood still
			err = s.exchange(ctx, p)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			p.disconnect() // the next round dials again
			s.missed(ctx, p, err)
		}
		if p.setTried() {
			s.catchUp()
			s.after(ctx) // no need to wait for the next round
		}
		s.note(p, err)
		if err == nil && p.isBehind() {
			continue // to say that all was pulled
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause()):
		}
	}
}

// note says once when a peer goes away, and once when it is back.
func (s *syncer) note(p *peer, err error) {
	if err == nil {
		if p.failures >= patience {
			s.log.Info("server-side sync: peer is back", "hsm", p.member.ID.String(), "address", p.member.Address)
		}
		p.failures = 0
		return
	}
	if p.failures++; p.failures == patience {
		s.log.Warn("server-side sync: no sync with peer", "hsm", p.member.ID.String(), "address", p.member.Address, "error", err)
	}
}

// exchange compares roots with one peer and pulls what differs: first members
// and lockouts, then what belongs to the lineage.
func (s *syncer) exchange(ctx context.Context, p *peer) error {
	session, theirs, err := s.ask(ctx, p)
	if err != nil {
		return err
	}
	if err := s.seeClock(ctx, p, session); err != nil {
		return err
	}
	if err := s.bring(ctx, p, session, theirs); err != nil {
		return err
	}
	began := time.Now()
	ours, err := s.session.Info(ctx)
	if err != nil {
		return err
	}
	var refused error
	if ours.ClusterRoot != theirs.ClusterRoot {
		if refused = s.pull(ctx, p, session, hsm.ScopeCluster); refused != nil && !isOfObject(refused) {
			return refused
		}
	}
	if ours.Root != theirs.Root {
		refused = errors.Join(refused, s.pull(ctx, p, session, hsm.ScopeLineage))
	}
	if refused != nil {
		return refused
	}
	p.refusals.forget()
	p.progress.looked(ours.Root == theirs.Root, ours.Root.Count)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.synced, p.pulled = began, p.behind
	return nil
}

// bring brings a peer the masking keys that it lacks. One that has no room for them
// is said, once, and synced with all the same: a key that it lacks does not seal.
func (s *syncer) bring(ctx context.Context, p *peer, session hsm.Session, theirs hsm.Info) error {
	err := s.keys(ctx, session, theirs)
	if !errors.Is(err, hsm.ErrFull) {
		p.keysRefused = p.keysRefused && err != nil
		return err
	}
	if !p.keysRefused {
		s.log.Error("server-side sync: peer has no room for a masking key", "hsm", p.member.ID.String(), "error", err)
	}
	p.keysRefused = true
	return nil
}

// ask connects if need be, and asks the peer for its state.
func (s *syncer) ask(ctx context.Context, p *peer) (hsm.Session, hsm.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	session := p.current()
	if session == nil {
		var err error
		if session, err = s.connect(ctx, p); err != nil {
			return nil, hsm.Info{}, err
		}
	}
	info, err := s.greet(ctx, p, session)
	if err == nil && info.ID != p.member.ID {
		err = fmt.Errorf("%w: %s answers at %s, where %s was expected", hsm.ErrUnavailable, info.ID, p.member.Address, p.member.ID)
	}
	return session, info, err
}

// brief asks for the roots, and for no more where that can be asked for.
func brief(ctx context.Context, s hsm.Session) (hsm.Info, error) {
	if b, ok := s.(interface {
		Brief(context.Context) (hsm.Info, error)
	}); ok {
		return b.Brief(ctx)
	}
	return s.Info(ctx)
}

// greet asks a peer how it is, and tells it how this HSM is.
func (s *syncer) greet(ctx context.Context, p *peer, session hsm.Session) (hsm.Info, error) {
	greeter, ok := session.(rpc.Greeter)
	if !ok || s.greeting == nil {
		return brief(ctx, session)
	}
	g := s.greeting()
	p.mu.Lock()
	if g.Echo, g.CaughtUp = p.nonce, p.pulled; p.greeted == session && !p.behind {
		g.Before = nil // it knows of this start, and a round stays one small message
	}
	p.mu.Unlock()
	r, err := greeter.Greet(ctx, g)
	if err != nil {
		return hsm.Info{}, err
	}
	p.mu.Lock()
	was := p.behind
	p.nonce, p.behind, p.pulled, p.greeted = r.Nonce, r.Behind, false, session
	p.mu.Unlock()
	if r.Behind && !was {
		s.caught.Store(false)
		s.setBack(ctx, p.member.ID, r.Lost)
	}
	if r.Duplicate {
		s.copied.Store(time.Now().Add(max(10*s.interval, 2*time.Second)).UnixNano())
		s.after(ctx)
	}
	return r.Info, nil
}

func (p *peer) isBehind() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.behind
}

// connect starts a session and makes sure that the peer knows this HSM as it is
// now. One that was removed while it was down has nobody else to tell it, and one
// that has moved is looked for where it was.
func (s *syncer) connect(ctx context.Context, p *peer) (hsm.Session, error) {
	module, err := s.dial(ctx, p.member)
	if err != nil {
		return nil, err
	}
	session, err := module.Session(ctx)
	if err != nil {
		return nil, errors.Join(err, module.Close())
	}
	p.mu.Lock()
	p.module, p.session = module, session
	p.mu.Unlock()
	members, err := session.Members(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(members, func(m hsm.Member) bool { return m.ID == s.self })
	if i >= 0 && members[i].Removed {
		s.expel()
		return nil, removed(s.self)
	}
	if i < 0 || members[i] != s.own() {
		return session, s.introduce(ctx, session)
	}
	return session, nil
}

// own returns this HSM's member record as it is here.
func (s *syncer) own() hsm.Member {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.members {
		if m.ID == s.self {
			return m
		}
	}
	return hsm.Member{}
}

// introduce brings this HSM's member record to a peer, which merges it with what
// it has.
func (s *syncer) introduce(ctx context.Context, peer hsm.Session) error {
	if err := s.give(ctx, peer, hsm.MemberRef(s.self)); err != nil {
		return fmt.Errorf("introduce this HSM: %w", err)
	}
	return nil
}

// pull brings one scope of the local HSM up to the peer. Objects that the local HSM
// does not take are an error once all others are there.
func (s *syncer) pull(ctx context.Context, p *peer, from hsm.Session, scope hsm.Scope) error {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	extra := map[hsm.KeyRef]bool{}
	to := &tolerant{SketchReplica: s.session.Scoped(scope), known: &p.refusals, info: s.session.Info}
	applied, err := reconcile.Sync(ctx, from.Scoped(scope), to, reconcile.OnEntry(func(e reconcile.Entry) {
		if e.Extra() && len(extra) < maxLacks {
			extra[e.Ref] = true
		}
	}))
	p.progress.pulled(applied)
	if scope == hsm.ScopeLineage && err == nil {
		p.progress.lacking(extra, applied.Extra)
	}
	if n := applied.Added + applied.Inserted.Changed; n > 0 {
		s.log.Info("server-side sync: pulled", "from", p.member.ID.String(), "added", applied.Added, "changed", applied.Inserted.Changed, "bytes", applied.Bytes)
	}
	for _, ref := range applied.Conflicts {
		s.log.Error("server-side sync: one reference, two births; compare with key show, and decide with synckey resolve", "key_reference", ref.String(), "from", p.member.ID.String())
	}
	if err == nil {
		err = to.refusal()
	}
	return err
}

func (p *peer) current() hsm.Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.session
}

func (p *peer) isTried() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tried
}

// setTried notes that an exchange has ended, and tells whether it was the first.
func (p *peer) setTried() (first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first, p.tried = !p.tried, true
	return first
}

func (p *peer) lastSync() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.synced
}

// disconnect closes the connection, and the session with it: a peer that does
// not answer is not waited for.
func (p *peer) disconnect() {
	p.mu.Lock()
	module, session := p.module, p.session
	p.module, p.session = nil, nil
	p.mu.Unlock()
	if session != nil {
		_ = module.Close() // it is going away, whatever it says
		_ = session.Close()
	}
}
