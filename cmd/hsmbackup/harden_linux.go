package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// harden keeps keys in memory from other processes of the user, and out of core
// dumps.
func harden() error {
	return errors.Join(
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}),
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0),
	)
}

// lockMemory keeps what this process has in memory, now and later, from being
// swapped to disk. It is for processes that hold keys as long as they run. Pages are
// locked when they are first used, so that it costs no memory. Under a limit, a later
// allocation could fail and end the process: it is not tried then.
func lockMemory() error {
	allowed, err := mayLockMemory()
	if err != nil {
		return err
	}
	if !allowed {
		return errors.New("it takes CAP_IPC_LOCK, or no limit of locked memory (LimitMEMLOCK=infinity, ulimit -l unlimited)")
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("mlockall: %w", err)
	}
	return nil
}

func mayLockMemory() (bool, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return false, fmt.Errorf("limit of locked memory: %w", err)
	}
	if limit.Cur == unix.RLIM_INFINITY {
		return true, nil
	}
	var sets [2]unix.CapUserData // version 3 has 64 capabilities in two words
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &sets[0]); err != nil {
		return false, fmt.Errorf("capabilities: %w", err)
	}
	return sets[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0, nil
}
