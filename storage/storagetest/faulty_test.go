package storagetest_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/file"
	"github.com/hsmbackup/hsmbackup/storage/storagetest"
)

func newFaulty(t *testing.T) (*storagetest.Faulty, storage.Store) {
	t.Helper()
	s, err := file.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return storagetest.NewFaulty(s), s
}

func put(t *testing.T, s storage.Store, name, content string) error {
	return s.Put(t.Context(), name, strings.NewReader(content), int64(len(content)))
}

func mustPut(t *testing.T, s storage.Store, name, content string) {
	t.Helper()
	if err := put(t, s, name, content); err != nil {
		t.Fatal(err)
	}
}

func exists(t *testing.T, s storage.Store, name string) bool {
	_, err := storage.ReadAll(t.Context(), s, name, 1<<20)
	return err == nil
}

func TestFaultyWithoutFaultConforms(t *testing.T) {
	storagetest.Run(t, func(t *testing.T) storage.Store { f, _ := newFaulty(t); return f })
}

func TestTheNthPutFailsInBothWays(t *testing.T) {
	for _, mode := range []storagetest.Mode{storagetest.NotApplied, storagetest.Applied} {
		for n := 1; n <= 3; n++ {
			f, inner := newFaulty(t)
			f.Set(storagetest.Fault{N: n, Mode: mode})
			for i := 1; i <= 3; i++ {
				name := fmt.Sprint(i)
				err := put(t, f, name, "x")
				if (err != nil) != (i == n) {
					t.Errorf("%v at %d: put %d: %v", mode, n, i, err)
				}
				if i == n && (!errors.Is(err, storagetest.ErrInjected) || !errors.Is(err, storage.ErrUnreachable)) {
					t.Errorf("the error is %v", err)
				}
				if want := i != n || mode == storagetest.Applied; exists(t, inner, name) != want {
					t.Errorf("%v at %d: object %d exists: %v", mode, n, i, !want)
				}
			}
			if !f.Fired() || f.Calls() != 3 {
				t.Errorf("fired %v after %d calls", f.Fired(), f.Calls())
			}
		}
	}
}

func TestADeadStoreStaysDead(t *testing.T) {
	f, inner := newFaulty(t)
	mustPut(t, f, "a", "x")
	f.Set(storagetest.Fault{N: 1, Mode: storagetest.Applied, Dead: true})
	if put(t, f, "b", "x") == nil || !exists(t, inner, "b") {
		t.Error("the first call was not applied and failed")
	}
	if put(t, f, "c", "x") == nil || exists(t, inner, "c") || exists(t, f, "a") || f.Delete(t.Context(), "a") == nil || !exists(t, inner, "a") {
		t.Error("the dead store did something")
	}
	f.Set(storagetest.Fault{})
	mustPut(t, f, "c", "x")
}

func TestReadsBreakOffHalfway(t *testing.T) {
	f, _ := newFaulty(t)
	for i := range 4 {
		mustPut(t, f, fmt.Sprint(i), "0123456789")
	}
	f.Set(storagetest.Fault{N: 1, Mode: storagetest.Applied, Only: func(op storagetest.Op, name string) bool { return op == storagetest.Get && name == "2" }})
	if !exists(t, f, "1") {
		t.Error("another object's Get failed")
	}
	r, err := f.Get(t.Context(), "2", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := r.Read(b)
	if string(b[:n]) != "01234" || err != nil {
		t.Errorf("read %q, %v", b[:n], err)
	}
	if _, err := r.Read(b); !errors.Is(err, storagetest.ErrInjected) {
		t.Errorf("then %v", err)
	}
	f.Set(storagetest.Fault{N: 1, Mode: storagetest.Applied})
	count := 0
	for _, err = range f.List(t.Context(), "") {
		count++
	}
	if count != 3 || !errors.Is(err, storagetest.ErrInjected) {
		t.Errorf("the list yielded %d times, last %v", count, err)
	}
}

func TestFullAfter(t *testing.T) {
	f, inner := newFaulty(t)
	mustPut(t, f, "before", "xxxxxxxxxxxxxxxxxxxxxxx")
	f.FullAfter(10)
	mustPut(t, f, "a", "1234567")
	if err := put(t, f, "b", "1234"); !errors.Is(err, storage.ErrFull) || exists(t, inner, "b") {
		t.Errorf("got %v, want ErrFull", err)
	}
	mustPut(t, f, "c", "123")
	f.FullAfter(-1)
	mustPut(t, f, "b", "1234")
}

func TestExactlyOneConcurrentCallFails(t *testing.T) {
	f, _ := newFaulty(t)
	f.Set(storagetest.Fault{N: 7})
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() { errs[i] = put(t, f, fmt.Sprint(i), "x") })
	}
	wg.Wait()
	failed := 0
	for _, err := range errs {
		if err != nil {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d calls failed", failed)
	}
}
