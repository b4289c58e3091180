package file_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/file"
	"github.com/hsmbackup/hsmbackup/storage/storagetest"
)

func open(t testing.TB, folder string) *file.Store {
	t.Helper()
	s, err := file.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t testing.TB, s storage.Store, name, content string) {
	t.Helper()
	if err := s.Put(t.Context(), name, strings.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
}

func names(t testing.TB, s storage.Store) (all []string) {
	t.Helper()
	for info, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, info.Name)
	}
	return all
}

// every calls each method once and returns the errors.
func every(t *testing.T, s storage.Store) map[string]error {
	_, getErr := s.Get(t.Context(), "a/b", 0, -1)
	var listErr error
	for _, listErr = range s.List(t.Context(), "") {
	}
	return map[string]error{"get": getErr, "list": listErr, "delete": s.Delete(t.Context(), "a/b"), "put": s.Put(t.Context(), "a/c", strings.NewReader("x"), 1)}
}

func wantErr(t *testing.T, method string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want an error that is %q", method, err, want)
		return
	}
	if text := err.Error(); strings.ContainsAny(text, "\n\r") || !strings.HasPrefix(text, method) || strings.Count(text, want.Error()) != 1 {
		t.Errorf("%s: not one clear line: %q", method, text)
	}
	if storage.Hint(err) == "" {
		t.Errorf("no hint for %v", err)
	}
	t.Log(err)
}

func TestConformance(t *testing.T) {
	storagetest.Run(t, func(t *testing.T) storage.Store { return open(t, filepath.Join(t.TempDir(), "new", "store")) })
}

func TestConformanceOfTwoStoresOverOneFolder(t *testing.T) {
	folder := t.TempDir()
	a, b := open(t, folder), open(t, folder)
	put(t, a, "a", "x")
	wantErr(t, "put", b.Put(t.Context(), "a", strings.NewReader("y"), 1), storage.ErrExist)
	put(t, b, "b", "y")
	if diff := cmp.Diff([]string{"a", "b"}, names(t, a)); diff != "" {
		t.Error(diff)
	}
}

func TestAMissingFolderIsErrNoBucketUntilPutMakesIt(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "x", "y")
	s := open(t, folder)
	for method, err := range every(t, s) {
		if method != "put" {
			wantErr(t, method, err, storage.ErrNoBucket)
		} else if err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff([]string{"a/c"}, names(t, s)); diff != "" {
		t.Error(diff)
	}
}

func TestAFileInPlaceOfTheFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for method, err := range every(t, open(t, path)) {
		wantErr(t, method, err, storage.ErrNoBucket)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("the file was changed")
	}
}

func TestAnObjectIsAFileOfItsName(t *testing.T) {
	folder := t.TempDir()
	put(t, open(t, folder), "packs/00/abc", "content")
	b, err := os.ReadFile(filepath.Join(folder, "packs", "00", "abc"))
	if err != nil || string(b) != "content" {
		t.Fatalf("%q, %v", b, err)
	}
	info, err := os.Stat(filepath.Join(folder, "packs", "00", "abc"))
	if err != nil || info.Mode().Perm() != 0o400 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	folder := t.TempDir()
	s := open(t, folder)
	put(t, s, "a", "x")
	s.Put(t.Context(), "a", strings.NewReader("y"), 1)
	s.Put(t.Context(), "a/b", strings.NewReader("y"), 1)
	entries, err := os.ReadDir(filepath.Join(folder, "+tmp"))
	if err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestLeftoversAreInvisibleAndRemovedWhenOld(t *testing.T) {
	folder := t.TempDir()
	put(t, open(t, folder), "a", "x")
	for name, age := range map[string]time.Duration{"put-old": 25 * time.Hour, "put-new": time.Hour} {
		path, then := filepath.Join(folder, "+tmp", name), time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(path, []byte("half"), 0o600), os.Chtimes(path, then, then)); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, folder)
	if diff := cmp.Diff([]string{"a"}, names(t, s)); diff != "" {
		t.Error(diff)
	}
	put(t, s, "b", "x")
	left, _ := filepath.Glob(filepath.Join(folder, "+tmp", "*"))
	if len(left) != 1 || filepath.Base(left[0]) != "put-new" {
		t.Errorf("left are %q", left)
	}
}

func TestForeignFilesAreNotListed(t *testing.T) {
	folder := t.TempDir()
	s := open(t, folder)
	put(t, s, "a/b", "x")
	for _, name := range []string{"README.TXT", "a/Thumbs.db", "with space"} {
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"a/b"}, names(t, s)); diff != "" {
		t.Error(diff)
	}
}

func TestAFolderRemovedMeanwhileIsMadeAgainButNotTheStores(t *testing.T) {
	folder := t.TempDir()
	s := open(t, folder)
	put(t, s, "a/b", "x")
	if err := os.RemoveAll(filepath.Join(folder, "a")); err != nil {
		t.Fatal(err)
	}
	put(t, s, "a/c", "x")
	if err := os.RemoveAll(filepath.Join(folder, "+tmp")); err != nil {
		t.Fatal(err)
	}
	put(t, s, "a/d", "x")
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "put", s.Put(t.Context(), "a/e", strings.NewReader("x"), 1), storage.ErrNoBucket)
}

// asChild runs the calling test again in a process of its own, as an ordinary
// user where we are root, with the store's folder in its environment.
func asChild(t *testing.T, folder string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "FILE_TEST_CHILD="+folder)
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("%v\n%s", err, out)
	}
}

// becomeOrdinary gives up root, which no permission stops; what lies in the folder is
// the ordinary user's from then on.
func becomeOrdinary(t *testing.T, folder string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	err := filepath.WalkDir(folder, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, 65534, 65534))
	})
	if err := errors.Join(err, os.Chmod(filepath.Dir(folder), 0o711)); err != nil { // so that the way there is open
		t.Fatal(err)
	}
	if err := errors.Join(syscall.Setgid(65534), syscall.Setuid(65534)); err != nil {
		t.Fatal(err)
	}
}

// TestDenied: folders that may not be listed, entered or written.
func TestDenied(t *testing.T) {
	folder := os.Getenv("FILE_TEST_CHILD")
	closed, readOnly, tmp := filepath.Join(folder, "closed"), filepath.Join(folder, "read-only"), filepath.Join(folder, "tmp")
	if folder == "" {
		folder = t.TempDir()
		t.Cleanup(func() { // so that it can be removed
			filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error { return os.Chmod(path, 0o700) })
		})
		asChild(t, folder)
		return
	}
	for _, path := range []string{closed, readOnly, tmp} {
		put(t, open(t, path), "a/b", "x")
	}
	becomeOrdinary(t, folder)
	if err := errors.Join(os.Chmod(filepath.Join(closed, "a"), 0), os.Chmod(filepath.Join(readOnly, "a"), 0o500), os.Chmod(filepath.Join(tmp, "+tmp"), 0o500)); err != nil {
		t.Fatal(err)
	}
	for method, err := range every(t, open(t, closed)) {
		wantErr(t, method, err, storage.ErrDenied)
	}
	for method, err := range every(t, open(t, readOnly)) {
		if method == "get" || method == "list" {
			if err != nil {
				t.Errorf("%s of what may be read: %v", method, err)
			}
			continue
		}
		wantErr(t, method, err, storage.ErrDenied)
	}
	err := open(t, tmp).Put(t.Context(), "b", strings.NewReader("x"), 1)
	if wantErr(t, "put", err, storage.ErrDenied); !strings.Contains(err.Error(), "+tmp: permission denied") {
		t.Errorf("it does not say that the folder of temporary files is closed: %v", err)
	}
	if diff := cmp.Diff([]string{"a/b"}, names(t, open(t, readOnly))); diff != "" {
		t.Error(diff)
	}
}

// TestFull gives a process a limit on the size of its files, which write(2)
// reports just as a full disk, in the middle of the object.
func TestFull(t *testing.T) {
	folder := os.Getenv("FILE_TEST_CHILD")
	if folder == "" {
		folder = t.TempDir()
		asChild(t, folder)
		if left, _ := filepath.Glob(filepath.Join(folder, "+tmp", "*")); len(left) != 0 {
			t.Errorf("left behind: %q", left)
		}
		return
	}
	signal.Ignore(syscall.SIGXFSZ)
	limit := syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	s := open(t, folder)
	put(t, s, "fits", strings.Repeat("x", 1<<20))
	err := s.Put(t.Context(), "large", bytes.NewReader(make([]byte, 1<<20+1)), 1<<20+1)
	wantErr(t, "put", err, storage.ErrFull)
	if diff := cmp.Diff([]string{"fits"}, names(t, s)); diff != "" {
		t.Error(diff)
	}
}

// TestKilledPutLeavesNothingHalfDone kills a process that puts objects without
// end, again and again, and looks at what is there.
func TestKilledPutLeavesNothingHalfDone(t *testing.T) {
	folder := os.Getenv("FILE_TEST_CHILD")
	const size = 300_000
	if folder != "" {
		s := open(t, folder)
		for i := 0; ; i++ {
			put(t, s, fmt.Sprintf("run-%d/%d", os.Getpid(), i), strings.Repeat("x", size))
		}
	}
	folder = filepath.Join(t.TempDir(), "store")
	s := open(t, folder)
	for i := range 5 {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "FILE_TEST_CHILD="+folder)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for { // until it has put something
			if files, _ := filepath.Glob(filepath.Join(folder, fmt.Sprintf("run-%d", cmd.Process.Pid), "*")); len(files) > i {
				break
			}
			time.Sleep(time.Millisecond)
		}
		cmd.Process.Kill()
		cmd.Wait()
		for info, err := range s.List(t.Context(), "") {
			if err != nil || info.Size != size {
				t.Fatalf("%+v, %v", info, err)
			}
		}
	}
	put(t, s, "after", "x")
}
