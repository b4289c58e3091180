package remote

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/storage"
)

// Parts says which bodies go in parts, and how. Of an upload in parts nothing is
// visible until its last step, which is conditional as a plain put is.
type Parts struct {
	From    int64         // bodies larger than this
	Size    int64         // of a part; S3 wants 5 MiB at least
	Workers int           // parts at a time
	Stale   time.Duration // an unfinished upload this old was left behind
}

// DefaultParts keeps packs of the default size in one request: parts are worth
// their three further requests only when a lost connection would cost more.
var DefaultParts = Parts{From: 32 << 20, Size: 16 << 20, Workers: 4, Stale: 24 * time.Hour}

// maxParts is S3's limit.
const maxParts = 10000

// Part is one part that the server has taken.
type Part struct {
	Number int // from 1
	ETag   string
	SHA256 [sha256.Size]byte
}

// Upload is an unfinished upload in parts.
type Upload struct {
	Key     string
	ID      string
	Started time.Time
}

// errUploadGone: the server knows no upload of this id, since it was completed
// or aborted.
var errUploadGone = errors.New("the unfinished upload is gone from the store")

// size returns the size of the parts of a body.
func (p Parts) size(body int64) int64 { return max(p.Size, (body+maxParts-1)/maxParts) }

// putParts uploads a body in parts. What holds if we die: before the last step
// nothing is visible, and the unfinished upload is aborted by a later putParts
// (cleanUp) or by the store's own rules; after it, the object is there whole.
func (s *Store) putParts(ctx context.Context, key string, body io.ReadSeeker, content Content) error {
	s.clean.Do(func() { s.cleanUp(ctx) })
	if _, err := s.bucket.Head(ctx, key); err == nil { // before all of it is sent; the last step is the judge
		return storage.ErrExist
	}
	for attempt := 1; ; attempt++ {
		err := s.uploadOnce(ctx, key, body, content)
		// Somebody tidied up a running upload: what was sent is lost.
		if !errors.Is(err, errUploadGone) || attempt >= s.options.Attempts {
			return err
		}
	}
}

func (s *Store) uploadOnce(ctx context.Context, key string, body io.ReadSeeker, content Content) error {
	var id string
	err := s.attempt(ctx, func(int) (err error) {
		id, err = s.bucket.StartUpload(ctx, key, content)
		return err
	})
	if err != nil {
		return err
	}
	parts, err := s.sendParts(ctx, key, id, body, content)
	if err == nil {
		err = s.complete(ctx, key, id, parts, content)
	}
	if err != nil && !errors.Is(err, errUploadGone) {
		s.abort(ctx, key, id)
	}
	return err
}

// sendParts sends all parts, several at a time if the body can be read so. When one
// fails no more are begun, and those on their way are waited for: a store that still
// works on a part while the upload is aborted may keep what is left of it.
func (s *Store) sendParts(ctx context.Context, key, id string, body io.ReadSeeker, content Content) ([]Part, error) {
	parts := make([]Part, len(content.Parts))
	workers := s.options.Workers
	at, ok := body.(io.ReaderAt)
	if !ok {
		workers = 1
	}
	failed, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(workers, len(parts)) {
		wg.Go(func() {
			for i := range next {
				offset := int64(i) * content.PartSize
				n := min(content.PartSize, content.Size-offset)
				var section io.ReadSeeker = &seekSection{body: body, offset: offset, size: n}
				if ok {
					section = io.NewSectionReader(at, offset, n)
				}
				part, err := s.sendPart(ctx, key, id, section, Part{Number: i + 1, SHA256: content.Parts[i]}, n)
				if err != nil {
					cancel(err)
				}
				parts[i] = part
			}
		})
	}
	for i := range parts {
		select {
		case next <- i:
			continue
		case <-failed.Done():
		}
		break
	}
	close(next)
	wg.Wait()
	return parts, context.Cause(failed)
}

func (s *Store) sendPart(ctx context.Context, key, id string, section io.ReadSeeker, part Part, size int64) (Part, error) {
	err := s.attempt(ctx, func(int) error {
		b := &attemptBody{body: section}
		defer b.detach()
		if _, err := b.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("rewind the body: %w", err)
		}
		etag, err := s.bucket.SendPart(ctx, key, id, b, part, size)
		part.ETag = etag
		return s.uploadError(err)
	})
	return part, err
}

// complete makes the object of the parts, unless the name is taken. A repeated
// step that finds the upload gone or the name taken looks whose object is there:
// an answer may have been lost.
func (s *Store) complete(ctx context.Context, key, id string, parts []Part, content Content) error {
	return s.attempt(ctx, func(attempt int) error {
		err := s.uploadError(s.bucket.CompleteUpload(ctx, key, id, parts))
		gone := errors.Is(err, errUploadGone)
		if !gone && (attempt == 0 || s.cause(err).kind != storage.ErrExist) {
			return err
		}
		err = s.settle(ctx, key, content.PutID)
		if gone && errors.Is(err, errNothing) {
			return errUploadGone
		}
		return err
	})
}

// uploadError recognises the answer that there is no such upload, which is not
// the absence of a bucket or an object.
func (s *Store) uploadError(err error) error {
	if a, ok := s.explain(err); ok && a.Code == "NoSuchUpload" {
		return errUploadGone
	}
	return err
}

// abortWithin bounds the courtesy of tidying up after a failure.
const abortWithin = 10 * time.Second

// abort frees what an upload holds in the store. It is a courtesy: a failure has
// been reported already, and what stays is invisible and aborted later.
func (s *Store) abort(ctx context.Context, key, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortWithin)
	defer cancel()
	s.attempt(ctx, func(int) error { return s.bucket.AbortUpload(ctx, key, id) })
}

// cleanUp aborts the uploads below our prefix that crashed writers left behind,
// where the server lists them and the credentials may.
func (s *Store) cleanUp(ctx context.Context) {
	for u, err := range s.bucket.Uploads(ctx, s.prefix) {
		if err != nil {
			return
		}
		if time.Since(u.Started) > s.options.Stale {
			s.bucket.AbortUpload(ctx, u.Key, u.ID)
		}
	}
}

// seekSection reads one section of a body that can only seek.
type seekSection struct {
	body         io.ReadSeeker
	offset, size int64
	at           int64
}

func (r *seekSection) Read(p []byte) (int, error) {
	left := r.size - r.at
	if left <= 0 {
		return 0, io.EOF
	}
	if _, err := r.body.Seek(r.offset+r.at, io.SeekStart); err != nil {
		return 0, err
	}
	n, err := r.body.Read(p[:min(int64(len(p)), left)])
	r.at += int64(n)
	if err == io.EOF && r.at < r.size {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (r *seekSection) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d", offset)
	}
	r.at = offset
	return offset, nil
}
