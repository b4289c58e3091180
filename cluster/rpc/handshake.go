package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// clientCredentials remember why a handshake failed: gRPC would turn the error
// into text.
type clientCredentials struct {
	credentials.TransportCredentials
	module *module
}

func newClientCredentials(cfg *tls.Config, m *module) credentials.TransportCredentials {
	return &clientCredentials{credentials.NewTLS(cfg), m}
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *clientCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		c.module.note(refusal(err))
		return nil, nil, err
	}
	if l, ok := raw.(*link); ok {
		go c.module.watch(l)
	}
	return &clientConn{Conn: conn, module: c.module}, info, nil
}

// Clone implements credentials.TransportCredentials.
func (c *clientCredentials) Clone() credentials.TransportCredentials {
	return &clientCredentials{c.TransportCredentials.Clone(), c.module}
}

// clientConn sees the server's refusal of this side's certificate, which in
// TLS 1.3 comes after the client's handshake is done.
type clientConn struct {
	net.Conn
	module *module
	alive  bool // read by one goroutine
}

func (c *clientConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && !c.alive {
		c.alive = true
		c.module.cause.Store(nil)
	}
	if err != nil && isAlert(err) {
		c.module.note(refusal(err))
	}
	return n, err
}

func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// refusal words an error of the handshake.
func refusal(err error) error {
	if !isAlert(err) {
		return err
	}
	return fmt.Errorf("%w: the HSM does not accept this side's certificate (%s); use one of this cluster that has neither expired nor been revoked", pki.ErrRefused, err)
}
