package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// RunOptions say how the daemon listens.
type RunOptions struct {
	// Socket is the path to listen at; not needed if systemd hands a socket over.
	Socket          string
	MaxApplications int
	Metrics         string // HOST:PORT, or empty
	// Ready is called when applications can connect.
	Ready func(socket, metrics string)
}

// Run serves applications until the context ends. Calls under way are finished; then
// the sockets are closed, and that of its own making is removed.
func (d *Daemon) Run(ctx context.Context, o RunOptions) error {
	l, err := listen(o.Socket)
	if err != nil {
		return err
	}
	defer l.Close()
	if o.Ready != nil {
		o.Ready(l.Addr().String(), "")
	}
	return d.Server(o.MaxApplications).Serve(ctx, l)
}

// firstFD is the first descriptor that systemd hands over (sd_listen_fds(3)).
const firstFD = 3

// listen takes the socket of systemd, or makes one.
func listen(path string) (*net.UnixListener, error) {
	if os.Getenv("LISTEN_PID") == fmt.Sprint(os.Getpid()) {
		if n := os.Getenv("LISTEN_FDS"); n != "1" {
			return nil, fmt.Errorf("%w: systemd hands over %s sockets; want 1", hsm.ErrInvalid, n)
		}
		return listenerOf(firstFD)
	}
	if path == "" {
		return nil, fmt.Errorf("%w: no socket: name its path with --socket", hsm.ErrInvalid)
	}
	return listenAt(path)
}

// listenerOf makes a listener of a descriptor, which is not removed when it is closed.
func listenerOf(fd uintptr) (*net.UnixListener, error) {
	f := os.NewFile(fd, "socket")
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
	u.SetUnlinkOnClose(false)
	return u, nil
}

// listenAt makes a socket that only its owner may connect to. What a dead daemon has left
// there is replaced; a daemon that lives is not.
func listenAt(path string) (*net.UnixListener, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("%w: another daemon listens at %s; stop it, or choose another --socket", hsm.ErrExist, path)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("the socket of a dead daemon: %w", err)
		}
	}
	// The mode is set before anyone can know of the socket: it is made in place, under a
	// mask that leaves the owner's bits only. Other threads make no files meanwhile.
	before := syscall.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(before)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
