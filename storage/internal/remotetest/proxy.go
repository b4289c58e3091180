// Package remotetest tests what the S3 drivers do when server and network
// misbehave: with a real MinIO, and a proxy before it that loses answers, cuts
// bodies and speaks for servers that refuse.
package remotetest

import (
	"encoding/xml"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"sync"
	"testing"

	"github.com/hsmbackup/hsmbackup/storage/internal/remote"
)

// proxy stands between a driver and the server.
type proxy struct {
	*httptest.Server
	mu    sync.Mutex
	rule  rule
	calls []string // METHOD PATH, in order
}

// rule answers a request itself and returns true, or returns false to have it
// forwarded unchanged. n counts the requests of this method from 1.
type rule func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool

func newProxy(t *testing.T, host string) *proxy {
	t.Helper()
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", host
			r.Out.Host = r.In.Host // it is signed
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	p := &proxy{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if rule, n := p.count(r); rule == nil || !rule(w, r, n, forward) {
			forward.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *proxy) count(r *http.Request) (rule, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, r.Method+" "+r.URL.Path)
	n := 0
	for _, c := range p.calls {
		if strings.HasPrefix(c, r.Method+" ") {
			n++
		}
	}
	return p.rule, n
}

func (p *proxy) host() string { return strings.TrimPrefix(p.URL, "http://") }

// set replaces the rule and forgets the calls.
func (p *proxy) set(r rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rule, p.calls = r, nil
}

// count of the requests of one method since set.
func (p *proxy) requests(method string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.calls {
		if strings.HasPrefix(c, method+" ") {
			n++
		}
	}
	return n
}

// drop ends the connection without an answer.
func drop() { panic(http.ErrAbortHandler) }

// answer writes an S3 error.
func answer(w http.ResponseWriter, a remote.Answer) {
	w.Header().Set("Content-Type", "application/xml")
	if a.Status == 301 {
		w.Header().Set("Location", "http://elsewhere.invalid/")
	}
	w.WriteHeader(a.Status)
	type body struct {
		XMLName       xml.Name `xml:"Error"`
		Code, Message string
	}
	if a.Code != "" {
		xml.NewEncoder(w).Encode(body{Code: a.Code, Message: a.Message})
	}
}

// cut lets the first so many bytes of a body through.
type cut struct {
	http.ResponseWriter
	left int
}

func (c *cut) Write(p []byte) (int, error) {
	if len(p) > c.left {
		c.ResponseWriter.Write(p[:c.left])
		http.NewResponseController(c.ResponseWriter).Flush()
		drop()
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

func (c *cut) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// discard takes an answer and loses it.
type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}
