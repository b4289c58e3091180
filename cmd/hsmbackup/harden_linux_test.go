package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// guardedEnv makes the test binary a process that guards its memory: "as it is", or
// "bounded" without the right to lock more than a little.
const guardedEnv = "HSMBACKUP_TEST_GUARDED"

func TestMain(m *testing.M) {
	if how := os.Getenv(guardedEnv); how != "" {
		if err := runGuarded(how); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runGuarded prints what the system then says of this process; warnings go to
// standard error.
func runGuarded(how string) error {
	if how == "bounded" {
		if err := giveUpLocking(); err != nil {
			return err
		}
	}
	p := &program{log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if how == "quiet" {
		quietenMonitor(p.log)
		name, err := os.ReadFile("/proc/self/comm")
		fmt.Printf("process %d with %s, named %s", os.Getpid(), os.Getenv("GODEBUG"), name)
		return err
	}
	p.guardMemory()
	kept := bytes.Repeat([]byte{1}, 4<<20) // used after the lock
	for _, path := range []string{"/proc/self/status", "/proc/self/limits"} {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		os.Stdout.Write(b)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	fmt.Printf("dumpable: %d, kept: %d\n", dumpable, len(kept))
	return err
}

func giveUpLocking() error {
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 64 << 10, Max: 64 << 10}); err != nil {
		return err
	}
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&h, &sets[0]); err != nil {
		return err
	}
	sets[0].Effective &^= 1 << unix.CAP_IPC_LOCK
	return unix.Capset(&h, &sets[0])
}

// A process that holds keys as long as it runs cannot be dumped, and its memory is
// locked, what it asks for later too, where the system allows it; it warns where not.
func TestGuardMemory(t *testing.T) {
	allowed, err := mayLockMemory()
	if err != nil {
		t.Fatal(err)
	}
	for how, lock := range map[string]bool{"as it is": allowed, "bounded": false} {
		var out, errOut bytes.Buffer
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), guardedEnv+"="+how)
		c.Stdout, c.Stderr = &out, &errOut
		if err := c.Run(); err != nil {
			t.Fatalf("%s: %v: %s", how, err, errOut.String())
		}
		if !strings.Contains(out.String(), "dumpable: 0") || !regexp.MustCompile(`Max core file size\s+0\s+0`).MatchString(out.String()) {
			t.Errorf("%s: the process can be dumped:\n%s", how, out.String())
		}
		locked := regexp.MustCompile(`VmLck:\s+[1-9]\d{3,} kB`).MatchString(out.String()) // 1,000 kB and more
		if locked != lock {
			t.Errorf("%s: memory locked: %t, want %t:\n%s", how, locked, lock, out.String())
		}
		if warned := strings.Contains(errOut.String(), "may be swapped to disk"); warned == lock {
			t.Errorf("%s: memory is to be locked: %t, warned: %t: %s", how, lock, warned, errOut.String())
		}
	}
}
