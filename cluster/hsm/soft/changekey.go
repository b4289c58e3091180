package soft

import (
	"context"
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// changeKey changes a session key of this session, or a token key under its
// lock.
func (s *session) changeKey(ctx context.Context, c hsm.Change) (hsm.MaskedObject, error) {
	if !s.isUser() && (s.who.Role != hsm.RoleAdmin || c.Kind != hsm.ChangeAttribute) {
		return hsm.MaskedObject{}, s.denied(hsm.RoleCryptoUser)
	}
	if s.sessionKey(c.Ref) != nil {
		return hsm.MaskedObject{}, s.changeSessionKey(c)
	}
	var m hsm.MaskedObject
	need, err := s.changeQuorumOf(c)
	if err != nil {
		return m, err
	}
	err = s.withApproval(ctx, c.Approvals, need, func() (err error) {
		m, err = s.h.update(hsm.ScopeLineage, c.Ref, func(cur *held) (*hsm.Record, error) {
			if err := s.mayChange(cur, c); err != nil {
				return nil, err
			}
			return s.changed(cur.rec, c)
		})
		return err
	})
	return m, err
}

// changeQuorumOf is what a change by a crypto user takes: the quorum values of a key
// never change, so that they may be read before its lock is taken.
func (s *session) changeQuorumOf(c hsm.Change) (demand, error) {
	if !s.isUser() || c.Kind == hsm.ChangeDestroy {
		return demand{}, nil
	}
	e, _, err := s.lookup(c.Ref)
	if err != nil {
		return demand{}, err
	}
	return s.keyQuorum(e.rec, hsm.ServiceKeyManagement), nil
}

// mayChange checks that the key is there for this session to change.
func (s *session) mayChange(cur *held, c hsm.Change) error {
	if cur == nil || cur.rec.Kind != hsm.KindKey {
		return notFound(c.Ref)
	}
	switch a := s.access(cur.rec); {
	case a == accessNone:
		return notFound(c.Ref)
	case cur.rec.Destroyed:
		return fmt.Errorf("%w: %s", hsm.ErrDestroyed, c.Ref)
	case s.isUser() && a != accessOwner && !isTrusted(c):
		return fmt.Errorf("%w: key %s belongs to %q; only its owner changes it", hsm.ErrDenied, c.Ref, cur.rec.Core.Owner)
	}
	return nil
}

func isTrusted(c hsm.Change) bool { return c.Kind == hsm.ChangeAttribute && c.Name == "trusted" }

// changed returns a changed copy of a live key.
func (s *session) changed(cur *hsm.Record, c hsm.Change) (*hsm.Record, error) {
	r := cur.Clone()
	switch c.Kind {
	case hsm.ChangeDestroy:
		if !r.Flag("destroyable") {
			return nil, fmt.Errorf("%w: key %s is not destroyable; set destroyable to true first", hsm.ErrAttribute, r.Ref)
		}
		if err := s.h.mayDestroy(r); err != nil {
			return nil, err
		}
		r.Destroy()
		return r, nil
	case hsm.ChangeAttribute:
		return r, s.setAttribute(r, c)
	}
	return r, s.setShare(r, c)
}

// setAttribute checks the rules of cloudhsm.md §2.4 and sets the attribute.
func (s *session) setAttribute(r *hsm.Record, c hsm.Change) error {
	a, err := hsm.LookupAttribute(c.Name)
	if err != nil {
		return err
	}
	if byAdmin := a.Modifiable == hsm.ByAdmin; byAdmin != (s.who.Role == hsm.RoleAdmin) {
		if byAdmin {
			return s.denied(hsm.RoleAdmin)
		}
		return fmt.Errorf("%w: an admin sets trusted only; %s takes the key's owner", hsm.ErrDenied, a.Name)
	}
	if a.Name == "token" {
		return fmt.Errorf("%w: key %s: a session key becomes a token key by promotion, and stays one", hsm.ErrInvalid, r.Ref)
	}
	if a.Modifiable == hsm.Never || !a.Stored {
		return fmt.Errorf("%w: %s never changes", hsm.ErrAttribute, a.Name)
	}
	value, err := hsm.ParseAttribute(a, c.Value)
	if err != nil {
		return err
	}
	if err := mayBecome(a, r, value); err != nil {
		return err
	}
	if err := s.h.mindTrust(a, r, value); err != nil {
		return err
	}
	return s.set(r, c, hsm.AttributeRegister(a.Name), value)
}

func mayBecome(a hsm.Attribute, r *hsm.Record, value []byte) error {
	was, is := r.Flag(a.Name), (hsm.Register{Value: value}).Bool()
	switch {
	case !r.Flag("modifiable"):
		return fmt.Errorf("%w: key %s is not modifiable, and never will be", hsm.ErrAttribute, r.Ref)
	case !a.MayTurn(was, is):
		return fmt.Errorf("%w: key %s: %s is %t, and stays so", hsm.ErrAttribute, r.Ref, a.Name, was)
	}
	return fits(a, r.Core.Class, value)
}

// setShare shares the key with a crypto user, or takes it back.
func (s *session) setShare(r *hsm.Record, c hsm.Change) error {
	name, err := hsm.CanonicalUserName(c.User)
	if err != nil {
		return err
	}
	share := c.Kind == hsm.ChangeShare
	if share {
		if name, err = s.h.shareable(name); err != nil {
			return err
		}
	}
	switch {
	case name == r.Core.Owner:
		return fmt.Errorf("%w: %q is the owner of key %s", hsm.ErrInvalid, name, r.Ref)
	case !share && !r.SharedWith(name):
		return fmt.Errorf("%w: key %s is not shared with %q", hsm.ErrNotFound, r.Ref, name)
	}
	if u, there := s.h.users.get(name); there && share && c.After != 0 { // a share is later than the user
		if err := mustWin(s.h.stampOf(c), u.created); err != nil {
			return err
		}
	}
	return s.set(r, c, hsm.ShareRegister(name), hsm.BoolValue(share))
}

// set sets a register of a key, if that is later than what is there.
func (s *session) set(r *hsm.Record, c hsm.Change, register string, value []byte) error {
	at := s.h.stampOf(c)
	later, err := wins(at, r.Registers[register].Stamp)
	if later {
		r.Set(register, value, at)
	}
	return err
}

// changeSessionKey changes a key of this session. Others cannot see it, so it
// is not shared.
func (s *session) changeSessionKey(c hsm.Change) error {
	c.After = 0 // nobody else changes it
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keys[c.Ref]
	switch {
	case k == nil:
		return notFound(c.Ref)
	case c.Kind == hsm.ChangeShare || c.Kind == hsm.ChangeUnshare:
		return fmt.Errorf("%w: %s is a session key; promote it to share it", hsm.ErrInvalid, c.Ref)
	case s.h.ops.holding(hsm.ScopeLineage, c.Ref) != nil:
		return fmt.Errorf("%w: %s is being promoted; commit or abort that first", hsm.ErrExist, c.Ref)
	}
	r, err := s.changed(k.entry.rec, c)
	if err != nil {
		return err
	}
	if r.Destroyed {
		delete(s.keys, c.Ref)
		return nil
	}
	s.keys[c.Ref] = &sessionKey{entry: newEntry(r, hsm.Digest{}), op: k.op}
	return nil
}
