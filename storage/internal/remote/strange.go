package remote

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// A web server, the console of an S3 server, a proxy or a portal may answer in
// place of the store, and say yes to everything: a snapshot that such an answer
// acknowledged is nowhere. So a yes counts only if it carries what S3 says with it:
// the ETag of the object, or XML.

// errNoS3 is a yes that no S3 server gave.
var errNoS3 = errors.New("neither an ETag nor XML came with it")

// redirected is a redirect that no S3 server gave, or one that does not say why.
type redirected struct {
	status int
	to     string // without user, query and fragment; may be empty
}

func (r *redirected) Error() string {
	if r.to == "" {
		return fmt.Sprintf("HTTP %d", r.status)
	}
	return fmt.Sprintf("HTTP %d to %s", r.status, r.to)
}

// strange returns what is wrong with an answer that did not come from S3, nil if
// it may have.
func strange(r *http.Request, resp *http.Response) error {
	switch {
	case resp.StatusCode >= 300 && resp.StatusCode < 400 && resp.StatusCode != http.StatusNotModified:
		if r.Method == http.MethodHead || isXML(resp) { // with words of its own; a HEAD is followed by a GET
			return nil
		}
		return &redirected{resp.StatusCode, withoutSecrets(resp.Header.Get("Location"))}
	case resp.StatusCode >= 200 && resp.StatusCode < 300 && !vouched(r, resp):
		return errNoS3
	}
	return nil
}

// vouched tells whether a yes carries what S3 says with it. Deletions and locks
// carry nothing; they follow on an answer that did.
func vouched(r *http.Request, resp *http.Response) bool {
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodDelete || q.Has("retention") && r.Method == http.MethodPut:
		return true
	case q.Has("list-type") || q.Has("uploads") || q.Has("retention") || r.Method == http.MethodPost:
		return isXML(resp)
	}
	return resp.Header.Get("ETag") != ""
}

// isXML looks at the type of the body and at its beginning, which stays readable. A page
// of HTML may be XML too, and is none of S3.
func isXML(resp *http.Response) bool {
	b := bufio.NewReader(resp.Body)
	start, _ := b.Peek(256)
	resp.Body = struct {
		io.Reader
		io.Closer
	}{b, resp.Body}
	start = bytes.ToLower(bytes.TrimLeft(start, "\ufeff \t\r\n"))
	if bytes.Contains(start, []byte("<html")) || bytes.Contains(start, []byte("<!doctype")) {
		return false
	}
	return bytes.HasPrefix(start, []byte("<?xml")) || strings.Contains(resp.Header.Get("Content-Type"), "xml") && bytes.HasPrefix(start, []byte("<"))
}

func withoutSecrets(location string) string {
	u, err := url.Parse(location)
	if err != nil {
		return ""
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}
