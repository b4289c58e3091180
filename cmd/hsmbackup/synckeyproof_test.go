package main

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/urfave/cli/v2"
)

// TestAsked: a report tells the options of its run as they were given.
func TestAsked(t *testing.T) {
	var words []string
	app := &cli.App{Commands: []*cli.Command{{Name: "synckey", Flags: append(append(filterFlags(), synckeyGuards()...), synckeyProof()...), Action: func(cc *cli.Context) error {
		words = asked(cc)
		return nil
	}}}}
	err := app.Run([]string{"x", "synckey", "--key", "0x1", "--key", "0x2", "--created-since", "2026-01-02T03:04:05Z", "--max-destroyed", "5%", "--report", "f", "--use-check", "3"})
	want := map[string]bool{"--key 0x1 0x2": true, "--created-since 2026-01-02T03:04:05Z": true, "--max-destroyed 5%": true, "--use-check 3": true}
	got := map[string]bool{}
	for _, w := range words {
		got[w] = true
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v: %q", err, words)
	}
}

// TestVerifyReportRefuses: what is no report, or not signed, is no proof.
func TestVerifyReportRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"verify-report"}, exitUsage},
		{[]string{"verify-report", path, path}, exitUsage},
		{[]string{"verify-report", path}, exitUsage},
		{[]string{"verify-report", path + ".none"}, exitFailed},
		{[]string{"other"}, exitUsage},
		{[]string{"--src", "a", "--dst", "b", "--use-check", "0"}, exitUsage},
	} {
		if code, out, errs := invoke(t, append([]string{"synckey"}, c.args...)...); code != c.code || out != "" {
			t.Errorf("%q: exit %d, %s", c.args, code, errs)
		}
	}
}
