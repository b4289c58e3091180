//go:build !linux

package file

import "os"

// linkNew gives the file the name to, unless that exists (fs.ErrExist).
func linkNew(from, to string) error { return os.Link(from, to) }
