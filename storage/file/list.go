package file

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hsmbackup/hsmbackup/storage"
)

// List implements storage.Store. It holds the entries of one folder per level in
// memory, not all names. Files whose names are none of ours are left out.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		if err := firstError(ctx.Err(), storage.CheckPrefix(prefix), s.checkRoot()); err != nil {
			yield(storage.Info{}, s.wrap("list", prefix, err))
			return
		}
		w := walk{ctx: ctx, store: s, prefix: prefix, yield: yield}
		if err := w.folder(""); err != nil && !w.left {
			yield(storage.Info{}, s.wrap("list", prefix, err))
		}
	}
}

var errLeft = errors.New("left early")

type walk struct {
	ctx    context.Context
	store  *Store
	prefix string
	yield  func(storage.Info, error) bool
	left   bool
}

// folder yields what is below a folder, given as "" or ending in a slash.
func (w *walk) folder(folder string) error {
	names, err := w.names(folder)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if err := w.entry(folder + name); err != nil {
			return err
		}
	}
	return nil
}

// names returns the entries in the order of the full names below them: a folder
// sorts as its name with the slash, since '-' and '.' come before '/'.
func (w *walk) names(folder string) ([]string, error) {
	entries, err := os.ReadDir(w.store.path(folder))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // removed meanwhile
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		name := e.Name()
		if storage.CheckName(name) != nil {
			continue
		}
		if e.IsDir() || e.Type() == fs.ModeSymlink && isFolder(w.store.path(folder+name)) {
			name += "/"
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func (w *walk) entry(name string) error {
	if strings.HasSuffix(name, "/") {
		if strings.HasPrefix(name, w.prefix) || strings.HasPrefix(w.prefix, name) {
			return w.folder(name)
		}
		return nil
	}
	if !strings.HasPrefix(name, w.prefix) || storage.CheckName(name) != nil {
		return nil
	}
	info, err := os.Stat(filepath.Join(w.store.root, filepath.FromSlash(name)))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return nil
	}
	if err != nil {
		return err
	}
	if !w.yield(storage.Info{Name: name, Size: info.Size(), Modified: info.ModTime()}, nil) {
		w.left = true
		return errLeft
	}
	return nil
}
