package pkcs11

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/metrics"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// RunOptions say how the daemon listens.
type RunOptions struct {
	// Socket is the path to listen at; not needed if systemd hands a socket over.
	Socket string
	// Open makes the socket one that every user reaches, for the daemon to refuse those
	// who may not connect by what the kernel says of them. Otherwise only its owner
	// reaches it.
	Open            bool
	MaxApplications int
	Metrics         string // HOST:PORT, or empty
	Version         string // for the metrics
	// Ready is called when applications can connect.
	Ready func(socket, metrics string)
}

// Run serves applications until the context ends: SIGTERM for the program. Calls under
// way are finished; then the sockets are closed, and that of its own making is removed.
//
// SIGHUP replaces the process by the program as it is on disk now, with all sockets
// open: calls under way are finished, and then the new program goes on with the same
// connections. To an application it is as if its token had been taken out and put in
// again: its sessions are closed, and it logs in again.
//
// What holds if the process dies during that: before the new program runs, the sockets
// are closed as if it had died at any other time; afterwards the new program has
// them. Nothing else depends on it: keys are the HSMs'.
func (d *Daemon) Run(ctx context.Context, o RunOptions) error {
	program, err := os.Executable() // now: it may be replaced later
	if err != nil {
		return err
	}
	before, err := inherit()
	if err != nil {
		return err
	}
	l, own := before.listener, before.own
	if l == nil {
		if l, own, err = listen(o.Socket, o.mode()); err != nil {
			return err
		}
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if own {
		made, err := os.Lstat(l.Addr().String())
		if err != nil {
			return err
		}
		// After a handing over this process is not here any more.
		defer removeSocket(l.Addr().String(), made)
	}
	shown, err := d.serveMetrics(ctx, o)
	if err != nil {
		return err
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	s := d.Server(o.MaxApplications)
	for _, h := range before.conns {
		s.Resume(ctx, h)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	if o.Ready != nil {
		o.Ready(l.Addr().String(), shown)
	}
	select {
	case err := <-served:
		return err
	case <-hangup:
		d.log.Info("going on as the program on disk", "program", program)
		return d.replace(program, l, own, s, served)
	}
}

// replace hands all sockets to a new program in the place of this one. It returns only
// if that fails.
func (d *Daemon) replace(program string, l *net.UnixListener, own bool, s *rpc.Server, served <-chan error) error {
	kept, err := l.File() // another descriptor of the socket, which stays
	if err != nil {
		return err
	}
	l.Close()
	conns := s.HandOver()
	<-served
	if err := handOver(program, kept, own, conns); err != nil {
		return fmt.Errorf("the program could not be replaced by %s: %w; start the daemon again", program, err)
	}
	return nil
}

// firstFD is the first descriptor that systemd hands over (sd_listen_fds(3)).
const firstFD = 3

// listen takes the socket of systemd, or makes one. own tells that it is to be removed
// in the end.
func listen(path string, mode os.FileMode) (l *net.UnixListener, own bool, err error) {
	if os.Getenv("LISTEN_PID") == fmt.Sprint(os.Getpid()) {
		if n := os.Getenv("LISTEN_FDS"); n != "1" {
			return nil, false, fmt.Errorf("%w: systemd hands over %s sockets; want 1", hsm.ErrInvalid, n)
		}
		l, err = listenerOf(firstFD)
		return l, false, err
	}
	if path == "" {
		return nil, false, fmt.Errorf("%w: no socket: name its path with --socket", hsm.ErrInvalid)
	}
	l, err = listenAt(path, mode)
	return l, true, err
}

// listenerOf makes a listener of a descriptor.
func listenerOf(fd uintptr) (*net.UnixListener, error) {
	f := os.NewFile(fd, "socket")
	if f == nil {
		return nil, fmt.Errorf("%w: descriptor %d", hsm.ErrInvalid, fd)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("the socket that was handed over: %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("%w: the socket that was handed over is %s, not a Unix socket", hsm.ErrInvalid, l.Addr().Network())
	}
	return u, nil
}

func (o RunOptions) mode() os.FileMode {
	if o.Open {
		return 0o666
	}
	return 0o600
}

// serveMetrics shows the counters, and returns where.
func (d *Daemon) serveMetrics(ctx context.Context, o RunOptions) (address string, err error) {
	if o.Metrics == "" {
		return "", nil
	}
	r := metrics.NewRegistry(o.Version)
	r.Collect(statsMetrics, d.stats.show)
	m, err := metrics.Listen(o.Metrics, r)
	if err != nil {
		return "", err
	}
	go func() {
		if err := m.Serve(ctx); err != nil {
			d.log.Error("metrics", "error", err)
		}
	}()
	return m.Address(), nil
}
