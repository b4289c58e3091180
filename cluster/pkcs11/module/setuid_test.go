//go:build linux

package module

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// counted is a server that notes who came.
func counted(t *testing.T, socket string) *atomic.Int32 {
	t.Helper()
	n := &atomic.Int32{}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	f := fake{version: 0x48, answer: func(r request) ([]byte, bool) {
		if r.id == 1 {
			n.Add(1)
		}
		return frame(r.code, r.id, "", nil), true
	}}
	go f.accept(l)
	return n
}

// anyone is the user that the set-uid program is run by.
func anyone(t *testing.T) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("only root can make a set-uid program and run it as another user: run this test as root")
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.ParseUint(nobody.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.ParseUint(nobody.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: []uint32{}}
}

// openFolder is a folder that every user may look into, where set-uid programs are
// what they say: on most machines the one for temporary files is.
func openFolder(t *testing.T) string {
	t.Helper()
	const noSetuid = 2 // ST_NOSUID
	for _, parent := range []string{os.TempDir(), "/var/tmp", "/tmp"} {
		var fs syscall.Statfs_t
		if syscall.Statfs(parent, &fs) != nil || fs.Flags&noSetuid != 0 {
			continue
		}
		dir, err := os.MkdirTemp(parent, "setuid")
		if err != nil {
			continue
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	t.Fatal("every folder for temporary files is on a file system without set-uid programs: set TMPDIR to one that is not")
	return ""
}

// secured builds the module to read a configuration of the test's, and copies of the
// test program with the rights of root and without.
func secured(t *testing.T, dir, conf string) {
	t.Helper()
	targets := []string{filepath.Join(dir, "libhsmbackup-pkcs11.so"), filepath.Join(dir, "moduletest")}
	args := append([]string{"-s", "OUT=" + dir, "CFLAGS=-O1 -g -DCONFIG_FILE='\"" + conf + "\"'"}, targets...)
	if out, err := exec.Command("make", args...).CombinedOutput(); err != nil {
		t.Fatalf("make: %v\n%s", err, out)
	}
	program, err := os.ReadFile(targets[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rooted"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range targets {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "rooted"), 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
}

// TestSetuidIgnoresTheEnvironment: a user who starts a program that has root's rights
// does not choose to which daemon it gives its PIN, nor for how long it waits. The same
// program without those rights does as the variables say.
func TestSetuidIgnoresTheEnvironment(t *testing.T) {
	who, dir := anyone(t), openFolder(t)
	conf := filepath.Join(dir, "pkcs11.conf")
	meant, other := counted(t, filepath.Join(dir, "meant")), counted(t, filepath.Join(dir, "other"))
	if err := os.WriteFile(conf, fmt.Appendf(nil, "# ours\ntimeout = 60\nsocket = %s\n", filepath.Join(dir, "meant")), 0o644); err != nil {
		t.Fatal(err)
	}
	secured(t, dir, conf)
	run := func(program, variable string) string {
		c := exec.CommandContext(t.Context(), filepath.Join(dir, program), filepath.Join(dir, "libhsmbackup-pkcs11.so"), "none", "address")
		c.SysProcAttr = &syscall.SysProcAttr{Credential: who}
		c.Dir, c.Env = "/", []string{variable}
		out, err := c.CombinedOutput()
		said := string(out)
		if err != nil {
			said += err.Error()
		}
		return said
	}
	for _, variable := range []string{"HSMBACKUP_PKCS11_SOCKET=" + filepath.Join(dir, "other"), "P11_KIT_SERVER_ADDRESS=unix:path=" + filepath.Join(dir, "other")} {
		before, elsewhere := meant.Load(), other.Load()
		if said := run("rooted", variable); said != "secure 1\nok address\n" {
			t.Fatalf("with root's rights: %s", said)
		}
		if meant.Load() != before+1 || other.Load() != elsewhere {
			t.Errorf("%s: a set-uid program went to where it says", variable)
		}
		if said := run("moduletest", variable); said != "secure 0\nok address\n" {
			t.Fatalf("without: %s", said)
		}
		if meant.Load() != before+1 || other.Load() != elsewhere+1 {
			t.Errorf("%s: a program without set-uid did not go to where it says", variable)
		}
	}
	const bound = "HSMBACKUP_PKCS11_TIMEOUT=never"
	if said := run("rooted", bound); said != "secure 1\nok address\n" {
		t.Errorf("%s, with root's rights: %s", bound, said)
	}
	if said := run("moduletest", bound); !strings.Contains(said, "gave 0x6") {
		t.Errorf("%s is no number of seconds, and the module said: %s", bound, said)
	}
}
