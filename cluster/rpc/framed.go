package rpc

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pb"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// How a connection for calls begins, on both sides.

// maxLines bounds the connections for calls of one session.
const maxLines = 8

// dialCalls makes a connection for the calls of a session. lost is closed when the
// session's own connection is lost, or was when this one had been made.
func (m *module) dialCalls(ctx context.Context, token string) (conn net.Conn, in *frames, lost <-chan struct{}, err error) {
	l := m.link.Load() // the session's: on another the HSM would not know it
	raw, err := m.dialer(ctx, m.address)
	if err != nil {
		return nil, nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	cfg := m.cfg.Clone()
	cfg.NextProtos = []string{pki.CallsProtocol, "h2"} // an older HSM takes the second
	c := tls.Client(raw, cfg)
	in = &frames{from: c, most: maxHello + maxFailure}
	err = c.HandshakeContext(ctx)
	if err == nil && c.ConnectionState().NegotiatedProtocol != pki.CallsProtocol {
		m.older.Store(true)
		err = errOlder
	}
	if err == nil {
		err = hello(c, in, token)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		return nil, nil, nil, err
	}
	return c, in, l.done, nil
}

// hello names the session.
func hello(conn net.Conn, in *frames, token string) error {
	b, err := proto.Marshal(&pb.CallsHello{Session: []byte(token)})
	if err != nil {
		return err
	}
	if _, err := conn.Write(appendFrame(nil, b)); err != nil {
		return err
	}
	frame, err := in.next()
	if err != nil {
		return err
	}
	welcome := &pb.CallsWelcome{}
	if err := proto.Unmarshal(frame, welcome); err != nil {
		return fmt.Errorf("welcome does not decode: %w", err)
	}
	if f := welcome.GetFailure(); f != nil {
		return fromFailure(f)
	}
	return nil
}

// join finds a session by its token, for another connection of the same caller: one
// that has shown the same certificate. leave ends it.
func (l *connections) join(c *connection, token []byte) (owner *connection, h *held, err error) {
	hash := sha256.Sum256(token)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.all {
		if o.leaf != c.leaf || o.identity != c.identity {
			continue
		}
		if h, err = o.joined(hash); h != nil || err != nil {
			return o, h, err
		}
	}
	return nil, nil, fmt.Errorf("%w: it is not known here; log in again", hsm.ErrSession)
}

func (c *connection) joined(hash [sha256.Size]byte) (*held, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.sessions[hash]
	if h == nil {
		return nil, nil
	}
	if h.lines == maxLines {
		return nil, fmt.Errorf("%w: the session has %d connections for calls", hsm.ErrUnavailable, maxLines)
	}
	h.lines++
	return h, nil
}

func (c *connection) parted(h *held) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h.lines--
}

// lines are the connections for calls that are served.
type lines struct {
	mu      sync.Mutex
	all     map[net.Conn]context.CancelFunc
	running sync.WaitGroup
	over    bool
}

// begin adds a connection, unless the server stops.
func (l *lines) begin(conn net.Conn, cancel context.CancelFunc) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return false
	}
	if l.all == nil {
		l.all = map[net.Conn]context.CancelFunc{}
	}
	l.all[conn] = cancel
	l.running.Add(1)
	return true
}

func (l *lines) end(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.all, conn)
	l.running.Done()
}

// drain lets none begin any more and waits until those there are have ended.
func (l *lines) drain() {
	l.mu.Lock()
	l.over = true
	l.mu.Unlock()
	l.running.Wait()
}

// cut breaks off what is under way.
func (l *lines) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn, cancel := range l.all {
		cancel()
		conn.Close()
	}
}

// takeCalls serves a connection for calls.
func (s *Server) takeCalls(conn net.Conn, c *connection) {
	ctx, cancel := context.WithCancel(context.Background())
	if !s.lines.begin(conn, cancel) {
		cancel()
		conn.Close()
		return
	}
	go func() {
		defer s.lines.end(conn)
		defer conn.Close()
		defer cancel()
		if err := s.serveCalls(ctx, conn, c); err != nil && errors.Is(err, hsm.ErrInvalid) {
			s.log.Warn("connection for calls refused", "from", conn.RemoteAddr().String(), "caller", c.identity.Name, "reason", err.Error())
		}
	}()
}

// serveCalls answers calls until the session ends, the caller ends the connection or
// says what cannot be, or the server stops.
func (s *Server) serveCalls(ctx context.Context, conn net.Conn, c *connection) error {
	in := &frames{from: conn, most: maxHello}
	owner, h, err := s.welcome(conn, in, c)
	if err != nil {
		return err
	}
	defer owner.parted(h)
	in.most = maxFrame
	ctx, cancel := context.WithCancel(context.WithValue(ctx, sessionKey{}, h.session))
	defer cancel()
	a := newAnswering(ctx, s, conn, owner.room)
	read := make(chan error, 1)
	go func() { read <- a.read(in) }()
	select {
	case err = <-read:
	case <-h.over:
	case <-s.over:
	}
	select {
	case <-s.over: // what has begun is answered
	default: // nobody is there to answer, or to be told more than that the session is over
		conn.Close()
		cancel()
	}
	conn.SetWriteDeadline(time.Now().Add(drainGrace))
	a.finish()
	conn.Close()
	return err
}

// welcome waits for the caller to name its session, and for no longer than a
// handshake may take.
func (s *Server) welcome(conn net.Conn, in *frames, c *connection) (*connection, *held, error) {
	late := time.AfterFunc(handshakeTimeout, func() { conn.Close() })
	defer late.Stop()
	frame, err := in.next()
	if err != nil {
		return nil, nil, err
	}
	hello := &pb.CallsHello{}
	if err := proto.Unmarshal(frame, hello); err != nil || len(hello.GetSession()) != tokenSize {
		return nil, nil, invalid("a connection for calls begins with a session token")
	}
	owner, h, err := s.conns.join(c, hello.GetSession())
	answer := &pb.CallsWelcome{}
	if err != nil {
		answer.Failure, _ = toFailure(err)
	}
	b, bad := proto.Marshal(answer)
	if bad == nil {
		_, bad = conn.Write(appendFrame(nil, b))
	}
	if err == nil && bad != nil {
		owner.parted(h)
		err = bad
	}
	return owner, h, err
}
