package hsm

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestReadSmallFile(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"just", "more", "empty"} {
		size := map[string]int{"just": MaxSmallFile, "more": MaxSmallFile + 1}[name]
		if err := os.WriteFile(path(name), bytes.Repeat([]byte("x"), size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(path("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"just": MaxSmallFile, "empty": 0} {
		if b, err := ReadSmallFile(path(name)); err != nil || len(b) != want {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	for _, name := range []string{path("more"), path("pipe"), dir, "/dev/zero"} {
		if b, err := ReadSmallFile(name); !errors.Is(err, ErrFile) || b != nil {
			t.Errorf("%s was read: %v", name, err)
		}
	}
	if _, err := ReadSmallFile(path("none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}
