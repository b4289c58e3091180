//go:build unix

package server

import (
	"os"

	"golang.org/x/sys/unix"
)

// lockExclusive takes an exclusive lock that ends with the file or the process. It does not
// wait.
func lockExclusive(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// renameFolder replaces a folder that is empty, and no other.
func renameFolder(from, to string) error { return unix.Rename(from, to) }
