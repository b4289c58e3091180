package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// quietMonitor is a setting of Go's runtime that has its monitor thread look at the
// scheduler every ten milliseconds while there is little to do. Without it the thread
// sleeps when a process is idle and is woken by the next system call, after which it
// looks every twenty microseconds: in a process that answers one small request at a
// time, these were more than half of all context switches and a fifth of its CPU time.
// What the setting is for, a line about the scheduler on standard error, comes every 24
// days with this number of milliseconds, the largest there is.
const quietMonitor = "schedtrace=2147483647"

// init keeps the verbs that start anew on the thread that the process began with, until
// they have: only that one has the signal which ends the process with its parent
// (prctl(2), PR_SET_PDEATHSIG), and it is kept if that one starts anew.
func init() {
	if slices.Contains(os.Args, "serve") || slices.Contains(os.Args, "client") {
		runtime.LockOSThread()
	}
}

// quietenMonitor starts this program anew, in the same process and with what it has
// inherited, since Go reads the setting at its start only. It returns in the program
// that has it, or if it cannot be had; that costs speed alone. An operator who sets
// schedtrace keeps that. What a verb has read, asked or done so far is lost or done
// twice, so it comes first.
func quietenMonitor(log *slog.Logger) {
	defer runtime.UnlockOSThread()
	env, missing := withQuietMonitor(os.Environ())
	if !missing {
		keepName()
		return
	}
	err := syscall.Exec("/proc/self/exe", os.Args, env)
	log.Debug("Go's monitor thread stays as it is", "error", err)
}

// keepName gives a program that has begun anew the name back that ps, top and pkill know
// it by: it is that of the file it was started from, which was /proc/self/exe.
func keepName() {
	const file = "/proc/self/comm"
	if now, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(now)) == "exe" {
		_ = os.WriteFile(file, []byte(filepath.Base(os.Args[0])), 0)
	}
}

// withQuietMonitor adds the setting to an environment, unless it has one.
func withQuietMonitor(env []string) (with []string, missing bool) {
	settings := quietMonitor
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		switch {
		case name != "GODEBUG":
			with = append(with, v)
		case strings.Contains(","+value, ",schedtrace="):
			return env, false
		case value != "":
			settings = value + "," + quietMonitor
		}
	}
	return append(with, fmt.Sprintf("GODEBUG=%s", settings)), true
}
