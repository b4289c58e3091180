package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hsmbackup/hsmbackup/storage"
)

var errDetached = errors.New("the attempt that read this body is over")

// attemptBody lends a body to one attempt. It hides every method but Read and
// Seek (a library must not close the caller's body), and after detach it touches
// the body no more.
type attemptBody struct {
	mu   sync.Mutex
	body io.ReadSeeker // nil once detached
}

func (b *attemptBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.body == nil {
		return 0, errDetached
	}
	return b.body.Read(p)
}

func (b *attemptBody) Seek(offset int64, whence int) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.body == nil {
		return 0, errDetached
	}
	return b.body.Seek(offset, whence)
}

func (b *attemptBody) detach() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.body = nil
}

// resumed reads a range of an object and opens it again where the connection
// broke off. Not safe for concurrent use, as usual for readers.
type resumed struct {
	ctx    context.Context
	store  *Store
	name   string
	offset int64 // of the next byte
	last   int64 // inclusive; -1 is the end
	body   io.ReadCloser
	broken int // times in a row without a byte
}

// open opens the rest of the range. A server refuses a range that begins at or
// beyond the end; for us that is an empty range.
func (r *resumed) open() error {
	return r.store.attempt(r.ctx, func(int) error {
		body, err := r.store.bucket.Open(r.ctx, r.store.prefix+r.name, r.offset, r.last)
		if a, ok := r.store.explain(err); ok && a.Status == 416 {
			body, err = io.NopCloser(eof{}), nil
		}
		r.body = body
		return err
	})
}

func (r *resumed) Read(p []byte) (int, error) {
	if r.last >= 0 && r.offset > r.last {
		return 0, io.EOF
	}
	n, err := r.body.Read(p)
	r.offset += int64(n)
	if n > 0 {
		r.broken = 0
	}
	if err == nil || err == io.EOF {
		return n, err
	}
	if err := r.mend(err); err != nil {
		return n, r.store.wrap("get", r.name, err)
	}
	return n, nil
}

// mend opens the body again if err is one of the network.
func (r *resumed) mend(err error) error {
	if r.ctx.Err() != nil {
		return r.ctx.Err()
	}
	r.broken++
	if !r.store.cause(err).again || r.broken >= r.store.options.Attempts {
		return err
	}
	r.body.Close()
	if err := r.open(); err != nil {
		r.body = io.NopCloser(failed{err})
		return fmt.Errorf("resume at byte %d: %w", r.offset, err)
	}
	return nil
}

// Close ends the download.
func (r *resumed) Close() error { return r.body.Close() }

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

type failed struct{ err error }

func (f failed) Read([]byte) (int, error) { return 0, f.err }

var _ storage.Store = (*Store)(nil)
