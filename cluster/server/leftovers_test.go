package server

import (
	"bytes"
	"context"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/hsmtest"
)

// TestWholeCopiesAreNotMadeAgain: a creation that died while it copied the first HSM's store
// is gone on with. A table that an HSM had got whole is taken as it is; one that was cut
// off, or that says something else, or more, is copied anew.
func TestWholeCopiesAreNotMadeAgain(t *testing.T) {
	t.Parallel()
	spec := newSpec(filepath.Join(t.TempDir(), "east"), 3)
	spec.Keyring, spec.CA = testLineage()
	objects := hsmtest.Multiply(spec.Keyring, "root", 1500)
	spec.Fill = func(ctx context.Context, into hsm.Session) error {
		all := func(yield func(hsm.MaskedObject, error) bool) {
			for _, m := range objects {
				if !yield(m, nil) {
					return
				}
			}
		}
		_, err := into.(hsm.Loader).Load(ctx, "", []iter.Seq2[hsm.MaskedObject, error]{all})
		return err
	}
	create := func() {
		t.Helper()
		if _, err := Create(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
	}
	create()
	tables, err := filepath.Glob(filepath.Join(spec.Dir, "hsm-2", storeDir, "*.sst"))
	if err != nil || len(tables) < 4 {
		t.Fatalf("%v, %v", tables, err)
	}
	staging := filepath.Join(filepath.Dir(spec.Dir), ".east.hsmbackup-new")
	if err := os.Rename(spec.Dir, staging); err != nil { // as if it had died before the end
		t.Fatal(err)
	}
	slices.SortFunc(tables, func(a, b string) int { return strings.Compare(b, a) })
	left := func(path string) string { return strings.Replace(path, spec.Dir, staging, 1) }
	bytesOf, infoOf := map[string][]byte{}, map[string]os.FileInfo{}
	for i, path := range tables {
		bytesOf[path] = readAll(t, left(path))
		switch b := bytes.Clone(bytesOf[path]); i % 4 {
		case 0: // a table of its own, whole
		case 1:
			replace(t, left(path), b[:len(b)-1])
		case 2:
			b[len(b)/2] ^= 1
			replace(t, left(path), b)
		case 3:
			replace(t, left(path), append(b, 0))
		}
		infoOf[path] = stat(t, left(path))
	}

	create()
	again := 0
	for i, path := range tables {
		one := strings.Replace(path, "hsm-2", "hsm-1", 1)
		if b, err := os.ReadFile(one); err != nil || !bytes.Equal(b, bytesOf[path]) {
			continue // of the members, who are others now
		}
		again++
		if whole := i%4 == 0; os.SameFile(infoOf[path], stat(t, path)) != whole {
			t.Errorf("%s: whole %t, and taken %t", path, whole, !whole)
		}
		if !bytes.Equal(readAll(t, path), bytesOf[path]) || os.SameFile(stat(t, path), stat(t, one)) {
			t.Errorf("%s is no copy of its own", path)
		}
	}
	if again < 4 {
		t.Errorf("only %d of %d tables are as they were", again, len(tables))
	}
	mustHold(t, spec.Dir, uint64(len(objects)))
	mustBeAlone(t, spec.Dir)
}

// TestOneFileIsNoCopy: a second name of a file is not a copy of it.
func TestOneFileIsNoCopy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from, left := filepath.Join(dir, "from", "x.sst"), filepath.Join(dir, "left", "hsm-2", "x.sst")
	for _, path := range []string{from, left} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	replace(t, from, []byte("the bytes of a table"))
	buf := make([]byte, 16) // so that a file takes several turns
	for name, link := range map[string]func(string, string) error{"hard": os.Link, "symbolic": os.Symlink} {
		if err := link(from, left); err != nil {
			t.Fatal(err)
		}
		if done, err := leftovers(filepath.Join(dir, "left")).reuse("hsm-2", from, filepath.Join(dir, "to"), buf); done || err != nil {
			t.Errorf("a %s link is taken for a copy: %v", name, err)
		}
		if err := os.Remove(left); err != nil {
			t.Fatal(err)
		}
	}
	replace(t, left, []byte("the bytes of a table"))
	if done, err := leftovers(filepath.Join(dir, "left")).reuse("hsm-2", from, filepath.Join(dir, "to"), buf); !done || err != nil {
		t.Errorf("a copy is not taken: %v", err)
	}
}

func readAll(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// replace writes a file of its own under the path.
func replace(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func stat(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}
