package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// session is a PKCS #11 session. What stands below turn is guarded by it: calls of one
// session come one after the other.
type session struct {
	app  *App
	slot *slot
	id   uint64
	rw   bool

	turn sync.Mutex
	over bool
	find *finding
	ops  [opKinds]*operation
	held int64 // see weigh
}

func (a *App) session(id uint64) (*session, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.sessions[id]
	if s == nil {
		return nil, ck.SessionHandleInvalid
	}
	return s, nil
}

func (a *App) openSession(_ context.Context, args rpc.Args) ([]any, error) {
	slot, err := a.slot(args.Ulong(0))
	if err != nil {
		return nil, err
	}
	flags := args.Ulong(1)
	if flags&ck.SessionSerial == 0 {
		return nil, ck.SessionParallelNotSupported
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.closed:
		return nil, ck.CryptokiNotInitialized
	case len(a.sessions) >= MaxSessions:
		return nil, ck.SessionCount
	}
	a.last++
	s := &session{app: a, slot: slot, id: a.last, rw: flags&ck.SessionRW != 0}
	a.sessions[s.id] = s
	a.d.stats.Sessions.Add(1)
	return []any{s.id}, nil
}

func (a *App) closeSession(_ context.Context, args rpc.Args) ([]any, error) {
	s, err := a.session(args.Ulong(0))
	if err != nil {
		return nil, err
	}
	a.end(s.slot, s)
	return nil, nil
}

func (a *App) closeAllSessions(_ context.Context, args rpc.Args) ([]any, error) {
	slot, err := a.slot(args.Ulong(0))
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	var all []*session
	for _, s := range a.sessions {
		if s.slot == slot {
			all = append(all, s)
		}
	}
	a.mu.Unlock()
	a.end(slot, all...)
	return nil, nil
}

// end closes sessions of a slot, and destroys their objects. The last one of a slot logs
// out (PKCS #11 v2.40 §5.6).
func (a *App) end(slot *slot, sessions ...*session) {
	var objects []*object
	for _, s := range sessions {
		objects = append(objects, a.take(s)...)
	}
	if l := a.leaves(slot); l != nil {
		a.endLogin(slot, l, objects)
	} else {
		a.discard(objects)
	}
}

// endLogin leaves a login that is the slot's no more, with all handles that it has given,
// and destroys what it has made, and what else has ended.
func (a *App) endLogin(slot *slot, l *login, ended []*object) {
	ended = append(ended, a.objects.drop(func(o *object) bool { return o.slot == slot && (o.session == nil || o.login == l) })...)
	made, others := split(ended, l)
	l.leave(func() { a.discard(made) })
	a.discard(others)
}

// take closes a session, unless another thread was faster, and returns what is to be
// destroyed with it.
func (a *App) take(s *session) []*object {
	s.turn.Lock() // whatever it does is finished first
	defer s.turn.Unlock()
	a.mu.Lock()
	lives := a.sessions[s.id] == s
	if lives {
		delete(a.sessions, s.id)
	}
	a.mu.Unlock()
	if !lives {
		return nil
	}
	return a.forget(s)
}

// leaves takes the slot's login away if it is to end, since there are no sessions any more.
func (a *App) leaves(slot *slot) *login {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.sessions {
		if s.slot == slot {
			return nil
		}
	}
	l := a.logins[slot]
	delete(a.logins, slot)
	return l
}

// forget ends what a session does, and returns its objects, which have no handles any more.
func (a *App) forget(s *session) []*object {
	a.d.stats.Sessions.Add(-1)
	s.over = true
	s.drop()
	return a.objects.drop(func(o *object) bool { return o.session == s })
}

// discarding is how many session objects are destroyed at once.
const discarding = 16

// discard destroys those of the objects that are session objects, under the logins that
// have made them, in endTime: what HSMs do not destroy by then they destroy when they
// answer again, or when the login ends.
func (a *App) discard(objects []*object) {
	if len(objects) == 0 {
		return
	}
	ctx, cancel := a.ending()
	defer cancel()
	var next atomic.Int64
	var all sync.WaitGroup
	for range min(discarding, len(objects)) {
		all.Go(func() {
			for i := next.Add(1); i <= int64(len(objects)); i = next.Add(1) {
				if o := objects[i-1]; o.session != nil {
					o.login.Discard(ctx, o.ref)
				}
			}
		})
	}
	all.Wait()
}

func (a *App) countSessions(slot *slot) (all, rw uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.sessions {
		if s.slot == slot {
			all++
			if s.rw {
				rw++
			}
		}
	}
	return all, rw
}

func (s *session) getInfo(context.Context, rpc.Args) ([]any, error) {
	state, flags := ck.StateROPublic, ck.SessionSerial
	if s.rw {
		state, flags = ck.StateRWPublic, flags|ck.SessionRW
	}
	if _, err := s.login(); err == nil {
		state++
	}
	return []any{s.slot.id, state, flags, uint64(0)}, nil
}

// login returns who is logged in on the session's slot. CKR_USER_NOT_LOGGED_IN.
func (s *session) login() (*login, error) {
	s.app.mu.Lock()
	defer s.app.mu.Unlock()
	switch l := s.app.logins[s.slot]; {
	case s.over:
		return nil, ck.SessionHandleInvalid
	case l == nil:
		return nil, ck.UserNotLoggedIn
	default:
		return l, nil
	}
}

// parsePIN splits USER:PASSWORD.
func parsePIN(pin []byte) (user string, password hsm.Secret, err error) {
	name, word, ok := bytes.Cut(pin, []byte(":"))
	if !ok || len(name) == 0 || len(word) == 0 {
		return "", hsm.Secret{}, ck.PinIncorrect
	}
	user, err = hsm.CanonicalUserName(string(name))
	if err != nil {
		return "", hsm.Secret{}, ck.PinIncorrect
	}
	return user, hsm.NewSecret(word), nil
}

func (s *session) loginCall(ctx context.Context, args rpc.Args) ([]any, error) {
	return nil, s.logIn(ctx, args.Ulong(1), args.Bytes(2))
}

// loginUser is C_Login with the name apart (v3.0).
func (s *session) loginUser(ctx context.Context, args rpc.Args) ([]any, error) {
	pin := bytes.Join([][]byte{args.Bytes(3), args.Bytes(2)}, []byte(":"))
	defer clear(pin)
	return nil, s.logIn(ctx, args.Ulong(1), pin)
}

func (s *session) logIn(ctx context.Context, as uint64, pin []byte) error {
	defer clear(pin)
	switch as {
	case ck.UserUser:
	case ck.UserContextSpecific:
		return s.authenticate(pin)
	case ck.UserSO:
		return s.refuseOfficer()
	default:
		return ck.UserTypeInvalid
	}
	if _, err := s.login(); err == nil {
		return ck.UserAlreadyLoggedIn
	}
	user, password, err := parsePIN(pin)
	if err != nil {
		return err
	}
	l, err := s.slot.login(ctx, s.app.d.log, user, password)
	if err != nil {
		s.app.d.stats.LoginsFailed.Add(1)
		s.app.log.Warn("login refused", "slot", s.slot.Profile.Name, "user", user, "error", err)
		return loginCode(err)
	}
	if err := s.app.takeLogin(s, l); err != nil {
		l.leave(nothing)
		return err
	}
	s.app.d.stats.Logins.Add(1)
	s.app.log.Info("logged in", "slot", s.slot.Profile.Name, "user", user)
	return nil
}

// refuseOfficer: a cluster has no security officer. What any token answers before it
// looks at the PIN is answered first (PKCS #11 v2.40 §5.6).
func (s *session) refuseOfficer() error {
	if _, err := s.login(); err == nil {
		return ck.UserAnotherAlreadyLoggedIn
	}
	if all, rw := s.app.countSessions(s.slot); all > rw {
		return ck.SessionReadOnlyExists
	}
	return ck.UserTypeInvalid
}

func loginCode(err error) error {
	switch {
	case errors.Is(err, hsm.ErrLocked):
		return ck.PinLocked
	case errors.Is(err, hsm.ErrLogin), errors.Is(err, hsm.ErrInvalid):
		return ck.PinIncorrect
	case errors.Is(err, cluster.ErrNoHSM), errors.Is(err, hsm.ErrUnavailable):
		return ck.DeviceError
	}
	return err
}

// takeLogin keeps a login, unless another thread of the application was faster.
func (a *App) takeLogin(s *session, l *login) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.closed || a.sessions[s.id] != s:
		return ck.SessionHandleInvalid
	case a.logins[s.slot] != nil:
		return ck.UserAlreadyLoggedIn
	}
	a.logins[s.slot] = l
	return nil
}

// logout ends the login of the slot, and with it its session objects: they were made
// under the user's rights and live in sessions of that user on HSMs.
func (s *session) logout(context.Context, rpc.Args) ([]any, error) {
	a := s.app
	a.mu.Lock()
	l := a.logins[s.slot]
	delete(a.logins, s.slot)
	a.mu.Unlock()
	if l == nil {
		return nil, ck.UserNotLoggedIn
	}
	s.ops, s.find = [opKinds]*operation{}, nil
	a.endLogin(s.slot, l, nil)
	a.log.Info("logged out", "slot", s.slot.Profile.Name)
	return nil, nil
}

// authenticate is C_Login with CKU_CONTEXT_SPECIFIC: the same PIN once more, for one
// use of a key with CKA_ALWAYS_AUTHENTICATE.
func (s *session) authenticate(pin []byte) error {
	s.endOperations()
	waiting := false
	for _, op := range s.ops {
		waiting = waiting || op != nil && op.locked
	}
	if !waiting {
		return ck.OperationNotInitialized
	}
	l, err := s.login()
	if err != nil {
		return err
	}
	user, password, err := parsePIN(pin)
	if err != nil {
		return err
	}
	if user != l.Principal().Name || !l.has(password) {
		s.app.d.stats.LoginsFailed.Add(1)
		s.app.log.Warn("login for one use of a key refused", "slot", s.slot.Profile.Name, "user", user)
		s.ops = [opKinds]*operation{}
		return ck.PinIncorrect
	}
	for _, op := range s.ops {
		if op != nil {
			op.locked = false
		}
	}
	return nil
}

// setPIN changes the password of the user who is logged in. The new PIN may be
// USER:PASSWORD or the password alone.
func (s *session) setPIN(ctx context.Context, args rpc.Args) ([]any, error) {
	l, err := s.login()
	if err != nil {
		return nil, err
	}
	if !s.rw {
		return nil, ck.SessionReadOnly
	}
	user, old, err := parsePIN(args.Bytes(1))
	if err != nil || user != l.Principal().Name || !l.has(old) {
		return nil, ck.PinIncorrect
	}
	word := args.Bytes(2)
	if name, rest, ok := bytes.Cut(word, []byte(":")); ok {
		if string(bytes.ToLower(name)) != user {
			return nil, ck.PinInvalid
		}
		word = rest
	}
	password := hsm.NewSecret(word)
	if err := hsm.CheckPassword(password); err != nil {
		if len(word) < hsm.MinPassword || len(word) > hsm.MaxPassword {
			return nil, ck.PinLenRange
		}
		return nil, ck.PinInvalid
	}
	_, err = l.Change(ctx, hsm.Change{Kind: hsm.ChangeUserPassword, User: user, Role: hsm.RoleCryptoUser, Password: password})
	if err == nil || errors.Is(err, cluster.ErrMinCopies) { // it stands then too
		l.now(password)
	}
	return nil, err
}
