package soft

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// syncer has data made durable without a thread that waits for it: the kernel is asked
// (io_submit(2), IOCB_CMD_FDSYNC: fdatasync) and says on an event descriptor when it is
// done, on which a goroutine waits as for a connection. A thread in fdatasync(2) costs the
// Go runtime another one that takes over its work, and a monitor that polls.
type syncer struct {
	mu      sync.Mutex // one at a time
	queue   uintptr    // aio_context_t
	event   *os.File
	eventFD int
	refused atomic.Bool // by a file system that does not know how; it does it the usual way
	synced  atomic.Int64
}

// newSyncer returns nil if the system has no such thing, or has no more of it.
func newSyncer() *syncer {
	s := &syncer{}
	if _, _, errno := unix.RawSyscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&s.queue)), 0); errno != 0 {
		return nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		s.destroyQueue()
		return nil
	}
	s.event, s.eventFD = os.NewFile(uintptr(fd), "eventfd"), fd
	return s
}

func (s *syncer) destroyQueue() { _, _, _ = unix.RawSyscall(unix.SYS_IO_DESTROY, s.queue, 0, 0) }

// close is called when nobody syncs any more.
func (s *syncer) close() error {
	if s == nil {
		return nil
	}
	s.destroyQueue()
	return s.event.Close()
}

// iocb is struct iocb of linux/aio_abi.h.
type iocb struct {
	_       uint64    // data
	_       [2]uint32 // key and flags of it
	opcode  uint16
	_       int16 // priority
	fd      uint32
	_       [2]uint64 // buffer and its length
	_       int64     // offset
	_       uint64
	flags   uint32
	eventFD uint32
}

// ioEvent is struct io_event of linux/aio_abi.h.
type ioEvent struct {
	data, object   uint64
	result, second int64
}

const (
	commandFDSync = 3 // IOCB_CMD_FDSYNC
	flagEventFD   = 1 // IOCB_FLAG_RESFD
)

// sync makes what was written to a file durable, as fdatasync does. errors.ErrUnsupported:
// nothing was tried; it takes the usual way.
func (s *syncer) sync(fd uintptr) error {
	if s == nil || s.refused.Load() {
		return errors.ErrUnsupported
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	job := &iocb{opcode: commandFDSync, fd: uint32(fd), flags: flagEventFD, eventFD: uint32(s.eventFD)}
	jobs := [1]*iocb{job}
	_, _, errno := unix.RawSyscall(unix.SYS_IO_SUBMIT, s.queue, 1, uintptr(unsafe.Pointer(&jobs)))
	runtime.KeepAlive(job)
	if errno != 0 {
		s.refused.Store(true)
		return errors.ErrUnsupported
	}
	return s.await()
}

// await waits for the end of what was asked and returns how it went.
func (s *syncer) await() error {
	var count [8]byte
	if _, err := s.event.Read(count[:]); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	var end ioEvent
	n, _, errno := unix.RawSyscall6(unix.SYS_IO_GETEVENTS, s.queue, 1, 1, uintptr(unsafe.Pointer(&end)), 0, 0)
	switch {
	case errno != 0:
		return fmt.Errorf("sync: io_getevents: %w", errno)
	case n != 1:
		return fmt.Errorf("sync: io_getevents: %d ends of one", n)
	case end.result != 0:
		return fmt.Errorf("sync: %w", syscall.Errno(-end.result))
	}
	s.synced.Add(1)
	return nil
}
