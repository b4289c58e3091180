package remotetest

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	client "github.com/minio/minio-go/v7"

	"github.com/hsmbackup/hsmbackup/integration/pinned"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/internal/remote"
)

// Place is what a driver is to open.
type Place struct {
	Host    string
	TLS     bool
	CA      string
	Bucket  string
	Prefix  string
	Region  string
	Keys    storage.Keys
	Options remote.Options
}

// Opener opens a place with one driver.
type Opener func(t testing.TB, p Place) storage.Store

const bucketName = "bucket"

// quick hardly waits.
var quick = remote.Options{
	Retry: remote.Retry{Attempts: 3, Pause: time.Millisecond},
	Parts: remote.Parts{From: 8 << 20, Size: 5 << 20, Workers: 3, Stale: time.Hour},
}

// Run runs all tests of this package on one driver, with each server.
func Run(t *testing.T, open Opener) {
	for _, m := range makes {
		t.Run(m.name, func(t *testing.T) {
			server := m.start(t)
			server.CreateBucket(bucketName)
			(&suite{server: server, driver: open}).run(t)
		})
	}
}

func (s *suite) run(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"ALostAnswerOfAPutIsSettled":             s.lostAnswer,
		"ALostRequestDoesNotClaimAnothersObject": s.anothersObject,
		"PassingRefusalsAreRepeated":             s.passing,
		"ADownloadThatBreaksOffIsResumed":        s.cutDownload,
		"ADownloadThatNeverGetsOnFails":          s.deadDownload,
		"AListingThatBreaksOffGoesOn":            s.cutListing,
		"ABodyCorruptedOnItsWayIsRefused":        s.corrupted,
		"AnswersAreUnderstood":                   s.answers,
		"AYesThatIsNotOfS3IsNone":                s.notOfS3,
		"ARedirectIsNotFollowed":                 s.redirects,
		"BucketMissing":                          s.bucketMissing,
		"CredentialsWrong":                       s.credentialsWrong,
		"Unreachable":                            s.unreachable,
		"CertificatesWrong":                      s.certificatesWrong,
		"ClockSkewed":                            s.skewed,
		"RegionWrong":                            s.regionWrong,
		"LockedObjectsStay":                      s.locked,
		"LocksAreExtendedAndHold":                s.locks,
		"ABucketWithoutLocksSaysSo":              s.noLocks,
		"DeleteRemovesAllVersions":               s.versions,
		"CancellingEndsTheWaiting":               s.cancelWhileWaiting,
		"LargeBodiesGoInParts":                   s.parts,
		"LostAnswersOfPartsAreSettled":           s.partsLost,
		"OfManyRacingUploadsExactlyOneWins":      s.partsRace,
		"AFailedUploadIsAborted":                 s.partsFail,
		"AnUploadThatWasAbortedStartsOver":       s.partsGone,
		"LeftoversOfCrashesAreAborted":           s.leftovers,
	} {
		t.Run(name, test)
	}
	t.Run("AServerThatComesBackIsUsedAgain", s.outage) // last: it stops the server
}

type suite struct {
	server *pinned.Server
	driver Opener
}

func (s *suite) place(t *testing.T) Place {
	p := placeOf(s.server)
	p.Prefix = strings.ReplaceAll(t.Name(), "/", "-")
	return p
}

func (s *suite) open(t *testing.T) storage.Store { return s.driver(t, s.place(t)) }

func (s *suite) proxied(t *testing.T) (storage.Store, *proxy) {
	p := newProxy(t, s.server.Host())
	place := s.place(t)
	place.Host = p.host()
	return s.driver(t, place), p
}

func put(t *testing.T, s storage.Store, name, content string) {
	t.Helper()
	if err := s.Put(t.Context(), name, strings.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
}

func wantContent(t *testing.T, s storage.Store, name, content string) {
	t.Helper()
	b, err := storage.ReadAll(t.Context(), s, name, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != content {
		t.Fatalf("%s holds %d bytes that differ from the %d put", name, len(b), len(content))
	}
}

// every calls each method once and returns the errors.
func every(ctx context.Context, s storage.Store) map[string]error {
	_, getErr := s.Get(ctx, "a/b", 0, -1)
	var listErr error
	for _, listErr = range s.List(ctx, "a/") {
	}
	return map[string]error{
		"put": s.Put(ctx, "a/b", strings.NewReader("x"), 1), "get": getErr, "list": listErr, "delete": s.Delete(ctx, "a/b"),
	}
}

func (s *suite) wantEvery(t *testing.T, store storage.Store, want error) {
	t.Helper()
	for method, err := range every(t.Context(), store) {
		s.wantErr(t, method, err, want)
	}
}

func (s *suite) wantErr(t *testing.T, method string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want an error that is %q", method, err, want)
		return
	}
	text := err.Error()
	if strings.ContainsAny(text, "\r\n") || !strings.HasPrefix(text, method+" ") || len(text) > 400 {
		t.Errorf("not one short line that begins with %q: %q", method, text)
	}
	if strings.Contains(text, s.server.SecretKey) {
		t.Errorf("%s: the error shows the secret key", method)
	}
	if storage.Hint(err) == "" {
		t.Errorf("%s: no hint for %v", method, err)
	}
	t.Logf("%s\n\thint: %s", text, storage.Hint(err))
}

// lostAnswer: the server does what it was told and the answer never arrives.
func (s *suite) lostAnswer(t *testing.T) {
	store, p := s.proxied(t)
	p.set(func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
		if r.Method == http.MethodPut && n == 1 {
			forward.ServeHTTP(discard{http.Header{}}, r)
			drop()
		}
		return false
	})
	content := strings.Repeat("lost answer ", 100000)
	put(t, store, "a", content)
	if n := p.requests(http.MethodPut); n != 1 {
		t.Errorf("%d PUT requests, want one: what is there need not be sent again", n)
	}
	wantContent(t, store, "a", content)
	err := store.Put(t.Context(), "a", strings.NewReader(content), int64(len(content)))
	s.wantErr(t, "put", err, storage.ErrExist)
}

// anothersObject: the request is lost, another writer of the same bytes comes
// first, and the retry must not take that object for its own.
func (s *suite) anothersObject(t *testing.T) {
	store, p := s.proxied(t)
	other := s.open(t)
	p.set(func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
		if r.Method == http.MethodPut && n == 1 {
			put(t, other, "a", "same bytes")
			drop()
		}
		return false
	})
	err := store.Put(t.Context(), "a", strings.NewReader("same bytes"), 10)
	s.wantErr(t, "put", err, storage.ErrExist)
}

func (s *suite) passing(t *testing.T) {
	for i, a := range []remote.Answer{
		{Status: 503, Code: "SlowDown", Message: "Please reduce your request rate."},
		{Status: 500, Code: "InternalError", Message: "We encountered an internal error."},
		{Status: 502},
		{Status: 409, Code: "ConditionalRequestConflict", Message: "Conflict."},
		{Status: 409, Code: "OperationAborted", Message: "A conflicting operation is in progress."},
		{Status: 400, Code: "RequestTimeout", Message: "Your socket connection was idle."},
		{Status: 429},
	} {
		store, p := s.proxied(t)
		p.set(func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
			if n > 2 {
				return false
			}
			io.Copy(io.Discard, r.Body)
			answer(w, a)
			return true
		})
		name := fmt.Sprintf("a/%d", i)
		put(t, store, name, "content")
		wantContent(t, store, name, "content")
	}
}

func (s *suite) cutDownload(t *testing.T) {
	store, p := s.proxied(t)
	content := strings.Repeat("0123456789abcdef", 1<<18) // 4 MiB
	put(t, store, "a", content)
	p.set(func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
		if r.Method == http.MethodGet && n%3 != 0 {
			forward.ServeHTTP(&cut{w, 1000 * 1000}, r)
			return true
		}
		return false
	})
	wantContent(t, store, "a", content)
	r, err := store.Get(t.Context(), "a", 12345, 3<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != content[12345:12345+3<<20] {
		t.Errorf("a range came as %d bytes, %v", len(b), err)
	}
	if n := p.requests(http.MethodGet); n < 6 {
		t.Errorf("only %d GET requests; nothing was cut", n)
	}
}

func (s *suite) deadDownload(t *testing.T) {
	store, p := s.proxied(t)
	put(t, store, "a", strings.Repeat("x", 1<<20))
	p.set(func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
		if n > 1 {
			drop()
		}
		forward.ServeHTTP(&cut{w, 1000}, r)
		return true
	})
	b, err := storage.ReadAll(t.Context(), store, "a", 2<<20)
	if err == nil {
		t.Fatalf("%d of %d bytes were taken for all", len(b), 1<<20)
	}
	s.wantErr(t, "get", err, storage.ErrUnreachable)
}

func (s *suite) cutListing(t *testing.T) {
	store, p := s.proxied(t)
	want := ""
	for i := range 9 {
		name := fmt.Sprintf("a/%d", i)
		put(t, store, name, "")
		want += name + " "
	}
	p.set(func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
		if n%3 == 1 {
			forward.ServeHTTP(&cut{w, 500}, r)
			return true
		}
		q := r.URL.Query()
		return n%3 == 2 && q.Get("start-after") == "" && func() bool { drop(); return true }()
	})
	got := ""
	for info, err := range store.List(t.Context(), "a/") {
		if err != nil {
			t.Fatal(err)
		}
		got += info.Name + " "
	}
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// corrupted: one bit flips between us and the server, which must notice.
func (s *suite) corrupted(t *testing.T) {
	store, p := s.proxied(t)
	p.set(func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
		if r.Method == http.MethodPut {
			b, _ := io.ReadAll(r.Body)
			b[len(b)/2] ^= 1
			r.Body = io.NopCloser(bytes.NewReader(b))
		}
		return false
	})
	err := store.Put(t.Context(), "a", strings.NewReader("some content"), 12)
	s.wantErr(t, "put", err, storage.ErrDamaged)
	err = store.Put(t.Context(), "a", bytes.NewReader(large()), 10<<20+1)
	s.wantErr(t, "put", err, storage.ErrDamaged)
	p.set(nil)
	_, err = store.Get(t.Context(), "a", 0, -1)
	s.wantErr(t, "get", err, storage.ErrNotExist)
}

func (s *suite) answers(t *testing.T) {
	store, p := s.proxied(t)
	for _, c := range []struct {
		answer remote.Answer
		want   error
	}{
		{remote.Answer{Status: 507, Code: "XMinioStorageFull", Message: "Storage backend has reached its minimum free drive threshold."}, storage.ErrFull},
		{remote.Answer{Status: 507}, storage.ErrFull},
		{remote.Answer{Status: 403, Code: "AccessDenied", Message: "Access Denied."}, storage.ErrDenied},
		{remote.Answer{Status: 403}, storage.ErrDenied},
		{remote.Answer{Status: 404, Code: "NoSuchBucket", Message: "The specified bucket does not exist"}, storage.ErrNoBucket},
		{remote.Answer{Status: 404, Code: "XAdminUserNotFound", Message: "User not found."}, storage.ErrCredentials},
		{remote.Answer{Status: 403, Code: "InvalidAccessKeyId", Message: "The Access Key Id you provided does not exist in our records."}, storage.ErrCredentials},
		{remote.Answer{Status: 400, Code: "ExpiredToken", Message: "The provided token has expired."}, storage.ErrCredentials},
		{remote.Answer{Status: 403, Code: "RequestTimeTooSkewed", Message: "The difference between the request time and the server's time is too large."}, storage.ErrClock},
		{remote.Answer{Status: 301, Code: "PermanentRedirect", Message: "The bucket you are attempting to access must be addressed using the specified endpoint."}, storage.ErrRegion},
		{remote.Answer{Status: 400, Code: "AuthorizationHeaderMalformed", Message: "The authorization header is malformed;\nthe region is wrong; expecting 'eu-west-1'."}, storage.ErrRegion},
		{remote.Answer{Status: 503, Code: "SlowDown", Message: "Please reduce your request rate."}, storage.ErrUnreachable},
		{remote.Answer{Status: 500}, storage.ErrUnreachable},
		{remote.Answer{Status: 400}, storage.ErrAnswer},
		{remote.Answer{Status: 405}, storage.ErrAnswer},
		{remote.Answer{Status: 405, Code: "MethodNotAllowed", Message: "The specified method is not allowed against this resource."}, storage.ErrRefused},
		{remote.Answer{Status: 501, Code: "NotImplemented", Message: "A header you provided implies functionality that is not implemented."}, storage.ErrRefused},
	} {
		t.Run(fmt.Sprintf("%d%s", c.answer.Status, c.answer.Code), func(t *testing.T) {
			p.set(func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
				io.Copy(io.Discard, r.Body)
				answer(w, c.answer)
				return true
			})
			s.wantEvery(t, store, c.want)
		})
	}
	t.Run("404", func(t *testing.T) {
		p.set(func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
			answer(w, remote.Answer{Status: 404})
			return true
		})
		errs := every(t.Context(), store)
		s.wantErr(t, "get", errs["get"], storage.ErrNotExist)
		s.wantErr(t, "put", errs["put"], storage.ErrNoBucket)
		s.wantErr(t, "list", errs["list"], storage.ErrNoBucket)
		if errs["delete"] != nil {
			t.Errorf("delete: %v", errs["delete"])
		}
	})
	t.Run("Locked", func(t *testing.T) { s.lockedAnswers(t, store, p) })
}

func (s *suite) lockedAnswers(t *testing.T, store storage.Store, p *proxy) {
	for _, a := range []remote.Answer{
		{Status: 400, Code: "InvalidRequest", Message: "Object is WORM protected and cannot be overwritten"},
		{Status: 403, Code: "AccessDenied", Message: "Access Denied because object protected by object lock."},
	} {
		p.set(func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
			if r.Method == http.MethodHead {
				w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
				w.Header().Set("Content-Length", "1")
				w.Header().Set("ETag", `"x"`)
				return true
			}
			answer(w, a)
			return true
		})
		s.wantErr(t, "delete", store.Delete(t.Context(), "a"), storage.ErrLocked)
	}
}

func (s *suite) bucketMissing(t *testing.T) {
	place := s.place(t)
	place.Bucket = "no-such-bucket"
	s.wantEvery(t, s.driver(t, place), storage.ErrNoBucket)
}

func (s *suite) credentialsWrong(t *testing.T) {
	for name, keys := range map[string]storage.Keys{
		"secret":  storage.NewKeys(s.server.AccessKey, "wrong-"+s.server.SecretKey[:8], ""),
		"key":     storage.NewKeys("nobody", s.server.SecretKey, ""),
		"session": storage.NewKeys(s.server.AccessKey, s.server.SecretKey, "no such session"),
	} {
		t.Run(name, func(t *testing.T) {
			place := s.place(t)
			place.Keys = keys
			store := s.driver(t, place)
			s.wantEvery(t, store, storage.ErrCredentials)
			s.wantEvery(t, store, storage.ErrDenied) // which it is too
		})
	}
}

func (s *suite) unreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	for name, change := range map[string]func(*Place){
		"Refused":     func(p *Place) { p.Host = closed },
		"NoSuchHost":  func(p *Place) { p.Host = "store.invalid:9000" },
		"TLSToNonTLS": func(p *Place) { p.TLS = true },
	} {
		t.Run(name, func(t *testing.T) {
			place := s.place(t)
			change(&place)
			s.wantEvery(t, s.driver(t, place), storage.ErrUnreachable)
		})
	}
}

// certificatesWrong: certificates of an authority that is trusted, and that are
// of no use all the same.
func (s *suite) certificatesWrong(t *testing.T) {
	authority := pinned.NewAuthority(t)
	for name, names := range map[string][]string{"expired": {"127.0.0.1"}, "of another host": {"store.example"}} {
		notAfter := time.Now().Add(time.Hour)
		if name == "expired" {
			notAfter = time.Now().Add(-time.Hour)
		}
		pair, err := tls.LoadX509KeyPair(authority.Issue(t.TempDir(), notAfter, names...))
		if err != nil {
			t.Fatal(err)
		}
		secure := httptest.NewUnstartedServer(newProxy(t, s.server.Host()).Config.Handler)
		secure.Config.ErrorLog = log.New(io.Discard, "", 0)
		secure.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
		secure.StartTLS()
		t.Cleanup(secure.Close)
		place := s.place(t)
		place.Host, place.TLS, place.CA = strings.TrimPrefix(secure.URL, "https://"), true, authority.File()
		s.wantEvery(t, s.driver(t, place), storage.ErrTLS)
	}
}

func (s *suite) regionWrong(t *testing.T) {
	place := s.place(t)
	place.Region = "eu-west-1"
	s.wantEvery(t, s.driver(t, place), storage.ErrRegion)
}

func (s *suite) locked(t *testing.T) {
	s.server.CreateLockedBucket("locked")
	place := s.place(t)
	place.Bucket = "locked"
	store := s.driver(t, place)
	put(t, store, "a", "kept")
	s.wantErr(t, "delete", store.Delete(t.Context(), "a"), storage.ErrLocked)
	wantContent(t, store, "a", "kept")
	err := store.Put(t.Context(), "a", strings.NewReader("other"), 5)
	s.wantErr(t, "put", err, storage.ErrExist)
}

func (s *suite) versions(t *testing.T) {
	s.server.CreateVersionedBucket("versioned")
	place := s.place(t)
	place.Bucket = "versioned"
	store := s.driver(t, place)
	put(t, store, "a", "first")
	// Another program overwrites it, so that there are two versions.
	key := place.Prefix + "/a"
	if _, err := s.server.Client().PutObject(t.Context(), "versioned", key, strings.NewReader("second"), 6, client.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := store.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	for o := range s.server.Client().ListObjects(t.Context(), "versioned", client.ListObjectsOptions{Prefix: key, Recursive: true, WithVersions: true}) {
		t.Errorf("a version is left: %s %s, marker %v, %v", o.Key, o.VersionID, o.IsDeleteMarker, o.Err)
	}
	if err := store.Delete(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

func (s *suite) cancelWhileWaiting(t *testing.T) {
	place := s.place(t)
	p := newProxy(t, s.server.Host())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p.set(func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
		answer(w, remote.Answer{Status: 503})
		time.AfterFunc(10*time.Millisecond, cancel)
		return true
	})
	place.Host, place.Options.Retry = p.host(), remote.Retry{Attempts: 100, Pause: time.Hour}
	err := s.driver(t, place).Put(ctx, "a", strings.NewReader("x"), 1)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func (s *suite) outage(t *testing.T) {
	place := s.place(t)
	place.Options.Attempts = 2
	store := s.driver(t, place)
	put(t, store, "a", "before")
	s.server.Stop()
	s.wantEvery(t, store, storage.ErrUnreachable)
	s.server.Restart()
	wantContent(t, store, "a", "before")
	put(t, store, "b", "after")
}
