package integration

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path"
	"strings"
	"sync"
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/miniotest"
)

// faultyStore stands before a MinIO server and may do something before
// it passes a request on.
type faultyStore struct {
	*httptest.Server
	pass   http.Handler // to the server
	mu     sync.Mutex
	before func(w http.ResponseWriter, r *http.Request) (answered bool)
}

func newFaultyStore(t *testing.T, s *miniotest.Server) *faultyStore {
	t.Helper()
	target, err := url.Parse(s.Endpoint())
	must(t, err)
	// The host of the request stays, because the client has signed it.
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host
	}, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }}
	f := &faultyStore{pass: proxy}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if before := f.fault(); before == nil || !before(w, r) {
			f.pass.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *faultyStore) fault() func(http.ResponseWriter, *http.Request) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.before
}

// set sets the fault from now on; before tells whether it has answered itself.
func (f *faultyStore) set(before func(w http.ResponseWriter, r *http.Request) (answered bool)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = before
}

// location returns the LOCATION of a bucket and prefix behind the faults.
func (f *faultyStore) location(bucketAndPrefix string) string {
	return "minio://" + strings.TrimPrefix(f.URL, "http://") + "/" + bucketAndPrefix + "?tls=false"
}

func TestStoresThatFail(t *testing.T) {
	t.Parallel()
	minio := miniotest.Start(t)
	minio.CreateBucket("backups")
	b := newBackedUp(t, newMachine(t))
	good := b.nobody().with(minio.Env()...)

	for name, location := range map[string]func(string) string{"minio": minio.MinioLocation, "s3": minio.S3Location} {
		t.Run(name+" works", func(t *testing.T) {
			good.ok(t, "snapshot", "--to", location("backups/"+name))
			good.ok(t, "snapshots", "verify", location("backups/"+name), "--level", "use", "--identity", b.identity)
			good.ok(t, b.restore(location("backups/"+name), "west-"+name)...)
		})
		t.Run(name+" has no such bucket", func(t *testing.T) {
			good.refused(t, 1, "storage", "snapshot", "--to", location("nowhere/x"))
			good.refused(t, 1, "storage", b.restore(location("nowhere/x"), "west")...)
			good.refused(t, 1, "storage", "snapshots", location("nowhere/x"))
		})
		t.Run(name+" refuses the key", func(t *testing.T) {
			bad := good.with("MINIO_SECRET_KEY=wrong-secret", "AWS_SECRET_ACCESS_KEY=wrong-secret")
			line := bad.refused(t, 1, "storage", "snapshot", "--to", location("backups/x"))
			bad.refused(t, 1, "storage", b.restore(location("backups/"+name), "west")...)
			if strings.Contains(line, "wrong-secret") {
				t.Errorf("the error shows the secret: %s", line)
			}
			unknown := good.with("MINIO_ACCESS_KEY=unknown-user", "AWS_ACCESS_KEY_ID=unknown-user")
			unknown.refused(t, 1, "storage", "snapshot", "--to", location("backups/x"))
		})
	}
	t.Run("no keys at all", func(t *testing.T) {
		b.nobody().refused(t, 1, "storage", "snapshot", "--to", minio.MinioLocation("backups/x"))
	})
	t.Run("locations that are none", func(t *testing.T) {
		for _, location := range []string{"ftp://host/x", "minio://host:9000", "s3://"} {
			r := good.run(t, "snapshots", location)
			if r.code != 1 && r.code != 2 {
				t.Errorf("%s: exit code %d: %v", location, r.code, r)
			}
		}
	})
	t.Run("the store is full", func(t *testing.T) {
		full := newFaultyStore(t, minio)
		full.set(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut {
				return false
			}
			w.WriteHeader(http.StatusInsufficientStorage)
			w.Write([]byte(`<?xml version="1.0" encoding="UTF-8"?><Error><Code>XMinioStorageFull</Code><Message>Storage backend has reached its minimum free drive threshold.</Message></Error>`))
			return true
		})
		line := good.refused(t, 1, "storage", "snapshot", "--to", full.location("backups/full"))
		if !strings.Contains(line, "full") {
			t.Errorf("the error does not say so: %s", line)
		}
		full.set(nil)
		good.ok(t, "snapshot", "--to", full.location("backups/full"))
	})
	t.Run("somebody else answers, and says yes to everything", func(t *testing.T) {
		portal := newFaultyStore(t, minio)
		portal.set(func(w http.ResponseWriter, r *http.Request) bool {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, "<!doctype html><html>welcome</html>")
			return true
		})
		for _, location := range []string{portal.location("backups/x"), "s3://backups/x?endpoint=" + portal.URL} {
			wantLine(t, good.refused(t, 1, "storage", "snapshot", "--to", location), "no answer of an S3 server")
			good.refused(t, 1, "storage", "snapshots", location)
			good.refused(t, 1, "storage", b.restore(location, "west")...)
		}
	})
	t.Run("a restore reads each manifest once", func(t *testing.T) {
		counted := newFaultyStore(t, minio)
		from := counted.location("backups/counted")
		good.ok(t, "snapshot", "--to", from)
		good.ok(t, "snapshot", "--to", from, "--full")
		var mu sync.Mutex
		reads := map[string]int{}
		counted.set(func(_ http.ResponseWriter, r *http.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			reads[path.Base(r.URL.Path)]++
			return false
		})
		good.ok(t, append(b.restore(from, "west"), "--plan")...)
		if reads["0000000001"] != 1 || reads["0000000002"] > 2 { // the newest once more, as it is opened
			t.Errorf("manifests were read %v times", reads)
		}
	})
	t.Run("the store is down", func(t *testing.T) {
		minio.Stop()
		r := good.run(t, "snapshot", "--to", minio.MinioLocation("backups/minio"))
		if r.code != 1 || !strings.Contains(r.stderr, "\nhint: ") {
			t.Errorf("exit code %d: %v", r.code, r)
		}
		minio.Restart()
		good.ok(t, "snapshot", "--to", minio.MinioLocation("backups/minio"))
	})
}
