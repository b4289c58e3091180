package soft

import (
	"fmt"
	"math"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// hand gives a key that belonged to an earlier user to the one who has the name
// now. Only an admin comes here with one; the stamp is the same on every HSM.
func (h *HSM) hand(r *hsm.Record) {
	if u, _ := h.users.get(r.Core.Owner); !h.owns(u.name, r) {
		r.Set(hsm.RegisterOwned, nil, u.created)
	}
}

// begins returns the incarnation that a change begins: the one that was asked for, if
// it has not ended yet, or else the next one here.
func begins(c hsm.Change, next uint64) (uint64, error) {
	switch {
	case c.Life == 0:
		return next, nil
	case c.Life-1 < next:
		return 0, fmt.Errorf("%w: incarnation %d of it has ended already; this call comes too late", hsm.ErrDestroyed, c.Life-1)
	case c.Life-1 > next+maxLivesAhead:
		return 0, fmt.Errorf("%w: incarnation %d, where %d is the next", hsm.ErrInvalid, c.Life-1, next)
	}
	return c.Life - 1, nil
}

// maxLivesAhead bounds how many lives of an object an HSM may have missed.
const maxLivesAhead = 1 << 20

// revive raises a destroyed key to its next incarnation, in an authentic state
// from before it was destroyed; what of its attributes changes one way stays as
// it was last, and so does trust (hsm.Record.Revived). Nothing else ever brings a destroyed key back,
// An owner revives its own keys, an admin all; if the owner was deleted
// meanwhile, and is there again, the key is the new user's from now on.
// Whoever revives the same state on two HSMs makes the same record.
func (s *session) revive(c hsm.Change) (hsm.MaskedObject, error) {
	if !s.isUser() && s.who.Role != hsm.RoleAdmin {
		return hsm.MaskedObject{}, s.denied(hsm.RoleAdmin, hsm.RoleCryptoUser)
	}
	if c.Masked == nil {
		return hsm.MaskedObject{}, fmt.Errorf("%w: revive %s: a masked object from before its destruction is needed", hsm.ErrInvalid, c.Ref)
	}
	from, err := s.h.admit(*c.Masked, hsm.ScopeLineage)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	if from.Kind != hsm.KindKey || from.Ref != c.Ref || from.Destroyed {
		return hsm.MaskedObject{}, fmt.Errorf("%w: revive %s: the masked object is of %s %s, destroyed %t", hsm.ErrInvalid, c.Ref, from.Kind, from.Ref, from.Destroyed)
	}
	if s.isUser() && !s.h.owns(s.who.Name, from) {
		return hsm.MaskedObject{}, notFound(c.Ref)
	}
	if _, err := s.h.shareable(from.Core.Owner); err != nil {
		return hsm.MaskedObject{}, fmt.Errorf("revive %s: its owner: %w", c.Ref, err)
	}
	s.h.hand(from)
	return s.h.update(hsm.ScopeLineage, c.Ref, func(cur *held) (*hsm.Record, error) {
		switch {
		case cur == nil:
			return nil, fmt.Errorf("%w: %s was never here; insert it instead", hsm.ErrNotFound, c.Ref)
		case cur.rec.Birth != from.Birth:
			return nil, fmt.Errorf("%w: the key destroyed under %s is another one", hsm.ErrConflict, c.Ref)
		case !cur.rec.Destroyed && cur.rec.Incarnation > from.Incarnation:
			return nil, nil // revived already: a repetition
		case !cur.rec.Destroyed:
			return nil, fmt.Errorf("%w: %s is not destroyed", hsm.ErrExist, c.Ref)
		}
		if cur.rec.Incarnation == math.MaxUint64 {
			return nil, fmt.Errorf("%w: key %s has no incarnation left", hsm.ErrInvalid, c.Ref)
		}
		next := cur.rec.Revived(from)
		if next.Incarnation, err = begins(c, next.Incarnation); err != nil {
			return nil, err
		}
		r, err := hsm.Merge(cur.rec, next) // what it stands above stays so
		if err != nil {
			return nil, err
		}
		return r, s.mayRevive(r)
	})
}
