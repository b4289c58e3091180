// Package storagetest judges implementations of storage.Store: Run is the
// conformance suite, one subtest per sentence of the contract; Faulty makes any
// store fail in the two ways a remote write can.
package storagetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/storage"
)

// Run runs the suite. open returns an empty store, another one at each call.
func Run(t *testing.T, open func(t *testing.T) storage.Store) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t, open) })
	}
}

type opener = func(t *testing.T) storage.Store

var cases = []struct {
	name string
	run  func(t *testing.T, open opener)
}{
	{"ObjectsOfOneStoreAreNotVisibleInAnother", separate},
	{"InvalidNamesAreRefusedByEveryMethodWithErrName", invalidNames},
	{"ACancelledContextDoesNothingAndReturnsItsError", cancelled},
	{"ErrorsAreOneLineAndSayWhatOnWhichObjectAndWhere", oneLine},
	{"PutCreatesNameWithTheBytesOfBody", putCreates},
	{"PutIsAtomicForReaders", putAtomic},
	{"PutNeverOverwrites", putNeverOverwrites},
	{"OfManyRacingWritersExactlyOneWins", race},
	{"EachReadingOfTheBodyStartsAtZero", bodyReread},
	{"ABodyOfAnotherSizeIsRefusedWithErrSizeAndNothingIsStored", wrongSize},
	{"PutDoesNotCloseTheBody", bodyStaysOpen},
	{"AKnownHashSparesAReadingAndAWrongOneStoresNothingElse", knownHash},
	{"APutCancelledMidwayIsNeverStoredInPart", cancelledMidway},
	{"OneNameAsAFolderOfAnotherIsHeldOrRefused", folderOfAnother},
	{"GetReadsFromOffsetAndStopsAtTheEnd", ranges},
	{"GetOfAMissingObjectIsErrNotExist", missing},
	{"ReadAllRefusesMoreThanTheLimit", readAll},
	{"CancellingEndsTheReader", cancelledReader},
	{"ListYieldsWhatBeginsWithPrefixAscending", list},
	{"ListYieldsMoreThanOnePage", listPages},
	{"ListMayBeLeftEarlyAndRangedOverAgain", listLeft},
	{"ListTellsSizeAndTime", listInfo},
	{"AnErrorOfListIsYieldedOnceLast", listError},
	{"DeleteRemovesAndToleratesMissing", deletes},
	{"AStoreIsSafeForConcurrentUse", concurrent},
}

func put(t *testing.T, s storage.Store, name string, content []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, bytes.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s storage.Store, name string, offset, length int64) []byte {
	t.Helper()
	r, err := s.Get(t.Context(), name, offset, length)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func names(t *testing.T, s storage.Store, prefix string) []string {
	t.Helper()
	all := []string{}
	for info, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, info.Name)
	}
	return all
}

// wantErr also checks what every error must be: one line, with the name in it.
func wantErr(t *testing.T, err, want error, mention string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want an error that is %q", err, want)
	}
	if text := err.Error(); strings.ContainsAny(text, "\n\r") || !strings.Contains(text, mention) {
		t.Errorf("error %q is not one line that mentions %q", text, mention)
	}
}

func random(size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(size), byte(size >> 8), byte(size >> 16)}).Read(b)
	return b
}

func separate(t *testing.T, open opener) {
	a, b := open(t), open(t)
	put(t, a, "only-in-a", []byte("x"))
	put(t, b, "only-in-b", []byte("x"))
	if diff := cmp.Diff([]string{"only-in-b"}, names(t, b, "")); diff != "" {
		t.Error(diff)
	}
	_, err := b.Get(t.Context(), "only-in-a", 0, -1)
	wantErr(t, err, storage.ErrNotExist, "only-in-a")
}

func invalidNames(t *testing.T, open opener) {
	s := open(t)
	put(t, s, "a", nil) // so that the place exists
	for _, name := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "A", "ä", "a b", "a\nb", "a\x00b", `a\b`, "a?b", "a%2fb", "+tmp/a",
		strings.Repeat("a", storage.MaxSegment+1), strings.Repeat("a/", storage.MaxName/2) + "a",
	} {
		_, getErr := s.Get(t.Context(), name, 0, -1)
		errs := map[string]error{
			"put":    s.Put(t.Context(), name, strings.NewReader("x"), 1),
			"get":    getErr,
			"delete": s.Delete(t.Context(), name),
		}
		for method, err := range errs {
			if !errors.Is(err, storage.ErrName) {
				t.Errorf("%s %q: %v, want ErrName", method, name, err)
			}
		}
	}
	for _, prefix := range []string{"/", "A", "../", ".", "a//", "a b"} {
		for _, err := range s.List(t.Context(), prefix) {
			wantErr(t, err, storage.ErrName, "list")
		}
	}
	if got := names(t, s, ""); len(got) != 1 {
		t.Errorf("a refused name was stored: %q", got)
	}
	longest := strings.Repeat(strings.Repeat("a", 127)+"/", 3) + strings.Repeat("b", 127)
	put(t, s, longest, []byte("x"))
	if got := get(t, s, longest, 0, -1); string(got) != "x" {
		t.Errorf("the longest name holds %q", got)
	}
}

func cancelled(t *testing.T, open opener) {
	s := open(t)
	put(t, s, "a", []byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, s.Put(ctx, "b", strings.NewReader("x"), 1), context.Canceled, "b")
	_, err := s.Get(ctx, "a", 0, -1)
	wantErr(t, err, context.Canceled, "a")
	wantErr(t, s.Delete(ctx, "a"), context.Canceled, "a")
	yielded := 0
	for _, err := range s.List(ctx, "") {
		wantErr(t, err, context.Canceled, "list")
		yielded++
	}
	if yielded != 1 {
		t.Errorf("a cancelled list yielded %d times, want its error once", yielded)
	}
	if diff := cmp.Diff([]string{"a"}, names(t, s, "")); diff != "" {
		t.Error(diff)
	}
}

func oneLine(t *testing.T, open opener) {
	s := open(t)
	put(t, s, "a/b", []byte("x"))
	wantErr(t, s.Put(t.Context(), "a/b", strings.NewReader("x"), 1), storage.ErrExist, "put a/b in ")
	_, err := s.Get(t.Context(), "a/c", 0, -1)
	wantErr(t, err, storage.ErrNotExist, "get a/c in ")
	if storage.Hint(err) == "" {
		t.Error("no hint")
	}
}

func putCreates(t *testing.T, open opener) {
	s := open(t)
	for _, size := range []int{0, 1, 4096, 1 << 20, 20 << 20} {
		name, content := fmt.Sprintf("size/%d", size), random(size)
		put(t, s, name, content)
		if !bytes.Equal(get(t, s, name, 0, -1), content) {
			t.Errorf("%d bytes came back differently", size)
		}
	}
}

// knownHash puts bodies whose hash is known, and one whose hash is wrong: a driver that
// sends it is refused and stores nothing; one that does not stores the bytes as they are.
func knownHash(t *testing.T, open opener) {
	s := open(t)
	for _, size := range []int{0, 1000, 3 << 20} {
		name, content := fmt.Sprintf("hashed/%d", size), random(size)
		if err := s.Put(t.Context(), name, storage.NewHashed(content, sha256.Sum256(content)), int64(size)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(get(t, s, name, 0, -1), content) {
			t.Errorf("%d bytes came back differently", size)
		}
	}
	content := random(1000)
	err := s.Put(t.Context(), "wrong", storage.NewHashed(content, sha256.Sum256(nil)), 1000)
	b, readErr := storage.ReadAll(t.Context(), s, "wrong", 2000)
	if err == nil && !bytes.Equal(b, content) || err != nil && !errors.Is(readErr, storage.ErrNotExist) {
		t.Errorf("put: %v; read: %d bytes, %v", err, len(b), readErr)
	}
}

func putAtomic(t *testing.T, open opener) {
	s := open(t)
	content := random(4 << 20)
	put(t, s, "before", nil)
	done := make(chan error, 1)
	go func() { done <- s.Put(t.Context(), "big", bytes.NewReader(content), int64(len(content))) }()
	for finished := false; !finished; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			finished = true
		default:
		}
		checkWhole(t, s, content, finished)
	}
}

func checkWhole(t *testing.T, s storage.Store, content []byte, must bool) {
	t.Helper()
	for info, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if info.Name != "before" && (info.Name != "big" || info.Size != int64(len(content))) {
			t.Fatalf("an unfinished write is listed: %+v", info)
		}
	}
	b, err := storage.ReadAll(t.Context(), s, "big", 8<<20)
	if errors.Is(err, storage.ErrNotExist) && !must {
		return
	}
	if err != nil || !bytes.Equal(b, content) {
		t.Fatalf("a reader got %d of %d bytes, %v", len(b), len(content), err)
	}
}

func putNeverOverwrites(t *testing.T, open opener) {
	s := open(t)
	put(t, s, "a/b", []byte("first"))
	for _, again := range []string{"other", "first", ""} {
		err := s.Put(t.Context(), "a/b", strings.NewReader(again), int64(len(again)))
		wantErr(t, err, storage.ErrExist, "a/b")
	}
	if got := get(t, s, "a/b", 0, -1); string(got) != "first" {
		t.Errorf("overwritten with %q", got)
	}
}

func race(t *testing.T, open opener) {
	s := open(t)
	for round := range 3 {
		const writers = 16
		name, errs, start := fmt.Sprintf("race/%d", round), make([]error, writers), make(chan struct{})
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				<-start
				content := fmt.Sprintf("writer %02d", i)
				if round == 2 {
					content = "equal bytes" // even these have one winner
				}
				errs[i] = s.Put(t.Context(), name, strings.NewReader(content), int64(len(content)))
			})
		}
		close(start)
		wg.Wait()
		checkRace(t, s, name, errs, round == 2)
	}
}

func checkRace(t *testing.T, s storage.Store, name string, errs []error, equal bool) {
	t.Helper()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner >= 0:
			t.Errorf("%s: writers %d and %d both won", name, winner, i)
		case err == nil:
			winner = i
		default:
			wantErr(t, err, storage.ErrExist, name)
		}
	}
	if winner < 0 {
		t.Fatalf("%s: nobody won", name)
	}
	if got := string(get(t, s, name, 0, -1)); !equal && got != fmt.Sprintf("writer %02d", winner) {
		t.Errorf("%s: writer %d won, the object holds %q", name, winner, got)
	}
}

func bodyReread(t *testing.T, open opener) {
	s := open(t)
	body := strings.NewReader("0123456789")
	if _, err := body.Seek(7, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "a", body, 10); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "b", body, 10); err != nil { // left at the end by the first
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		if got := string(get(t, s, name, 0, -1)); got != "0123456789" {
			t.Errorf("%s holds %q", name, got)
		}
	}
}

func wrongSize(t *testing.T, open opener) {
	s := open(t)
	put(t, s, "there", nil)
	for _, size := range []int64{0, 9, 11, -1} {
		wantErr(t, s.Put(t.Context(), "a", strings.NewReader("0123456789"), size), storage.ErrSize, "a")
	}
	if err := s.Put(t.Context(), "a", shrinking{strings.NewReader("01234")}, 10); err == nil {
		t.Error("a body that gives less than it announced was stored")
	}
	if diff := cmp.Diff([]string{"there"}, names(t, s, "")); diff != "" {
		t.Error(diff)
	}
}

// shrinking says it holds 10 bytes.
type shrinking struct{ *strings.Reader }

func (s shrinking) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekEnd {
		return 10 + offset, nil
	}
	return s.Reader.Seek(offset, whence)
}

func bodyStaysOpen(t *testing.T, open opener) {
	s := open(t)
	body := &closer{Reader: strings.NewReader("x")}
	if err := s.Put(t.Context(), "a", body, 1); err != nil {
		t.Fatal(err)
	}
	s.Put(t.Context(), "a", body, 1)
	if body.closed {
		t.Error("Put closed the body")
	}
}

type closer struct {
	*strings.Reader
	closed bool
}

func (c *closer) Close() error { c.closed = true; return nil }

// hooked calls a function once a body has been read up to some byte.
type hooked struct {
	*bytes.Reader
	at   int64
	hook func()
}

func (h *hooked) Read(p []byte) (int, error) {
	n, err := h.Reader.Read(p[:min(len(p), 64<<10)])
	if done := h.Size() - int64(h.Len()); done >= h.at {
		h.hook()
	}
	return n, err
}

func cancelledMidway(t *testing.T, open opener) {
	s := open(t)
	put(t, s, "there", nil)
	content := random(4 << 20)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	readings := 0
	err := s.Put(ctx, "big", &hooked{bytes.NewReader(content), 2 << 20, func() { readings++; cancel() }}, int64(len(content)))
	if readings == 0 || err == nil {
		t.Fatalf("the body was read %d times beyond the middle, error %v", readings, err)
	}
	wantErr(t, err, context.Canceled, "big")
	if b, err := storage.ReadAll(t.Context(), s, "big", 8<<20); err == nil && !bytes.Equal(b, content) {
		t.Fatalf("%d of %d bytes were stored", len(b), len(content))
	}
	err = s.Put(t.Context(), "big", bytes.NewReader(content), int64(len(content)))
	if err != nil {
		wantErr(t, err, storage.ErrExist, "big")
	}
	if !bytes.Equal(get(t, s, "big", 0, -1), content) {
		t.Error("a later Put did not settle it")
	}
}

func folderOfAnother(t *testing.T, open opener) {
	s := open(t)
	put(t, s, "a", []byte("a"))
	put(t, s, "f/b", []byte("b"))
	for _, name := range []string{"a/b", "f"} {
		err := s.Put(t.Context(), name, strings.NewReader("x"), 1)
		if err != nil && !errors.Is(err, storage.ErrExist) && !errors.Is(err, storage.ErrName) {
			t.Errorf("put %s: %v", name, err)
		}
		b, getErr := storage.ReadAll(t.Context(), s, name, 10)
		if err == nil && string(b) != "x" || err != nil && !errors.Is(getErr, storage.ErrNotExist) {
			t.Errorf("put %s: %v, then get: %q, %v", name, err, b, getErr)
		}
	}
	if string(get(t, s, "a", 0, -1)) != "a" || string(get(t, s, "f/b", 0, -1)) != "b" {
		t.Error("what was there has changed")
	}
}

func ranges(t *testing.T, open opener) {
	s := open(t)
	put(t, s, "digits", []byte("0123456789"))
	put(t, s, "empty", nil)
	const most = int64(^uint64(0) >> 1)
	for _, c := range []struct {
		name           string
		offset, length int64
		want           string
	}{
		{"digits", 0, -1, "0123456789"}, {"digits", 0, 10, "0123456789"}, {"digits", 0, 1, "0"}, {"digits", 9, 1, "9"},
		{"digits", 3, 4, "3456"}, {"digits", 3, -1, "3456789"}, {"digits", 8, 100, "89"}, {"digits", 0, 0, ""}, {"digits", 5, 0, ""},
		{"digits", 10, -1, ""}, {"digits", 10, 5, ""}, {"digits", 11, -1, ""}, {"digits", 1000, 1, ""}, {"digits", 1000, 0, ""},
		{"digits", 4, most, "456789"}, {"digits", 0, most, "0123456789"},
		{"empty", 0, -1, ""}, {"empty", 0, 5, ""}, {"empty", 0, 0, ""}, {"empty", 5, -1, ""},
	} {
		if got := string(get(t, s, c.name, c.offset, c.length)); got != c.want {
			t.Errorf("%s from %d, %d bytes: got %q, want %q", c.name, c.offset, c.length, got, c.want)
		}
	}
	if _, err := s.Get(t.Context(), "digits", -1, 2); err == nil {
		t.Error("a negative offset was accepted")
	}
}

func missing(t *testing.T, open opener) {
	s := open(t)
	put(t, s, "folder/a", []byte("x"))
	for _, name := range []string{"folder", "folder/b", "folder/a/b", "elsewhere/a", "folder/a.b"} {
		for _, length := range []int64{-1, 0, 1} {
			_, err := s.Get(t.Context(), name, 0, length)
			wantErr(t, err, storage.ErrNotExist, name)
		}
	}
}

func readAll(t *testing.T, open opener) {
	s := open(t)
	put(t, s, "a", []byte("0123456789"))
	for _, limit := range []int64{10, 11, 1 << 62} {
		if b, err := storage.ReadAll(t.Context(), s, "a", limit); err != nil || string(b) != "0123456789" {
			t.Errorf("limit %d: %q, %v", limit, b, err)
		}
	}
	for _, limit := range []int64{0, 9} {
		_, err := storage.ReadAll(t.Context(), s, "a", limit)
		wantErr(t, err, storage.ErrTooLarge, "a")
	}
	_, err := storage.ReadAll(t.Context(), s, "b", 10)
	wantErr(t, err, storage.ErrNotExist, "b")
}

func cancelledReader(t *testing.T, open opener) {
	s := open(t)
	put(t, s, "big", random(8<<20))
	ctx, cancel := context.WithCancel(t.Context())
	r, err := s.Get(ctx, "big", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	n, err := io.Copy(io.Discard, r)
	if err == nil && n != 8<<20-1000 {
		t.Errorf("the reader ended after %d bytes as if it were the end", n)
	}
	if err != nil {
		wantErr(t, err, context.Canceled, "big")
	}
}

func list(t *testing.T, open opener) {
	s := open(t)
	all := []string{"a/x", "a-b/x", "a.b/x", "a0", "a_b", "packs/00/a", "packs/00/b", "packs/0a", "packs/1", "packs-old", "z", "a/x-y", "a/y/z"}
	for _, name := range all {
		put(t, s, name, []byte(name))
	}
	slices.Sort(all)
	for _, prefix := range []string{"", "a", "a/", "a/x", "packs", "packs/", "packs/0", "packs/00", "packs/00/", "packs/00/a", "packs/00/a/", "none", "z", "zz", "a."} {
		want := []string{}
		for _, name := range all {
			if strings.HasPrefix(name, prefix) {
				want = append(want, name)
			}
		}
		if diff := cmp.Diff(want, names(t, s, prefix)); diff != "" {
			t.Errorf("prefix %q (-want +got):\n%s", prefix, diff)
		}
	}
}

func listPages(t *testing.T, open opener) {
	s := open(t)
	const count = 1005 // S3 gives 1,000 a page
	want := make([]string, count)
	work := make(chan int)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := range work {
				if err := s.Put(t.Context(), want[i], strings.NewReader(""), 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range count {
		want[i] = fmt.Sprintf("many/%05d", i)
		work <- i
	}
	close(work)
	wg.Wait()
	if diff := cmp.Diff(want, names(t, s, "many/")); diff != "" {
		t.Error(diff)
	}
}

func listLeft(t *testing.T, open opener) {
	s := open(t)
	for _, name := range []string{"a", "b/1", "b/2", "c"} {
		put(t, s, name, nil)
	}
	seq := s.List(t.Context(), "")
	for leave := 1; leave <= 4; leave++ {
		got := 0
		for _, err := range seq {
			if err != nil {
				t.Fatal(err)
			}
			if got++; got == leave {
				break
			}
		}
		if got != leave {
			t.Errorf("got %d objects before leaving, want %d", got, leave)
		}
	}
}

func listInfo(t *testing.T, open opener) {
	s := open(t)
	before := time.Now()
	put(t, s, "a", []byte("12345"))
	put(t, s, "b", nil)
	want := map[string]int64{"a": 5, "b": 0}
	for info, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if info.Size != want[info.Name] {
			t.Errorf("%s has size %d", info.Name, info.Size)
		}
		// The store runs on this machine; S3 tells whole seconds in places.
		if d := info.Modified.Sub(before); d < -2*time.Second || d > time.Hour {
			t.Errorf("%s was modified %v after it was put", info.Name, d)
		}
	}
}

func listError(t *testing.T, open opener) {
	s := open(t)
	for i := range 5 {
		put(t, s, fmt.Sprintf("a/%d", i), nil)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := 0
	for _, err := range s.List(ctx, "") {
		if failed > 0 {
			t.Fatal("the sequence goes on after its error")
		}
		if err != nil {
			wantErr(t, err, context.Canceled, "list")
			failed++
		}
		cancel()
	}
}

func deletes(t *testing.T, open opener) {
	s := open(t)
	put(t, s, "a/b", []byte("x"))
	put(t, s, "a/c", []byte("x"))
	for range 2 {
		if err := s.Delete(t.Context(), "a/b"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"never", "a", "a/c/d", "folder/never"} {
		if err := s.Delete(t.Context(), name); err != nil {
			t.Errorf("delete of what is missing, %s: %v", name, err)
		}
	}
	_, err := s.Get(t.Context(), "a/b", 0, -1)
	wantErr(t, err, storage.ErrNotExist, "a/b")
	if diff := cmp.Diff([]string{"a/c"}, names(t, s, "")); diff != "" {
		t.Error(diff)
	}
}

func concurrent(t *testing.T, open opener) {
	s := open(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 5 {
				name := fmt.Sprintf("worker-%d/%d", i, j)
				if err := mixed(t.Context(), s, name, random(1000+100*i+j), j%2 == 0); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	wg.Wait()
	if got := len(names(t, s, "")); got != 8*2 {
		t.Errorf("%d objects are left, want 16", got)
	}
}

func mixed(ctx context.Context, s storage.Store, name string, content []byte, remove bool) error {
	if err := s.Put(ctx, name, bytes.NewReader(content), int64(len(content))); err != nil {
		return err
	}
	b, err := storage.ReadAll(ctx, s, name, 1<<20)
	if err != nil {
		return err
	}
	if !bytes.Equal(b, content) {
		return errors.New("content differs")
	}
	for _, err := range s.List(ctx, name) {
		if err != nil {
			return err
		}
	}
	if remove {
		return s.Delete(ctx, name)
	}
	return nil
}
