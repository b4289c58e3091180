package sim

import (
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/server"
	"github.com/hsmbackup/hsmbackup/cluster/server/audit"
)

// auditLog is the file of an HSM's audit log, in memory: an entry is written for nearly
// all that an HSM does, and a call of the system that takes its time lets others run
// first, so that a seed would not replay.
type auditLog struct {
	mu    sync.Mutex
	bytes []byte
}

// copy is the file as it is found after a loss of power, when it was handed over whole. What
// the process that had it still writes is not in it.
func (l *auditLog) copy() *auditLog {
	if l == nil {
		return &auditLog{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return &auditLog{bytes: slices.Clone(l.bytes)}
}

// openAudit opens the log of the present life, however often.
func (b *box) openAudit() server.OpenAudit {
	b.mu.Lock()
	defer b.mu.Unlock()
	log := b.audit
	return func(string) (audit.File, error) { return &auditFile{log: log}, nil }
}

// auditFile is an open auditLog.
type auditFile struct {
	log *auditLog
	at  int
}

func (f *auditFile) Read(p []byte) (int, error) {
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	if f.at >= len(f.log.bytes) {
		return 0, io.EOF
	}
	n := copy(p, f.log.bytes[f.at:])
	f.at += n
	return n, nil
}

// Write writes at the end, where a log does.
func (f *auditFile) Write(p []byte) (int, error) {
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	if f.at != len(f.log.bytes) {
		return 0, fmt.Errorf("write at %d of %d bytes", f.at, len(f.log.bytes))
	}
	f.log.bytes = append(f.log.bytes, p...)
	f.at += len(p)
	return len(p), nil
}

func (f *auditFile) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart {
		return 0, fmt.Errorf("seek from %d", whence)
	}
	f.at = int(offset)
	return offset, nil
}

func (f *auditFile) Truncate(size int64) error {
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	f.log.bytes = f.log.bytes[:size]
	return nil
}

func (f *auditFile) Sync() error  { return nil }
func (f *auditFile) Close() error { return nil }
