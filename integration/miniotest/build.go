package miniotest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Binary returns the path of the pinned MinIO server, built on first use from
// the module integration/minio and kept in the user's cache folder under the
// hash of that module's go.sum. Processes that need it at once build it once.
func Binary() (string, error) { return binary() }

var binary = sync.OnceValues(func() (string, error) {
	path, err := ensure()
	if err != nil {
		return "", fmt.Errorf("the MinIO server for the tests cannot be had: %w (tests against S3 do not run without it)", err)
	}
	return path, nil
})

func ensure() (string, error) {
	module, err := moduleFolder()
	if err != nil {
		return "", err
	}
	folder, err := cacheFolder(module)
	if err != nil {
		return "", err
	}
	path := filepath.Join(folder, "minio")
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
	return path, build(module, path)
}

// moduleFolder looks for the module from the working directory upwards: a test
// runs in its package's folder. (The path of this source file would not do, since
// -trimpath takes it out of the binary.)
func moduleFolder() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for folder := start; ; folder = filepath.Dir(folder) {
		module := filepath.Join(folder, "integration", "minio")
		if _, err := os.Stat(filepath.Join(module, "go.mod")); err == nil {
			return module, nil
		}
		if folder == filepath.Dir(folder) {
			return "", fmt.Errorf("no folder from %s upwards has integration/minio, the module that pins the server", start)
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
func build(module, path string) error {
	fmt.Fprintln(os.Stderr, "miniotest: building the MinIO server; the first time this takes several minutes and downloads 1.2 GB of modules")
	unfinished := path + ".unfinished"
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", unfinished, "github.com/minio/minio")
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "GOOS=", "GOARCH=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build in %s: %w\n%s", module, err, out)
	}
	return os.Rename(unfinished, path)
}
