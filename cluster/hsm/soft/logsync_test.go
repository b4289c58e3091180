package soft

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestLogFileSyncs: a log is synced by the kernel's own queue where there is one, one sync
// after the other however many ask, and the usual way where there is none.
func TestLogFileSyncs(t *testing.T) {
	s := newSyncer()
	if s == nil && runtime.GOOS == "linux" {
		t.Fatal("this system has no queue (io_setup)")
	}
	for _, with := range []*syncer{s, nil} {
		f, err := logFS{FS: vfs.Default, syncer: with}.Create(filepath.Join(t.TempDir(), "1.log"), "test")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := f.WriteAt([]byte("x"), 0); err != nil {
					t.Error(err)
				}
				if err := f.SyncData(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
}

// TestOnlyLogsAreSyncedInTheQueue: tables and files in memory are as they were.
func TestOnlyLogsAreSyncedInTheQueue(t *testing.T) {
	for fs, queued := range map[vfs.FS]bool{vfs.Default: true, vfs.NewMem(): false} {
		for _, name := range []string{"1.log", "1.sst"} {
			dir := t.TempDir()
			if err := fs.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			f, err := logFS{FS: fs}.Create(filepath.Join(dir, name), "test")
			if err != nil {
				t.Fatal(err)
			}
			if _, is := f.(*logFile); is != (queued && name == "1.log") {
				t.Errorf("%s on %T is synced in the queue: %t", name, fs, is)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := (logFS{FS: vfs.Default}).Create(filepath.Join(t.TempDir(), "none", "1.log"), "test"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a log in no folder: %v", err)
	}
}
