package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/server"
	"github.com/hsmbackup/hsmbackup/storage"
)

// The table is ordered: an error that matches several rows gets the one that says
// most.
func TestVerdicts(t *testing.T) {
	both := func(a, b error) error { return fmt.Errorf("x: %w: %w", a, b) }
	for _, tt := range []struct {
		err  error
		code string
		exit int
		hint string
	}{
		{fmt.Errorf("cluster.yaml: %w", profile.ErrInvalid), "profile", exitFailed, "restore the file from a copy"},
		{fmt.Errorf("label: %w", hsm.ErrInvalid), "invalid", exitUsage, "see --help"},
		{both(context.DeadlineExceeded, cluster.ErrDrift), "timeout", exitFailed, "--timeout"},
		{both(context.DeadlineExceeded, hsm.ErrUnavailable), "timeout", exitFailed, "--timeout"},
		{both(cluster.ErrNoHSM, context.DeadlineExceeded), "unreachable", exitFailed, "start the cluster"},
		{both(storage.ErrUnreachable, context.DeadlineExceeded), "storage", exitFailed, "server"},
		{both(context.Canceled, cluster.ErrDrift), "interrupted", exitFailed, "again"},
		{fmt.Errorf("hsm-1: %w", hsm.ErrCorrupt), "corrupt", exitFailed, "replace a damaged HSM"},
		{both(backup.ErrCorrupt, hsm.ErrCorrupt), "backup", exitFailed, "another snapshot"},
		{opened(both(backup.ErrCorrupt, hsm.ErrCorrupt), exitDoubt), "backup", exitDoubt, "another snapshot"},
		{fmt.Errorf("%w: hsm-1", backup.ErrCoverage), "coverage", exitRefused, "start the missing HSMs"},
		{fmt.Errorf("%w: the last HSM", cluster.ErrMember), "denied", exitRefused, "cluster info"},
		{fmt.Errorf("%w: hsm-9", errNoMember), "not_found", exitFailed, "cluster info"},
		{both(hsm.ErrDenied, server.ErrRemoved), "denied", exitRefused, "hsm invite"},
		{&cluster.CopiesError{Ahead: 1, Check: true}, "clock", exitRefused, "set the clocks"},
		{&cluster.CopiesError{Check: true}, "availability", exitRefused, "min-copies"},
		{&cluster.CopiesError{}, "min_copies", exitRefused, "min-copies"},
		{&storage.Error{Op: "put", Kind: storage.ErrFull, Err: syscall.ENOSPC}, "storage", exitFailed, "enlarge it"},
		{both(backup.ErrNoRoom, storage.ErrFull), "backup", exitFailed, "a mark takes"},
		{both(hsm.ErrUnavailable, syscall.ENOSPC), "full", exitFailed, "free space on the disk"},
		{both(hsm.ErrFull, syscall.ENOSPC), "full", exitFailed, "HSM's disk"},
		{&storage.Error{Op: "list", Kind: storage.ErrAnswer}, "storage", exitFailed, "its console"},
		{errors.New("anything"), "failed", exitFailed, "logs"},
	} {
		if v := judge(tt.err); v.code != tt.code || v.exit != tt.exit || !strings.Contains(v.hint, tt.hint) {
			t.Errorf("%v: code %q, exit %d, hint %q; want %+v", tt.err, v.code, v.exit, v.hint, tt)
		}
	}
}

func TestHelpOnNothingIsAUsageError(t *testing.T) {
	code, _, errOut := invoke(t, "cluster", "nonsense", "--help")
	if code != exitUsage || !strings.Contains(errOut, "nonsense") || !strings.Contains(errOut, "hint: see --help") {
		t.Errorf("exit %d, stderr %q", code, errOut)
	}
}

func TestDamagedProfileIsNoUsageError(t *testing.T) {
	path := filepath.Join(t.TempDir(), profile.FileName)
	if err := os.WriteFile(path, []byte("name: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errOut := invoke(t, "cluster", "info", path)
	if code != exitFailed || out != "" || !strings.Contains(errOut, "hint: restore the file from a copy") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, out, errOut)
	}
}
