// Package remote makes a storage.Store out of one bucket of an S3 server,
// whatever client library speaks to it. Retries, lost answers, error meanings,
// interrupted downloads and listings are settled here once, so that the drivers
// cannot differ in them.
package remote

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"strings"
	"sync"

	"github.com/hsmbackup/hsmbackup/storage"
)

// PutHeader is the name of the user metadata that carries the identity of a Put.
const PutHeader = "hsmbackup-put"

// Bucket is what a client library must offer: one attempt per call, no retries
// of its own, keys instead of names. Errors are the library's own; Explain reads
// them.
type Bucket interface {
	// Create puts body under key if no object has that key (If-None-Match: *), in
	// one request, with the SHA-256 of the content for the server to verify and
	// the identity as user metadata PutHeader.
	Create(ctx context.Context, key string, body io.ReadSeeker, content Content) error
	// StartUpload begins an upload of key in parts, with the identity as user
	// metadata, and returns its id.
	StartUpload(ctx context.Context, key string, content Content) (id string, err error)
	// SendPart sends one part, with its SHA-256 for the server to verify.
	SendPart(ctx context.Context, key, id string, body io.ReadSeeker, part Part, size int64) (etag string, err error)
	// CompleteUpload makes the object of its parts if no object has that key
	// (If-None-Match: *).
	CompleteUpload(ctx context.Context, key, id string, parts []Part) error
	// AbortUpload frees an unfinished upload.
	AbortUpload(ctx context.Context, key, id string) error
	// Uploads yields the unfinished uploads whose key begins with prefix.
	Uploads(ctx context.Context, prefix string) iter.Seq2[Upload, error]
	// Open reads the bytes offset to last, inclusive; to the end if last < 0.
	Open(ctx context.Context, key string, offset, last int64) (io.ReadCloser, error)
	// Head describes the newest version of key.
	Head(ctx context.Context, key string) (Head, error)
	// Remove deletes one version of key, or the key if version is empty.
	Remove(ctx context.Context, key, version string) error
	// List yields what follows after (exclusive; may be empty) and begins with
	// prefix; Info.Name holds the key.
	List(ctx context.Context, prefix, after string) iter.Seq2[storage.Info, error]
	// Explain returns what the server answered; ok is false if there was no answer.
	Explain(err error) (answer Answer, ok bool)
}

// Content describes what a Put sends.
type Content struct {
	Size     int64
	SHA256   [sha256.Size]byte // of the whole; zero if it goes in parts
	PartSize int64             // 0: in one request
	Parts    [][sha256.Size]byte
	PutID    string
}

// Head is what Bucket.Head tells.
type Head struct {
	Version string // empty if the bucket keeps no versions
	PutID   string // empty if another program wrote the object
}

// Store implements storage.Store over a Bucket.
type Store struct {
	bucket   Bucket
	prefix   string // of keys: "" or ending in a slash
	location string // for messages
	options  Options
	clean    sync.Once
}

// Options say how patiently and in which pieces a Store works.
type Options struct {
	Retry
	Parts
}

// DefaultOptions are those of the drivers.
var DefaultOptions = Options{DefaultRetry, DefaultParts}

// New returns the Store below prefix, which CheckPrefix accepts. The location
// is what messages say and holds no credentials.
func New(bucket Bucket, prefix, location string, options Options) *Store {
	if prefix = strings.Trim(prefix, "/"); prefix != "" {
		prefix += "/"
	}
	return &Store{bucket: bucket, prefix: prefix, location: location, options: options}
}

// CheckPrefix returns nil if the prefix of a location can stand before names.
func CheckPrefix(prefix string) error {
	prefix = strings.Trim(prefix, "/")
	if prefix == "" {
		return nil
	}
	if len(prefix) > storage.MaxName-1 {
		return fmt.Errorf("%w: the prefix is longer than %d bytes", storage.ErrLocation, storage.MaxName-1)
	}
	for segment := range strings.SplitSeq(prefix, "/") {
		odd := strings.ContainsFunc(segment, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' })
		if odd || segment == "" || segment == "." || segment == ".." {
			return fmt.Errorf("%w: the prefix %q has the segment %q", storage.ErrLocation, prefix, segment)
		}
	}
	return nil
}

// String returns the location.
func (s *Store) String() string { return s.location }

// Put implements storage.Store. A retry that finds the name taken asks whose
// object it is: the identity in its metadata is random per Put, so the answer is
// exact even between writers of equal bytes, which a comparison of content could
// not tell apart.
func (s *Store) Put(ctx context.Context, name string, body io.ReadSeeker, size int64) error {
	return s.wrap("put", name, s.put(ctx, name, body, size))
}

func (s *Store) put(ctx context.Context, name string, body io.ReadSeeker, size int64) error {
	if err := precheck(ctx, name); err != nil {
		return err
	}
	content, err := describe(body, size, s.options.Parts)
	if err != nil {
		return err
	}
	key := s.prefix + name
	if content.PartSize > 0 {
		return s.putParts(ctx, key, body, content)
	}
	return s.attempt(ctx, func(attempt int) error {
		if attempt > 0 { // the answer may have been lost: look before sending all of it again
			if err := s.settle(ctx, key, content.PutID); err == nil || err == storage.ErrExist {
				return err
			}
		}
		err := s.create(ctx, key, body, content)
		if attempt > 0 && s.cause(err).kind == storage.ErrExist {
			return s.settle(ctx, key, content.PutID)
		}
		return err
	})
}

// create makes one attempt. The HTTP transport may still read the body after
// the attempt has failed; detaching it keeps that reading away from the next.
func (s *Store) create(ctx context.Context, key string, body io.ReadSeeker, content Content) error {
	b := &attemptBody{body: body}
	defer b.detach()
	if _, err := b.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("rewind the body: %w", err)
	}
	return s.bucket.Create(ctx, key, b, content)
}

// errNothing is ErrExist of a name that was taken a moment ago and holds nothing
// now.
var errNothing = fmt.Errorf("%w: it was deleted meanwhile", storage.ErrExist)

// settle returns nil if the object that exists is the one of the Put with this
// identity, ErrExist if it is another's, errNothing if there is none.
func (s *Store) settle(ctx context.Context, key, putID string) error {
	head, err := s.bucket.Head(ctx, key)
	switch {
	case s.cause(err).kind == storage.ErrNotExist:
		return errNothing
	case err != nil:
		return fmt.Errorf("an earlier attempt may have stored the object: %w", err)
	case head.PutID != putID:
		return storage.ErrExist
	}
	return nil
}

// Get implements storage.Store. A download that breaks off is taken up where it
// broke off; write-once objects make that safe.
func (s *Store) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	r, err := s.get(ctx, name, offset, length)
	if err != nil {
		return nil, s.wrap("get", name, err)
	}
	return r, nil
}

func (s *Store) get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := precheck(ctx, name); err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, fmt.Errorf("negative offset %d", offset)
	}
	last := int64(-1)
	if length > 0 && length <= math.MaxInt64-offset {
		last = offset + length - 1
	}
	if length == 0 { // S3 has no empty range: read a byte and drop it
		last = offset
	}
	r := &resumed{ctx: ctx, store: s, name: name, offset: offset, last: last}
	if err := r.open(); err != nil {
		return nil, err
	}
	if length == 0 {
		return io.NopCloser(strings.NewReader("")), r.Close()
	}
	return r, nil
}

// List implements storage.Store. A listing that breaks off goes on after the
// last name it yielded. Objects whose names are none of ours are left out.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		left := false
		err := s.list(ctx, prefix, func(info storage.Info) bool {
			left = !yield(info, nil)
			return !left
		})
		if err != nil && !left {
			yield(storage.Info{}, s.wrap("list", prefix, err))
		}
	}
}

func (s *Store) list(ctx context.Context, prefix string, yield func(storage.Info) bool) error {
	if err := firstError(ctx.Err(), storage.CheckPrefix(prefix)); err != nil {
		return err
	}
	after := ""
	for {
		before := after
		err := s.attempt(ctx, func(int) error { return s.listAfter(ctx, prefix, &after, yield) })
		if !errors.Is(err, storage.ErrUnreachable) || after == before {
			return err
		}
	}
}

// listAfter makes one attempt and keeps in after how far it got.
func (s *Store) listAfter(ctx context.Context, prefix string, after *string, yield func(storage.Info) bool) error {
	for info, err := range s.bucket.List(ctx, s.prefix+prefix, *after) {
		if err != nil {
			return err
		}
		*after = info.Name
		info.Name = strings.TrimPrefix(info.Name, s.prefix)
		if storage.CheckName(info.Name) == nil && !yield(info) {
			return nil
		}
	}
	return ctx.Err() // some libraries end quietly when cancelled
}

// Delete implements storage.Store. In a bucket that keeps versions it removes
// the versions themselves: a plain delete would only hide the object behind a
// marker, free nothing, and seem to succeed on a locked object.
func (s *Store) Delete(ctx context.Context, name string) error {
	return s.wrap("delete", name, s.remove(ctx, name))
}

func (s *Store) remove(ctx context.Context, name string) error {
	if err := precheck(ctx, name); err != nil {
		return err
	}
	key := s.prefix + name
	for {
		head, err := s.head(ctx, key)
		if errors.Is(err, storage.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.attempt(ctx, func(int) error { return s.bucket.Remove(ctx, key, head.Version) }); err != nil {
			return err
		}
		if head.Version == "" {
			return nil
		}
	}
}

// head describes the newest version. The refusal of a HEAD has no body that
// could tell a missing object from a missing bucket, or wrong credentials from
// missing rights; that of a GET has.
func (s *Store) head(ctx context.Context, key string) (head Head, err error) {
	err = s.attempt(ctx, func(int) error {
		head, err = s.bucket.Head(ctx, key)
		if _, answered := s.explain(err); !answered || s.cause(err).again {
			return err
		}
		r, getErr := s.bucket.Open(ctx, key, 0, 0)
		if getErr == nil {
			r.Close()
		} else if answer, ok := s.explain(getErr); !ok || answer.Status != 416 { // 416: it is there, and empty
			return getErr
		}
		head, err = s.bucket.Head(ctx, key) // it appeared in between, or only HEAD is refused
		return err
	})
	return head, err
}

func (s *Store) explain(err error) (Answer, bool) {
	if err == nil {
		return Answer{}, false
	}
	return s.bucket.Explain(err)
}

func precheck(ctx context.Context, name string) error {
	return firstError(ctx.Err(), storage.CheckName(name))
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// describe reads the body once, for its hash or those of its parts.
func describe(body io.ReadSeeker, size int64, parts Parts) (Content, error) {
	if err := storage.CheckBody(body, size); err != nil {
		return Content{}, err
	}
	c := Content{Size: size, PutID: rand.Text()}
	piece := size
	if size > parts.From {
		c.PartSize = parts.size(size)
		piece = c.PartSize
	} else if known, ok := body.(storage.Hashed); ok {
		c.SHA256 = known.SHA256()
		return c, nil
	}
	for done := int64(0); ; done += piece {
		h := sha256.New()
		n, err := io.Copy(h, io.LimitReader(body, piece))
		if err != nil {
			return Content{}, fmt.Errorf("read the body: %w", err)
		}
		if n != min(piece, size-done) {
			return Content{}, fmt.Errorf("%w: %d bytes announced, the body gave %d", storage.ErrSize, size, done+n)
		}
		h.Sum(c.SHA256[:0])
		if c.PartSize > 0 {
			c.Parts = append(c.Parts, c.SHA256)
		}
		if done+piece >= size {
			break
		}
	}
	if c.PartSize > 0 {
		c.SHA256 = [sha256.Size]byte{}
	}
	return c, nil
}

// Range returns the value of the HTTP header for the bytes offset to last, ""
// for the whole object.
func Range(offset, last int64) string {
	switch {
	case last >= 0:
		return fmt.Sprintf("bytes=%d-%d", offset, last)
	case offset > 0:
		return fmt.Sprintf("bytes=%d-", offset)
	}
	return ""
}
