package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func writeLog(t *testing.T, path string, events ...string) {
	t.Helper()
	l, err := Open(path, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if err := l.Append(Entry{Event: e, Role: "admin", Name: "alice", Key: "0x01"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func readLog(path string) (events []string, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	err = Read(bytes.NewReader(b), func(e Entry) error {
		events = append(events, fmt.Sprintf("%d/%d %s", e.Reboot, e.Sequence, e.Event))
		return nil
	})
	return events, err
}

func TestLogContinuesAfterReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	writeLog(t, path, "create", "destroy")
	writeLog(t, path, "login")
	got, err := readLog(path)
	want := "1/1 start,1/2 create,1/3 destroy,2/4 start,2/5 login"
	if err != nil || strings.Join(got, ",") != want {
		t.Errorf("got %v, %v; want %s", got, err, want)
	}
}

func TestEveryChangeOfAnEntryIsFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	writeLog(t, path, "create", "destroy", "login")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	damages := map[string][]byte{
		"changed":   bytes.Replace(whole, []byte("destroy"), []byte("destroX"), 1),
		"dropped":   bytes.Join([][]byte{lines[0], lines[1], lines[3]}, nil),
		"swapped":   bytes.Join([][]byte{lines[0], lines[2], lines[1], lines[3]}, nil),
		"doubled":   bytes.Join([][]byte{lines[0], lines[1], lines[1], lines[2]}, nil),
		"no JSON":   append(bytes.Clone(whole), "garbage\n"...),
		"cut start": bytes.Join(lines[1:], nil),
	}
	for name, b := range damages {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readLog(path); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: got %v, want ErrBroken", name, err)
		}
		if _, err := Open(path, time.Now); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: open: got %v, want ErrBroken", name, err)
		}
	}
}

func TestTornLastLineIsCutOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	writeLog(t, path, "create")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, whole[:len(whole)-10], 0o600); err != nil {
		t.Fatal(err)
	}
	writeLog(t, path, "login")
	got, err := readLog(path)
	if err != nil || strings.Join(got, ",") != "1/1 start,2/2 start,2/3 login" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestConcurrentAppendsKeepTheChain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, err := Open(path, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if err := l.Append(Entry{Event: "create"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	n, head := l.Head()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := readLog(path)
	if err != nil || len(got) != 401 || n != 401 || len(head) != 64 {
		t.Errorf("%d entries, head %d %s, %v; want 401", len(got), n, head, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"sequence":1,"reboot":1,"event":"start","result":"ok","previous":""}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var last uint64
		_ = Read(bytes.NewReader(b), func(e Entry) error {
			if e.Sequence != last+1 {
				t.Fatalf("sequence %d after %d", e.Sequence, last)
			}
			last = e.Sequence
			return nil
		})
	})
}

// faultyFile fails as a disk does: writes stop in the middle, or fsync fails.
type faultyFile struct {
	*os.File
	mu       sync.Mutex
	left     int // bytes that still fit
	full     bool
	syncFail error
}

func (f *faultyFile) set(full bool, left int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.full, f.left = full, left
}

func (f *faultyFile) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.full {
		return f.File.Write(b)
	}
	n, _ := f.File.Write(b[:min(f.left, len(b))])
	f.left -= n
	return n, &os.PathError{Op: "write", Path: f.Name(), Err: syscall.ENOSPC}
}

func (f *faultyFile) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.syncFail
}

func openFaulty(t *testing.T) (*Log, *faultyFile, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.log")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	file := &faultyFile{File: f}
	l, err := OpenFile(file, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return l, file, path
}

// TestAFullDiskLeavesAGapThatShows: entries that did not fit are counted, and
// the chain holds, whether the log heals in this process or in the next.
func TestAFullDiskLeavesAGapThatShows(t *testing.T) {
	l, file, path := openFaulty(t)
	if err := l.Ready(); err != nil {
		t.Fatal(err)
	}
	file.set(true, 40)
	for range 3 {
		if err := l.Append(Entry{Event: "login"}); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("append to a full disk: %v", err)
		}
		if err := l.Ready(); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("ready on a full disk: %v", err)
		}
	}
	file.set(false, 0)
	if err := l.Append(Entry{Event: "create"}); err != nil {
		t.Fatal(err)
	}
	file.set(true, 100)
	_ = l.Append(Entry{Event: "login"})
	if err := l.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("close: %v, want what was lost", err)
	}
	if err := l.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("close again: %v", err)
	}
	writeLog(t, path, "destroy")
	got, err := readLog(path)
	if want := "1/1 start,1/2 lost,1/3 create,2/4 start,2/5 destroy"; err != nil || strings.Join(got, ",") != want {
		t.Errorf("got %v, %v; want %s", got, err, want)
	}
	b, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(b, []byte(`"detail":"3 entries"`)) {
		t.Errorf("the number of lost entries is missing, %v:\n%s", err, b)
	}
}

// TestAFailedSyncEndsTheLog: nobody knows what is on disk after it.
func TestAFailedSyncEndsTheLog(t *testing.T) {
	l, file, _ := openFaulty(t)
	file.mu.Lock()
	file.syncFail = syscall.EIO
	file.mu.Unlock()
	deadline := time.Now().Add(time.Minute)
	for l.Ready() == nil {
		if time.Now().After(deadline) {
			t.Fatal("a failed fsync goes unnoticed")
		}
		_ = l.Append(Entry{Event: "create"})
		time.Sleep(time.Millisecond)
	}
	file.mu.Lock()
	file.syncFail = nil
	file.mu.Unlock()
	if err := l.Append(Entry{Event: "create"}); !errors.Is(err, syscall.EIO) {
		t.Errorf("append after a failed fsync: %v", err)
	}
	if err := l.Close(); !errors.Is(err, syscall.EIO) {
		t.Errorf("close: %v", err)
	}
}

// TestHugeTextsAreCut: an entry that could not be read back would break the log.
func TestHugeTextsAreCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, err := Open(path, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	huge := strings.Repeat("\x00", 1<<20) + "ü"
	if err := l.Append(Entry{Event: "login", Name: huge, Detail: huge, Result: strings.Repeat("ü", 1<<20)}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	writeLog(t, path, "next")
	if got, err := readLog(path); err != nil || len(got) != 4 {
		t.Errorf("got %v, %v", got, err)
	}
}

// TestWhatIsNotedIsWrittenTogether: entries that were noted are in the log after the next
// Flush, Append or Head, or by themselves.
func TestWhatIsNotedIsWrittenTogether(t *testing.T) {
	steps := map[string]func(*Log) error{
		"flush":  (*Log).Flush,
		"append": func(l *Log) error { return l.Append(Entry{Event: "login"}) },
		"head": func(l *Log) error {
			if n, _ := l.Head(); n != 3 {
				return fmt.Errorf("head at %d", n)
			}
			return nil
		},
		"itself": func(*Log) error { return nil },
	}
	for name, step := range steps {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.log")
			l, err := Open(path, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			for _, event := range []string{"create", "commit"} {
				if err := l.Note(Entry{Event: event}); err != nil {
					t.Fatal(err)
				}
			}
			if err := step(l); err != nil {
				t.Fatal(err)
			}
			want := []string{"1/1 start", "1/2 create", "1/3 commit", "1/4 login"}
			if name != "append" {
				want = want[:3]
			}
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
				got, err := readLog(path)
				if err != nil {
					t.Fatal(err)
				}
				if slices.Equal(got, want) {
					return
				}
				if name != "itself" || time.Now().After(deadline) {
					t.Fatalf("got %v, want %v", got, want)
				}
			}
		})
	}
}

// TestWhatWasNotedAndDidNotFitIsCounted: all of it is lost, none of it torn, and the
// chain goes on from what was written.
func TestWhatWasNotedAndDidNotFitIsCounted(t *testing.T) {
	l, file, path := openFaulty(t)
	file.set(true, 300) // one entry fits, and half another
	for range 5 {
		if err := l.Note(Entry{Event: "commit"}); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	for !errors.Is(l.Ready(), syscall.ENOSPC) { // Flush, or whoever comes before
		if err := l.Flush(); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	if err := l.Note(Entry{Event: "commit"}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("note on a full disk: %v", err)
	}
	if n := l.Lost(); n != 6 {
		t.Errorf("%d lost, want 6", n)
	}
	file.set(false, 0)
	if err := l.Append(Entry{Event: "create"}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := readLog(path)
	if want := "1/1 start,1/2 lost,1/3 create"; err != nil || strings.Join(got, ",") != want {
		t.Errorf("got %v, %v; want %s", got, err, want)
	}
	b, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(b, []byte(`"detail":"6 entries"`)) {
		t.Errorf("the number of lost entries is missing, %v:\n%s", err, b)
	}
}
