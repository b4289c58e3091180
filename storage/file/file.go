// Package file keeps write-once objects in a folder: on a local disk, or on a
// network file system with hard links and close-to-open consistency.
//
// An object is a file of its own name below the folder. It is written under
// "+tmp", which is no valid name, made durable there and then linked to its
// name: link(2) fails if the name exists, so creation is atomic and never
// overwrites, also between hosts. What a crash leaves under "+tmp" is invisible
// and is removed by a later Put once it is a day old.
//
// The first Put creates the folder and what is above it; Get, List and Delete in a folder
// that does not exist fail with ErrNoBucket, so that a mistyped location is not
// taken for an empty one. A folder that vanishes later is ErrNoBucket for Put too.
//
// Files are readable by their owner only.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hsmbackup/hsmbackup/storage"
)

const (
	tmpFolder = "+tmp"
	// tmpAge is how old a leftover must be to be removed. A Put that is still
	// writing touches its file all the time.
	tmpAge = 24 * time.Hour
)

// Store implements storage.Store in a folder.
type Store struct {
	root   string
	clean  sync.Once
	synced sync.Map // folders, relative, whose entry this process knows to be durable
}

// Open returns the store in a folder, which may not exist yet.
func Open(folder string) (*Store, error) {
	if folder == "" || strings.ContainsRune(folder, 0) {
		return nil, &storage.Error{Op: "open", Location: fmt.Sprintf("folder %q", folder), Kind: storage.ErrLocation}
	}
	root, err := filepath.Abs(folder)
	if err != nil {
		return nil, &storage.Error{Op: "open", Location: folder, Kind: storage.ErrLocation, Err: err}
	}
	return &Store{root: root}, nil
}

// String returns the folder.
func (s *Store) String() string { return s.root }

func (s *Store) path(name string) string { return filepath.Join(s.root, filepath.FromSlash(name)) }

// Put implements storage.Store.
func (s *Store) Put(ctx context.Context, name string, body io.ReadSeeker, size int64) error {
	if err := precheck(ctx, name); err != nil {
		return s.wrap("put", name, err)
	}
	if err := storage.CheckBody(body, size); err != nil {
		return s.wrap("put", name, err)
	}
	return s.wrap("put", name, s.put(ctx, name, body, size))
}

// put writes in this order; a crash after any step leaves at most a file under
// +tmp, until the link makes the object exist whole.
func (s *Store) put(ctx context.Context, name string, body io.Reader, size int64) error {
	if err := s.makeRoot(); err != nil {
		return err
	}
	s.clean.Do(s.removeLeftovers)
	// The quick answer for a name that is taken; the link below is the judge.
	if _, err := os.Lstat(s.path(name)); err == nil {
		return s.taken(name)
	}
	tmp, err := s.writeTemp(ctx, body, size)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	if err := s.link(tmp, name); errors.Is(err, fs.ErrExist) {
		return s.taken(name)
	} else if err != nil {
		return err
	}
	return syncFolder(filepath.Dir(s.path(name)))
}

// taken returns ErrExist, once the entry that exists is durable: whoever made it
// may have died before that, and a caller may take what exists for its result.
func (s *Store) taken(name string) error {
	if err := syncFolder(filepath.Dir(s.path(name))); err != nil {
		return err
	}
	return storage.ErrExist
}

// makeRoot makes the folder of the store, once per process: if it is gone later
// (a disk unmounted), making it again would write to another disk unnoticed.
func (s *Store) makeRoot() error {
	if _, ok := s.synced.Load("."); ok {
		return s.checkRoot()
	}
	err := s.makeFolder(".")
	if errors.Is(err, syscall.ENOTDIR) {
		return s.checkRoot()
	}
	return err
}

func (s *Store) createTemp() (*os.File, error) {
	if err := s.makeFolder(tmpFolder); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(s.path(tmpFolder), "put-*")
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	s.synced.Delete(tmpFolder) // someone tidied up
	if err := firstError(s.checkRoot(), s.makeFolder(tmpFolder)); err != nil {
		return nil, err
	}
	return os.CreateTemp(s.path(tmpFolder), "put-*")
}

// writeTemp returns a durable file with the content of body.
func (s *Store) writeTemp(ctx context.Context, body io.Reader, size int64) (string, error) {
	f, err := s.createTemp()
	if err != nil {
		return "", err
	}
	n, err := io.Copy(f, contextReader{ctx, body})
	if err == nil && n != size {
		err = fmt.Errorf("%w: %d bytes announced, the body gave %d", storage.ErrSize, size, n)
	}
	err = firstError(err, f.Chmod(0o400), f.Sync(), f.Close(), ctx.Err())
	if err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// link gives the file its name. A folder that someone removed since it was made
// is made again, once.
func (s *Store) link(tmp, name string) error {
	folder := filepath.Dir(filepath.FromSlash(name))
	for again := true; ; again = false {
		if err := s.makeFolder(folder); err != nil {
			return err
		}
		err := linkNew(tmp, s.path(name))
		if again && errors.Is(err, fs.ErrNotExist) {
			if err := s.checkRoot(); err != nil {
				return err
			}
			s.forget()
			continue
		}
		return err
	}
}

func (s *Store) forget() {
	s.synced.Range(func(folder, _ any) bool {
		if folder != "." {
			s.synced.Delete(folder)
		}
		return true
	})
}

// makeFolder makes the folder below the root, and the root itself, durable. An
// entry found existing is synced too, once per process: whoever made it may have
// died before it did.
func (s *Store) makeFolder(folder string) error {
	if _, ok := s.synced.Load(folder); ok {
		return nil
	}
	path := filepath.Join(s.root, folder)
	if folder == "." {
		if err := makeAll(path); err != nil {
			return err
		}
	} else {
		if err := s.makeFolder(filepath.Dir(folder)); err != nil {
			return err
		}
		if err := makeOne(path); err != nil {
			return err
		}
	}
	s.synced.Store(folder, true)
	return nil
}

// makeAll makes path and what is missing above it.
func makeAll(path string) error {
	err := makeOne(path)
	if !errors.Is(err, fs.ErrNotExist) || filepath.Dir(path) == path {
		return err
	}
	if err := makeAll(filepath.Dir(path)); err != nil {
		return err
	}
	return makeOne(path)
}

// makeOne makes one folder and syncs the folder that lists it.
func makeOne(path string) error {
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, fs.ErrExist) {
		info, statErr := os.Stat(path)
		if statErr != nil {
			return statErr
		}
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
		}
		// The folder above may be another's and closed to us; then its entry for
		// this one is old.
		if err := syncFolder(filepath.Dir(path)); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return nil
	}
	if err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

func syncFolder(path string) error {
	if runtime.GOOS == "windows" { // refuses it; NTFS logs names itself
		return nil
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// removeLeftovers is a courtesy; what it cannot remove stays invisible.
func (s *Store) removeLeftovers() {
	entries, _ := os.ReadDir(s.path(tmpFolder))
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > tmpAge {
			os.Remove(filepath.Join(s.path(tmpFolder), e.Name()))
		}
	}
}

// Get implements storage.Store.
func (s *Store) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := precheck(ctx, name); err != nil {
		return nil, s.wrap("get", name, err)
	}
	if offset < 0 {
		return nil, s.wrap("get", name, fmt.Errorf("negative offset %d", offset))
	}
	f, err := s.openObject(name)
	if err != nil {
		return nil, s.wrap("get", name, err)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, s.wrap("get", name, err)
	}
	var r io.Reader = f
	if length >= 0 {
		r = io.LimitReader(f, length)
	}
	return &reader{contextReader{ctx, r}, f, s, name}, nil
}

func (s *Store) openObject(name string) (*os.File, error) {
	f, err := os.Open(s.path(name))
	if err != nil {
		return nil, s.missing(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = storage.ErrNotExist
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// missing tells a missing object from a missing store.
func (s *Store) missing(err error) error {
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return err
	}
	if err := s.checkRoot(); err != nil {
		return err
	}
	return storage.ErrNotExist
}

func (s *Store) checkRoot() error {
	info, err := os.Stat(s.root)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		return storage.ErrNoBucket
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%w: it is not a folder", storage.ErrNoBucket)
	}
	return nil
}

// Delete implements storage.Store. Folders stay, even when empty: removing one
// would race with a Put into it.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := precheck(ctx, name); err != nil {
		return s.wrap("delete", name, err)
	}
	return s.wrap("delete", name, s.remove(name))
}

func (s *Store) remove(name string) error {
	info, err := os.Lstat(s.path(name))
	if err == nil && info.IsDir() {
		return nil // a folder is no object
	}
	if err == nil {
		err = os.Remove(s.path(name))
	}
	if err == nil {
		return syncFolder(filepath.Dir(s.path(name)))
	}
	if err = s.missing(err); err == storage.ErrNotExist {
		return nil
	}
	return err
}

func precheck(ctx context.Context, name string) error {
	return firstError(ctx.Err(), storage.CheckName(name))
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// contextReader ends with the context's error once it is cancelled.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

type reader struct {
	contextReader
	file  *os.File
	store *Store
	name  string
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.contextReader.Read(p)
	if err == io.EOF {
		return n, err
	}
	return n, r.store.wrap("get", r.name, err)
}

func (r *reader) Close() error { return r.file.Close() }

var _ storage.Store = (*Store)(nil)
