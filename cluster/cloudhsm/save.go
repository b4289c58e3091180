package cloudhsm

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hsmbackup/hsmbackup/cluster/profile"
)

// Load reads the file at path; New if there is none.
func Load(path string) (*File, error) {
	b, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return New(), nil
	}
	if err != nil {
		return nil, err
	}
	f, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// Save writes the file to path, and tells whether that changed it. A reader sees
// the old or the new file whole, after a crash too (profile.WriteFile). Mode and
// owner stay; a symbolic link stays, and what it points to is replaced. The folder
// must exist.
func (f *File) Save(path string) (changed bool, err error) {
	b := f.Bytes()
	if f.was != nil && bytes.Equal(b, f.was) {
		return false, nil
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	like, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("write configuration: %w", err)
	}
	if err := profile.WriteFile(path, b, like); err != nil {
		return false, fmt.Errorf("write configuration %s: %w", path, err)
	}
	return true, nil
}
