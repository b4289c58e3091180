package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// scratch is removed when all tests have ended.
var scratch string

func TestMain(m *testing.M) {
	if role, work := role(); role != nil {
		os.Exit(role(work))
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	var err error
	if scratch, err = os.MkdirTemp("", "hsmbackup-integration-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(scratch)
	return m.Run()
}

// repository is the top folder of the sources. A test begins in its package's
// folder; the path of a source file would not do, since -trimpath takes it out.
func repository() string { return filepath.Dir(started) }

var started = func() string {
	folder, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	return folder
}()

// hsmbackup returns the path of the program, built once per run.
func hsmbackup(t testing.TB, race bool) string {
	t.Helper()
	path, err := map[bool]func() (string, error){false: plain, true: raced}[race]()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var (
	plain = sync.OnceValues(func() (string, error) { return build("hsmbackup") })
	raced = sync.OnceValues(func() (string, error) { return build("hsmbackup-race", "-race") })
)

func build(name string, flags ...string) (string, error) {
	path := filepath.Join(scratch, name)
	cmd := exec.Command("go", append(append([]string{"build", "-o", path}, flags...), "./cmd/hsmbackup")...)
	cmd.Dir = repository()
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the program: %w\n%s", err, out)
	}
	return path, nil
}
