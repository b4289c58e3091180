package rpc

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

const (
	tokenHeader = "hsmbackup-session-bin"
	tokenSize   = 32
)

// connection is the server's side of one TLS connection: who is there, and
// which sessions they have. gRPC hands it to every call as the AuthInfo, so a
// token can only ever be looked up on the connection it was made for.
type connection struct {
	credentials.CommonAuthInfo
	identity pki.Identity
	issued   time.Time         // of its certificate
	leaf     [sha256.Size]byte // of its certificate
	room     chan struct{}     // bounds the calls under way in frames

	mu       sync.Mutex
	sessions map[[sha256.Size]byte]*held // by hash of the token
}

// held is a session, and what ends with it.
type held struct {
	session hsm.Session
	over    chan struct{} // closed when it has ended
	lines   int           // its connections for calls
}

// AuthType implements credentials.AuthInfo.
func (c *connection) AuthType() string { return "tls" }

func (c *connection) add(s hsm.Session) (token []byte) {
	token = make([]byte, tokenSize)
	rand.Read(token)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions[sha256.Sum256(token)] = &held{session: s, over: make(chan struct{})}
	return token
}

func (c *connection) remove(token []byte) {
	hash := sha256.Sum256(token)
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.sessions[hash].over)
	delete(c.sessions, hash)
}

func (c *connection) find(token string) (hsm.Session, bool) {
	hash := sha256.Sum256([]byte(token))
	c.mu.Lock()
	defer c.mu.Unlock()
	if h, ok := c.sessions[hash]; ok {
		return h.session, true
	}
	return nil, false
}

func connectionOf(ctx context.Context) (*connection, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if c, ok := p.AuthInfo.(*connection); ok {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%w: no TLS identity", hsm.ErrDenied)
}

// sessionKey marks the context of a call whose session is known.
type sessionKey struct{}

// sessionOf finds the session a call belongs to.
func sessionOf(ctx context.Context) (hsm.Session, error) {
	if s, ok := ctx.Value(sessionKey{}).(hsm.Session); ok {
		return s, nil
	}
	c, err := connectionOf(ctx)
	if err != nil {
		return nil, err
	}
	tokens := metadata.ValueFromIncomingContext(ctx, tokenHeader)
	if len(tokens) != 1 || len(tokens[0]) != tokenSize {
		return nil, fmt.Errorf("%w: the request names no session", hsm.ErrSession)
	}
	s, ok := c.find(tokens[0])
	if !ok {
		return nil, fmt.Errorf("%w: it is not known on this connection; log in again", hsm.ErrSession)
	}
	return s, nil
}

// serverCredentials make a connection of every TLS handshake.
type serverCredentials struct {
	credentials.TransportCredentials
	log   *slog.Logger
	open  *connections
	calls func(net.Conn, *connection) // takes connections for calls
}

func (s *Server) credentials(cfg *tls.Config) credentials.TransportCredentials {
	return &serverCredentials{credentials.NewTLS(cfg), s.log, &s.conns, s.takeCalls}
}

// connections are the server's open ones.
type connections struct {
	mu  sync.Mutex
	all map[*openConn]*connection
}

// openConn is a connection that is on the list until it is closed.
type openConn struct {
	net.Conn
	list *connections
}

func (l *connections) add(conn net.Conn, c *connection) net.Conn {
	o := &openConn{Conn: conn, list: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[*openConn]*connection{}
	}
	l.all[o] = c
	return o
}

func (o *openConn) Close() error {
	o.list.mu.Lock()
	delete(o.list.all, o)
	o.list.mu.Unlock()
	return o.Conn.Close()
}

// end closes those of the connections that match.
func (l *connections) end(match func(id pki.Identity, issued time.Time) bool) (n int) {
	l.mu.Lock()
	var ended []*openConn
	for o, c := range l.all {
		if match(c.identity, c.issued) {
			ended = append(ended, o)
		}
	}
	l.mu.Unlock()
	for _, o := range ended {
		o.Close()
	}
	return len(ended)
}

// ServerHandshake implements credentials.TransportCredentials.
func (s *serverCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	young := &youngConn{Conn: raw}
	conn, info, err := s.TransportCredentials.ServerHandshake(young) // closes it on error
	if err != nil {
		s.log.Warn("connection refused", "from", raw.RemoteAddr().String(), "reason", err.Error())
		return nil, nil, err
	}
	young.grown = true
	tlsInfo, ok := info.(credentials.TLSInfo)
	if !ok {
		conn.Close()
		return nil, nil, fmt.Errorf("%w: no TLS state", hsm.ErrDenied)
	}
	id, err := pki.PeerIdentity(tlsInfo.State)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	c := &connection{
		CommonAuthInfo: tlsInfo.CommonAuthInfo, identity: id, issued: pki.IssuedAt(tlsInfo.State.PeerCertificates[0]),
		leaf: sha256.Sum256(tlsInfo.State.PeerCertificates[0].Raw),
		room: make(chan struct{}, maxCallsPerConnection), sessions: map[[sha256.Size]byte]*held{},
	}
	conn = s.open.add(conn, c)
	if tlsInfo.State.NegotiatedProtocol == pki.CallsProtocol {
		s.calls(conn, c)
		return nil, nil, credentials.ErrConnDispatched // which leaves it open
	}
	return conn, c, nil
}

// youngConn is a connection during its handshake. Closing it lets the alert
// arrive: a connection closed with unread data is reset, and the reset would
// overtake the reason.
type youngConn struct {
	net.Conn
	grown bool // set by the goroutine of the handshake, before anyone else has the connection
}

func (c *youngConn) Close() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok && !c.grown {
		w.CloseWrite()
		c.SetReadDeadline(time.Now().Add(lingerTime))
		io.Copy(io.Discard, io.LimitReader(c.Conn, lingerBytes))
	}
	return c.Conn.Close()
}

// Clone implements credentials.TransportCredentials.
func (s *serverCredentials) Clone() credentials.TransportCredentials {
	return &serverCredentials{s.TransportCredentials.Clone(), s.log, s.open, s.calls}
}
