//go:build !linux

package pkcs11

import (
	"errors"
	"net"
	"os"

	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

type inheritedSockets struct {
	listener *net.UnixListener
	own      bool
	conns    []rpc.Handed
}

func inherit() (inheritedSockets, error) { return inheritedSockets{}, nil }

func handOver(string, *os.File, bool, []rpc.Handed) error {
	return errors.New("sockets are handed over on Linux only")
}
