//go:build linux

package module

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// stockServer starts p11-kit's own server in front of a new token of SoftHSM, and
// returns its socket. It judges whether the module speaks the protocol.
func stockServer(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	conf, socket := filepath.Join(dir, "softhsm2.conf"), filepath.Join(dir, "server")
	if err := os.Mkdir(filepath.Join(dir, "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s/tokens\nobjectstore.backend = file\nlog.level = ERROR\n", dir), 0o600); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "SOFTHSM2_CONF="+conf)
	stock(t, env, "softhsm2-util", "--init-token", "--free", "--label", "judge", "--pin", pin, "--so-pin", "12345678")
	server := exec.Command("p11-kit", "server", "-f", "--provider", softHSM(t), "-n", socket, "pkcs11:")
	server.Env = env
	if err := server.Start(); err != nil {
		t.Fatalf("%v (make packages installs it)", err)
	}
	t.Cleanup(func() {
		server.Process.Kill()
		server.Wait()
	})
	await(t, "the stock server", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return socket
}

// await polls until something holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no sign of %s", what)
		}
	}
}

func stock(t *testing.T, env []string, words ...string) {
	t.Helper()
	c := exec.Command(words[0], words[1:]...)
	c.Env = env
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v (make packages installs it)\n%s", words[0], err, out)
	}
}

// softHSM finds the library where distributions put it.
func softHSM(t *testing.T) string {
	t.Helper()
	for _, path := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Fatal("no libsofthsm2.so: make packages installs it")
	return ""
}

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
