//go:build !unix

package pkcs11

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// listenAt: a socket that the system keeps from other users is not there.
func listenAt(string, os.FileMode) (*net.UnixListener, error) {
	return nil, fmt.Errorf("the daemon of PKCS #11 runs on Unix systems only: %w", errors.ErrUnsupported)
}
