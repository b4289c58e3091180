//go:build unix

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

	"golang.org/x/sys/unix"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// startTime is how long a daemon waits for another that is about to listen in the same
// folder.
const startTime = 10 * time.Second

// listenAt makes a socket of a mode. What a dead daemon has left
// there is replaced; a daemon that lives is not, however busy it is. Of two that start at
// once, one listens. ErrExist.
func listenAt(path string, mode os.FileMode) (*net.UnixListener, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// Between the look at what is there and the new socket no other daemon makes its own.
	unlock, err := lockFolder(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeDead(path); err != nil {
		return nil, err
	}
	// The socket has its mode before anyone can know of it: it is made under a mask. Other
	// threads make no files meanwhile. A mode that is given afterwards, by its path, could
	// be given to something else.
	before := syscall.Umask(0o777 &^ int(mode))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(before)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	return l, nil
}

// lockFolder locks a folder against other daemons. The lock ends with unlock, or with the
// process.
func lockFolder(folder string) (unlock func(), err error) {
	f, err := os.Open(folder)
	if err != nil {
		return nil, fmt.Errorf("the folder of the socket: %w", err)
	}
	for deadline := time.Now().Add(startTime); ; {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			break
		}
		pause(context.Background(), 20*time.Millisecond)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: another daemon starts in %s: %w", hsm.ErrExist, folder, err)
	}
	return func() { f.Close() }, nil
}
