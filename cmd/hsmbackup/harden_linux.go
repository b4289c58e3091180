package main

import (
	"errors"

	"golang.org/x/sys/unix"
)

// harden keeps keys in memory off the disk where the system allows it: no core
// dumps, no reading by other processes of the user.
func harden() error {
	return errors.Join(
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}),
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0),
	)
}
