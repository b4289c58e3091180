package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// copyStore copies an object store's folder for the HSM of that name, durably, but for the
// files that are among the leftovers. If we die half way, the copy is part of a cluster in the
// making, of which the next run takes those files that are whole.
func copyStore(ctx context.Context, name, from, to string, left leftovers) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if !e.Type().IsRegular() {
			return fmt.Errorf("copy %s: %s is no file", from, e.Name())
		}
		one, two := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		done, err := left.reuse(name, one, two, buf)
		if err == nil && !done {
			err = copyFile(one, two, buf)
		}
		if err != nil {
			return err
		}
	}
	return hsm.SyncFolder(to)
}

// copyFile copies through memory: a file system that is asked to copy may let
// both files share their blocks.
func copyFile(from, to string, buf []byte) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	for {
		n, err := in.Read(buf)
		if n > 0 {
			if _, err := out.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return out.Sync()
		}
		if err != nil {
			return err
		}
	}
}
