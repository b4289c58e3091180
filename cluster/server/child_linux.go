package server

import "syscall"

// childAttributes make an HSM process end with the process that started it, and
// keep a terminal's interrupt from reaching it before its parent decides.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
}
