package soft

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// session is what one principal does on this HSM. Its Replica and Sketcher are
// those of the lineage.
type session struct {
	replica
	h   *HSM
	who hsm.Principal

	mu   sync.Mutex
	over bool
	keys map[hsm.KeyRef]*sessionKey
	made []byte // the password verifier that this session set last
	// off are operations that were aborted and had made no session key here, the last
	// of them.
	off []hsm.OpID
	// uses is read-locked while key material is in use, so that Close wipes
	// nothing that is.
	uses sync.RWMutex
}

// sessionKey is a key that lives in this session only.
type sessionKey struct {
	entry *entry
	op    hsm.OpID // it was made under
}

// userSession starts a session for a user who has logged in.
func (h *HSM) userSession(u user) (hsm.Session, error) {
	s := h.newSession(hsm.Principal{Role: u.role, Name: u.name})
	// A user deleted or given another password between login and here has ended
	// only the sessions there were.
	if now, ok := h.users.get(u.name); !ok || now.incarnation != u.incarnation || !bytes.Equal(now.verifier, u.verifier) {
		return nil, loginErrorAfter(s.Close())
	}
	return s, nil
}

func loginErrorAfter(err error) error {
	if err != nil {
		return err
	}
	return loginError()
}

func (h *HSM) newSession(who hsm.Principal) *session {
	s := &session{h: h, who: who, keys: map[hsm.KeyRef]*sessionKey{}}
	s.replica = replica{s: s, scope: hsm.ScopeLineage}
	h.sessions.add(s)
	return s
}

// enter begins a call that principals with one of the roles may make; no roles
// means anyone. The caller defers done.
func (s *session) enter(ctx context.Context, roles ...hsm.Role) (done func(), err error) {
	done, err = s.h.enter(ctx)
	if err != nil {
		return nil, err
	}
	if err = s.allow(roles...); err != nil {
		done()
		return nil, err
	}
	return done, nil
}

func (s *session) allow(roles ...hsm.Role) error {
	s.mu.Lock()
	over := s.over
	s.mu.Unlock()
	if over {
		return fmt.Errorf("%w: log in again", hsm.ErrSession)
	}
	if len(roles) > 0 && !slices.Contains(roles, s.who.Role) {
		return s.denied(roles...)
	}
	return nil
}

// denied says who may do what this principal may not.
func (s *session) denied(roles ...hsm.Role) error {
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = string(r)
	}
	return fmt.Errorf("%w: %s; it takes: %s", hsm.ErrDenied, s.whoami(), strings.Join(names, ", "))
}

func (s *session) whoami() string {
	if s.who.Role == hsm.RoleNone {
		return "nobody is logged in"
	}
	return fmt.Sprintf("this is %s %q", s.who.Role, s.who.Name)
}

// everyone lists the roles of all who are logged in.
var everyone = []hsm.Role{hsm.RoleAdmin, hsm.RoleCryptoUser, hsm.RoleAppliance, hsm.RoleHSM}

func (s *session) isUser() bool { return s.who.Role == hsm.RoleCryptoUser }

// Principal implements hsm.Session.
func (s *session) Principal() hsm.Principal { return s.who }

// Info implements hsm.Session. A broken HSM still describes itself.
func (s *session) Info(ctx context.Context) (hsm.Info, error) {
	if err := ctx.Err(); err != nil {
		return hsm.Info{}, err
	}
	if err := s.allow(); err != nil {
		return hsm.Info{}, err
	}
	return s.h.info(), nil
}

// Members implements hsm.Session. Anyone may ask.
func (s *session) Members(ctx context.Context) ([]hsm.Member, error) {
	done, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return s.h.members()
}

// Users implements hsm.Session.
func (s *session) Users(ctx context.Context) ([]hsm.UserInfo, error) {
	done, err := s.enter(ctx, everyone...)
	if err != nil {
		return nil, err
	}
	defer done()
	return s.h.listUsers()
}

// Scoped implements hsm.Session.
func (s *session) Scoped(scope hsm.Scope) hsm.SketchReplica { return replica{s: s, scope: scope} }

// Close implements hsm.Session. It waits for uses of session keys in progress.
func (s *session) Close() error {
	s.h.sessions.remove(s)
	keys := s.end()
	s.uses.Lock()
	defer s.uses.Unlock()
	for _, k := range keys {
		k.entry.rec.Material.Wipe()
	}
	return nil
}

// end lets no more calls in and forgets the session keys, which it returns.
func (s *session) end() map[hsm.KeyRef]*sessionKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := s.keys
	s.over, s.keys = true, nil
	return keys
}

// spare notes that this session is about to set a verifier: the change does not
// end it.
func (s *session) spare(verifier []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made = verifier
}

func (s *session) spared(verifier []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(verifier) > 0 && bytes.Equal(s.made, verifier)
}

// sessionKey returns a session key of this session, nil if there is none.
func (s *session) sessionKey(ref hsm.KeyRef) *sessionKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[ref]
}

// sessionKeys lists the session's keys, ascending by reference.
func (s *session) sessionKeys() []*sessionKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := make([]*sessionKey, 0, len(s.keys))
	for _, k := range s.keys {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b *sessionKey) int {
		if a.entry.rec.Ref < b.entry.rec.Ref {
			return -1
		}
		return 1
	})
	return keys
}

// keep adds the session keys of an operation. ErrSession if the session ended
// meanwhile, ErrOp if the operation was aborted, ErrFull if there are too many keys.
func (s *session) keep(op hsm.OpID, keys ...*sessionKey) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.over:
		return fmt.Errorf("%w: log in again", hsm.ErrSession)
	case slices.Contains(s.off, op):
		return fmt.Errorf("%w: %x was aborted before its session keys were made", hsm.ErrOp, op)
	case len(s.keys)+len(keys) > maxSessionKeys:
		return fmt.Errorf("%w: this session has %d session keys, at most %d; close it or destroy some", hsm.ErrFull, len(s.keys), maxSessionKeys)
	}
	for _, k := range keys {
		s.keys[k.entry.rec.Ref] = k
	}
	return nil
}

// maxSessionKeys bounds the memory of one session: the keys that CloudHSM's
// larger HSM holds in all (cloudhsm.md §2.6).
const maxSessionKeys = 16_666

// maxOff bounds session.off: calls that were under way when their caller gave up, and
// reach the HSM after their end.
const maxOff = 256

// abortKeys destroys the session keys that were made under an operation, and tells
// whether there were any. If not, none will be.
func (s *session) abortKeys(op hsm.OpID) (any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref, k := range s.keys {
		if k.op == op {
			delete(s.keys, ref)
			any = true
		}
	}
	if !any && s.isUser() && !slices.Contains(s.off, op) {
		if len(s.off) == maxOff {
			s.off = slices.Delete(s.off, 0, 1)
		}
		s.off = append(s.off, op)
	}
	return any
}

func (s *session) forget(ref hsm.KeyRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.keys, ref)
}

// sessionTable holds the sessions that are open.
type sessionTable struct {
	mu   sync.Mutex
	open map[*session]struct{}
}

func (t *sessionTable) add(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[*session]struct{}{}
	}
	t.open[s] = struct{}{}
}

func (t *sessionTable) remove(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, s)
}

func (t *sessionTable) count() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return uint64(len(t.open))
}

// end ends the sessions of a user, but for the one that set this verifier.
func (t *sessionTable) end(name string, verifier []byte) {
	t.endIf(func(s *session) bool {
		return s.who.Name == name && !s.spared(verifier) && (s.who.Role == hsm.RoleAdmin || s.who.Role == hsm.RoleCryptoUser)
	})
}

func (t *sessionTable) endAll() { t.endIf(func(*session) bool { return true }) }

func (t *sessionTable) endIf(of func(*session) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s := range t.open {
		if of(s) {
			s.end()
			delete(t.open, s)
		}
	}
}
