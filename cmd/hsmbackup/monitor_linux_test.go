package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A process that serves runs once, under its own number and name and with its own
// settings of the runtime beside the one it adds.
func TestQuietenMonitor(t *testing.T) {
	own, err := os.ReadFile("/proc/self/comm") // of which the system keeps fifteen bytes
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimSpace(string(own))
	for given, want := range map[string]string{
		"":                           quietMonitor,
		"madvdontneed=1":             "madvdontneed=1," + quietMonitor,
		"schedtrace=0":               "schedtrace=0",
		"gctrace=0,schedtrace=99999": "gctrace=0,schedtrace=99999",
	} {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), guardedEnv+"=quiet", "GODEBUG="+given)
		var out strings.Builder
		c.Stdout = &out
		if err := c.Run(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fmt.Sprintf("process %d with %s, named %s\n", c.Process.Pid, want, name), out.String()); diff != "" {
			t.Errorf("GODEBUG=%s (-want +got):\n%s", given, diff)
		}
	}
}

func TestWithQuietMonitor(t *testing.T) {
	got, missing := withQuietMonitor([]string{"A=1", "GODEBUG=x=1", "B=2"})
	if want := []string{"A=1", "B=2", "GODEBUG=x=1," + quietMonitor}; !missing || !cmp.Equal(want, got) {
		t.Errorf("%v, %q", missing, got)
	}
	if again, missing := withQuietMonitor(got); missing || !cmp.Equal(got, again) {
		t.Errorf("again: %v, %q", missing, again)
	}
}
