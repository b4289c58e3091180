package pkcs11

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// dead makes the socket of a daemon that died.
func dead(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

// TestOneOfManyListens: of daemons that start at once where a dead one was, one listens,
// and nobody takes its socket away.
func TestOneOfManyListens(t *testing.T) {
	for range 20 {
		path := filepath.Join(t.TempDir(), "s")
		dead(t, path)
		var mu sync.Mutex
		var wg sync.WaitGroup
		var listens []*net.UnixListener
		for range 6 {
			wg.Go(func() {
				l, err := listenAt(path, 0o600)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					listens = append(listens, l)
				} else if !errors.Is(err, hsm.ErrExist) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(listens) != 1 {
			t.Fatalf("%d daemons listen", len(listens))
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		listens[0].Close()
	}
}

// TestABusyDaemonKeepsItsSocket: one that takes no more connections at the moment is not
// taken for dead.
func TestABusyDaemonKeepsItsSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		err = errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0))
	}
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	for range 8 { // until its queue is full
		c, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		defer c.Close()
	}
	if l, err := listenAt(path, 0o600); !errors.Is(err, hsm.ErrExist) {
		t.Errorf("%v, %v; want ErrExist", l, err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("its socket is gone: %v", err)
	}
}

// TestALinkIsNoSocket: what a link names is neither removed nor given a mode.
func TestALinkIsNoSocket(t *testing.T) {
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "file"), filepath.Join(dir, "socket")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dead(t, socket)
	for _, to := range []string{file, socket, filepath.Join(dir, "nothing")} {
		path := filepath.Join(dir, "link")
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		if l, err := listenAt(path, 0o666); !errors.Is(err, hsm.ErrExist) {
			t.Errorf("link to %s: %v, %v; want ErrExist", to, l, err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
		os.Remove(path)
	}
	if st, err := os.Lstat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if _, err := os.Lstat(socket); err != nil {
		t.Error(err)
	}
}

// TestAnotherSocketIsNotRemoved: a daemon that ends removes the socket that it made, and
// no other that lies there by now.
func TestAnotherSocketIsNotRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listenAt(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	made, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".old"); err != nil { // an inode that is free might be given out again
		t.Fatal(err)
	}
	dead(t, path)
	removeSocket(path, made)
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket of another is gone: %v", err)
	}
	removeSocket(path+".old", made)
	if _, err := os.Lstat(path + ".old"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its own is there: %v", err)
	}
	l.Close()
}
