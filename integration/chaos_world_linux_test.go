package integration

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// proxied is a cluster whose HSMs are reached through a network of proxies.
type proxied struct {
	*testCluster
	net *network

	mu      sync.Mutex // of hsms, which the network reads too
	stopped map[int]bool
}

// newProxied lays out and starts a cluster behind proxies.
func newProxied(t testing.TB, m *machine, hsms int, more ...string) *proxied {
	t.Helper()
	n := newNetwork(t, hsms)
	args := more
	for _, a := range n.addresses {
		args = append(args, "--listen", a)
	}
	c := &proxied{testCluster: createCluster(t, m, "east", hsms, args...), net: n, stopped: map[int]bool{}}
	behind := make([]string, hsms)
	for i := range hsms {
		behind[i] = c.listenBehind(t, i)
	}
	c.hsms = make([]*process, hsms)
	n.know(behind, c.pids, c.owner)
	for i := range hsms {
		c.start(t, i)
	}
	for i := range hsms {
		c.process(i).waitReady(t)
	}
	c.createUser(t, alicePIN)
	return c
}

// listenBehind has an HSM listen elsewhere than at its address, and returns where.
func (c *proxied) listenBehind(t testing.TB, i int) string {
	t.Helper()
	address := quietAddress(t)
	file := filepath.Join(c.hsmDir(i), "hsm.yaml")
	write(t, file, read(t, file)+"listen: "+address+"\n")
	return address
}

func (c *proxied) process(i int) *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hsms[i]
}

// start starts an HSM, and does not wait.
func (c *proxied) start(t testing.TB, i int) {
	t.Helper()
	p := c.machine.start(t, "hsm", "serve", c.hsmDir(i))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hsms[i] = p
}

// restart starts an HSM and waits until it serves.
func (c *proxied) restart(t testing.TB, i int) {
	t.Helper()
	c.start(t, i)
	c.process(i).waitReady(t)
}

// terminate ends an HSM as an operator does.
func (c *proxied) terminate(t testing.TB, i int) {
	t.Helper()
	p := c.process(i)
	must(t, p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-p.done:
	case <-time.After(deadline):
		t.Fatalf("HSM %d does not end on SIGTERM", i+1)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("HSM %d ends with code %d on SIGTERM: %s", i+1, code, p.stderr.String())
	}
}

// freeze stops the process of an HSM, and thaw lets it go on.
func (c *proxied) freeze(t testing.TB, i int) {
	t.Helper()
	must(t, syscall.Kill(c.process(i).cmd.Process.Pid, syscall.SIGSTOP))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped[i] = true
}

func (c *proxied) thaw(t testing.TB, i int) {
	t.Helper()
	must(t, syscall.Kill(c.process(i).cmd.Process.Pid, syscall.SIGCONT))
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.stopped, i)
}

func (c *proxied) pids() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	pids := []int{}
	for _, p := range c.hsms {
		if p != nil {
			pids = append(pids, p.cmd.Process.Pid)
		}
	}
	return pids
}

func (c *proxied) owner(pid int) (int, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, p := range c.hsms {
		if p != nil && p.cmd.Process.Pid == pid {
			return i, true
		}
	}
	return 0, false
}

// copyFolder copies the folder of an HSM that does not run, as a disk image does.
func (c *proxied) copyFolder(t testing.TB, i int, name string) string {
	t.Helper()
	to := c.path(name)
	copyTree(t, c.hsmDir(i), to)
	return to
}

// putBack replaces the folder of an HSM that does not run by a copy.
func (c *proxied) putBack(t testing.TB, i int, from string) {
	t.Helper()
	must(t, os.RemoveAll(c.hsmDir(i)))
	copyTree(t, from, c.hsmDir(i))
}

func copyTree(t testing.TB, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy %s: %v: %s", from, err, out)
	}
}

// quietAddress is a free address with a port that is not given to outgoing
// connections: an HSM that is down finds it free again.
func quietAddress(t testing.TB) string {
	t.Helper()
	for range 64 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.N(9000)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no free port")
	return ""
}
