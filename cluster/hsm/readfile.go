package hsm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// MaxSmallFile bounds files that are a few KiB when they are what they should be:
// profiles, configurations, certificates, seals, identities.
const MaxSmallFile = 1 << 20

// ErrFile: a path names no ordinary file, or one far larger than it should be.
var ErrFile = errors.New("not the file it should be")

// ReadSmallFile reads a file of at most MaxSmallFile bytes. What is no ordinary
// file is refused, not waited for: a folder, a pipe, a device. ErrFile; errors of
// the file system are as those of os.ReadFile.
func ReadSmallFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is no ordinary file", ErrFile, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxSmallFile+1))
	if err == nil && len(b) > MaxSmallFile {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", ErrFile, path, MaxSmallFile)
	}
	return b, err
}
