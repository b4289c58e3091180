package pkcs11

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// handoverEnv names the descriptor of what the program before has left.
const handoverEnv = "HSMBACKUP_HANDOVER"

// inheritance is what one program leaves to the next, in memory that is no file: what a
// connection has sent and was not read may be a PIN.
type inheritance struct {
	Listener uintptr
	Own      bool
	Conns    []inherited
}

type inherited struct {
	FD      uintptr
	Offered byte
	Pending []byte
}

// inheritedSockets is the same, opened.
type inheritedSockets struct {
	listener *net.UnixListener
	own      bool
	conns    []rpc.Handed
}

// handOver runs a program in the place of this one. It returns only on an error.
func handOver(program string, l *os.File, own bool, conns []rpc.Handed) error {
	left := inheritance{Listener: l.Fd(), Own: own}
	files := []*os.File{l}
	for _, c := range conns {
		u, ok := c.Conn.(*net.UnixConn)
		if !ok {
			continue
		}
		f, err := u.File()
		if err != nil {
			return err
		}
		files = append(files, f) // and with it the descriptor
		left.Conns = append(left.Conns, inherited{FD: f.Fd(), Offered: c.State.Offered, Pending: c.State.Pending})
	}
	b, err := json.Marshal(left)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("hsmbackup", 0)
	if err != nil {
		return err
	}
	memory := os.NewFile(uintptr(fd), "memory")
	files = append(files, memory)
	if _, err := memory.Write(b); err != nil {
		return err
	}
	if _, err := memory.Seek(0, 0); err != nil {
		return err
	}
	for _, f := range files {
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil { // it stays open
			return err
		}
	}
	return syscall.Exec(program, os.Args, append(os.Environ(), fmt.Sprintf("%s=%d", handoverEnv, memory.Fd())))
}

// maxInheritance bounds what is read: each connection may have most of a frame
// pending.
const maxInheritance = 1 << 30

// inherit opens what the program before has left; nothing if there was none.
func inherit() (in inheritedSockets, err error) {
	v := os.Getenv(handoverEnv)
	if v == "" {
		return in, nil
	}
	os.Unsetenv(handoverEnv)
	fd, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return in, fmt.Errorf("%w: %s=%q is no descriptor", hsm.ErrInvalid, handoverEnv, v)
	}
	memory := os.NewFile(uintptr(fd), "memory")
	defer memory.Close()
	st, err := memory.Stat()
	if err != nil || st.Size() > maxInheritance {
		return in, fmt.Errorf("%w: descriptor %d holds no sockets handed over: %v", hsm.ErrInvalid, fd, err)
	}
	var left inheritance
	if err := json.NewDecoder(memory).Decode(&left); err != nil {
		return in, fmt.Errorf("%w: what the program before has left: %w", hsm.ErrInvalid, err)
	}
	if in.listener, err = listenerOf(left.Listener); err != nil {
		return in, err
	}
	in.own = left.Own
	for _, c := range left.Conns {
		f := os.NewFile(c.FD, "connection")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			continue // it ended meanwhile
		}
		in.conns = append(in.conns, rpc.Handed{Conn: conn, State: rpc.State{Offered: c.Offered, Pending: c.Pending}})
	}
	return in, nil
}
