package storage

import (
	"bytes"
	"context"
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
