package soft

import (
	"errors"
	"os"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestCommitsAreSyncedInTheQueue: an HSM on the system's disk has each commit's log made
// durable there.
func TestCommitsAreSyncedInTheQueue(t *testing.T) {
	s, err := openStore(t.TempDir(), vfs.Default, false)
	if err != nil {
		t.Fatal(err)
	}
	before := s.syncer.synced.Load()
	for i := range byte(5) {
		b := s.db.NewBatch()
		if err := b.Set([]byte{prefixBoots, i}, nil, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.commit(b); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.syncer.synced.Load() - before; n < 5 {
		t.Errorf("%d syncs for 5 commits", n)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
}

// TestFileThatCannotBeQueued: what the queue does not take is synced the usual way from
// then on, and its own error comes back.
func TestFileThatCannotBeQueued(t *testing.T) {
	s := newSyncer()
	defer s.close()
	f, err := os.Create(t.TempDir() + "/x")
	if err != nil {
		t.Fatal(err)
	}
	fd := f.Fd()
	if err := s.sync(fd); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.sync(fd); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("a closed file: %v", err)
		}
	}
}

// TestPipeIsSyncedTheUsualWay: so is what the kernel refuses for what it is.
func TestPipeIsSyncedTheUsualWay(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	s := newSyncer()
	defer s.close()
	file := &logFile{File: badFile{fd: w.Fd()}, syncer: s}
	if err := file.SyncData(); !errors.Is(err, errUsual) {
		t.Errorf("a pipe: %v", err)
	}
}

var errUsual = errors.New("the usual way")

// badFile cannot be synced.
type badFile struct {
	vfs.File
	fd uintptr
}

func (f badFile) Fd() uintptr     { return f.fd }
func (f badFile) SyncData() error { return errUsual }
