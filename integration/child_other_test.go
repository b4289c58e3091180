//go:build unix && !linux

package integration

import "syscall"

// childAttributes put a child into a process group of its own.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// role: no test here has processes of its own.
func role() (run func(work string) int, work string) { return nil, "" }
