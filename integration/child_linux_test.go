package integration

import "syscall"

// childAttributes put a child into a process group of its own, and have the
// kernel kill it if the test process dies without its cleanup.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
