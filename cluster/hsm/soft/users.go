package soft

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// The registers of a user.
const (
	registerRole     = "role"
	registerVerifier = "verifier" // hidden
)

// user is a live user.
type user struct {
	name        string
	role        hsm.Role
	ref         hsm.KeyRef
	incarnation uint64
	created     hsm.Stamp // zero: not known
	verifier    []byte
	digest      hsm.Digest
	quorumKey   []byte // SPKI; none: cannot approve
	mfaKey      []byte // SPKI; none: logs in with the password alone
}

// userTable holds the live users by name; there are at most some thousands.
type userTable struct {
	mu       sync.RWMutex
	byName   map[string]user
	deleting sync.Mutex // held while a user is deleted
}

// set takes over a user's record. It tells whether sessions of the user that
// was there before are over: it was deleted, is another one now, or has another
// password.
func (t *userTable) set(r *hsm.Record, o hsm.Object) (over bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byName == nil {
		t.byName = map[string]user{}
	}
	name := r.Core.Owner
	was, known := t.byName[name]
	if r.Destroyed {
		delete(t.byName, name)
		return known
	}
	u := user{
		name: name, role: hsm.Role(r.Registers[registerRole].Value), ref: r.Ref, incarnation: r.Incarnation, created: r.Registers[hsm.RegisterCreated].Stamp,
		verifier: r.Hidden[registerVerifier].Value, digest: o.Digest,
		quorumKey: r.Registers[registerQuorumKey].Value, mfaKey: r.Registers[registerMFAKey].Value,
	}
	t.byName[name] = u
	return known && (was.incarnation != u.incarnation || was.role != u.role || !bytes.Equal(was.verifier, u.verifier))
}

func (t *userTable) get(name string) (user, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	u, ok := t.byName[name]
	return u, ok
}

// list returns the users sorted by name.
func (t *userTable) list() []user {
	t.mu.RLock()
	defer t.mu.RUnlock()
	users := make([]user, 0, len(t.byName))
	for _, u := range t.byName {
		users = append(users, u)
	}
	slices.SortFunc(users, func(a, b user) int { return cmp.Compare(a.name, b.name) })
	return users
}

func (t *userTable) count(role hsm.Role) (n int) {
	for _, u := range t.list() {
		if u.role == role {
			n++
		}
	}
	return n
}

// cryptoUser returns the canonical name of a crypto user, ErrNotFound if there
// is none.
func (t *userTable) cryptoUser(name string) (string, error) {
	name, err := hsm.CanonicalUserName(name)
	if err != nil {
		return "", err
	}
	if u, ok := t.get(name); !ok || u.role != hsm.RoleCryptoUser {
		return "", fmt.Errorf("%w: there is no crypto user %q; see user list", hsm.ErrNotFound, name)
	}
	return name, nil
}

// shareable returns the canonical name of a crypto user, as cryptoUser does, and
// sees to it that a share from now on is later than the user.
func (h *HSM) shareable(name string) (string, error) {
	name, err := h.users.cryptoUser(name)
	if err != nil {
		return "", err
	}
	u, _ := h.users.get(name)
	return name, h.clock.Observe(u.created)
}

// sharedWith tells whether a key is shared with a user. A share with a deleted
// user is not one with whoever gets the name next.
func (h *HSM) sharedWith(r *hsm.Record, name string) bool {
	u, _ := h.users.get(name)
	return r.SharedWith(name) && r.Registers[hsm.ShareRegister(name)].Stamp.Compare(u.created) > 0
}

// shares lists the users a key is shared with, sorted.
func (h *HSM) shares(r *hsm.Record) []string {
	return slices.DeleteFunc(r.Shares(), func(name string) bool { return !h.sharedWith(r, name) })
}

// createUser makes a user, or raises a deleted one to its next incarnation.
func (h *HSM) createUser(c hsm.Change) (hsm.MaskedObject, error) {
	name, err := hsm.CanonicalUserName(c.User)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	if c.Role != hsm.RoleAdmin && c.Role != hsm.RoleCryptoUser {
		return hsm.MaskedObject{}, fmt.Errorf("%w: role %.40q: want admin or crypto-user", hsm.ErrInvalid, c.Role)
	}
	v, err := h.newVerifier(c.Password)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	m, err := h.update(hsm.ScopeLineage, hsm.UserRef(name), func(cur *held) (*hsm.Record, error) {
		r, err := h.newRecord(hsm.KindUser, hsm.UserRef(name), name)
		switch {
		case err != nil:
			return nil, err
		case cur != nil && !cur.obj.Tombstone:
			return nil, fmt.Errorf("%w: user %q, as %s", hsm.ErrExist, name, cur.rec.Registers[registerRole].Value)
		case cur != nil:
			r.Incarnation = cur.rec.Incarnation + 1
		}
		if r.Incarnation, err = begins(c, r.Incarnation); err != nil {
			return nil, err
		}
		at := h.stampOf(c)
		if err := h.laterThanShares(name, r.Incarnation, at); err != nil {
			return nil, err
		}
		r.Set(registerRole, []byte(c.Role), at)
		r.Set(hsm.RegisterCreated, nil, at)
		r.Hidden[registerVerifier] = hsm.Register{Stamp: at, Value: v}
		return r, nil
	})
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	return m, h.unlock(name)
}

// laterThanShares checks that a user in a life after the first is later than what was
// shared with whoever had the name before. ErrLate.
func (h *HSM) laterThanShares(name string, incarnation uint64, at hsm.Stamp) error {
	if incarnation == 0 {
		return nil
	}
	refs, err := refsUnder(h.store.db, userPrefix(name), relShared)
	if err != nil {
		return h.store.wrap("read", err)
	}
	for _, ref := range refs {
		cur, err := h.read(hsm.ScopeLineage, ref)
		if err != nil {
			return err
		}
		if cur != nil {
			if err := mustWin(at, cur.rec.Registers[hsm.ShareRegister(name)].Stamp); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *HSM) newVerifier(password hsm.Secret) ([]byte, error) {
	if err := hsm.CheckPassword(password); err != nil {
		return nil, err
	}
	return newVerifier(password, h.opts.Iterations)
}

// find returns the user that a change names. The role may be left out.
func (h *HSM) find(c hsm.Change) (user, error) {
	name, err := hsm.CanonicalUserName(c.User)
	if err != nil {
		return user{}, err
	}
	u, ok := h.users.get(name)
	if c.Role != "" && c.Role != hsm.RoleAdmin && c.Role != hsm.RoleCryptoUser {
		return user{}, fmt.Errorf("%w: role %.40q: want admin or crypto-user", hsm.ErrInvalid, c.Role)
	}
	if !ok || (c.Role != "" && u.role != c.Role) {
		return user{}, fmt.Errorf("%w: there is no %s %q; see user list", hsm.ErrNotFound, cmp.Or(string(c.Role), "user"), name)
	}
	return u, nil
}

// setPassword sets a user's password and unlocks it. The user's sessions end,
// here at once and on other HSMs when they learn of it; this one goes on.
func (s *session) setPassword(c hsm.Change) (hsm.MaskedObject, error) {
	h := s.h
	u, err := h.find(c)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	v, err := h.newVerifier(c.Password)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	s.spare(v)
	m, err := h.update(hsm.ScopeLineage, u.ref, func(cur *held) (*hsm.Record, error) {
		if err := h.stillThere(u, cur); err != nil {
			return nil, err
		}
		r, at := cur.rec.Clone(), h.stampOf(c)
		if later, err := wins(at, r.Hidden[registerVerifier].Stamp); err != nil || !later {
			return nil, err
		}
		r.Hidden[registerVerifier] = hsm.Register{Stamp: at, Value: v}
		return r, nil
	})
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	return m, h.unlock(u.name)
}

func (h *HSM) stillThere(u user, cur *held) error {
	if cur == nil || cur.obj.Tombstone || cur.rec.Incarnation != u.incarnation {
		return fmt.Errorf("%w: user %q was deleted meanwhile", hsm.ErrNotFound, u.name)
	}
	return nil
}

// unlockUser forgives a user's failed logins; the user itself does not change.
func (h *HSM) unlockUser(c hsm.Change) (hsm.MaskedObject, error) {
	u, err := h.find(c)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	return h.forgive(u.name)
}

// deleteUser leaves a tombstone of the user. The last admin stays, and so does
// who owns keys.
func (h *HSM) deleteUser(c hsm.Change) (hsm.MaskedObject, error) {
	u, err := h.find(c)
	if err != nil {
		return hsm.MaskedObject{}, err
	}
	h.users.deleting.Lock() // two admins must not delete each other at once
	defer h.users.deleting.Unlock()
	if u.role == hsm.RoleAdmin && h.users.count(hsm.RoleAdmin) == 1 {
		return hsm.MaskedObject{}, fmt.Errorf("%w: %q is the last admin; create another one first", hsm.ErrDenied, u.name)
	}
	if err := h.maySpare(u); err != nil {
		return hsm.MaskedObject{}, err
	}
	return h.update(hsm.ScopeLineage, u.ref, func(cur *held) (*hsm.Record, error) {
		if err := h.stillThere(u, cur); err != nil {
			return nil, err
		}
		owned, err := h.countOwned(u)
		if err != nil {
			return nil, err
		}
		if n := owned + h.ops.countBy(u.name); n > 0 {
			return nil, fmt.Errorf("%w: user %q owns %d keys; destroy them first", hsm.ErrDenied, u.name, n)
		}
		r := cur.rec.Clone()
		r.Destroy()
		return r, nil
	})
}

// countOwned counts the live keys of a user, without those of earlier users of its
// name.
func (h *HSM) countOwned(u user) (n int, err error) {
	refs, err := refsUnder(h.store.db, userPrefix(u.name), relOwner)
	if err != nil || u.incarnation == 0 {
		return len(refs), h.store.wrap("read", err)
	}
	for _, ref := range refs {
		cur, err := h.read(hsm.ScopeLineage, ref)
		if err != nil {
			return n, err
		}
		if cur != nil && h.owns(u.name, cur.rec) {
			n++
		}
	}
	return n, nil
}

// listUsers lists the live users by name.
func (h *HSM) listUsers() ([]hsm.UserInfo, error) {
	infos := []hsm.UserInfo{}
	for _, u := range h.users.list() {
		locked, err := h.locked(u.name)
		if err != nil {
			return nil, err
		}
		infos = append(infos, hsm.UserInfo{Name: u.name, Role: u.role, Locked: locked, Ref: u.ref, Digest: u.digest, Quorum: len(u.quorumKey) > 0, MFA: len(u.mfaKey) > 0})
	}
	return infos, nil
}
