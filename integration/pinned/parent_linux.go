package pinned

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the kernel kill the server if the test process dies without
// its cleanup (a test timeout, kill -9). The signal follows the thread that
// started the child; the Go runtime ends threads only when a goroutine locked to
// one returns, which tests here do not do.
func dieWithParent(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
