package rpc

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"path"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// Server offers an HSM over the network. It is safe for concurrent use.
type Server struct {
	grpc    *grpc.Server
	modules func(pki.Identity) hsm.Module
	log     *slog.Logger
	observe Observer
	settle  func()
	join    func(context.Context, string, JoinRequest) (JoinReply, error)
	most    int
	gate    gate
	stop    sync.Once
	over    chan struct{} // closed when sessions are to end
	jobs    chan func()   // calls for the workers
	slow    atomic.Int64  // calls under way that may compute for long
	conns   connections
	lines   lines

	mu       sync.Mutex
	sessions int
}

// Observer is told of every operation that has ended: its name (that of the
// contract's method), how long it took, and "ok", "canceled", "deadline" or the
// name of the error. It must be fast and safe for concurrent use.
type Observer func(operation string, took time.Duration, code string)

// ServerOption changes a Server.
type ServerOption func(*Server)

// WithObserver sets the observer.
func WithObserver(o Observer) ServerOption { return func(s *Server) { s.observe = o } }

// WithSettle sets what is called before answers leave, once for all that leave
// together. It must be safe for concurrent use.
func WithSettle(f func()) ServerOption { return func(s *Server) { s.settle = f } }

// WithLogger sets where refused connections and internal errors are logged;
// otherwise it is slog.Default.
func WithLogger(l *slog.Logger) ServerOption { return func(s *Server) { s.log = l } }

// WithMaxSessions sets the limit of open sessions; otherwise it is MaxSessions.
func WithMaxSessions(n int) ServerOption { return func(s *Server) { s.most = n } }

// NewServer returns a server that is not serving yet. cfg comes from
// pki.ServerConfig. modules is called whenever a session is started, with the
// verified identity of the caller, and returns the HSM as that caller may see
// it, or nil to turn the caller away (hsm.ErrDenied). The server does not close
// what modules returns.
func NewServer(modules func(pki.Identity) hsm.Module, cfg *tls.Config, opts ...ServerOption) *Server {
	s := &Server{modules: modules, log: slog.Default(), observe: func(string, time.Duration, string) {}, settle: func() {}, most: MaxSessions, over: make(chan struct{}), jobs: make(chan func())}
	for _, o := range opts {
		o(s)
	}
	s.gate.init()
	s.grpc = grpc.NewServer(
		grpc.Creds(s.credentials(cfg)),
		grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxMessage), grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.StaticStreamWindowSize(streamWindow), grpc.StaticConnWindowSize(connWindow),
		grpc.MaxConcurrentStreams(uint32(2*s.most+maxCallsPerConnection)),
		grpc.ForceServerCodecV2(newCodec()), grpc.NumStreamWorkers(streamWorkers), grpc.ConnectionTimeout(handshakeTimeout), grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: clientSilence, Timeout: clientTimeout}),
		grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream),
	)
	for range streamWorkers {
		go s.worker()
	}
	pb.RegisterHSMServer(s.grpc, &service{server: s})
	return s
}

// Serve accepts connections until Stop, and then returns nil. It closes l. It
// may be called with several listeners.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); err != nil && err != grpc.ErrServerStopped {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// Stop refuses new calls, lets running ones end for a few seconds and their
// answers arrive, and closes all sessions and connections. When it returns no
// handler runs any more. It may be called more than once.
func (s *Server) Stop() {
	s.stop.Do(func() {
		s.gate.shut(stopGrace)
		close(s.over)
	})
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		s.lines.drain()
		s.grpc.GracefulStop() // returns when all answers are written
	}()
	select {
	case <-drained:
	case <-time.After(drainGrace):
		s.lines.cut()
		s.grpc.Stop()
		<-drained
	}
}

// End closes the connections of callers that match, and with them their sessions
// and calls under way. issued is when the caller's certificate was. It returns how
// many there were. It keeps nobody from connecting again; whoever calls it has
// made sure that they are refused.
func (s *Server) End(match func(id pki.Identity, issued time.Time) bool) int {
	return s.conns.end(match)
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (reply any, err error) {
	err = s.call(path.Base(info.FullMethod), func() (err error) {
		reply, err = handler(claimed(ctx), req)
		return err
	})
	return reply, err
}

func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	name := path.Base(info.FullMethod)
	stream = &servedStream{stream, claimed(stream.Context()), s.settle}
	if name == "Attach" { // as long as the session; it observes what happens in it
		return s.status(name, s.guarded(name, func() error { return handler(srv, stream) }))
	}
	return s.call(name, func() error { return handler(srv, stream) })
}

// call runs one operation: gate, panic guard, observer, error mapping.
func (s *Server) call(name string, f func() error) error {
	err := s.within(name, f)
	s.settle()
	return s.status(name, err)
}

// within is call without the mapping of the error.
func (s *Server) within(name string, f func() error) error {
	if !s.gate.enter() {
		return errStopping
	}
	defer s.gate.leave()
	start := time.Now()
	err := s.guarded(name, f)
	s.observe(name, time.Since(start), codeName(err))
	return err
}

var errStopping = fmt.Errorf("%w: it is stopping", hsm.ErrUnavailable)

// guarded turns a panic into ErrInternal. The panic's value may hold anything,
// so only errors of the Go runtime are logged in words.
func (s *Server) guarded(name string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			what := fmt.Sprintf("%T", p)
			if e, ok := p.(runtime.Error); ok {
				what = e.Error()
			}
			s.log.Error("panic in a request", "operation", name, "panic", what, "stack", string(debug.Stack()))
			err = &textError{"internal error in the HSM; its log says more", []error{ErrInternal}}
		}
	}()
	return f()
}

// answeredError is an error the caller has been told in a reply already: it is
// observed and logged like any other, and the call's status is good.
type answeredError struct{ error }

func (e *answeredError) Unwrap() error { return e.error }

func (s *Server) status(name string, err error) error {
	st, known := toStatus(err)
	if !known {
		s.log.Error("internal error in a request", "operation", name, "error", err.Error())
	}
	if _, told := err.(*answeredError); told {
		return nil
	}
	return st
}

// reserve takes one of the sessions there may be. HSMs have some beyond the
// limit, so that callers who use them all up do not keep the cluster's members
// apart.
func (s *Server) reserve(kind pki.Kind) error {
	most := s.most
	if kind == pki.KindHSM {
		most += sessionsForHSMs
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions >= most {
		return fmt.Errorf("%w: %d sessions are open and no more are allowed; close some, or try another HSM", hsm.ErrUnavailable, s.sessions)
	}
	s.sessions++
	return nil
}

func (s *Server) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions--
}

// gate counts running calls, so that Stop can let them end.
type gate struct {
	mu      sync.Mutex
	running int
	closed  bool
	idle    chan struct{} // closed when closed and nothing runs
}

func (g *gate) init() { g.idle = make(chan struct{}) }

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.running++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	if g.closed && g.running == 0 {
		close(g.idle)
	}
}

func (g *gate) shut(grace time.Duration) {
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		if g.running == 0 {
			close(g.idle)
		}
	}
	g.mu.Unlock()
	select {
	case <-g.idle:
	case <-time.After(grace):
	}
}
