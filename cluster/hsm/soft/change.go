package soft

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Change implements hsm.Session. Of a session key that was changed nothing is
// returned: it is on no other HSM.
func (s *session) Change(ctx context.Context, c hsm.Change) (m hsm.MaskedObject, err error) {
	done, err := s.enter(ctx, everyone...)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	defer done()
	defer func() { s.audit(ctx, string(c.Kind), c.Ref, detail(c), err) }()
	if err := ctx.Err(); err != nil {
		return hsm.MaskedObject{}, err
	}
	if c.After == math.MaxUint64 { // nothing is later
		return hsm.MaskedObject{}, fmt.Errorf("%w: after %d", hsm.ErrFuture, c.After)
	}
	if c.After != 0 {
		if err := s.h.clock.Follow(c.After + 1); err != nil {
			return hsm.MaskedObject{}, err
		}
	}
	switch c.Kind {
	case hsm.ChangeDestroy, hsm.ChangeAttribute, hsm.ChangeShare, hsm.ChangeUnshare:
		return s.changeKey(ctx, c)
	case hsm.ChangeUserCreate, hsm.ChangeUserDelete, hsm.ChangeUserPassword, hsm.ChangeUserUnlock, hsm.ChangeUserQuorum, hsm.ChangeUserMFA:
		return s.changeUser(ctx, c)
	case hsm.ChangeQuorumValue:
		return s.changeQuorum(ctx, c)
	case hsm.ChangeQuorumTimeout:
		return s.changeTimeout(c)
	case hsm.ChangeRevive:
		return s.revive(c)
	case hsm.ChangeSupersede:
		return s.supersede(ctx, c)
	case hsm.ChangeKeepCopy:
		return s.keepCopy(c)
	case hsm.ChangeSettings:
		return s.approvedChange(ctx, c, func() (hsm.MaskedObject, error) { return s.changeSettings(c) })
	case hsm.ChangeMember:
		return s.changeMember(c)
	case hsm.ChangeInvite:
		return s.approvedChange(ctx, c, func() (hsm.MaskedObject, error) { return s.invite(c.Invite) })
	case hsm.ChangeClaim:
		return s.claim(c)
	case hsm.ChangeRevoke:
		return s.approvedChange(ctx, c, func() (hsm.MaskedObject, error) { return s.revoke(c.Revoked) })
	}
	return hsm.MaskedObject{}, fmt.Errorf("%w: there is no change %q", hsm.ErrInvalid, c.Kind)
}

// stampOf returns the stamp of what a change sets.
func (h *HSM) stampOf(c hsm.Change) hsm.Stamp {
	if c.After == 0 {
		return h.clock.Next()
	}
	return hsm.Stamp{Time: c.After + 1, HSM: h.opts.ID}
}

// wins tells whether a change stamped at wins over what was stamped before. ErrLate if
// it was made without its caller having heard of that. Of two changes whose callers
// heard the same, or one change made on two HSMs, the HSMs decide; but one HSM stamps no
// two changes alike.
func wins(at, before hsm.Stamp) (bool, error) {
	if at.Time < before.Time || at == before {
		return false, fmt.Errorf("%w: of %s, by %s; ask the HSMs for their clocks again", hsm.ErrLate, before.Wall().Format(time.RFC3339), before.HSM)
	}
	return at.Compare(before) > 0, nil
}

// mustWin is wins where there is nothing to leave as it is. ErrLate.
func mustWin(at, before hsm.Stamp) error {
	later, err := wins(at, before)
	if err == nil && !later {
		err = hsm.ErrLate
	}
	return err
}

// detail is what the audit log is told of a change.
func detail(c hsm.Change) string {
	switch {
	case c.Member != nil:
		return memberDetail(c.Member)
	case c.Invite != nil:
		return fmt.Sprintf("%s expires %s", c.Invite.ID, c.Invite.Expires.UTC().Format(time.RFC3339))
	case c.Claim != nil:
		return c.Claim.Joiner.String()
	case c.Revoked != nil:
		return fmt.Sprintf("%s %s until %s", c.Revoked.Kind, c.Revoked.Name, c.Revoked.Until.UTC().Format(time.RFC3339))
	case c.Settings != nil:
		return fmt.Sprintf("min-copies %d check-on-use %t custodians %d threshold %d", c.Settings.MinCopies, c.Settings.CheckOnUse, len(c.Settings.Custodians), c.Settings.Threshold)
	case c.Kind == hsm.ChangeSupersede || c.Kind == hsm.ChangeKeepCopy:
		return fmt.Sprintf("birth %.32q", c.Value)
	case c.Name != "":
		return fmt.Sprintf("%s=%q", c.Name, c.Value)
	}
	return fmt.Sprintf("%s %s", c.Role, c.User)
}

func memberDetail(m *hsm.Member) string {
	s := fmt.Sprintf("%s %s removed %t", m.ID, m.Address, m.Removed)
	for _, flag := range []struct {
		name string
		set  bool
	}{{"joining", m.Joining}, {"leaving", m.Leaving}, {"drained", m.Drained}, {"in doubt", m.Doubt != 0}, {"settled", m.Settled != 0}} {
		if flag.set {
			s += " " + flag.name
		}
	}
	return s
}

// changeUser checks the rights and changes a user.
func (s *session) changeUser(ctx context.Context, c hsm.Change) (hsm.MaskedObject, error) {
	if err := s.mayChangeUser(c); err != nil {
		return hsm.MaskedObject{}, err
	}
	do := map[hsm.ChangeKind]func(hsm.Change) (hsm.MaskedObject, error){
		hsm.ChangeUserCreate: s.h.createUser, hsm.ChangeUserDelete: s.h.deleteUser, hsm.ChangeUserPassword: s.setPassword,
		hsm.ChangeUserUnlock: s.h.unlockUser, hsm.ChangeUserQuorum: s.h.changeSigner, hsm.ChangeUserMFA: s.h.changeSigner,
	}[c.Kind]
	var m hsm.MaskedObject
	err := s.withApproval(ctx, c.Approvals, s.userQuorum(c), func() (err error) {
		m, err = do(c)
		return err
	})
	return m, err
}

// isOwn tells whether a change is one that a user makes of its own password or keys.
func (s *session) isOwn(c hsm.Change) bool {
	name, err := hsm.CanonicalUserName(c.User)
	registers := (c.Kind == hsm.ChangeUserQuorum || c.Kind == hsm.ChangeUserMFA) && len(c.Public) > 0
	return err == nil && name == s.who.Name && (s.isUser() || s.who.Role == hsm.RoleAdmin) && (registers || c.Kind == hsm.ChangeUserPassword)
}

// mayChangeUser: admins may; everybody changes the own password and registers
// keys of its own, which nobody does for others; an HSM makes an admin where there
// is none, and unlocks.
func (s *session) mayChangeUser(c hsm.Change) error {
	if s.isOwn(c) {
		return nil
	}
	switch s.who.Role {
	case hsm.RoleAdmin:
		if len(c.Public) > 0 {
			return fmt.Errorf("%w: %s: users register keys of their own", hsm.ErrDenied, s.whoami())
		}
		return nil
	case hsm.RoleHSM:
		first := c.Kind == hsm.ChangeUserCreate && c.Role == hsm.RoleAdmin && s.h.users.count(hsm.RoleAdmin) == 0
		if first || c.Kind == hsm.ChangeUserUnlock {
			return nil
		}
	}
	return s.denied(hsm.RoleAdmin)
}
