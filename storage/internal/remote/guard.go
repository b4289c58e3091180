package remote

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"time"
)

// errSpeaksTLS is what a plain connection to a TLS port comes to. Servers answer
// it with a reset, an end, or a line of text, none of which says it.
var errSpeaksTLS = errors.New("the server speaks TLS, and the location says that it does not")

// Guard makes an HTTP transport tell a plain request to a TLS port from an outage,
// and the answers of an S3 server from those of another.
func Guard(t *http.Transport) http.RoundTripper { return &guard{t} }

type guard struct{ *http.Transport }

func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := g.plain(r)
	if err != nil {
		return resp, err
	}
	if err := strange(r, resp); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

func (g *guard) plain(r *http.Request) (*http.Response, error) {
	resp, err := g.Transport.RoundTrip(r)
	if r.URL.Scheme != "http" || g.Proxy != nil && proxied(g.Transport, r) {
		return resp, err
	}
	switch {
	case err != nil && r.Context().Err() == nil && g.speaksTLS(r.Context(), r.URL.Host):
		return nil, errSpeaksTLS
	case err == nil && resp.StatusCode == http.StatusBadRequest && saysTLS(resp):
		resp.Body.Close()
		return nil, errSpeaksTLS
	}
	return resp, err
}

func proxied(t *http.Transport, r *http.Request) bool {
	u, err := t.Proxy(r)
	return err != nil || u != nil
}

// speaksTLS asks for a handshake, whoever's certificate comes.
func (g *guard) speaksTLS(ctx context.Context, host string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(host, "80")
	}
	conn, err := g.DialContext(ctx, "tcp", host)
	if err != nil {
		return false
	}
	defer conn.Close()
	// Nothing is sent over this connection; it only tells what is spoken there.
	return tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx) == nil
}

// saysTLS recognises the words of Go's HTTP server, and leaves the body readable.
func saysTLS(resp *http.Response) bool {
	b := bufio.NewReader(resp.Body)
	start, _ := b.Peek(64)
	resp.Body = struct {
		io.Reader
		io.Closer
	}{b, resp.Body}
	return bytes.Contains(start, []byte("HTTP request to an HTTPS server"))
}
