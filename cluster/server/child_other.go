//go:build !linux

package server

import "syscall"

// childAttributes: ending with the parent is for Linux only.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
