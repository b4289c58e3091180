package main

import (
	"strings"
	"testing"
)

// What is wrong on the command line is said before any cluster is looked for.
func TestSynckeyUsage(t *testing.T) {
	for _, c := range []struct{ flags, says string }{
		{"--rate 10MB", "500/s or 10MB/s"},
		{"--rate fast", "500/s or 10MB/s"},
		{"--rate 0/s", "500/s or 10MB/s"},
		{"--interval 5s", "goes with --watch"},
		{"--metrics :0", "goes with --watch"},
		{"--keep-watching", "goes with --watch"},
		{"--watch --dry-run", "does not go with --watch"},
		{"--watch --interval 0s", "1s or 1m"},
	} {
		args := append([]string{"synckey", "--src", "nowhere", "--dst", "nowhere-either"}, strings.Fields(c.flags)...)
		if code, _, said := invoke(t, args...); code != exitUsage || !strings.Contains(said, c.says) {
			t.Errorf("%s: exit %d, %s", c.flags, code, said)
		}
	}
}
