package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// service is the wire's side of the contract: it checks a request, makes the
// call on the caller's session, and converts the answer.
type service struct {
	pb.UnimplementedHSMServer
	server *Server
}

// unary is one call: request in, checked; session found; reply out.
func unary[P, T any](ctx context.Context, req T, err error, do func(hsm.Session, T) (P, error)) (none P, _ error) {
	if err != nil {
		return none, err
	}
	s, err := sessionOf(ctx)
	if err != nil {
		return none, err
	}
	return do(s, req)
}

func (*service) Ping(context.Context, *pb.PingRequest) (*pb.PingReply, error) {
	return &pb.PingReply{}, nil
}

// Attach holds a session for as long as the stream lasts.
func (v *service) Attach(stream grpc.BidiStreamingServer[pb.AttachRequest, pb.AttachReply]) (err error) {
	ctx := stream.Context()
	c, err := connectionOf(ctx)
	if err != nil {
		return err
	}
	req, err := stream.Recv()
	if err != nil {
		return ended(err)
	}
	if err := v.server.reserve(c.identity.Kind); err != nil {
		return err
	}
	defer v.server.release()
	session, ticket, err := v.start(ctx, c, req, asks(stream))
	if err != nil {
		return err
	}
	token := c.add(session)
	defer func() { err = errors.Join(err, session.Close()) }() // after remove
	defer c.remove(token)
	err = stream.Send(attached(session, token, ticket))
	ticket.Wipe()
	if err != nil {
		return ended(err)
	}
	return v.server.untilEnd(stream)
}

// untilEnd waits for the end of a session: the caller half-closes the stream or
// is gone, or the server stops.
func (s *Server) untilEnd(stream grpc.BidiStreamingServer[pb.AttachRequest, pb.AttachReply]) error {
	end := make(chan error, 1)
	go func() {
		_, err := stream.Recv() // returns at the latest when the handler has
		end <- err
	}()
	select {
	case err := <-end:
		return ended(err)
	case <-s.over:
		return errStopping
	}
}

// ended is nil for the orderly end of a stream.
func ended(err error) error {
	switch {
	case err == nil:
		return invalid("another message after the first")
	case errors.Is(err, io.EOF):
		return nil
	}
	return fmt.Errorf("%w: %w", context.Canceled, err)
}

func attached(s hsm.Session, token []byte, ticket hsm.Secret) *pb.AttachReply {
	p, l := s.Principal(), s.Lineage()
	return &pb.AttachReply{Token: token, Role: string(p.Role), Name: p.Name, Lineage: l[:], Ticket: ticket.Reveal()}
}

// start logs in. It is guarded and observed as an operation of its own.
func (v *service) start(ctx context.Context, c *connection, req *pb.AttachRequest, factor hsm.SecondFactor) (s hsm.Session, ticket hsm.Secret, err error) {
	if !v.server.gate.enter() {
		return nil, hsm.Secret{}, errStopping
	}
	defer v.server.gate.leave()
	m := v.server.modules(c.identity)
	if m == nil {
		return nil, hsm.Secret{}, fmt.Errorf("%w: certificate of %s %s is not admitted by this HSM", hsm.ErrDenied, c.identity.Kind, c.identity.Name)
	}
	begin := time.Now()
	name := "Session"
	err = v.server.guarded(name, func() error {
		switch how := req.GetHow().(type) {
		case *pb.AttachRequest_Login:
			name = "Login"
			s, ticket, err = login(ctx, m, how.Login, factor)
		case *pb.AttachRequest_Ticket:
			name = "Redeem"
			s, err = redeem(ctx, m, how.Ticket)
		case *pb.AttachRequest_Open:
			s, err = m.Session(ctx)
		default:
			err = invalid("a session starts with a login, a ticket, or neither")
		}
		return err
	})
	v.server.observe(name, time.Since(begin), codeName(err))
	return s, ticket, err
}

func login(ctx context.Context, m hsm.Module, p *pb.Login, factor hsm.SecondFactor) (hsm.Session, hsm.Secret, error) {
	c := &checker{}
	role, name := hsm.Role(c.word("role", p.GetRole())), c.name("user's name", p.GetName())
	c.count("bytes of the password", len(p.GetPassword()), maxPassword)
	if c.err != nil {
		return nil, hsm.Secret{}, c.err
	}
	password := hsm.NewSecret(p.GetPassword())
	defer password.Wipe()
	if able, ok := m.(hsm.MFA); ok && p.GetAnswers() {
		return able.LoginMFA(ctx, role, name, password, factor)
	}
	return m.Login(ctx, role, name, password)
}

// asks puts a challenge to the caller on the other side of the stream.
func asks(stream grpc.BidiStreamingServer[pb.AttachRequest, pb.AttachReply]) hsm.SecondFactor {
	return func(ctx context.Context, challenge []byte) ([]byte, error) {
		if err := stream.Send(&pb.AttachReply{Challenge: challenge}); err != nil {
			return nil, ended(err)
		}
		type said struct {
			req *pb.AttachRequest
			err error
		}
		came := make(chan said, 1)
		go func() {
			req, err := stream.Recv() // returns at the latest when the handler has
			came <- said{req, err}
		}()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case s := <-came:
			if s.err != nil {
				return nil, fmt.Errorf("%w: %w", context.Canceled, s.err)
			}
			answer := s.req.GetAnswer()
			if len(answer) == 0 || len(answer) > maxSigner {
				return nil, invalid("an answer of %d bytes to the challenge", len(answer))
			}
			return answer, nil
		}
	}
}

func redeem(ctx context.Context, m hsm.Module, ticket []byte) (hsm.Session, error) {
	if len(ticket) > maxTicket {
		return nil, invalid("ticket of %d bytes, at most %d", len(ticket), maxTicket)
	}
	secret := hsm.NewSecret(ticket)
	defer secret.Wipe()
	return m.Redeem(ctx, secret)
}

func (*service) Info(ctx context.Context, p *pb.InfoRequest) (*pb.InfoReply, error) {
	return unary(ctx, 0, nil, func(s hsm.Session, _ int) (*pb.InfoReply, error) {
		i, err := s.Info(ctx)
		reply := toInfo(i)
		if p.GetBrief() {
			reply = briefly(reply)
		}
		return reply, err
	})
}

// briefly leaves out what is not asked for every second.
func briefly(r *pb.InfoReply) *pb.InfoReply {
	return &pb.InfoReply{Id: r.Id, Lineage: r.Lineage, State: r.State, Root: r.Root, ClusterRoot: r.ClusterRoot, Epochs: r.Epochs, Sealing: r.Sealing}
}

func (*service) Members(ctx context.Context, _ *pb.MembersRequest) (*pb.MembersReply, error) {
	return unary(ctx, 0, nil, func(s hsm.Session, _ int) (*pb.MembersReply, error) {
		m, err := s.Members(ctx)
		return toMembers(m), err
	})
}

func (*service) Root(ctx context.Context, p *pb.RootRequest) (*pb.RootReply, error) {
	scope, err := checkScope(p.GetScope())
	return unary(ctx, scope, err, func(s hsm.Session, scope hsm.Scope) (*pb.RootReply, error) {
		r, err := scoped(s, scope).Root(ctx)
		return toRoot(r), err
	})
}

func (*service) FingerprintKeys(ctx context.Context, p *pb.FingerprintKeysRequest) (*pb.FingerprintKeysReply, error) {
	scope, err := checkScope(p.GetScope())
	return unary(ctx, scope, err, func(s hsm.Session, scope hsm.Scope) (*pb.FingerprintKeysReply, error) {
		k, err := scoped(s, scope).FingerprintKeys(ctx)
		return &pb.FingerprintKeysReply{Root: k.Root[:], Sketch: k.Sketch[:]}, err
	})
}

func scoped(s hsm.Session, scope hsm.Scope) hsm.SketchReplica {
	if scope == hsm.ScopeLineage {
		return s
	}
	return s.Scoped(scope)
}

func (*service) Prepare(ctx context.Context, p *pb.PrepareRequest) (*pb.PrepareReply, error) {
	op, err := fromOp(p.GetOp())
	return unary(ctx, op, err, func(s hsm.Session, op hsm.OpID) (*pb.PrepareReply, error) {
		c := &checker{}
		lease := c.lease(p.GetLease())
		objects, err := fromMaskedAll(p.GetObjects())
		if c.note(err); c.err != nil {
			return nil, c.err
		}
		return &pb.PrepareReply{}, s.Prepare(ctx, op, lease, objects)
	})
}

func (*service) Commit(ctx context.Context, p *pb.OpRequest) (*pb.CommitReply, error) {
	op, err := fromOp(p.GetOp())
	return unary(ctx, op, err, func(s hsm.Session, op hsm.OpID) (*pb.CommitReply, error) {
		return &pb.CommitReply{}, s.Commit(ctx, op)
	})
}

func (*service) Abort(ctx context.Context, p *pb.OpRequest) (*pb.AbortReply, error) {
	op, err := fromOp(p.GetOp())
	return unary(ctx, op, err, func(s hsm.Session, op hsm.OpID) (*pb.AbortReply, error) {
		return &pb.AbortReply{}, s.Abort(ctx, op)
	})
}

func (*service) Resolve(ctx context.Context, p *pb.OpRequest) (*pb.ResolveReply, error) {
	op, err := fromOp(p.GetOp())
	return unary(ctx, op, err, func(s hsm.Session, op hsm.OpID) (*pb.ResolveReply, error) {
		state, err := s.Resolve(ctx, op)
		return &pb.ResolveReply{State: uint32(state)}, err
	})
}

func (*service) Create(ctx context.Context, p *pb.CreateRequest) (*pb.CreateReply, error) {
	made, err := createdBy(ctx, p)
	if err != nil {
		return nil, err
	}
	return toCreated(made), nil
}

func createdBy(ctx context.Context, p *pb.CreateRequest) (hsm.Created, error) {
	defer clear(p.GetData()) // key material of an import
	op, req, err := fromCreate(p)
	return unary(ctx, req, err, func(s hsm.Session, req hsm.CreateRequest) (hsm.Created, error) { return s.Create(ctx, op, req) })
}

func (*service) Change(ctx context.Context, p *pb.ChangeRequest) (*pb.Masked, error) {
	defer clear(p.GetPassword())
	change, err := fromChange(p)
	return unary(ctx, change, err, func(s hsm.Session, change hsm.Change) (*pb.Masked, error) {
		m, err := s.Change(ctx, change)
		return toMasked(m), err
	})
}

func (*service) Use(ctx context.Context, p *pb.UseRequest) (*pb.UseReply, error) {
	use, err := fromUse(p)
	return unary(ctx, use, err, func(s hsm.Session, use hsm.Use) (*pb.UseReply, error) {
		b, err := s.Use(ctx, use)
		return &pb.UseReply{Data: b}, err
	})
}

func (*service) Key(ctx context.Context, p *pb.KeyRequest) (*pb.KeyInfo, error) {
	c := &checker{}
	ref := c.ref(p.GetRef())
	return unary(ctx, ref, c.err, func(s hsm.Session, ref hsm.KeyRef) (*pb.KeyInfo, error) {
		k, err := s.Key(ctx, ref)
		return toKeyInfo(k), err
	})
}

func (*service) Envelope(ctx context.Context, p *pb.EnvelopeRequest) (*pb.EnvelopeReply, error) {
	custodians, threshold, err := fromEnvelope(p)
	return unary(ctx, custodians, err, func(s hsm.Session, custodians []string) (*pb.EnvelopeReply, error) {
		b, err := s.Envelope(ctx, custodians, threshold)
		return &pb.EnvelopeReply{Envelope: b}, err
	})
}

func (*service) Token(ctx context.Context, p *pb.TokenRequest) (*pb.TokenReply, error) {
	c := &checker{}
	service, ref := hsm.Service(c.word("service", p.GetService())), c.noneOrRef(p.GetKey())
	return unary(ctx, service, c.err, func(s hsm.Session, service hsm.Service) (*pb.TokenReply, error) {
		b, err := s.Token(ctx, service, ref)
		return &pb.TokenReply{Token: b}, err
	})
}

func (*service) Tokens(ctx context.Context, _ *pb.TokensRequest) (*pb.TokensReply, error) {
	return unary(ctx, struct{}{}, nil, func(s hsm.Session, _ struct{}) (*pb.TokensReply, error) {
		tokens, err := s.Tokens(ctx)
		return toTokens(tokens), err
	})
}

func (*service) DeleteTokens(ctx context.Context, p *pb.DeleteTokensRequest) (*pb.DeleteTokensReply, error) {
	return unary(ctx, p.GetAll(), nil, func(s hsm.Session, all bool) (*pb.DeleteTokensReply, error) {
		n, err := s.DeleteTokens(ctx, all)
		return &pb.DeleteTokensReply{Deleted: int64(n)}, err
	})
}

func (*service) Sign(ctx context.Context, p *pb.SignRequest) (*pb.SignReply, error) {
	c := &checker{}
	purpose := hsm.Purpose(c.word("purpose", p.GetPurpose()))
	return unary(ctx, purpose, c.err, func(s hsm.Session, purpose hsm.Purpose) (*pb.SignReply, error) {
		sig, err := s.Sign(ctx, purpose, p.GetMessage())
		return &pb.SignReply{Public: sig.Public, Signature: sig.Signature}, err
	})
}
