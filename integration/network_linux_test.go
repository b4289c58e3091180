package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// caller is the source of all connections that no HSM opened.
const caller = -1

// rule is what a link does with what is sent over it.
type rule struct {
	cut   bool          // nothing arrives; what was sent is sent again once the link heals, see pass
	delay time.Duration // of each piece
}

// network is the network between HSMs, and between callers and HSMs: every HSM
// is reached through a proxy at the address that all others know. A link is one
// direction between two ends, so that it can be cut one way.
type network struct {
	t         testing.TB
	hsms      []string // where the HSMs listen
	addresses []string // of the proxies

	mu      sync.Mutex
	rules   map[[2]int]rule
	changed chan struct{} // closed when a rule changes
	open    map[net.Conn][2]int
	owner   func(pid int) (hsm int, ok bool)
	pids    func() []int
}

// newNetwork listens for as many HSMs. Where they listen themselves is for
// them to say, before anything is sent.
func newNetwork(t testing.TB, hsms int) *network {
	t.Helper()
	n := &network{t: t, hsms: make([]string, hsms), rules: map[[2]int]rule{}, changed: make(chan struct{}), open: map[net.Conn][2]int{}}
	for i := range hsms {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		t.Cleanup(func() { l.Close() })
		n.addresses = append(n.addresses, l.Addr().String())
		go n.accept(l, i)
	}
	t.Cleanup(func() { n.reset(func([2]int) bool { return true }) })
	return n
}

// know is told where the HSMs listen, which processes may open connections, and
// whose they are.
func (n *network) know(hsms []string, pids func() []int, owner func(pid int) (hsm int, ok bool)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	copy(n.hsms, hsms)
	n.pids, n.owner = pids, owner
}

// address returns where an HSM listens.
func (n *network) address(hsm int) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hsms[hsm]
}

// set changes the rule of all links that fit.
func (n *network) set(r rule, fits func(from, to int) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for from := caller; from < len(n.hsms); from++ {
		for to := caller; to < len(n.hsms); to++ {
			if from != to && fits(from, to) {
				n.rules[[2]int{from, to}] = r
			}
		}
	}
	close(n.changed)
	n.changed = make(chan struct{})
}

// heal restores every link.
func (n *network) heal() { n.set(rule{}, func(int, int) bool { return true }) }

// reset breaks the connections that fit, as a firewall that forgets them does.
func (n *network) reset(fits func(link [2]int) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c, link := range n.open {
		if fits(link) {
			c.Close()
		}
	}
}

func (n *network) rule(link [2]int) (rule, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rules[link], n.changed
}

func (n *network) accept(l net.Listener, to int) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go n.serve(c, to)
	}
}

// serve carries one connection. Who opened it is found before anything is sent.
func (n *network) serve(c net.Conn, to int) {
	link := [2]int{n.source(c), to}
	defer c.Close()
	if !n.pass(link) {
		return
	}
	hsm, err := net.Dial("tcp", n.address(to))
	if err != nil {
		return
	}
	n.track(c, link)
	n.track(hsm, link)
	defer n.untrack(c, hsm)
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.pump(hsm, c, [2]int{link[1], link[0]})
		c.Close()
	}()
	n.pump(c, hsm, link)
	hsm.Close()
	<-done
}

func (n *network) track(c net.Conn, link [2]int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open[c] = link
}

func (n *network) untrack(cs ...net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range cs {
		c.Close()
		delete(n.open, c)
	}
}

// pass waits as long as the link is cut, and as long again: TCP doubles the time
// between its attempts, so that a connection that something was lost on stays
// silent after the link has healed. It tells whether the link ever healed.
func (n *network) pass(link [2]int) bool {
	began, end := time.Now(), time.After(deadline)
	for {
		r, changed := n.rule(link)
		if !r.cut {
			time.Sleep(r.delay)
			return true
		}
		select {
		case <-changed:
			if r, _ := n.rule(link); !r.cut {
				time.Sleep(time.Since(began))
			}
		case <-end:
			return false
		}
	}
}

func (n *network) pump(from, to net.Conn, link [2]int) {
	b := make([]byte, 32<<10)
	for {
		k, err := from.Read(b)
		if k > 0 && n.pass(link) {
			if _, werr := to.Write(b[:k]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// source tells which HSM's process opened the connection: the one that has its
// other end among its open files.
func (n *network) source(c net.Conn) int {
	n.mu.Lock()
	pids, owner := n.pids, n.owner
	n.mu.Unlock()
	inode, err := socketInode(c.RemoteAddr().(*net.TCPAddr).Port, c.LocalAddr().(*net.TCPAddr).Port)
	if err != nil || pids == nil {
		return caller
	}
	for _, pid := range pids() {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, f := range files {
			if target, err := os.Readlink(f); err == nil && target == "socket:["+inode+"]" {
				if hsm, ok := owner(pid); ok {
					return hsm
				}
				return caller
			}
		}
	}
	return caller
}

// socketInode finds the socket with these ports in the kernel's table.
func socketInode(local, remote int) (string, error) {
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	defer f.Close()
	wantLocal, wantRemote := fmt.Sprintf(":%04X", local), fmt.Sprintf(":%04X", remote)
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) > 9 && strings.HasSuffix(fields[1], wantLocal) && strings.HasSuffix(fields[2], wantRemote) {
			if _, err := strconv.ParseUint(fields[9], 10, 64); err != nil {
				return "", err
			}
			return fields[9], nil
		}
	}
	return "", io.EOF
}

// TestNetwork: the proxy passes, cuts one way and the other, delays, heals and
// resets, and tells who connects.
func TestNetwork(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, 1)
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	self := func(int) (int, bool) { return 0, true } // this process plays an HSM that calls itself
	n.know([]string{echo.Addr().String()}, func() []int { return []int{os.Getpid()} }, self)
	c, err := net.Dial("tcp", n.addresses[0])
	must(t, err)
	defer c.Close()
	answers := make(chan byte, 16)
	go func() {
		defer close(answers)
		for b := make([]byte, 1); ; {
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			answers <- b[0]
		}
	}()
	say := func(b byte) { _, err := c.Write([]byte{b}); must(t, err) }
	say('a')
	if got := <-answers; got != 'a' {
		t.Fatalf("heard %q", got)
	}
	n.mu.Lock()
	for _, link := range n.open {
		if link != [2]int{0, 0} {
			t.Errorf("the connection is taken for one of %v", link)
		}
	}
	for link := range map[[2]int]bool{{0, 0}: true} {
		n.rules[link] = rule{cut: true}
	}
	n.mu.Unlock()
	say('b')
	select {
	case got := <-answers:
		t.Errorf("heard %q over a cut link", got)
	case <-time.After(50 * time.Millisecond):
	}
	n.mu.Lock()
	n.rules[[2]int{0, 0}] = rule{delay: time.Millisecond}
	close(n.changed)
	n.changed = make(chan struct{})
	n.mu.Unlock()
	if got := <-answers; got != 'b' {
		t.Fatalf("heard %q when the link had healed", got)
	}
	n.reset(func([2]int) bool { return true })
	if _, more := <-answers; more {
		t.Error("the connection survives a reset")
	}
}
