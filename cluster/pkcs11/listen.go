package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// removeDead removes the socket of a daemon that died. One that somebody listens on is
// kept, also if that takes no connections at the moment, and so is everything else.
func removeDead(path string) error {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
	}
	st, statErr := os.Lstat(path)
	switch {
	case errors.Is(statErr, os.ErrNotExist):
		return nil
	case statErr != nil:
		return fmt.Errorf("the socket: %w", statErr)
	case st.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%w: %s is there, and no socket; choose another --socket", hsm.ErrExist, path)
	case err == nil, !errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: another daemon listens at %s; stop it, or choose another --socket", hsm.ErrExist, path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("the socket of a dead daemon: %w", err)
	}
	return nil
}

// removeSocket removes the socket that was made, and nothing that has come in its place.
func removeSocket(path string, made os.FileInfo) {
	if now, err := os.Lstat(path); err == nil && os.SameFile(made, now) {
		_ = os.Remove(path) // if it stays the next daemon replaces it
	}
}
