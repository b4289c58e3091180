// Package audit keeps an HSM's audit log: append-only, one JSON object a line,
// each line carrying the SHA-256 of the line before it, so that no entry can be
// changed, dropped or moved without Verify saying where. (Whoever can write the
// file can cut off its end or write all of it anew; keep the last hash
// elsewhere, as cluster info shows it, to notice that.)
//
// Entries name what was done, by whom, to which key, and the outcome. They
// never hold key material, passwords or data.
package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// ErrBroken: the chain of hashes does not hold.
var ErrBroken = errors.New("audit log is broken")

// Entry is one line of the log.
type Entry struct {
	Sequence uint64    `json:"sequence"` // from 1, without gaps
	Time     time.Time `json:"time"`
	Reboot   uint64    `json:"reboot"` // starts of the HSM so far
	Event    string    `json:"event"`
	Role     string    `json:"role,omitempty"`
	Name     string    `json:"name,omitempty"`
	Key      string    `json:"key_reference,omitempty"`
	Detail   string    `json:"detail,omitempty"`
	// Application is the process the call was made for, as the client says. Nothing
	// proves it.
	Application string `json:"claimed_application,omitempty"`
	Result      string `json:"result"`   // "ok", or the error's text
	Previous    string `json:"previous"` // SHA-256 of the line before, 64 hexadecimal digits
}

// syncEvery bounds how long an entry may be in memory only.
const syncEvery = 100 * time.Millisecond

// maxLine bounds a line read back, maxText each text in an entry: four of them
// in JSON, where a byte may take six, fit into a line.
const (
	maxLine = 64 << 10
	maxText = 2 << 10
)

// File is what a log is written to: an *os.File, or one in memory.
type File interface {
	io.ReadWriteSeeker
	io.Closer
	Truncate(size int64) error
	Sync() error
}

// Log appends entries. It is safe for concurrent use.
//
// Append returns once the entry is handed to the operating system: it survives
// a crash of the process. Note leaves that to the next Flush, so that entries of
// calls that end together are handed over together; whoever uses it flushes before
// anybody is told of what was noted. What is noted is handed over after syncEvery
// at the latest, and what was handed over is on disk within syncEvery, so that
// logging does not cost every key an fsync; a power loss may cost the entries of
// that time, never the chain.
//
// An entry that cannot be written, on a full disk for instance, is lost and
// counted. As soon as the log can be written again it says so in an entry of its
// own (event "lost"), so that the chain holds and the gap shows. After a failed
// fsync nobody knows what is on disk: the log then refuses until it is opened
// again.
type Log struct {
	mu      sync.Mutex
	f       File
	written state
	next    state  // once what is noted is written too
	noted   []byte // lines
	dirty   bool
	failed  error  // why the last entry was not written
	lost    uint64 // entries since
	allLost uint64 // entries since the log was opened
	dead    error  // why none will be
	close   sync.Once
	closed  error
	stop    chan struct{}
	stopped chan struct{}
	now     func() time.Time
}

// maxNoted bounds what waits to be written.
const maxNoted = 64 << 10

// Open opens or creates the log at path and notes the start of the HSM. A last
// line torn by a power loss is cut off; any other damage is ErrBroken.
func Open(path string, now func() time.Time) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	l, err := OpenFile(f, now)
	if err != nil {
		return nil, fmt.Errorf("audit log %s: %w", path, err)
	}
	return l, nil
}

// OpenFile is Open of a file that stands at its beginning. It takes f over, and closes it
// if it fails.
func OpenFile(f File, now func() time.Time) (*Log, error) {
	l := &Log{f: f, now: now, stop: make(chan struct{}), stopped: make(chan struct{})}
	if err := l.resume(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	go l.syncLoop()
	if err := l.Append(Entry{Event: "start"}); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Log) resume() error {
	var err error
	if l.written, err = check(l.f, nil); err != nil {
		return err
	}
	l.written.reboot++
	l.next = l.written
	return l.rewind()
}

// rewind cuts off what is not a whole entry.
func (l *Log) rewind() error {
	if err := l.f.Truncate(l.written.size); err != nil {
		return err
	}
	_, err := l.f.Seek(l.written.size, io.SeekStart)
	return err
}

// Append adds an entry; Sequence, Time, Reboot and Previous are filled in, and
// texts beyond 2 KiB are cut off. An error means that the entry is lost.
func (l *Log) Append(e Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.note(e); err != nil {
		return err
	}
	return l.flush()
}

// Note is Append, but for that the entry is written by the next call of another
// method, or soon after.
func (l *Log) Note(e Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.note(e); err != nil || len(l.noted) < maxNoted {
		return err
	}
	return l.flush()
}

// Flush writes what was noted. An error means that it is lost.
func (l *Log) Flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.flush()
}

// Ready tells whether the next entry can be written, as far as that is known:
// nil, or why the last one could not. If there was one, it tries again now, with
// the entry that counts the lost ones.
func (l *Log) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heal()
}

// heal notes the entries that were lost, if there are any.
func (l *Log) heal() error {
	switch {
	case l.dead != nil:
		return l.dead
	case l.failed == nil:
		return nil
	}
	if err := l.rewind(); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	if err := l.add(Entry{Event: "lost", Detail: fmt.Sprintf("%d entries", l.lost), Result: l.failed.Error()}); err != nil {
		return err
	}
	before := l.next.seq - l.written.seq - 1 // noted and not written, if it was not the disk that failed
	if err := l.write(); err != nil {
		l.lost += before
		l.allLost += before
		return err
	}
	l.failed, l.lost = nil, 0
	return nil
}

func (l *Log) note(e Entry) error {
	err := l.heal()
	if err == nil {
		err = l.add(e)
	}
	if err != nil {
		l.lose(1, err)
	}
	return err
}

func (l *Log) flush() error {
	n := l.next.seq - l.written.seq
	if n == 0 {
		return nil
	}
	err := l.write()
	if err != nil {
		l.lose(n, err)
	}
	return err
}

func (l *Log) lose(entries uint64, why error) {
	l.failed = why
	l.lost += entries
	l.allLost += entries
}

// add appends an entry to what is noted, or fails and leaves that as it is.
func (l *Log) add(e Entry) error {
	e.Sequence, e.Time, e.Reboot, e.Previous = l.next.seq+1, l.now().UTC(), l.next.reboot, l.next.last
	e.Name, e.Detail, e.Application, e.Result = cut(e.Name), cut(e.Detail), cut(e.Application), cut(e.Result)
	if e.Result == "" {
		e.Result = "ok"
	}
	noted, err := e.appendJSON(l.noted)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	line := noted[len(l.noted):]
	l.next = state{seq: e.Sequence, reboot: e.Reboot, last: hashLine(line), size: l.next.size + int64(len(line)) + 1}
	l.noted = append(noted, '\n')
	return nil
}

// write writes what is noted. If that fails the log ends where it did before.
func (l *Log) write() error {
	_, err := l.f.Write(l.noted)
	if l.noted = l.noted[:0]; cap(l.noted) > 2*maxNoted {
		l.noted = nil
	}
	if err != nil {
		l.next = l.written
		return fmt.Errorf("audit log: %w", err)
	}
	l.written, l.dirty = l.next, true
	return nil
}

// cut bounds a text.
func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + "…"
}

// Head returns the number of entries and the hash of the last one.
func (l *Log) Head() (uint64, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.flush() // what is lost is counted
	return l.written.seq, l.written.last
}

// Lost returns how many entries could not be written since the log was opened.
func (l *Log) Lost() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.allLost
}

func (l *Log) syncLoop() {
	defer close(l.stopped)
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.sync()
		case <-l.stop:
			l.sync()
			return
		}
	}
}

func (l *Log) sync() {
	l.mu.Lock()
	_ = l.flush() // what is lost is counted
	dirty := l.dirty
	l.dirty = false
	l.mu.Unlock()
	if !dirty {
		return
	}
	if err := l.f.Sync(); err != nil {
		l.mu.Lock()
		l.dead = fmt.Errorf("audit log: %w; check the disk, then start this HSM again", err)
		l.mu.Unlock()
	}
}

// Close syncs and closes the log. It may be called more than once.
func (l *Log) Close() error {
	l.close.Do(func() {
		close(l.stop)
		<-l.stopped
		l.mu.Lock()
		defer l.mu.Unlock()
		l.closed = errors.Join(l.failed, l.dead, l.f.Close())
	})
	return l.closed
}
