package pkcs11

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
)

// Times.
const (
	// fresh is how old what is known of an object may be to answer for its attributes:
	// applications ask for them one by one.
	fresh = 250 * time.Millisecond
	// recent is how old it may be to begin an operation. The HSM checks every use of a
	// key by its own knowledge.
	recent = 2 * time.Second
	// endTime bounds the destruction of the session objects of a session or login.
	endTime = 5 * time.Second
)

// object is what a handle stands for. Its fields but known and seen do not change.
type object struct {
	handle  uint64
	slot    *slot
	ref     hsm.KeyRef
	session *session // nil for a token object
	login   *login   // that has made it, of a session object

	mu    sync.Mutex
	known hsm.KeyInfo
	seen  time.Time
}

// objects are the handles of one application. A handle is never given twice.
type objects struct {
	mu       sync.Mutex
	last     uint64
	byHandle map[uint64]*object
	byRef    map[slotRef]*object
}

type slotRef struct {
	slot *slot
	ref  hsm.KeyRef
}

// note gives an object its handle, or finds the one it has. A session object is a session's,
// made under a login; a token object is nobody's.
func (t *objects) note(slot *slot, k hsm.KeyInfo, session *session, login *login) *object {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byHandle == nil {
		t.byHandle, t.byRef = map[uint64]*object{}, map[slotRef]*object{}
	}
	o := t.byRef[slotRef{slot, k.Ref}]
	if o == nil {
		t.last++
		o = &object{handle: t.last, slot: slot, ref: k.Ref, session: session, login: login}
		t.byHandle[o.handle], t.byRef[slotRef{slot, k.Ref}] = o, o
	}
	o.learn(k)
	return o
}

func (o *object) learn(k hsm.KeyInfo) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.known, o.seen = k, time.Now()
}

// stale makes the next question be asked of an HSM.
func (o *object) stale() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen = time.Time{}
}

func (o *object) within(age time.Duration) (hsm.KeyInfo, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.known, time.Since(o.seen) < age
}

func (t *objects) get(handle uint64) *object {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byHandle[handle]
}

// of returns the object under a reference, nil if it has no handle.
func (t *objects) of(slot *slot, ref hsm.KeyRef) *object {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byRef[slotRef{slot, ref}]
}

// remove forgets one object.
func (t *objects) remove(o *object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byHandle[o.handle] == o {
		delete(t.byHandle, o.handle)
		delete(t.byRef, slotRef{o.slot, o.ref})
	}
}

// drop forgets the objects that which selects, and returns them.
func (t *objects) drop(which func(*object) bool) (dropped []*object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for h, o := range t.byHandle {
		if which(o) {
			delete(t.byHandle, h)
			delete(t.byRef, slotRef{o.slot, o.ref})
			dropped = append(dropped, o)
		}
	}
	return dropped
}

// object returns an object of the session's slot and what an HSM knew of it at most
// so long ago.
func (s *session) object(ctx context.Context, handle uint64, age time.Duration) (*object, hsm.KeyInfo, error) {
	l, err := s.login()
	if err != nil {
		if s.app.objects.get(handle) == nil {
			err = ck.ObjectHandleInvalid
		}
		return nil, hsm.KeyInfo{}, err
	}
	o := s.app.objects.get(handle)
	if o == nil || o.slot != s.slot {
		return nil, hsm.KeyInfo{}, ck.ObjectHandleInvalid
	}
	if k, ok := o.within(age); ok {
		return o, k, nil
	}
	k, err := l.KeyInfo(ctx, o.ref)
	if errors.Is(err, hsm.ErrNotFound) || errors.Is(err, hsm.ErrDestroyed) {
		if !errors.Is(err, hsm.ErrUnavailable) {
			s.app.objects.remove(o)
		}
		return nil, k, ck.ObjectHandleInvalid
	}
	if err != nil {
		return nil, k, err
	}
	o.learn(k)
	return o, k, nil
}

// key is object for the key of an operation; invalid is the return value for a handle
// that is none.
func (s *session) key(ctx context.Context, handle uint64, invalid ck.RV) (*object, hsm.KeyInfo, error) {
	o, k, err := s.object(ctx, handle, recent)
	if errors.Is(err, ck.ObjectHandleInvalid) || err == nil && !k.Class.IsKey() {
		err = invalid
	}
	return o, k, err
}

// promote makes a token object of a session object: from now on no end of a session or
// login has it destroyed. Its handle stays. It returns nil if such an end has taken the
// object already.
func (t *objects) promote(o *object) (token *object) {
	token = &object{handle: o.handle, slot: o.slot, ref: o.ref}
	if !t.replace(o, token) {
		return nil
	}
	return token
}

// replace puts one object in the place of another under its handle, if it has it still.
func (t *objects) replace(o, by *object) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byHandle[o.handle] != o {
		return false
	}
	t.byHandle[o.handle], t.byRef[slotRef{o.slot, o.ref}] = by, by
	return true
}

// demote takes a promotion back that came to nothing. If its session or login has ended
// meanwhile, the object ends now.
func (a *App) demote(token, o *object) {
	if a.objects.replace(token, o) {
		a.mu.Lock()
		lives := a.sessions[o.session.id] == o.session && a.logins[o.slot] == o.login
		a.mu.Unlock()
		if lives { // otherwise whoever ends it now finds it
			return
		}
		a.objects.remove(o)
	}
	a.discard([]*object{o})
}

// split parts the objects that a login has made from others.
func split(objects []*object, l *login) (made, others []*object) {
	for _, o := range objects {
		if o.login == l {
			made = append(made, o)
		} else {
			others = append(others, o)
		}
	}
	return made, others
}
