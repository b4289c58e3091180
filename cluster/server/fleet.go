package server

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/metrics"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
)

// stopGrace is how long an HSM process may take to finish its calls.
const stopGrace = 10 * time.Second

// Fleet is the HSM processes of one cluster on this machine.
type Fleet struct {
	cancel   context.CancelFunc
	children []*child
	done     chan struct{} // closed when all processes have ended
	mu       sync.Mutex
	errs     []error
}

// FleetOption changes StartFleet.
type FleetOption func(*fleetOptions)

type fleetOptions struct{ metrics string }

// WithMetrics has the first HSM show metrics at address (HOST:PORT), and each
// next one at the next port; with port 0 each at a free one, which it logs.
func WithMetrics(address string) FleetOption { return func(o *fleetOptions) { o.metrics = address } }

// arguments are those of the i-th process.
func (o *fleetOptions) arguments(i int, folder string) ([]string, error) {
	args := []string{"hsm", "serve"}
	if o.metrics != "" {
		address, err := nthAddress(o.metrics, i)
		if err != nil {
			return nil, err
		}
		args = append(args, "--metrics", address)
	}
	return append(args, folder), nil
}

func nthAddress(address string, i int) (string, error) {
	if err := metrics.CheckAddress(address); err != nil {
		return "", err
	}
	host, port, _ := net.SplitHostPort(address) // checked
	n, _ := strconv.Atoi(port)
	if n != 0 {
		n += i
	}
	address = net.JoinHostPort(host, strconv.Itoa(n))
	return address, metrics.CheckAddress(address) // the ports may have run out
}

// StartFleet starts "exe hsm serve FOLDER" for every HSM of the profile that
// has a folder here, and returns when all are ready. What they say on standard
// error goes to log, line by line, each with the HSM's name. The processes end
// with ctx, with Stop, and on Linux with this process, however it ends. One that
// ends by itself is reported to log and by Wait; the others go on.
//
// If one does not become ready, all are stopped, and the error, ErrFolder, holds
// its last words.
func StartFleet(ctx context.Context, exe string, p *profile.Profile, log io.Writer, opts ...FleetOption) (*Fleet, error) {
	var o fleetOptions
	for _, opt := range opts {
		opt(&o)
	}
	ctx, cancel := context.WithCancel(ctx)
	f := &Fleet{cancel: cancel, done: make(chan struct{})}
	lines := &lineWriter{w: log}
	for _, h := range p.HSMs {
		if h.Dir == "" {
			continue
		}
		args, err := o.arguments(len(f.children), p.Resolve(h.Dir))
		if err != nil {
			cancel()
			return nil, err
		}
		f.children = append(f.children, newChild(ctx, exe, h.Name, args, lines))
	}
	started := make(chan error, 1)
	go f.run(ctx, started)
	if err := <-started; err != nil {
		f.Stop()
		return nil, err
	}
	if err := f.awaitReady(ctx); err != nil {
		f.Stop()
		return nil, err
	}
	return f, nil
}

// run starts the processes and returns when all have ended. It keeps its thread
// to itself until then: the kernel signals a child whose parent dies when the
// thread that started the child ends (prctl(2), PR_SET_PDEATHSIG), and Go ends
// threads as it likes. The thread ends with run, since it is never unlocked.
func (f *Fleet) run(ctx context.Context, started chan<- error) {
	runtime.LockOSThread()
	defer close(f.done)
	var children sync.WaitGroup
	defer children.Wait()
	for _, c := range f.children {
		if err := c.start(); err != nil {
			started <- err
			return
		}
		children.Go(func() { f.watch(ctx, c) })
	}
	started <- nil
}

// awaitReady waits until every process is ready, or one of them is not.
func (f *Fleet) awaitReady(ctx context.Context) error {
	for _, c := range f.children {
		select {
		case <-c.ready:
		case <-ctx.Done(): // stopped, or a process did not start
			<-f.done
			return cmp.Or(f.failures(), ctx.Err())
		}
	}
	return nil
}

// watch sees one process through to its end.
func (f *Fleet) watch(ctx context.Context, c *child) {
	ready := c.awaitReady()
	if ready {
		close(c.ready)
		_, _ = io.Copy(io.Discard, c.out)
	} else {
		_ = c.cmd.Process.Kill() // it says something else than that it is ready, or is gone
	}
	err := c.cmd.Wait()
	c.log.flush()
	if ctx.Err() != nil {
		return
	}
	if !ready {
		f.fail(fmt.Errorf("%w: %s did not start: %s", ErrFolder, c.name, c.words.text()))
		f.cancel()
		return
	}
	f.fail(fmt.Errorf("%s ended: %s", c.name, ending(err)))
	fmt.Fprintf(c.log, "ended: %s\n", ending(err))
}

func ending(err error) string {
	if err == nil {
		return "without being asked to"
	}
	return err.Error()
}

func (f *Fleet) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs = append(f.errs, err)
}

func (f *Fleet) failures() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.errs...)
}

// PIDs returns the process ids, in the order of the profile.
func (f *Fleet) PIDs() []int {
	pids := make([]int, len(f.children))
	for i, c := range f.children {
		pids[i] = c.cmd.Process.Pid
	}
	return pids
}

// Wait returns when every process has ended, with what became of those that
// ended by themselves.
func (f *Fleet) Wait() error {
	<-f.done
	return f.failures()
}

// Stop ends all processes and waits for them. They have a moment to finish their
// calls. It may be called again.
func (f *Fleet) Stop() {
	f.cancel()
	<-f.done
}

// child is one HSM process.
type child struct {
	name  string
	cmd   *exec.Cmd
	out   *bufio.Reader
	ready chan struct{} // closed when it is ready
	words *lastWords
	log   *prefixWriter
}

func newChild(ctx context.Context, exe, name string, args []string, lines *lineWriter) *child {
	c := &child{name: name, ready: make(chan struct{}), words: &lastWords{}, log: &prefixWriter{prefix: name + ": ", lines: lines}}
	c.cmd = exec.CommandContext(ctx, exe, args...)
	c.cmd.Cancel = func() error { return c.cmd.Process.Signal(syscall.SIGTERM) }
	c.cmd.Env = withoutLogins(os.Environ())
	c.cmd.WaitDelay = stopGrace
	c.cmd.SysProcAttr = childAttributes()
	c.cmd.Stderr = io.MultiWriter(c.words, c.log)
	return c
}

// withoutLogins leaves out of an environment what an HSM has no use for and would
// show for as long as it runs to whoever may read it: logins, tokens, and the secrets
// of object stores. What opens a seal stays.
func withoutLogins(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		switch {
		case strings.HasPrefix(name, "HSMBACKUP_"):
			return slices.ContainsFunc([]string{"PIN", "PASSWORD", "MFA", "TOKEN", "_SECRET_KEY"}, func(end string) bool { return strings.HasSuffix(name, end) })
		case strings.HasPrefix(name, "MINIO_"), strings.HasPrefix(name, "AWS_"):
			return strings.Contains(name, "SECRET") || strings.Contains(name, "PASSWORD") || strings.HasSuffix(name, "_TOKEN")
		}
		return false
	})
}

func (c *child) start() error {
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start %s: %w", c.name, err)
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", c.name, err)
	}
	return nil
}

// awaitReady reads the first line: the process is ready, or it never will be.
func (c *child) awaitReady() bool {
	line, _ := c.out.ReadString('\n')
	return strings.HasPrefix(line, "ready:")
}

// lineWriter lets several writers share one, a line at a time. A nil one drops
// everything.
type lineWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lineWriter) write(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.w != nil {
		_, _ = io.WriteString(l.w, line) // a log that is gone must not stop an HSM
	}
}

// prefixWriter puts a name before every line. It holds back a line until its end
// is there.
type prefixWriter struct {
	mu     sync.Mutex
	prefix string
	begun  []byte
	lines  *lineWriter
}

// maxLogLine bounds a line that is held back.
const maxLogLine = 64 << 10

func (p *prefixWriter) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for part := range strings.Lines(string(b)) {
		p.begun = append(p.begun, part...)
		if strings.HasSuffix(part, "\n") || len(p.begun) > maxLogLine {
			p.end()
		}
	}
	return len(b), nil
}

// flush writes what is held back.
func (p *prefixWriter) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.begun) > 0 {
		p.end()
	}
}

func (p *prefixWriter) end() {
	p.lines.write(p.prefix + strings.TrimSuffix(string(p.begun), "\n") + "\n")
	p.begun = p.begun[:0]
}

// lastWords keeps the end of what a process says, for its obituary.
type lastWords struct {
	mu   sync.Mutex
	tail []byte
}

const maxLastWords = 2048

func (l *lastWords) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = append(l.tail, b...)
	l.tail = l.tail[max(0, len(l.tail)-maxLastWords):]
	return len(b), nil
}

func (l *lastWords) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(strings.Fields(string(l.tail)), " ")
}
