package file

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// linkNew gives the file the name to, unless that exists (fs.ErrExist). Where
// the file system has no hard links it is renamed without replacing.
func linkNew(from, to string) error {
	err := os.Link(from, to)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EMLINK) {
		if renamed := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); renamed != unix.EINVAL && renamed != unix.ENOSYS {
			return renamed
		}
	}
	return err
}
