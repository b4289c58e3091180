package remotetest

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/storage"
)

// says answers every request with a status and a page, as a console, a portal or a
// proxy does in place of a store.
func says(status int, contentType, page string) rule {
	return func(w http.ResponseWriter, r *http.Request, _ int, _ http.Handler) bool {
		io.Copy(io.Discard, r.Body)
		if w.Header().Set("Content-Type", contentType); contentType == "" {
			w.Header()["Content-Type"] = nil
		}
		w.WriteHeader(status)
		io.WriteString(w, page)
		return true
	}
}

// notOfS3: somebody says yes to everything and is no S3 server. Nothing was stored,
// so nothing must be taken for stored, and no listing for an empty one.
func (s *suite) notOfS3(t *testing.T) {
	store, p := s.proxied(t)
	for name, answer := range map[string]rule{
		"page":        says(200, "text/html; charset=utf-8", "<!doctype html><html><title>Console</title></html>"),
		"XHTML":       says(200, "application/xhtml+xml", `<?xml version="1.0"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml"></html>`),
		"HTML as XML": says(200, "application/xml", "<html></html>"),
		"empty XML":   says(200, "application/xml", ""),
		"nothing":     says(200, "text/plain", ""),
		"no type":     says(200, "", "ok"),
		"JSON":        says(200, "application/json", `{"ok":true}`),
		"created":     says(201, "text/html", "<html></html>"),
		"no answer":   says(204, "", ""),
	} {
		t.Run(name, func(t *testing.T) {
			p.set(answer)
			s.wantEvery(t, store, storage.ErrAnswer)
			err := store.Put(t.Context(), "large", bytes.NewReader(large()), 10<<20+1)
			s.wantErr(t, "put", err, storage.ErrAnswer)
		})
	}
}

// redirects: each kind is an error that says where to; a request that followed one
// would carry its signature there.
func (s *suite) redirects(t *testing.T) {
	store, p := s.proxied(t)
	for _, status := range []int{301, 302, 303, 307, 308} {
		p.set(func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
			w.Header().Set("Location", "https://user:secret@login.example/start?token=secret#secret")
			return says(status, "text/html", "<html>please log in</html>")(w, r, n, forward)
		})
		for method, err := range every(t.Context(), store) {
			s.wantErr(t, method, err, storage.ErrRedirect)
			if !strings.Contains(err.Error(), "https://login.example/start") || strings.Contains(err.Error(), "secret") {
				t.Errorf("%d: it does not say where to, or too much: %v", status, err)
			}
		}
	}
	p.set(func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool { // as Amazon says it
		w.Header().Set("X-Amz-Bucket-Region", "eu-west-1")
		return says(301, "application/xml", "<Error><Code>PermanentRedirect</Code><Message>The bucket must be addressed using the specified endpoint.</Message></Error>")(w, r, n, forward)
	})
	for method, err := range every(t.Context(), store) {
		s.wantErr(t, method, err, storage.ErrRegion)
		if !strings.Contains(err.Error(), "it is in eu-west-1") {
			t.Errorf("%s does not name the region: %v", method, err)
		}
	}
}
