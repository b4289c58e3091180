package remotetest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/storage"
)

// skewed: what the server answers to a clock that is an hour late is passed to
// the drivers, since a test cannot turn the clock of its machine.
func (s *suite) skewed(t *testing.T) {
	status, header, body := s.askLate(t, time.Hour)
	t.Logf("the server answers %d: %s", status, body)
	store, p := s.proxied(t)
	p.set(func(w http.ResponseWriter, r *http.Request, n int, forward http.Handler) bool {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", header.Get("Content-Type"))
		w.Header().Set("Date", header.Get("Date"))
		w.WriteHeader(status)
		w.Write(body)
		return true
	})
	s.wantEvery(t, store, storage.ErrClock)
}

// askLate sends a listing that was signed late ago and returns the answer.
func (s *suite) askLate(t *testing.T, late time.Duration) (int, http.Header, []byte) {
	t.Helper()
	at := time.Now().UTC().Add(-late)
	stamp, day := at.Format("20060102T150405Z"), at.Format("20060102")
	empty := hexOf(sha256.New().Sum(nil))
	const signed = "host;x-amz-content-sha256;x-amz-date"
	canonical := fmt.Sprintf("GET\n/%s\nlist-type=2\nhost:%s\nx-amz-content-sha256:%s\nx-amz-date:%s\n\n%s\n%s", bucketName, s.server.Host(), empty, stamp, signed, empty)
	hash := sha256.Sum256([]byte(canonical))
	scope := day + "/us-east-1/s3/aws4_request"
	key := []byte("AWS4" + s.server.SecretKey)
	for _, part := range []string{day, "us-east-1", "s3", "aws4_request", "AWS4-HMAC-SHA256\n" + stamp + "\n" + scope + "\n" + hexOf(hash[:])} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.server.Endpoint()+"/"+bucketName+"?list-type=2", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Amz-Date", stamp)
	r.Header.Set("X-Amz-Content-Sha256", empty)
	r.Header.Set("Authorization", fmt.Sprintf("AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s", s.server.AccessKey, scope, signed, hexOf(key)))
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, body
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }
