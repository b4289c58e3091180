package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"syscall"

	"github.com/hsmbackup/hsmbackup/storage"
)

// Answer is what an S3 server said instead of yes.
type Answer struct {
	Status  int    // HTTP
	Code    string // S3; empty if the answer had no body
	Message string
	Region  string // that the bucket is in, where the server names it
}

func (a Answer) Error() string {
	text := fmt.Sprintf("HTTP %d", a.Status)
	if a.Code != "" {
		text = fmt.Sprintf("%s (%s)", a.Code, text)
	}
	if a.Message != "" && a.Message != a.Code {
		text += ": " + strings.TrimSuffix(a.Message, ".")
	}
	if region := a.Region; codes[a.Code] == storage.ErrRegion && region != "" && len(region) < 40 && strings.Trim(region, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" {
		text += "; it is in " + region
	}
	return text
}

// cause is an error understood: which sentinel it is, what the other side said,
// and whether to try again.
type cause struct {
	kind  error // nil: none of the sentinels
	err   error
	again bool
}

// error joins sentinel and words; Error of package storage takes them apart.
func (c cause) error() error {
	switch {
	case c.kind == nil:
		return c.err
	case c.err == nil || c.err == c.kind:
		return c.kind
	}
	return &explained{c.kind, c.err}
}

type explained struct{ kind, err error }

func (e *explained) Error() string   { return e.kind.Error() + ": " + e.err.Error() }
func (e *explained) Unwrap() []error { return []error{e.kind, e.err} }

// wrap makes the error of a Store's method, or nil of nil.
func (s *Store) wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	out := &storage.Error{Op: op, Name: name, Location: s.location}
	c := s.cause(err)
	out.Kind, out.Err = c.kind, c.err
	if c.kind == storage.ErrNotExist && (op == "put" || op == "list") { // a 404 without a code
		out.Kind = storage.ErrNoBucket
	}
	return out
}

// cause understands err. It is idempotent: what it made it takes apart again.
func (s *Store) cause(err error) cause {
	var known *explained
	var u *url.Error
	switch {
	case err == nil:
		return cause{}
	case errors.As(err, &known):
		return cause{kind: known.kind, err: known.err}
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return cause{err: err}
	}
	for _, own := range []error{storage.ErrExist, storage.ErrNotExist, storage.ErrName, storage.ErrSize, storage.ErrCredentials, storage.ErrNoLock} {
		if err == own {
			return cause{kind: own}
		}
	}
	if answer, ok := s.bucket.Explain(err); ok {
		return answered(answer)
	}
	if errors.As(err, &u) { // without the URL, which repeats what the message says
		return unanswered(u.Err)
	}
	return unanswered(err)
}

// codes maps S3 error codes, of Amazon, MinIO and versitygw, to sentinels.
var codes = map[string]error{
	"PreconditionFailed":                 storage.ErrExist,
	"NoSuchKey":                          storage.ErrNotExist,
	"NoSuchVersion":                      storage.ErrNotExist,
	"NoSuchBucket":                       storage.ErrNoBucket,
	"InvalidAccessKeyId":                 storage.ErrCredentials,
	"XAdminUserNotFound":                 storage.ErrCredentials,
	"SignatureDoesNotMatch":              storage.ErrCredentials,
	"InvalidToken":                       storage.ErrCredentials,
	"InvalidTokenId":                     storage.ErrCredentials,
	"ExpiredToken":                       storage.ErrCredentials,
	"InvalidSecurity":                    storage.ErrCredentials,
	"AccessDenied":                       storage.ErrDenied,
	"AccountProblem":                     storage.ErrDenied,
	"AllAccessDisabled":                  storage.ErrDenied,
	"XMinioStorageFull":                  storage.ErrFull,
	"XMinioAdminBucketQuotaExceeded":     storage.ErrFull,
	"QuotaExceeded":                      storage.ErrFull,
	"InsufficientStorage":                storage.ErrFull,
	"ObjectLocked":                       storage.ErrLocked,
	"RequestTimeTooSkewed":               storage.ErrClock,
	"PermanentRedirect":                  storage.ErrRegion,
	"TemporaryRedirect":                  storage.ErrRegion,
	"Redirect":                           storage.ErrRegion,
	"AuthorizationHeaderMalformed":       storage.ErrRegion,
	"IllegalLocationConstraintException": storage.ErrRegion,
	"InvalidRegion":                      storage.ErrRegion,
	"BadDigest":                          storage.ErrDamaged,
	"XAmzContentSHA256Mismatch":          storage.ErrDamaged,
	"XAmzContentChecksumMismatch":        storage.ErrDamaged,
	"InvalidPart":                        storage.ErrDamaged,
	"XMinioInvalidObjectName":            storage.ErrName,
	"KeyTooLongError":                    storage.ErrName,
	"XMinioParentIsObject":               storage.ErrName,
	"XMinioObjectExistsAsDirectory":      storage.ErrName,
	"ObjectParentIsFile":                 storage.ErrName,
	"ExistingObjectIsDirectory":          storage.ErrName,
	"InvalidBucketName":                  storage.ErrLocation,
}

// statuses are for answers without a code we know.
var statuses = map[int]error{
	301: storage.ErrRegion,
	307: storage.ErrRegion,
	308: storage.ErrRegion,
	401: storage.ErrCredentials,
	403: storage.ErrDenied,
	404: storage.ErrNotExist,
	412: storage.ErrExist,
	507: storage.ErrFull,
}

// passing lists the codes below 500 that go away by themselves.
var passing = map[string]bool{
	"ConditionalRequestConflict": true,
	"OperationAborted":           true,
	"RequestTimeout":             true,
	"SlowDown":                   true,
	"Throttling":                 true,
	"ThrottlingException":        true,
	"TooManyRequests":            true,
	"RequestThrottled":           true,
	"IncompleteBody":             true,
}

func answered(a Answer) cause {
	c := cause{err: a, kind: codes[a.Code]}
	switch {
	case saysLocked(a):
		c.kind = storage.ErrLocked
	case c.kind == storage.ErrDamaged: // what is sent again may arrive whole
		c.again = true
	case c.kind != nil:
	case passing[a.Code] || a.Status == 408 || a.Status == 429:
		c.kind, c.again = storage.ErrUnreachable, true
	case statuses[a.Status] != nil:
		c.kind = statuses[a.Status]
	case a.Status >= 500 && a.Status != 501 && a.Status != 505:
		c.kind, c.again = storage.ErrUnreachable, true
	case a.Code == "":
		c.kind = storage.ErrAnswer
	default:
		c.kind = storage.ErrRefused
	}
	return c
}

// saysLocked recognises the refusal to delete under object lock, for which
// servers have no code of its own: InvalidRequest on MinIO, AccessDenied on
// Amazon and versitygw, told from others by their words.
func saysLocked(a Answer) bool {
	if a.Code != "InvalidRequest" && a.Code != "AccessDenied" {
		return false
	}
	m := strings.ToLower(a.Message)
	return strings.Contains(m, "worm protected") || strings.Contains(m, "object lock") || strings.Contains(m, "retention")
}

// unanswered understands errors of the network. Whatever is not known to last
// is tried again.
func unanswered(err error) cause {
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var elsewhere *redirected
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	switch {
	case errors.As(err, &cert), errors.As(err, &authority), errors.As(err, &host):
		return cause{kind: storage.ErrTLS, err: err}
	case errors.As(err, &elsewhere):
		return cause{kind: storage.ErrRedirect, err: elsewhere}
	case errors.Is(err, errNoS3):
		return cause{kind: storage.ErrAnswer, err: errNoS3}
	case errors.Is(err, errSpeaksTLS):
		return cause{kind: storage.ErrUnreachable, err: errSpeaksTLS}
	case errors.As(err, &dns):
		return cause{kind: storage.ErrUnreachable, err: err, again: !dns.IsNotFound}
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return cause{kind: storage.ErrUnreachable, err: err}
	case isNetwork(err):
		return cause{kind: storage.ErrUnreachable, err: err, again: true}
	}
	return cause{err: err}
}

func isNetwork(err error) bool {
	var n net.Error
	var errno syscall.Errno
	return errors.As(err, &n) || errors.As(err, &errno) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		strings.Contains(err.Error(), "Connection closed by foreign host") || // minio-go's words for EOF
		strings.Contains(err.Error(), "connection broken") || strings.Contains(err.Error(), "server closed idle connection")
}
