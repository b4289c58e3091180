package server

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
)

// Bounds of one look at the operations in doubt.
const (
	settleTimeout = 2 * time.Second // for the peers' answers about one operation
	settleAtOnce  = 16              // operations
)

// Local is the HSM that a syncer keeps in sync, as far as operations in doubt
// are concerned.
type Local interface {
	InDoubt() []Pending
	ResolveAs(ctx context.Context, op hsm.OpID, committed bool) error
}

// Pending is a provisional operation past its lease.
type Pending struct {
	Op    hsm.OpID
	Since time.Time
}

// softLocal is the software HSM as server-side sync sees it.
type softLocal struct{ *soft.HSM }

func (l softLocal) InDoubt() []Pending {
	var out []Pending
	for _, p := range l.HSM.InDoubt() {
		out = append(out, Pending{Op: p.Op, Since: p.Since})
	}
	return out
}

// settle decides operations whose client vanished (DESIGN §7): committed
// anywhere, commit; every member answered, none has it committed and none will,
// drop. In every other case it stays in doubt, and visible: a member that does
// not answer may have it committed.
//
// So may one that was removed, unless the others held all that it had committed
// (hsm.Member.Drained) and this HSM has synced with them since: what it had
// committed would be here as an object. For one that was removed by force, or that
// has forgotten, an admin decides (hsm.Member.Settled); until then it is kept.
func (s *syncer) settle(ctx context.Context) {
	pending := s.local.InDoubt()
	if len(pending) == 0 {
		return
	}
	sessions, all := s.witnesses()
	var g errgroup.Group
	g.SetLimit(settleAtOnce)
	for _, p := range pending {
		g.Go(func() error {
			if err := s.settleOne(ctx, p, sessions, all); err != nil && ctx.Err() == nil {
				s.log.Error("server-side sync: operation in doubt", "op", fmt.Sprintf("%x", p.Op), "since", p.Since, "error", err)
			}
			return nil
		})
	}
	_ = g.Wait() // what failed is logged, and tried again in the next round
}

// witnesses returns the peers that can be asked, and whether these are all that
// there are.
func (s *syncer) witnesses() (sessions []hsm.Session, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all = s.members != nil
	for _, p := range s.peers {
		session := p.current()
		if session == nil || p.lastSync().Before(s.left) {
			all = false
		}
		if session != nil {
			sessions = append(sessions, session)
		}
	}
	return sessions, all
}

func (s *syncer) settleOne(ctx context.Context, p Pending, sessions []hsm.Session, all bool) error {
	committed, none := resolve(ctx, p.Op, sessions)
	switch {
	case committed:
		return s.local.ResolveAs(ctx, p.Op, true)
	case !none || !all:
		return nil
	}
	waits, keep := s.formerly(p.Since)
	if waits {
		return nil
	}
	return s.local.ResolveAs(ctx, p.Op, keep)
}

// formerly tells what members that cannot be asked mean for an operation that
// began at since: that it waits for an admin, or whether it is kept or dropped.
func (s *syncer) formerly(since time.Time) (waits, keep bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.members {
		w, _, k := m.Verdict(since)
		waits, keep = waits || w, keep || k
	}
	return waits, keep
}

// resolve asks the peers for an operation, all at once. committed: one of them
// has it committed. none: all answered, and none of them ever will.
func resolve(ctx context.Context, op hsm.OpID, sessions []hsm.Session) (committed, none bool) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	states := make(chan hsm.OpState, len(sessions))
	for _, session := range sessions {
		go func() {
			state, err := session.Resolve(ctx, op)
			if err != nil {
				state = hsm.OpUnknown
			}
			states <- state
		}()
	}
	none = true
	for range sessions {
		state := <-states
		committed = committed || state == hsm.OpCommitted
		none = none && state == hsm.OpAborted
	}
	return committed, none
}
