// Package pinned builds the servers of other projects that tests run, at the
// versions that a Go module beside this package pins, and runs them as
// processes. What cannot be built or started fails a test and says why; nothing
// is skipped.
package pinned

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Program is a server that a module pins.
type Program struct {
	Module  string // folder of the module beside this package
	Package string // what to build, an import path
	Name    string // of the binary
	Cost    string // of the first build, for whoever waits for it
}

// Binary returns the path of the program, built on first use and kept in the
// user's cache folder under the hash of its module's go.sum. Processes that need
// it at once build it once; different programs build side by side.
func (p Program) Binary() (string, error) {
	path, err := p.ensure()
	if err != nil {
		return "", fmt.Errorf("the server %s for the tests cannot be had: %w (tests against S3 do not run without it)", p.Name, err)
	}
	return path, nil
}

func (p Program) ensure() (string, error) {
	module, err := p.moduleFolder()
	if err != nil {
		return "", err
	}
	folder, err := cacheFolder(module)
	if err != nil {
		return "", err
	}
	path := filepath.Join(folder, p.Name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	unlock, err := lock(filepath.Join(folder, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil { // another process built it meanwhile
		return path, nil
	}
	return path, p.build(module, path)
}

// moduleFolder looks for the module from the working directory upwards: a test
// runs in its package's folder. (The path of this source file would not do, since
// -trimpath takes it out of the binary.)
func (p Program) moduleFolder() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for folder := start; ; folder = filepath.Dir(folder) {
		module := filepath.Join(folder, "integration", p.Module)
		if _, err := os.Stat(filepath.Join(module, "go.mod")); err == nil {
			return module, nil
		}
		if folder == filepath.Dir(folder) {
			return "", fmt.Errorf("no folder from %s upwards has integration/%s, the module that pins it", start, p.Module)
		}
	}
}

func cacheFolder(module string) (string, error) {
	sum, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	hash := sha256.Sum256(sum)
	folder := filepath.Join(cache, "hsmbackup-tests", hex.EncodeToString(hash[:]))
	return folder, os.MkdirAll(folder, 0o755)
}

func lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f.Close, nil
}

// build writes beside the target and renames, so that what stands there is whole.
func (p Program) build(module, path string) error {
	fmt.Fprintf(os.Stderr, "building the server %s for the tests; the first time this %s\n", p.Name, p.Cost)
	unfinished := path + ".unfinished"
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", unfinished, p.Package)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "GOOS=", "GOARCH=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build in %s: %w\n%s", module, err, out)
	}
	return os.Rename(unfinished, path)
}
