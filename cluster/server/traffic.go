package server

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
)

// traffic counts what an HSM sends and receives, to and from clients and other
// HSMs, TLS included.
type traffic struct {
	in, out  atomic.Uint64 // bytes
	accepted atomic.Int64  // connections that are open
}

// listener counts the connections that l accepts.
func (t *traffic) listener(l net.Listener) net.Listener { return countingListener{l, t} }

// dial makes a connection that is counted.
func (t *traffic) dial(ctx context.Context, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &countingConn{Conn: c, traffic: t}, nil
}

type countingListener struct {
	net.Listener
	traffic *traffic
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.traffic.accepted.Add(1)
	return &countingConn{Conn: c, traffic: l.traffic, gone: func() { l.traffic.accepted.Add(-1) }}, nil
}

type countingConn struct {
	net.Conn
	traffic *traffic
	once    sync.Once
	gone    func()
}

func (c *countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.traffic.in.Add(uint64(n))
	return n, err
}

func (c *countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.traffic.out.Add(uint64(n))
	return n, err
}

// CloseWrite ends what is sent. Without it the refusal of a handshake would be
// reset away before the caller has read why (package rpc).
func (c *countingConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

func (c *countingConn) Close() error {
	if c.gone != nil {
		c.once.Do(c.gone)
	}
	return c.Conn.Close()
}
