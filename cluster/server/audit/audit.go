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
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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

// file is what a log is written to: an *os.File.
type file interface {
	io.ReadWriteSeeker
	io.Closer
	Truncate(size int64) error
	Sync() error
}

// Log appends entries. It is safe for concurrent use.
//
// Append returns once the entry is handed to the operating system: it survives
// a crash of the process. It is on disk within syncEvery, so that logging does
// not cost every key an fsync; a power loss may cost the entries of that time,
// never the chain.
//
// An entry that cannot be written, on a full disk for instance, is lost and
// counted. As soon as the log can be written again it says so in an entry of its
// own (event "lost"), so that the chain holds and the gap shows. After a failed
// fsync nobody knows what is on disk: the log then refuses until it is opened
// again.
type Log struct {
	mu      sync.Mutex
	f       file
	size    int64 // of whole entries
	seq     uint64
	reboot  uint64
	last    string
	line    []byte // room for one
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

// Open opens or creates the log at path and notes the start of the HSM. A last
// line torn by a power loss is cut off; any other damage is ErrBroken.
func Open(path string, now func() time.Time) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	l, err := open(f, now)
	if err != nil {
		return nil, fmt.Errorf("audit log %s: %w", path, err)
	}
	return l, nil
}

// open takes over f, which it closes if it fails.
func open(f file, now func() time.Time) (*Log, error) {
	l := &Log{f: f, now: now, stop: make(chan struct{}), stopped: make(chan struct{})}
	if err := l.resume(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l.reboot++
	go l.syncLoop()
	if err := l.Append(Entry{Event: "start"}); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Log) resume() error {
	state, err := check(l.f, nil)
	if err != nil {
		return err
	}
	l.seq, l.reboot, l.last, l.size = state.seq, state.reboot, state.last, state.size
	return l.rewind()
}

// rewind cuts off what is not a whole entry.
func (l *Log) rewind() error {
	if err := l.f.Truncate(l.size); err != nil {
		return err
	}
	_, err := l.f.Seek(l.size, io.SeekStart)
	return err
}

// Append adds an entry; Sequence, Time, Reboot and Previous are filled in, and
// texts beyond 2 KiB are cut off. An error means that the entry is lost.
func (l *Log) Append(e Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.heal()
	if err == nil {
		err = l.write(e)
	}
	if err != nil {
		l.failed = err
		l.lost++
		l.allLost++
	}
	return err
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
	if err := l.write(Entry{Event: "lost", Detail: fmt.Sprintf("%d entries", l.lost), Result: l.failed.Error()}); err != nil {
		return err
	}
	l.failed, l.lost = nil, 0
	return nil
}

func (l *Log) write(e Entry) error {
	e.Sequence, e.Time, e.Reboot, e.Previous = l.seq+1, l.now().UTC(), l.reboot, l.last
	e.Name, e.Detail, e.Application, e.Result = cut(e.Name), cut(e.Detail), cut(e.Application), cut(e.Result)
	if e.Result == "" {
		e.Result = "ok"
	}
	line, err := e.appendJSON(l.line[:0])
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	l.line = append(line, '\n')
	if _, err := l.f.Write(l.line); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	l.seq, l.last, l.dirty, l.size = e.Sequence, hashLine(line), true, l.size+int64(len(line))+1
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
	return l.seq, l.last
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

// Read yields every entry in order while checking the chain; it ends with
// ErrBroken, naming the line, where the chain does not hold. A torn last line
// is left out.
func Read(r io.Reader, each func(Entry) error) error {
	_, err := check(r, each)
	return err
}

type state struct {
	seq, reboot uint64
	last        string
	size        int64
}

func check(r io.Reader, each func(Entry) error) (state, error) {
	var s state
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		if err == io.EOF {
			return s, nil // a torn last line, if any, is left out
		}
		if err != nil {
			return s, fmt.Errorf("%w: line %d: %w", ErrBroken, s.seq+1, err)
		}
		size := int64(len(line))
		line = bytes.TrimSuffix(line, []byte("\n"))
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return s, fmt.Errorf("%w: line %d is not an entry", ErrBroken, s.seq+1)
		}
		if e.Sequence != s.seq+1 || e.Previous != s.last || e.Reboot < s.reboot {
			return s, fmt.Errorf("%w: line %d does not follow from the line before it", ErrBroken, s.seq+1)
		}
		s = state{seq: e.Sequence, reboot: e.Reboot, last: hashLine(line), size: s.size + size}
		if each != nil {
			if err := each(e); err != nil {
				return s, err
			}
		}
	}
}

func hashLine(line []byte) string {
	h := sha256.Sum256(line)
	return hex.EncodeToString(h[:])
}
