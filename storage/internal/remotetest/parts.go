package remotetest

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	client "github.com/minio/minio-go/v7"

	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/internal/remote"
)

// large is a body of three parts, the last of one byte.
func large() []byte {
	b := make([]byte, 10<<20+1)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// seekOnly hides that a body can be read at any place.
type seekOnly struct{ io.ReadSeeker }

func (s *suite) parts(t *testing.T) {
	store, p := s.proxied(t)
	for name, body := range map[string]io.ReadSeeker{"at": bytes.NewReader(large()), "seek": seekOnly{bytes.NewReader(large())}} {
		p.set(nil)
		if err := store.Put(t.Context(), name, body, 10<<20+1); err != nil {
			t.Fatal(err)
		}
		if n := p.requests(http.MethodPut); n != 3 {
			t.Errorf("%s: %d PUT requests, want 3", name, n)
		}
		wantContent(t, store, name, string(large()))
		err := store.Put(t.Context(), name, bytes.NewReader(large()), 10<<20+1)
		s.wantErr(t, "put", err, storage.ErrExist)
		if n := p.requests(http.MethodPut); n != 3 {
			t.Errorf("%s: a name that is taken was sent parts", name)
		}
	}
	err := store.Put(t.Context(), "short", bytes.NewReader(large()), 10<<20+2)
	s.wantErr(t, "put", err, storage.ErrSize)
	for info, err := range store.List(t.Context(), "") {
		if err != nil || info.Size != 10<<20+1 {
			t.Errorf("listed: %+v, %v", info, err)
		}
	}
}

// step names the request of an upload in parts.
func step(r *http.Request) string {
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodPost && q.Has("uploads"):
		return "start"
	case r.Method == http.MethodPut && q.Has("uploadId"):
		return "part " + q.Get("partNumber")
	case r.Method == http.MethodPost:
		return "complete"
	case r.Method == http.MethodDelete:
		return "abort"
	}
	return r.Method
}

// once runs a rule on the first request of one step.
func once(name string, do rule) rule {
	var mu sync.Mutex
	done := false
	return func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
		mu.Lock()
		mine := !done && step(r) == name
		done = done || mine
		mu.Unlock()
		return mine && do(w, r, n, forward)
	}
}

// partsLost: each step in turn is done and its answer lost, or not done at all.
func (s *suite) partsLost(t *testing.T) {
	for _, name := range []string{"start", "part 2", "complete"} {
		for _, applied := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " applied"}[applied], func(t *testing.T) {
				store, p := s.proxied(t)
				p.set(once(name, func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
					if applied {
						forward.ServeHTTP(discard{http.Header{}}, r)
					}
					drop()
					return true
				}))
				if err := store.Put(t.Context(), "a", bytes.NewReader(large()), 10<<20+1); err != nil {
					t.Fatal(err)
				}
				wantContent(t, store, "a", string(large()))
			})
		}
	}
	t.Run("another's", func(t *testing.T) { s.partsLostToAnother(t) })
}

// partsLostToAnother: the last step is lost, another writer of the same bytes
// comes first, and the retry must not take that object for its own.
func (s *suite) partsLostToAnother(t *testing.T) {
	store, p := s.proxied(t)
	other := s.open(t)
	p.set(once("complete", func(http.ResponseWriter, *http.Request, int, http.Handler) bool {
		if err := other.Put(t.Context(), "a", bytes.NewReader(large()), 10<<20+1); err != nil {
			t.Error(err)
		}
		drop()
		return true
	}))
	err := store.Put(t.Context(), "a", bytes.NewReader(large()), 10<<20+1)
	s.wantErr(t, "put", err, storage.ErrExist)
	s.wantNoUpload(t, "a")
}

// partsRace: uploads in parts and a plain put of one name.
func (s *suite) partsRace(t *testing.T) {
	const writers = 4
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for i := range writers {
		store := s.open(t)
		wg.Go(func() {
			content := large()
			if i == 0 {
				content = content[:100]
			}
			content[0] = byte(i)
			errs[i] = store.Put(t.Context(), "a", bytes.NewReader(content), int64(len(content)))
		})
	}
	wg.Wait()
	winner := -1
	for i, err := range errs {
		if err == nil && winner < 0 {
			winner = i
			continue
		}
		s.wantErr(t, "put", err, storage.ErrExist)
	}
	if winner < 0 {
		t.Fatal("nobody won")
	}
	b, err := storage.ReadAll(t.Context(), s.open(t), "a", 64<<20)
	if err != nil || int(b[0]) != winner {
		t.Errorf("the object is not the winner's: %v", err)
	}
	s.wantNoUpload(t, "a")
}

func (s *suite) partsFail(t *testing.T) {
	store, p := s.proxied(t)
	p.set(func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
		if step(r) != "part 2" {
			return false
		}
		io.Copy(io.Discard, r.Body)
		answer(w, remote.Answer{Status: 507, Code: "XMinioStorageFull", Message: "Storage backend has reached its minimum free drive threshold."})
		return true
	})
	err := store.Put(t.Context(), "a", bytes.NewReader(large()), 10<<20+1)
	s.wantErr(t, "put", err, storage.ErrFull)
	s.wantNoUpload(t, "a")
	_, err = store.Get(t.Context(), "a", 0, -1)
	s.wantErr(t, "get", err, storage.ErrNotExist)
	p.set(nil)
	if err := store.Put(t.Context(), "a", bytes.NewReader(large()), 10<<20+1); err != nil {
		t.Error(err)
	}
}

// partsGone: somebody tidies up while we upload.
func (s *suite) partsGone(t *testing.T) {
	store, p := s.proxied(t)
	p.set(once("complete", func(_ http.ResponseWriter, r *http.Request, _ int, _ http.Handler) bool {
		key := strings.TrimPrefix(r.URL.Path, "/"+bucketName+"/")
		if err := s.core(t).AbortMultipartUpload(t.Context(), bucketName, key, r.URL.Query().Get("uploadId")); err != nil {
			t.Error(err)
		}
		return false
	}))
	if err := store.Put(t.Context(), "a", bytes.NewReader(large()), 10<<20+1); err != nil {
		t.Fatal(err)
	}
	wantContent(t, store, "a", string(large()))
}

// leftovers: an upload that a crash left behind is aborted once it is old, where
// the server lists it (MinIO lists by whole keys only, and tidies up itself), and
// one that may still be going on is left alone.
func (s *suite) leftovers(t *testing.T) {
	place := s.place(t)
	key := place.Prefix + "/crashed"
	if _, err := s.core(t).NewMultipartUpload(t.Context(), bucketName, key, client.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	page, err := s.core(t).ListMultipartUploads(t.Context(), bucketName, place.Prefix+"/", "", "", "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string) {
		if err := s.driver(t, place).Put(t.Context(), name, bytes.NewReader(large()), 10<<20+1); err != nil {
			t.Fatal(err)
		}
	}
	put("first")
	if n := s.uploads(t, "crashed"); n != 1 {
		t.Fatalf("%d uploads after a Put beside a young one, want 1", n)
	}
	place.Options.Stale = -time.Hour // everything is old
	put("second")
	if n := s.uploads(t, "crashed"); n != 1-len(page.Uploads) {
		t.Errorf("%d uploads are left of 1, of which the server lists %d", n, len(page.Uploads))
	}
}

func (s *suite) core(t *testing.T) *client.Core {
	t.Helper()
	return &client.Core{Client: s.server.Client()}
}

// uploads counts the unfinished uploads of a name of this test.
func (s *suite) uploads(t *testing.T, name string) int {
	t.Helper()
	page, err := s.core(t).ListMultipartUploads(t.Context(), bucketName, s.place(t).Prefix+"/"+name, "", "", "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	return len(page.Uploads)
}

func (s *suite) wantNoUpload(t *testing.T, name string) {
	t.Helper()
	if n := s.uploads(t, name); n != 0 {
		t.Errorf("%d unfinished uploads of %s are left", n, name)
	}
}
