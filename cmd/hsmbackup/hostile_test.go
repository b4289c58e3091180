package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/server"
	"github.com/hsmbackup/hsmbackup/cluster/server/audit"
)

// Whoever has a client certificate chooses the name of a failed login: it must
// neither steer the terminal of who reads the audit log, nor forge a line.
func TestAuditShowPrintsHostileNamesHarmlessly(t *testing.T) {
	folder := t.TempDir()
	l, err := audit.Open(filepath.Join(folder, server.AuditFile), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	hostile := "x\x1b[2K\x1b]0;title\a\u009b31m\u202e\n7\t2030-01-02\tlogin\tadmin\troot"
	if err := errors.Join(l.Append(audit.Entry{Event: "login", Role: hostile, Name: hostile, Result: "login failed"}), l.Close()); err != nil {
		t.Fatal(err)
	}
	code, out, errOut := invoke(t, "audit", "show", folder)
	if code != exitDone || errOut != "" {
		t.Fatalf("exit %d, stderr %q", code, errOut)
	}
	if strings.ContainsAny(out, "\x1b\a\t\u009b\u202e") || strings.Count(out, "\n") != 3 { // header, start, login
		t.Errorf("not harmless: %q", out)
	}
	if !strings.Contains(out, `x\x1b[2K`) {
		t.Errorf("the name is not shown: %q", out)
	}
}

// A drill restores real keys to a temporary folder. What a killed one leaves
// there must not open.
func TestDrillSealsItsCloneWithWhatNobodyKeeps(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "clone")
	spec := drillSpec(dir, 1)
	spec.Admin, spec.Password, spec.Iterations = "root", hsm.NewSecret([]byte("a-password")), 1
	if _, err := server.Create(context.Background(), spec); err != nil {
		t.Fatal(err)
	}
	c, err := server.LoadConfig(filepath.Join(dir, "hsm-1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "hsm-1", "seal.key")); err == nil || c.Seal == "file" {
		t.Errorf("the seal %q lies beside what it seals", c.Seal)
	}
}
