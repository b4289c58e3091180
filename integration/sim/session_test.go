package sim

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
)

// dial returns the HSM at a member's address, as an endpoint sees it. An HSM
// proves who it is, so another one at the address does not answer.
func (n *network) dial(from *endpoint, m hsm.Member) (hsm.Module, error) {
	if b := n.at(m.Address, m.ID); b != nil {
		return &module{n: n, from: from, to: b}, nil
	}
	return nil, fmt.Errorf("%w: nobody at %s", hsm.ErrUnavailable, m.Address)
}

// module is an HSM across the network.
type module struct {
	n    *network
	from *endpoint
	to   *box
}

// opened is a session as it comes back from the HSM.
type opened struct {
	session hsm.Session
	ticket  hsm.Secret
	life    int
	conn    *conn
}

func (m *module) open(ctx context.Context, method, about string, f func(context.Context, hsm.Module) (hsm.Session, hsm.Secret, error)) (hsm.Session, hsm.Secret, error) {
	v, err := m.n.send(ctx, call{from: m.from, to: m.to, method: method, about: about, do: func(ctx context.Context, in process) (any, error) {
		_, life := m.to.running()
		s, ticket, err := f(ctx, in.Module(m.from.identity(m.to.region)))
		if err != nil {
			return nil, err
		}
		m.n.hangUp(m.from, s)
		return opened{s, ticket, life, m.to.connect(m.from, s)}, nil
	}})
	if err != nil {
		return nil, hsm.Secret{}, err
	}
	o := v.(opened)
	return &session{n: m.n, from: m.from, to: m.to, life: o.life, inner: o.session, conn: o.conn}, o.ticket, nil
}

// hangUp ends a session on its HSM, some time after its caller has died.
func (n *network) hangUp(from *endpoint, s hsm.Session) {
	n.w.background(func() {
		select {
		case <-from.dead:
			time.Sleep(silence)
		case <-n.w.over:
		}
		_ = s.Close()
	})
}

func (m *module) Login(ctx context.Context, role hsm.Role, name string, password hsm.Secret) (hsm.Session, hsm.Secret, error) {
	password = copied(password)
	return m.open(ctx, "Login", name, func(ctx context.Context, in hsm.Module) (hsm.Session, hsm.Secret, error) {
		return in.Login(ctx, role, name, password)
	})
}

func (m *module) Redeem(ctx context.Context, ticket hsm.Secret) (hsm.Session, error) {
	ticket = copied(ticket)
	s, _, err := m.open(ctx, "Redeem", "", func(ctx context.Context, in hsm.Module) (hsm.Session, hsm.Secret, error) {
		s, err := in.Redeem(ctx, ticket)
		return s, hsm.Secret{}, err
	})
	return s, err
}

func (m *module) Session(ctx context.Context) (hsm.Session, error) {
	s, _, err := m.open(ctx, "Session", "", func(ctx context.Context, in hsm.Module) (hsm.Session, hsm.Secret, error) {
		s, err := in.Session(ctx)
		return s, hsm.Secret{}, err
	})
	return s, err
}

func (m *module) Close() error { return nil }

// copied is what is on the wire: the caller may wipe its own.
func copied(s hsm.Secret) hsm.Secret { return hsm.NewSecret(slices.Clone(s.Reveal())) }

// session is a session across the network.
type session struct {
	n     *network
	from  *endpoint
	to    *box
	life  int
	inner hsm.Session
	conn  *conn
	scope hsm.SketchReplica // nil: that of the session
}

func (s *session) replica() hsm.SketchReplica {
	if s.scope != nil {
		return s.scope
	}
	return s.inner
}

// ask makes one call. Calls that are safe may be delivered twice.
func ask[T any](ctx context.Context, s *session, method, about string, safe bool, f func(context.Context) (T, error)) (T, error) {
	v, err := s.n.send(ctx, call{
		from: s.from, to: s.to, life: s.life, method: method, about: about, safe: safe,
		do: func(ctx context.Context, _ process) (any, error) {
			if s.conn.ended.Load() {
				return nil, gone(s.to)
			}
			return f(ctx)
		},
	})
	if t, ok := v.(T); ok {
		return t, err
	}
	var none T
	return none, err
}

// tell is ask for calls that return no value.
func (s *session) tell(ctx context.Context, method, about string, f func(context.Context) error) error {
	_, err := ask(ctx, s, method, about, true, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}

func opName(op hsm.OpID) string { return hex.EncodeToString(op[:4]) }

func (s *session) Prepare(ctx context.Context, op hsm.OpID, lease time.Duration, objects []hsm.MaskedObject) error {
	s.n.w.checker.onTheWire(objects...)
	return s.tell(ctx, "Prepare", opName(op), func(ctx context.Context) error { return s.n.w.prepare(ctx, s, op, lease, objects) })
}

func (s *session) Commit(ctx context.Context, op hsm.OpID) error {
	return s.tell(ctx, "Commit", opName(op), func(ctx context.Context) error { return s.n.w.commit(ctx, s, op) })
}

func (s *session) Abort(ctx context.Context, op hsm.OpID) error {
	return s.tell(ctx, "Abort", opName(op), func(ctx context.Context) error { return s.inner.Abort(ctx, op) })
}

func (s *session) Resolve(ctx context.Context, op hsm.OpID) (hsm.OpState, error) {
	return ask(ctx, s, "Resolve", opName(op), true, func(ctx context.Context) (hsm.OpState, error) { return s.n.w.resolve(ctx, s, op) })
}

func (s *session) Principal() hsm.Principal { return s.inner.Principal() }

func (s *session) Info(ctx context.Context) (hsm.Info, error) {
	return ask(ctx, s, "Info", "", false, s.inner.Info)
}

func (s *session) Members(ctx context.Context) ([]hsm.Member, error) {
	members, err := ask(ctx, s, "Members", "", false, s.inner.Members)
	if s.n.w.plant == keepRemoved {
		for i := range members {
			members[i].Removed = false
		}
	}
	return s.n.w.members(s, members), err
}

func (s *session) Scoped(scope hsm.Scope) hsm.SketchReplica {
	scoped := *s
	scoped.scope = s.inner.Scoped(scope)
	return &scoped
}

func (s *session) Create(ctx context.Context, op hsm.OpID, r hsm.CreateRequest) (hsm.Created, error) {
	r.Data = copied(r.Data)
	return ask(ctx, s, "Create", opName(op), r.Token, func(ctx context.Context) (hsm.Created, error) { return s.n.w.create(ctx, s, op, r) })
}

// Change is delivered twice only where that means nothing new.
func (s *session) Change(ctx context.Context, c hsm.Change) (hsm.MaskedObject, error) {
	c.Password = copied(c.Password)
	about := fmt.Sprintf("%s %s %s%s", c.Kind, c.Ref, c.Name, c.User)
	return ask(ctx, s, "Change", about, c.Kind == hsm.ChangeDestroy, func(ctx context.Context) (hsm.MaskedObject, error) { return s.n.w.change(ctx, s, c) })
}

func (s *session) Use(ctx context.Context, u hsm.Use) ([]byte, error) {
	return ask(ctx, s, "Use", u.Key.String(), true, func(ctx context.Context) ([]byte, error) { return s.inner.Use(ctx, u) })
}

func (s *session) Key(ctx context.Context, ref hsm.KeyRef) (hsm.KeyInfo, error) {
	return ask(ctx, s, "Key", ref.String(), false, func(ctx context.Context) (hsm.KeyInfo, error) { return s.inner.Key(ctx, ref) })
}

func (s *session) Users(ctx context.Context) ([]hsm.UserInfo, error) {
	return ask(ctx, s, "Users", "", false, s.inner.Users)
}

func (s *session) Token(ctx context.Context, service hsm.Service, key hsm.KeyRef) ([]byte, error) {
	return ask(ctx, s, "Token", "", false, func(ctx context.Context) ([]byte, error) { return s.inner.Token(ctx, service, key) })
}

func (s *session) Tokens(ctx context.Context) ([]hsm.TokenInfo, error) {
	return ask(ctx, s, "Tokens", "", false, s.inner.Tokens)
}

func (s *session) DeleteTokens(ctx context.Context, all bool) (int, error) {
	return ask(ctx, s, "DeleteTokens", "", false, func(ctx context.Context) (int, error) { return s.inner.DeleteTokens(ctx, all) })
}

func (s *session) Envelope(ctx context.Context, custodians []string, threshold int) ([]byte, error) {
	return ask(ctx, s, "Envelope", "", false, func(ctx context.Context) ([]byte, error) { return s.inner.Envelope(ctx, custodians, threshold) })
}

func (s *session) Sign(ctx context.Context, p hsm.Purpose, message []byte) (hsm.LineageSignature, error) {
	return ask(ctx, s, "Sign", string(p), false, func(ctx context.Context) (hsm.LineageSignature, error) { return s.inner.Sign(ctx, p, message) })
}

// Greet implements rpc.Greeter.
func (s *session) Greet(ctx context.Context, g rpc.Greeting) (rpc.Greeted, error) {
	return ask(ctx, s, "Greet", "", true, func(ctx context.Context) (rpc.Greeted, error) {
		greeter, ok := s.inner.(rpc.Greeter)
		if !ok { // a zombie
			return rpc.Greeted{}, gone(s.to)
		}
		return greeter.Greet(ctx, g)
	})
}

// Close tells the HSM, and waits for its answer for a while.
func (s *session) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), silence/2)
	defer cancel()
	_ = s.tell(ctx, "Close", "", func(context.Context) error { return s.inner.Close() })
	if ctx.Err() != nil { // the connection breaks
		_ = s.inner.Close()
	}
	return nil
}

func (s *session) Lineage() hsm.Lineage { return s.inner.Lineage() }

func (s *session) FingerprintKeys(ctx context.Context) (hsm.FingerprintKeys, error) {
	return ask(ctx, s, "FingerprintKeys", "", false, s.replica().FingerprintKeys)
}

func (s *session) Root(ctx context.Context) (hsm.Root, error) {
	return ask(ctx, s, "Root", "", false, s.replica().Root)
}
