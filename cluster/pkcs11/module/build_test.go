//go:build linux

package module

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/softhsm"
)

// built are the folders of what was built, by the sanitizers it was built with.
var built struct {
	sync.Mutex
	root string
	dirs map[string]string
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.root != "" {
		os.RemoveAll(built.root)
	}
	os.Exit(code)
}

// build gives the folder of a module and its test program, built once for all tests.
// sanitizers is empty, or what gcc's -fsanitize takes.
func build(t *testing.T, sanitizers string) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if dir := built.dirs[sanitizers]; dir != "" {
		return dir
	}
	if built.root == "" {
		root, err := os.MkdirTemp("", "module")
		if err != nil {
			t.Fatal(err)
		}
		built.root, built.dirs = root, map[string]string{}
	}
	dir := filepath.Join(built.root, "plain"+sanitizers)
	targets := []string{filepath.Join(dir, "libhsmbackup-pkcs11.so"), filepath.Join(dir, "moduletest")}
	out, err := exec.Command("make", append([]string{"-s", "OUT=" + dir, "SAN=" + sanitizers}, targets...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("make: %v\n%s", err, out)
	}
	built.dirs[sanitizers] = dir
	return dir
}

// command is a run of the test program against the daemon at a socket.
func command(t *testing.T, dir, socket, mode string, wrapper ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	words := append(wrapper, filepath.Join(dir, "moduletest"), filepath.Join(dir, "libhsmbackup-pkcs11.so"), softhsm.PIN, mode)
	c := exec.CommandContext(t.Context(), words[0], words[1:]...)
	c.Env = append(os.Environ(), "HSMBACKUP_PKCS11_SOCKET="+socket)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	return c, &stderr
}

// run runs the test program to its end.
func run(t *testing.T, dir, socket, mode string, wrapper ...string) {
	t.Helper()
	c, stderr := command(t, dir, socket, mode, wrapper...)
	out, err := c.Output()
	if err != nil || string(out) != "ok "+mode+"\n" {
		t.Fatalf("%s: %v\n%s%s", mode, err, out, stderr)
	}
}
