package soft

import (
	"errors"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// logFS is a file system whose logs are synced by a syncer.
type logFS struct {
	vfs.FS
	syncer *syncer
}

// Create implements vfs.FS.
func (f logFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, category)
	return f.log(name, file), err
}

// ReuseForWrite implements vfs.FS.
func (f logFS) ReuseForWrite(from, name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.ReuseForWrite(from, name, category)
	return f.log(name, file), err
}

// Unwrap implements vfs.FS.
func (f logFS) Unwrap() vfs.FS { return f.FS }

func (f logFS) log(name string, file vfs.File) vfs.File {
	if file == nil || !strings.HasSuffix(name, ".log") || file.Fd() == vfs.InvalidFd {
		return file
	}
	return &logFile{File: file, syncer: f.syncer}
}

// logFile is a log on the system's disk.
type logFile struct {
	vfs.File
	syncer *syncer
}

// SyncData implements vfs.File. What was reported as failed is not tried again: the system
// reports a failure once, and the second try would call durable what is lost.
func (f *logFile) SyncData() error {
	err := f.syncer.sync(f.Fd())
	if errors.Is(err, errors.ErrUnsupported) {
		return f.File.SyncData()
	}
	return err
}
