// Package softhsm gives tests a PKCS #11 token nobody here wrote: SoftHSM behind
// p11-kit's own server. Both come from the distribution; make packages installs them.
package softhsm

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// PIN is that of the token's user. It has the form of a cluster's PINs.
const PIN = "user:password"

// libraries are where distributions put SoftHSM.
var libraries = []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"}

// Server is p11-kit's server, and what it has started.
type Server struct {
	Socket string
	pid    int
}

// Start serves a new token until the test ends, and returns the socket.
func Start(tb testing.TB) string {
	tb.Helper()
	return StartServer(tb).Socket
}

// Signal sends a signal to the server and to its processes for each connection.
func (s Server) Signal(tb testing.TB, signal syscall.Signal) {
	tb.Helper()
	if err := syscall.Kill(-s.pid, signal); err != nil {
		tb.Fatal(err)
	}
}

// StartServer serves a new token until the test ends.
func StartServer(tb testing.TB) Server {
	tb.Helper()
	dir := tb.TempDir()
	env := token(tb, dir)
	socket := filepath.Join(dir, "server")
	server := exec.Command("p11-kit", "server", "-f", "--provider", library(tb), "-n", socket, "pkcs11:")
	server.Env = env
	server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := server.Start(); err != nil {
		tb.Fatalf("%v (make packages installs it)", err)
	}
	tb.Cleanup(func() {
		syscall.Kill(-server.Process.Pid, syscall.SIGKILL)
		server.Wait()
	})
	Await(tb, socket)
	return Server{socket, server.Process.Pid}
}

// token makes the token and returns the environment that names it.
func token(tb testing.TB, dir string) []string {
	tb.Helper()
	conf, tokens := filepath.Join(dir, "softhsm2.conf"), filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", tokens), 0o600); err != nil {
		tb.Fatal(err)
	}
	env := append(os.Environ(), "SOFTHSM2_CONF="+conf)
	c := exec.Command("softhsm2-util", "--init-token", "--free", "--label", "judge", "--pin", PIN, "--so-pin", "12345678")
	c.Env = env
	if out, err := c.CombinedOutput(); err != nil {
		tb.Fatalf("softhsm2-util: %v (make packages installs it)\n%s", err, out)
	}
	return env
}

func library(tb testing.TB) string {
	tb.Helper()
	for _, path := range libraries {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	tb.Fatalf("none of %q: make packages installs it", libraries)
	return ""
}

// Await waits until somebody listens at a socket.
func Await(tb testing.TB, socket string) {
	tb.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			tb.Fatal(err)
		}
	}
}
