package integration

import (
	"os"
	"syscall"
)

// childAttributes put a child into a process group of its own, and have the
// kernel kill it if the test process dies without its cleanup.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// role returns what this program is to do if it was started as a process of a
// test, and not to test.
func role() (run func(work string) int, work string) {
	if work = os.Getenv(callerEnv); work != "" {
		run = callerMain
	}
	return run, work
}
