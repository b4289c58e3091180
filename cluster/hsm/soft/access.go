package soft

import (
	"context"
	"errors"
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// access is what a session may do with a key.
type access uint8

const (
	accessNone  access = iota
	accessSee          // its attributes
	accessUse          // sign, verify, encrypt, decrypt, mac
	accessOwner        // everything
)

// owns tells whether a key belongs to the user who has this name now. Names are
// given again when a user is deleted, keys are not: who was created after a key
// does not own it. Nothing of a tombstone is anyone's but its name.
func (h *HSM) owns(name string, r *hsm.Record) bool {
	if r.Core.Owner != name || r.Destroyed {
		return r.Core.Owner == name
	}
	u, _ := h.users.get(name)
	return u.incarnation == 0 || r.OwnedSince(u.created)
}

// access follows cloudhsm.md §1.4 and §2.3: an owner may do all; a user it is
// shared with may use it; every crypto user may use what is shown to all; admins,
// appliances and HSMs see and do not use.
func (s *session) access(r *hsm.Record) access {
	switch {
	case !s.isUser():
		return accessSee
	case s.h.owns(s.who.Name, r):
		return accessOwner
	case s.h.sharedWith(r, s.who.Name), r.Shown():
		return accessUse
	}
	return accessNone
}

// lookup returns a key of this session or a token key, to which the session
// must have access of some kind: otherwise ErrNotFound. ErrDestroyed is for
// those who could see the key; of a tombstone only its owner is known.
func (s *session) lookup(ref hsm.KeyRef) (*entry, access, error) {
	if k := s.sessionKey(ref); k != nil {
		return k.entry, accessOwner, nil
	}
	e, err := s.h.tokenKey(ref)
	if err != nil && !errors.Is(err, hsm.ErrDestroyed) {
		return nil, accessNone, err
	}
	a := s.access(e.rec)
	if a == accessNone {
		return nil, accessNone, notFound(ref)
	}
	return e, a, err
}

// usable returns a key that the session may use in a way that the attribute
// allows.
func (s *session) usable(ref hsm.KeyRef, need access, attribute string) (*entry, error) {
	e, a, err := s.lookup(ref)
	if err != nil {
		return nil, err
	}
	if a < need {
		return nil, fmt.Errorf("%w: %s: key %s belongs to %q; that takes its owner", hsm.ErrDenied, s.whoami(), ref, e.rec.Core.Owner)
	}
	if !e.rec.Flag(attribute) {
		return nil, fmt.Errorf("%w: key %s: %s is false; its owner sets it with key set-attribute", hsm.ErrAttribute, ref, attribute)
	}
	return e, s.h.mayUseTrusted(e.rec, attribute)
}

// audit reports a management command.
func (s *session) audit(ctx context.Context, event string, ref hsm.KeyRef, detail string, err error) {
	s.h.opts.Audit(ctx, event, s.who, ref, detail, err)
}
