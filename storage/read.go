package storage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
)

// ReadAll returns the whole object. It refuses an object of more than limit
// bytes with ErrTooLarge, having read no more than limit+1 bytes.
func ReadAll(ctx context.Context, s Store, name string, limit int64) ([]byte, error) {
	r, err := s.Get(ctx, name, 0, limit+1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, r); err != nil {
		return nil, err
	}
	if int64(b.Len()) > limit {
		return nil, fmt.Errorf("read %s: %w: more than %d bytes", name, ErrTooLarge, limit)
	}
	return b.Bytes(), nil
}

// CheckBody rewinds body and returns nil if it holds exactly size bytes, ErrSize
// otherwise. Drivers call it before they send anything.
func CheckBody(body io.ReadSeeker, size int64) error {
	n, err := body.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("seek in the body: %w", err)
	}
	if n != size {
		return fmt.Errorf("%w: %d bytes announced, the body holds %d", ErrSize, size, n)
	}
	_, err = body.Seek(0, io.SeekStart)
	return err
}

// Hashed is a body whose SHA-256 is known already. A driver that sends the hash with
// the body need not read it once more for that; a server that checks it refuses a wrong one.
type Hashed interface {
	io.ReadSeeker
	SHA256() [sha256.Size]byte
}

// NewHashed returns b as a body with its hash.
func NewHashed(b []byte, sum [sha256.Size]byte) Hashed { return &hashed{bytes.NewReader(b), sum} }

type hashed struct {
	*bytes.Reader
	sum [sha256.Size]byte
}

func (h *hashed) SHA256() [sha256.Size]byte { return h.sum }
