package soft

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// The registers of an invitation. All but the claims are written once, with the
// invitation; claim/VOTER is written by that voter alone, once.
const (
	registerKey     = "key"
	registerExpires = "expires"
	registerBy      = "by"
	registerVoters  = "voters"
	claimPrefix     = "claim/"
)

// maxInviteLife bounds how long a token may lie about.
const maxInviteLife = 30 * 24 * time.Hour

// invite records an invitation: admin. ErrNotFound if a voter is no member as far as
// this HSM has heard.
func (s *session) invite(i *hsm.Invite) (hsm.MaskedObject, error) {
	if s.who.Role != hsm.RoleAdmin {
		return hsm.MaskedObject{}, s.denied(hsm.RoleAdmin)
	}
	if err := s.h.checkInvite(i); err != nil {
		return hsm.MaskedObject{}, err
	}
	voters := make([]byte, 0, 8*len(i.Voters))
	for _, v := range i.Voters {
		voters = binary.BigEndian.AppendUint64(voters, uint64(v))
	}
	ref, values := hsm.InviteRef(i.ID), map[string][]byte{
		registerKey: i.Key[:], registerExpires: counterValue(uint64(i.Expires.UnixMilli())), registerBy: []byte(s.who.Name),
		registerVoters: voters, registerReplaces: counterValue(uint64(i.Replaces)),
	}
	return s.h.update(hsm.ScopeCluster, ref, func(cur *held) (*hsm.Record, error) {
		r, err := s.h.withRegisters(cur, hsm.KindInvite, ref, i.ID.String(), values, s.h.clock.Next())
		if err == nil && r != nil && cur != nil {
			return nil, fmt.Errorf("%w: invitation %s is there already, with other terms", hsm.ErrExist, i.ID)
		}
		return r, err
	})
}

func (h *HSM) checkInvite(i *hsm.Invite) error {
	now := h.opts.Now()
	switch {
	case i == nil || i.ID == hsm.InviteID{} || i.Key == [32]byte{}:
		return fmt.Errorf("%w: an invitation has an id and a key", hsm.ErrInvalid)
	case !i.Expires.After(now) || i.Expires.After(now.Add(maxInviteLife)):
		return fmt.Errorf("%w: an invitation that expires at %s: want a time from now to %s ahead", hsm.ErrInvalid, i.Expires.UTC().Format(time.RFC3339), maxInviteLife)
	}
	members, err := h.members()
	if err != nil {
		return err
	}
	voters := slices.Sorted(slices.Values(i.Voters))
	if len(voters) == 0 || len(slices.Compact(voters)) != len(i.Voters) {
		return fmt.Errorf("%w: an invitation needs voters, each once", hsm.ErrInvalid)
	}
	for _, v := range i.Voters {
		at := slices.IndexFunc(members, func(m hsm.Member) bool { return m.ID == v })
		if at < 0 || !members[at].Counts() {
			// It may have joined a moment ago; another HSM knows.
			return fmt.Errorf("%w: HSM %s knows of no voter %s among the members", hsm.ErrNotFound, h.opts.ID, v)
		}
	}
	return nil
}

// claim records that a joiner claims an invitation, if this HSM votes on it: HSM.
// The vote is durable when claim returns, and never changes. ErrNotFound if the
// invitation is not known here; ErrDenied if it has expired or somebody else has
// claimed it.
func (s *session) claim(c hsm.Change) (hsm.MaskedObject, error) {
	if s.who.Role != hsm.RoleHSM {
		return hsm.MaskedObject{}, s.denied(hsm.RoleHSM)
	}
	if c.Claim == nil || c.Claim.Joiner == 0 {
		return hsm.MaskedObject{}, fmt.Errorf("%w: a claim names its joiner", hsm.ErrInvalid)
	}
	return s.h.update(hsm.ScopeCluster, c.Ref, func(cur *held) (*hsm.Record, error) {
		if cur == nil || cur.rec.Kind != hsm.KindInvite || cur.rec.Destroyed {
			return nil, fmt.Errorf("%w: HSM %s knows of no such invitation", hsm.ErrNotFound, s.h.opts.ID)
		}
		i, err := readInvite(cur.rec)
		if err != nil {
			return nil, s.h.damaged(c.Ref, err)
		}
		return s.h.vote(cur.rec, i, *c.Claim)
	})
}

// vote returns the record with this HSM's vote in it, nil if that changes nothing.
func (h *HSM) vote(r *hsm.Record, i *hsm.Invite, c hsm.Claim) (*hsm.Record, error) {
	me := h.opts.ID
	if i.Claims[me] == c || !slices.Contains(i.Voters, me) {
		return nil, nil
	}
	if rival, ok := i.Rival(c); ok {
		return nil, fmt.Errorf("%w: the token was used by %s; a token is good for one HSM: invite again", hsm.ErrDenied, rival.Joiner)
	}
	if now := h.opts.Now(); now.After(i.Expires) {
		return nil, expired(i)
	}
	r = r.Clone()
	r.Set(claimPrefix+me.String(), append(counterValue(uint64(c.Joiner)), c.Proof[:]...), h.clock.Next())
	return r, nil
}

func expired(i *hsm.Invite) error {
	return fmt.Errorf("%w: the token expired at %s; invite again", hsm.ErrDenied, i.Expires.UTC().Format(time.RFC3339))
}

// Invite reads an invitation that can be used: ErrNotFound if it is not known
// here, ErrDenied if it has expired.
func (h *HSM) Invite(ctx context.Context, id hsm.InviteID) (*hsm.Invite, error) {
	i, err := h.FindInvite(ctx, id)
	if err == nil && h.opts.Now().After(i.Expires) {
		return nil, expired(i)
	}
	return i, err
}

// FindInvite reads an invitation, expired or not. ErrNotFound.
func (h *HSM) FindInvite(ctx context.Context, id hsm.InviteID) (*hsm.Invite, error) {
	done, err := h.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	ref := hsm.InviteRef(id)
	cur, err := h.read(hsm.ScopeCluster, ref)
	if err != nil {
		return nil, err
	}
	if cur == nil || cur.rec.Kind != hsm.KindInvite || cur.rec.Destroyed {
		return nil, fmt.Errorf("%w: HSM %s knows of no such invitation; try again in a moment, or invite again", hsm.ErrNotFound, h.opts.ID)
	}
	i, err := readInvite(cur.rec)
	if err != nil {
		return nil, h.damaged(ref, err)
	}
	return i, nil
}

func readInvite(r *hsm.Record) (*hsm.Invite, error) {
	bad := fmt.Errorf("%w: invitation %s does not decode", hsm.ErrCorrupt, r.Ref)
	id, err := hsm.ParseInviteID(r.Core.Owner)
	key, voters := r.Registers[registerKey].Value, r.Registers[registerVoters].Value
	if err != nil || len(key) != 32 || len(voters)%8 != 0 {
		return nil, bad
	}
	i := &hsm.Invite{
		ID: id, Key: [32]byte(key), Expires: time.UnixMilli(int64(counter(r.Registers[registerExpires]))).UTC(), By: string(r.Registers[registerBy].Value),
		Replaces: hsm.HSMID(counter(r.Registers[registerReplaces])), Claims: map[hsm.HSMID]hsm.Claim{},
	}
	for v := range slices.Chunk(voters, 8) {
		i.Voters = append(i.Voters, hsm.HSMID(binary.BigEndian.Uint64(v)))
	}
	for name, reg := range r.Registers {
		voter, ok := strings.CutPrefix(name, claimPrefix)
		if !ok {
			continue
		}
		id, err := hsm.ParseHSMID(voter)
		if err != nil || len(reg.Value) != 40 {
			return nil, bad
		}
		i.Claims[id] = hsm.Claim{Joiner: hsm.HSMID(binary.BigEndian.Uint64(reg.Value)), Proof: [32]byte(reg.Value[8:])}
	}
	return i, nil
}

const registerUntil = "until"

// revoke ends certificates: admin, and the operator of an HSM.
func (s *session) revoke(r *hsm.Revocation) (hsm.MaskedObject, error) {
	if s.who.Role != hsm.RoleAdmin && s.who.Role != hsm.RoleHSM {
		return hsm.MaskedObject{}, s.denied(hsm.RoleAdmin, hsm.RoleHSM)
	}
	if r == nil || r.Kind == "" || r.Name == "" || len(r.Kind)+len(r.Name) > maxMemberText || !printable(r.Kind+r.Name) || strings.Contains(r.Kind, "/") {
		return hsm.MaskedObject{}, fmt.Errorf("%w: a revocation names the kind and the name of certificates", hsm.ErrInvalid)
	}
	ref := hsm.RevocationRef(r.Kind, r.Name)
	until := counterValue(uint64(max(0, r.Until.UnixMilli())))
	return s.h.update(hsm.ScopeCluster, ref, func(cur *held) (*hsm.Record, error) {
		if was, ok := registerOf(cur, registerUntil); ok && counter(was) >= uint64(r.Until.UnixMilli()) {
			return nil, nil // it ends these already
		}
		return s.h.withRegisters(cur, hsm.KindRevocation, ref, r.Kind+"/"+r.Name, map[string][]byte{registerUntil: until}, s.h.clock.Next())
	})
}

// Revocations lists what was revoked.
func (h *HSM) Revocations(ctx context.Context) ([]hsm.Revocation, error) {
	done, err := h.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	var list []hsm.Revocation
	err = h.each(hsm.KindRevocation, func(r *hsm.Record) error {
		kind, name, _ := strings.Cut(r.Core.Owner, "/")
		list = append(list, hsm.Revocation{Kind: kind, Name: name, Until: time.UnixMilli(int64(counter(r.Registers[registerUntil]))).UTC()})
		return nil
	})
	return list, err
}
