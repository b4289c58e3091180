//go:build !linux

package main

import "log/slog"

// quietenMonitor is for Linux only.
func quietenMonitor(*slog.Logger) {}
