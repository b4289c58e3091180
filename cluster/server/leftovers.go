package server

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// leftovers is a folder with the copies of a store that a creation had made when it died, by
// HSM: those that are whole are not made again.
type leftovers string

// gather takes the copies over from what such a creation has left in its staging folder. If
// we die in here, the next one gathers the rest. They are as much of the cluster in the
// making as what lies beside them: nothing is believed of them, see reuse.
func (l leftovers) gather(staging string) error {
	folders, err := os.ReadDir(staging)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, f := range folders {
		if err := l.gatherStore(filepath.Join(staging, f.Name(), storeDir), f.Name()); err != nil {
			return err
		}
	}
	return nil
}

func (l leftovers) gatherStore(store, name string) error {
	files, err := os.ReadDir(store)
	if err != nil {
		return nil // no folder of an HSM, or not that far
	}
	to := filepath.Join(string(l), name)
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, f := range files {
		if f.Type().IsRegular() {
			if err := os.Rename(filepath.Join(store, f.Name()), filepath.Join(to, f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// reuse puts a copy of the file from, which an HSM was given before, in its place again, if
// there is one with the very same bytes. It is durable, but for its name, and shares no
// disk space with from.
func (l leftovers) reuse(name, from, to string, buf []byte) (done bool, err error) {
	path := filepath.Join(string(l), name, filepath.Base(from))
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
		return false, nil
	}
	same, err := syncIfSame(from, path, buf)
	if err != nil || !same {
		return false, err
	}
	return true, os.Rename(path, to)
}

// syncIfSame tells whether two files have the same bytes and are not one file, and then
// makes the second durable: whoever wrote it may have died before that.
func syncIfSame(one, two string, buf []byte) (same bool, err error) {
	a, err := os.Open(one)
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := os.Open(two)
	if err != nil {
		return false, nil
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	infoA, errA := a.Stat()
	infoB, errB := b.Stat()
	if err := errors.Join(errA, errB); err != nil || os.SameFile(infoA, infoB) || infoA.Size() != infoB.Size() {
		return false, err
	}
	if equal, err := equalBytes(a, b, buf); err != nil || !equal {
		return false, err
	}
	return true, b.Sync()
}

// equalBytes compares what two readers yield. What of b cannot be read is not equal.
func equalBytes(a, b io.Reader, buf []byte) (bool, error) {
	half := len(buf) / 2
	for {
		n, err := io.ReadFull(a, buf[:half])
		end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !end {
			return false, err
		}
		m, _ := io.ReadFull(b, buf[half:2*half])
		if n != m || !bytes.Equal(buf[:n], buf[half:half+m]) || end {
			return end && n == m && bytes.Equal(buf[:n], buf[half:half+m]), nil
		}
	}
}
