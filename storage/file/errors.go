package file

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/hsmbackup/hsmbackup/storage"
)

// wrap makes the error of a Store's method, or nil of nil.
func (s *Store) wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	kind := kindOf(err)
	if kind == nil {
		kind = ownKind(err)
	}
	out := &storage.Error{Op: op, Name: name, Location: s.root, Kind: kind, Err: s.innermost(err)}
	if errors.Is(out.Err, kind) { // the words hold the sentinel already
		out.Kind = nil
	}
	return out
}

// ownKind finds a sentinel that err wraps.
func ownKind(err error) error {
	for _, kind := range []error{storage.ErrExist, storage.ErrNotExist, storage.ErrNoBucket, storage.ErrSize, storage.ErrName} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return nil
}

// kindOf maps errors of the operating system to sentinels.
func kindOf(err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return nil
	}
	switch {
	case errno == syscall.EROFS || errors.Is(err, fs.ErrPermission):
		return storage.ErrDenied
	case errors.Is(err, fs.ErrExist):
		return storage.ErrExist
	}
	switch errno {
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return storage.ErrFull
	case syscall.ENAMETOOLONG:
		return storage.ErrName
	case syscall.ENOTDIR:
		return storage.ErrName // an object stands where a folder is needed
	}
	return nil
}

// innermost drops the path of the operating system's error, which the message
// says already or which is that of a temporary file; only that the folder of those is
// closed is worth saying.
func (s *Store) innermost(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	var call *os.SyscallError
	switch {
	case errors.As(err, &path):
		if errors.Is(path.Err, fs.ErrPermission) && strings.HasPrefix(path.Path, s.path(tmpFolder)) {
			return fmt.Errorf("%s: %w", tmpFolder, path.Err)
		}
		return path.Err
	case errors.As(err, &link):
		return link.Err
	case errors.As(err, &call):
		return call.Err
	}
	return err
}
