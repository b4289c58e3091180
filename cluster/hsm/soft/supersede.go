package soft

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// decision is a person's word on two births under one reference: what the HSM is
// shown of the other side, authenticated, and the birth that the word is about.
type decision struct {
	s     *session
	ref   hsm.KeyRef
	other *hsm.Record
	birth [16]byte
}

// decide reads a change that decides between births. Admins may, and the crypto
// user who owns all that is decided on.
func (s *session) decide(c hsm.Change) (*decision, error) {
	if !s.isUser() && s.who.Role != hsm.RoleAdmin {
		return nil, s.denied(hsm.RoleAdmin, hsm.RoleCryptoUser)
	}
	b, err := hex.DecodeString(c.Value)
	if err != nil || len(b) != 16 {
		return nil, fmt.Errorf("%w: %s %s: birth %.80q: want 32 hexadecimal digits", hsm.ErrInvalid, c.Kind, c.Ref, c.Value)
	}
	if c.Masked == nil {
		return nil, fmt.Errorf("%w: %s %s: a masked object of the other birth is needed", hsm.ErrInvalid, c.Kind, c.Ref)
	}
	other, err := s.h.admit(*c.Masked, hsm.ScopeLineage)
	if err != nil {
		return nil, err
	}
	if other.Kind != hsm.KindKey || other.Ref != c.Ref {
		return nil, fmt.Errorf("%w: %s %s: the masked object is %s %s", hsm.ErrInvalid, c.Kind, c.Ref, other.Kind, other.Ref)
	}
	return &decision{s: s, ref: c.Ref, other: other, birth: [16]byte(b)}, nil
}

// mayDecide checks what the HSM itself holds: another birth than it is shown.
func (d *decision) mayDecide(cur *held) error {
	if cur == nil || cur.rec.Kind != hsm.KindKey {
		return notFound(d.ref)
	}
	for _, r := range []*hsm.Record{cur.rec, d.other} {
		if d.s.isUser() && !d.s.h.ownsAll(d.s.who.Name, r) {
			return notFound(d.ref)
		}
	}
	if cur.rec.Birth == d.other.Birth && !cur.rec.Names(d.birth) {
		return fmt.Errorf("%w: this HSM holds the other birth of %s", hsm.ErrNotFound, d.ref) // another HSM may hold this one
	}
	return nil
}

// ownsAll tells whether a user owns a key and all births that it stands above.
func (h *HSM) ownsAll(user string, r *hsm.Record) bool {
	for _, v := range r.Rivals {
		if !h.owns(user, &hsm.Record{Core: v.Core, Destroyed: v.Destroyed, Registers: v.Registers}) {
			return false
		}
	}
	return h.owns(user, r)
}

// supersede sets one birth of a reference above another: of the two that the HSM
// holds and is shown, Value stands from now on, here and wherever the result gets.
// Who says it twice, or on two HSMs, makes the same record.
func (s *session) supersede(ctx context.Context, c hsm.Change) (hsm.MaskedObject, error) {
	d, err := s.decide(c)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	var ended *hsm.Record
	m, err := s.h.update(hsm.ScopeLineage, c.Ref, func(cur *held) (*hsm.Record, error) {
		if err := d.mayDecide(cur); err != nil {
			return nil, err
		}
		r, err := hsm.Supersede(cur.rec, d.other, d.birth)
		if err != nil {
			return nil, err
		}
		for _, was := range []*hsm.Record{cur.rec, d.other} {
			if err := d.mayEnd(was, r); err != nil {
				return nil, err
			}
		}
		if r.Birth != cur.rec.Birth && !r.Destroyed {
			if err := s.h.ownerThere(r); err != nil {
				return nil, fmt.Errorf("supersede %s: what is to stand: %w", c.Ref, err)
			}
			if err := s.h.mindCopy(r); err != nil {
				return nil, err
			}
		}
		ended = cur.rec
		return s.unlessSame(cur, r)
	})
	if err == nil && ended.Birth != d.birth {
		s.auditEnded(ctx, ended)
	}
	return m, err
}

// unlessSame returns nothing if r is what is there already.
func (s *session) unlessSame(cur *held, r *hsm.Record) (*hsm.Record, error) {
	m, err := s.h.keys().Mask(r)
	if err != nil || m.Digest == cur.obj.Digest {
		return nil, err
	}
	return r, nil
}

// mayEnd checks that a live key may give way to what is to stand, and that what is
// to stand may come in: the rules of destroying and reviving a key. One that is not
// destroyable gives way only once it is kept.
func (d *decision) mayEnd(was, now *hsm.Record) error {
	h := d.s.h
	switch {
	case was.Destroyed:
		return nil
	case was.Birth == now.Birth:
		if was == d.other {
			return d.s.mayRevive(now)
		}
		return nil
	}
	if err := h.mayDestroy(was); err != nil || was.Flag("destroyable") {
		return err
	}
	kept, err := h.read(hsm.ScopeLineage, h.keys().KeptRef(was.Ref, was.Birth))
	if err == nil && (kept == nil || kept.rec.Destroyed) {
		err = fmt.Errorf("%w: key %s of %q is not destroyable; keep it too, or set destroyable to true first", hsm.ErrAttribute, was.Ref, was.Core.Owner)
	}
	return err
}

// keepCopy makes the birth Value of a key that is in conflict a key of another
// reference, before it gives way: hsm.Keyring.Kept. Repeated, it changes nothing.
func (s *session) keepCopy(c hsm.Change) (hsm.MaskedObject, error) {
	d, err := s.decide(c)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	cur, err := s.h.read(hsm.ScopeLineage, c.Ref)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	if err := d.mayDecide(cur); err != nil {
		return hsm.MaskedObject{}, err
	}
	switch {
	case cur.rec.Birth != d.birth:
		return hsm.MaskedObject{}, fmt.Errorf("%w: key %s has no live birth %s here", hsm.ErrNotFound, c.Ref, c.Value)
	case d.other.Birth == d.birth:
		return hsm.MaskedObject{}, fmt.Errorf("%w: keep %s: it is not in conflict with what is shown", hsm.ErrInvalid, c.Ref)
	case cur.rec.Destroyed:
		return hsm.MaskedObject{}, fmt.Errorf("%w: %s", hsm.ErrDestroyed, c.Ref)
	}
	return s.keepRecord(cur.rec)
}

func (s *session) keepRecord(r *hsm.Record) (hsm.MaskedObject, error) {
	if err := s.h.mayDestroy(r); err != nil { // a trusted key does not become another one
		return hsm.MaskedObject{}, err
	}
	if err := s.h.ownerThere(r); err != nil {
		return hsm.MaskedObject{}, fmt.Errorf("keep %s: %w", r.Ref, err)
	}
	kept, err := s.h.keys().Kept(r)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	return s.h.update(hsm.ScopeLineage, kept.Ref, func(cur *held) (*hsm.Record, error) {
		switch {
		case s.h.ops.holding(hsm.ScopeLineage, kept.Ref) != nil:
			return nil, fmt.Errorf("%w: %s is being created; commit or abort that first", hsm.ErrExist, kept.Ref)
		case cur == nil:
			return kept, nil
		case cur.rec.Destroyed:
			return nil, fmt.Errorf("%w: %s, under which it was kept before", hsm.ErrDestroyed, kept.Ref)
		}
		merged, err := hsm.Merge(cur.rec, kept)
		if err != nil {
			return nil, err
		}
		return s.unlessSame(cur, merged)
	})
}

// ownerThere checks that the user who owns a key is here, and not another one who has
// the name by now.
func (h *HSM) ownerThere(r *hsm.Record) error {
	if _, err := h.shareable(r.Core.Owner); err != nil {
		return fmt.Errorf("its owner: %w", err)
	}
	if !h.owns(r.Core.Owner, r) {
		return fmt.Errorf("%w: it belongs to a %q who was deleted; the user of that name now is another one", hsm.ErrNotFound, r.Core.Owner)
	}
	return nil
}

// auditEnded records which key has given way to another birth of its reference.
func (s *session) auditEnded(ctx context.Context, r *hsm.Record) {
	state := "live"
	if r.Destroyed {
		state = "destroyed"
	}
	s.audit(ctx, "superseded", r.Ref, fmt.Sprintf("birth %x, %s, of %q, label %q, check value %x, gave way to another birth", r.Birth, state, r.Core.Owner, r.Text("label"), r.Core.Check), nil)
}

// errTakesOver: a crypto user brings a key that would end another user's, or a
// trusted one.
var errTakesOver = errors.New("it would end another user's key, or a trusted one")

// mayTakeOver lets a decision between births in: an admin, an appliance and an HSM
// bring every one that an HSM of the lineage made, a crypto user only such as end
// keys of its own that it may destroy here: the HSM where it was decided may not know
// that a key is trusted, or half of a pair that is.
func (s *session) mayTakeOver(cur, r *hsm.Record) error {
	if cur.Birth == r.Birth || !s.isUser() || cur.Destroyed {
		return nil
	}
	if !s.h.owns(s.who.Name, cur) || s.h.mayDestroy(cur) != nil {
		return errTakesOver
	}
	return nil
}
