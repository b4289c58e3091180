package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
)

// module is an HSM elsewhere.
type module struct {
	address string
	cfg     *tls.Config
	dialer  func(ctx context.Context, address string) (net.Conn, error)
	conn    *grpc.ClientConn
	api     pb.HSMClient
	timeout time.Duration
	closed  atomic.Bool
	older   atomic.Bool // the HSM knows no connections for calls
	link    atomic.Pointer[link]
	cause   atomic.Pointer[error] // why there is no connection, if that is known
}

// DialOption changes Dial.
type DialOption func(*dialOptions)

type dialOptions struct {
	timeout time.Duration
	dialer  func(ctx context.Context, address string) (net.Conn, error)
}

// WithTimeout bounds how long making a connection may take, in Dial and
// whenever it has to be made again; otherwise it is five seconds.
func WithTimeout(d time.Duration) DialOption { return func(o *dialOptions) { o.timeout = d } }

// WithDialer replaces the TCP dialer.
func WithDialer(dial func(ctx context.Context, address string) (net.Conn, error)) DialOption {
	return func(o *dialOptions) { o.dialer = dial }
}

// Dial connects to the HSM at address (host:port) and makes sure that it
// answers and that both sides accept each other's certificates. cfg comes from
// pki.ClientConfig.
//
// hsm.ErrUnavailable if not; and with it pki.ErrForeign, ErrCluster, ErrExpired
// or ErrKind if the HSM's certificate is why, pki.ErrRefused if the HSM does
// not accept the caller's.
//
// A lost connection is made again by the next call; the sessions on the old
// one are over (hsm.ErrSession). The module is safe for concurrent use; its
// Close ends its sessions.
func Dial(ctx context.Context, address string, cfg *tls.Config, opts ...DialOption) (hsm.Module, error) {
	o := dialOptions{timeout: dialTimeout, dialer: dialTCP}
	for _, opt := range opts {
		opt(&o)
	}
	m := &module{address: address, timeout: o.timeout, cfg: cfg, dialer: o.dialer}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(newClientCredentials(cfg, m)),
		grpc.WithContextDialer(m.dial(o.dialer)),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithNoProxy(), grpc.WithIdleTimeout(0),
		grpc.WithMaxHeaderListSize(maxHeaderBytes),
		grpc.WithStaticStreamWindowSize(streamWindow), grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage), grpc.ForceCodecV2(newCodec())),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: o.timeout,
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
		}),
	)
	if err != nil {
		return nil, unreachable(address, err)
	}
	m.conn, m.api = conn, pb.NewHSMClient(conn)
	if err := m.ping(ctx, o.timeout); err != nil {
		if m.link.Load() != nil && errors.Is(err, errLate) {
			err = &textError{err.Error(), []error{hsm.ErrUnavailable, ErrSlow}}
		}
		m.Close()
		return nil, err
	}
	return m, nil
}

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// ping asks for an answer within a time. That the time is over means that the
// HSM is unavailable, unless the caller's own is.
func (m *module) ping(ctx context.Context, within time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	_, err := m.api.Ping(limited, &pb.PingRequest{})
	if err == nil || ctx.Err() != nil {
		return m.fail(ctx, err)
	}
	if limited.Err() != nil {
		return unreachable(m.address, errLate)
	}
	return m.fail(ctx, err)
}

// fail turns the error of a call into the contract's.
func (m *module) fail(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if m.closed.Load() {
		return &textError{"session is over: the connection to the HSM at " + m.address + " was closed", []error{hsm.ErrSession}}
	}
	var cause error
	if c := m.cause.Load(); c != nil {
		cause = *c
	}
	return fromStatus(ctx, err, m.address, cause)
}

func (m *module) Login(ctx context.Context, role hsm.Role, name string, password hsm.Secret) (hsm.Session, hsm.Secret, error) {
	return m.LoginMFA(ctx, role, name, password, nil)
}

// LoginMFA implements hsm.MFA.
func (m *module) LoginMFA(ctx context.Context, role hsm.Role, name string, password hsm.Secret, factor hsm.SecondFactor) (hsm.Session, hsm.Secret, error) {
	login := &pb.Login{Role: string(role), Name: name, Password: password.Reveal(), Answers: factor != nil}
	return m.attachWith(ctx, &pb.AttachRequest{How: &pb.AttachRequest_Login{Login: login}}, factor)
}

func (m *module) Redeem(ctx context.Context, ticket hsm.Secret) (hsm.Session, error) {
	s, _, err := m.attach(ctx, &pb.AttachRequest{How: &pb.AttachRequest_Ticket{Ticket: ticket.Reveal()}})
	return s, err
}

func (m *module) Session(ctx context.Context) (hsm.Session, error) {
	s, _, err := m.attach(ctx, &pb.AttachRequest{How: &pb.AttachRequest_Open{Open: &pb.Open{}}})
	return s, err
}

// attach opens the stream that is the session. It lives until Close; ctx
// governs its beginning only.
func (m *module) attach(ctx context.Context, req *pb.AttachRequest) (hsm.Session, hsm.Secret, error) {
	return m.attachWith(ctx, req, nil)
}

// attachWith is attach, and answers a challenge.
func (m *module) attachWith(ctx context.Context, req *pb.AttachRequest, factor hsm.SecondFactor) (hsm.Session, hsm.Secret, error) {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, end)
	stream, err := m.api.Attach(claiming(life))
	if err != nil {
		end()
		return nil, hsm.Secret{}, m.fail(ctx, err)
	}
	stream.Send(req) // if it fails, Recv says why
	reply, err := stream.Recv()
	if challenge := reply.GetChallenge(); err == nil && len(challenge) > 0 && factor != nil {
		answer, refused := factor(ctx, challenge)
		if refused != nil {
			end()
			return nil, hsm.Secret{}, refused
		}
		stream.Send(&pb.AttachRequest{How: &pb.AttachRequest_Answer{Answer: answer}})
		reply, err = stream.Recv()
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		end()
		return nil, hsm.Secret{}, m.fail(ctx, err)
	}
	c := &checker{}
	principal := hsm.Principal{Role: hsm.Role(c.word("role", reply.GetRole())), Name: c.name("name", reply.GetName())}
	lineage := fixed[hsm.Lineage](c, "lineage", reply.GetLineage())
	if len(reply.GetToken()) != tokenSize || len(reply.GetTicket()) > maxTicket {
		c.fail("session token of %d bytes", len(reply.GetToken()))
	}
	if c.err != nil {
		end()
		return nil, hsm.Secret{}, c.err
	}
	s := &session{principal: principal, stream: stream, end: end}
	s.replica = replicaClient{module: m, token: string(reply.GetToken()), lineage: lineage, scope: hsm.ScopeLineage, over: &s.over}
	s.calls.replica = &s.replica
	return s, hsm.NewSecret(reply.GetTicket()), nil
}

// Close closes the connection and with it all its sessions.
func (m *module) Close() error {
	if m.closed.Swap(true) {
		return nil
	}
	err := m.conn.Close()
	if l := m.link.Load(); l != nil {
		l.Close()
	}
	return err
}

// link is one TCP connection under TLS, watched for signs of life.
type link struct {
	net.Conn
	reads atomic.Uint64
	once  sync.Once
	done  chan struct{}
}

func newLink(c net.Conn) *link { return &link{Conn: c, done: make(chan struct{})} }

func (l *link) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	if n > 0 {
		l.reads.Add(1)
	}
	return n, err
}

func (l *link) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Conn.Close()
}

// dial makes connections for gRPC and remembers why one could not be made.
func (m *module) dial(dial func(context.Context, string) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := dial(ctx, address)
		if err != nil {
			m.note(err)
			return nil, err
		}
		l := newLink(conn)
		m.link.Store(l)
		if m.closed.Load() {
			l.Close()
		}
		return l, nil
	}
}

// plain leaves out the address, which the message names already, and does not
// let the end of an attempt look like the end of the caller's time.
func plain(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, os.ErrDeadlineExceeded) {
		return errLate
	}
	if op, ok := err.(*net.OpError); ok && op.Err != nil {
		return op.Err
	}
	return err
}

var errLate = errors.New("no answer in time")

// ErrSlow is in the error of a Dial to an HSM that is there and has not answered in time: its
// machine may be busy.
var ErrSlow = errors.New("the HSM is there and does not answer in time")

func (m *module) note(err error) {
	err = plain(err)
	m.cause.Store(&err)
}

// watch closes the connection when the HSM has not sent a byte for a while and
// does not answer when asked. It counts looks, not seconds, so that a caller
// that was itself stopped gives the HSM time to answer. gRPC's own keepalive
// does not notice in less than ten seconds.
func (m *module) watch(l *link) {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	seen, silent := l.reads.Load(), 0
	for {
		select {
		case <-l.done:
			return
		case <-tick.C:
		}
		if now := l.reads.Load(); now != seen {
			seen, silent = now, 0
			continue
		}
		switch silent++; {
		case silent == pingAfter:
			go m.ping(context.Background(), (deadAfter-pingAfter)*heartbeat)
		case silent >= deadAfter:
			m.note(errSilent)
			l.Close()
			return
		}
	}
}

var errSilent = errors.New("it does not answer any more")
