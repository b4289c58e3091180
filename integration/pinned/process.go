package pinned

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// readyWithin is generous: a loaded machine is no failure.
const readyWithin = 2 * time.Minute

// Process is a running server.
type Process struct {
	cmd    *exec.Cmd
	output output
	done   chan struct{} // closed when the process has ended
}

// Start starts a server and waits until ready says that it serves.
func Start(cmd *exec.Cmd, ready func() bool) (*Process, error) {
	p := &Process{cmd: cmd, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	dieWithParent(p.cmd)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	if err := p.waitReady(ready); err != nil {
		p.Kill()
		return nil, fmt.Errorf("%s: %w; it said:\n%s", cmd.Path, err, p.output.String())
	}
	return p, nil
}

func (p *Process) waitReady(ready func() bool) error {
	for deadline := time.Now().Add(readyWithin); time.Now().Before(deadline); {
		select {
		case <-p.done:
			return fmt.Errorf("the server ended: %v", p.cmd.ProcessState)
		case <-time.After(20 * time.Millisecond):
		}
		if ready() {
			return nil
		}
	}
	return fmt.Errorf("the server was not ready within %v", readyWithin)
}

// Kill ends the process as an outage would, and waits for its end.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// Ports below those of HSMs, and of outgoing connections: a server that is down for a while
// finds its own free when it is started again.
const (
	lowPort  = 12000
	highPort = 20000
)

// FreeAddress returns a loopback address that nobody listened on a moment ago.
func FreeAddress(t testing.TB) string {
	t.Helper()
	var err error
	for range 100 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", lowPort+rand.IntN(highPort-lowPort))); err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatalf("find a free port: %v", err)
	return ""
}

// output collects what a server says.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.TrimSpace(o.b.String())
}
