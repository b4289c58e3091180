package soft

import (
	"bufio"
	"errors"

	"github.com/cockroachdb/pebble/v2/objstorage"
	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	// loadBuffer is how much of a table is written at a time: the store's own writer asks
	// the operating system for every block of 4 KiB.
	loadBuffer = 256 << 10
	// loadAhead is how much is written before the disk is set to work on it, so that there
	// is little to wait for in the end.
	loadAhead = 2 << 20
)

// tableFile is the file of a table in the making. It is durable once Finish returns.
type tableFile struct {
	file vfs.File
	w    *bufio.Writer
}

func newTableFile(f vfs.File) *tableFile {
	f = vfs.NewSyncingFile(f, vfs.SyncingFileOptions{BytesPerSync: loadAhead})
	return &tableFile{file: f, w: bufio.NewWriterSize(f, loadBuffer)}
}

// Write implements objstorage.Writable.
func (t *tableFile) Write(p []byte) error {
	_, err := t.w.Write(p)
	return err
}

// Finish implements objstorage.Writable.
func (t *tableFile) Finish() error {
	if err := t.w.Flush(); err != nil {
		return errors.Join(err, t.file.Close())
	}
	return errors.Join(t.file.Sync(), t.file.Close())
}

// Abort implements objstorage.Writable.
func (t *tableFile) Abort() { _ = t.file.Close() }

var _ objstorage.Writable = (*tableFile)(nil)
