//go:build linux

package module

import (
	"io"
	"net"
	"sync"
	"testing"
)

// proxy stands between the module and a server, so that a test can end the server as
// far as the module sees.
type proxy struct {
	socket, server string
	mu             sync.Mutex
	listener       net.Listener
	open           map[net.Conn]bool
}

// up begins to listen.
func (p *proxy) up(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	p.listener, p.open = l, map[net.Conn]bool{}
	p.mu.Unlock()
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.join(c)
		}
	}()
}

func (p *proxy) join(c net.Conn) {
	to, err := net.Dial("unix", p.server)
	if err != nil {
		c.Close()
		return
	}
	p.mu.Lock()
	p.open[c], p.open[to] = true, true
	p.mu.Unlock()
	go func() { io.Copy(to, c); to.Close() }()
	io.Copy(c, to)
	c.Close()
}

// down stops listening and cuts all connections.
func (p *proxy) down() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listener.Close()
	for c := range p.open {
		c.Close()
	}
}
