package storage

import (
	"errors"
	"fmt"
	"strings"
)

// The sentinels, recognised with errors.Is. Hint has a next step for each.
var (
	ErrExist       = errors.New("the object already exists")
	ErrNotExist    = errors.New("there is no such object")
	ErrNoBucket    = errors.New("the bucket or folder does not exist")
	ErrDenied      = errors.New("access denied")
	ErrCredentials = errors.New("the credentials are missing or refused") // such an error is ErrDenied too
	ErrFull        = errors.New("the store is full")
	ErrUnreachable = errors.New("the store cannot be reached or is not serving")
	ErrLocked      = errors.New("the object is locked against deletion")
	ErrRegion      = errors.New("the bucket is in another region")
	ErrRedirect    = errors.New("the store's address sends to another one")
	ErrAnswer      = errors.New("this is no answer of an S3 server")
	ErrRefused     = errors.New("the store refuses the request")
	ErrClock       = errors.New("the clocks of this machine and of the store differ too much")
	ErrTLS         = errors.New("the store's certificate is not trusted")
	ErrName        = errors.New("invalid object name")
	ErrSize        = errors.New("the body has another size than announced")
	ErrDamaged     = errors.New("the data was damaged on its way to the store")
	ErrTooLarge    = errors.New("the object is larger than allowed")
	ErrLocation    = errors.New("invalid location")
)

var hints = []struct {
	kind error
	hint string
}{
	{ErrExist, "objects are written once; choose another name, or treat what exists as the result"},
	{ErrNotExist, "list the location to see what it holds; the object may have been deleted, or the prefix may be wrong"},
	{ErrNoBucket, "create the bucket or folder, or correct the location"},
	{ErrCredentials, "check the access key and its secret (MINIO_ACCESS_KEY and MINIO_SECRET_KEY, or the AWS variables and profile; of a copy HSMBACKUP_SRC_… and HSMBACKUP_DST_…)"},
	{ErrDenied, "grant the credentials the right to do this on the bucket, or correct the permissions of the folder"},
	{ErrFull, "free space in the store or enlarge it, then run the same command again"},
	{ErrUnreachable, "check that the server runs and that its address, port and tls setting are right, then run the same command again"},
	{ErrNoLock, "make the bucket with object lock (most stores cannot switch it on later), or leave the lock out"},
	{ErrLocked, "wait until the retention of the object has ended; locked objects cannot be deleted before"},
	{ErrRegion, "name the bucket's own region in the location: ?region=…"},
	{ErrRedirect, "if the other address is the store's own, name it in the location (the host of minio://, ?endpoint=… of s3://)"},
	{ErrAnswer, "check that the address in the location is the S3 port of the server and not its console, and that no proxy or portal answers in its place"},
	{ErrRefused, "the store says why; a server without conditional writes (If-None-Match: *) cannot be used"},
	{ErrClock, "set the clock of this machine (NTP), then run the same command again"},
	{ErrTLS, "name the authority that signed the certificate with ?ca=FILE; check the host name of the location, and that the certificate has not expired"},
	{ErrName, "use a-z, 0-9, '.', '_', '-' and single slashes"},
	{ErrSize, "the data changed while it was sent; run the same command again"},
	{ErrDamaged, "run the same command again; if it happens again, look for faulty memory or a faulty device in the network"},
	{ErrTooLarge, "the object is not what was expected under this name; verify the repository"},
	{ErrLocation, "a location is a folder, file:///FOLDER, s3://BUCKET/PREFIX?region=…&endpoint=…, or minio://HOST:PORT/BUCKET/PREFIX?tls=false; ca=FILE names a PEM file"},
}

// Hint returns what to do next about err, in one line without a full stop, or
// "" if err is none of this package's sentinels.
func Hint(err error) string {
	for _, h := range hints {
		if errors.Is(err, h.kind) {
			return h.hint
		}
	}
	return ""
}

// Error says which operation failed, on which object, where and why. Drivers
// return it from every method.
type Error struct {
	Op       string // put, get, list, delete, open
	Name     string // the object, or the prefix of a list; may be empty
	Location string // the store, without credentials
	Kind     error  // a sentinel of this package, or nil
	Err      error  // the cause in the driver's words, or nil
}

// Error is one line: "put a/b in s3://bucket: the store is full: no space left".
func (e *Error) Error() string {
	var parts []string
	switch {
	case e.Name != "":
		parts = append(parts, fmt.Sprintf("%s %s in %s", e.Op, e.Name, e.Location))
	default:
		parts = append(parts, fmt.Sprintf("%s %s", e.Op, e.Location))
	}
	for _, err := range []error{e.Kind, e.Err} {
		if err != nil {
			parts = append(parts, err.Error())
		}
	}
	return oneLine(strings.Join(parts, ": "))
}

// Unwrap returns the sentinel and the cause. A refused credential is also a
// denied access.
func (e *Error) Unwrap() []error {
	var all []error
	if e.Kind != nil {
		all = append(all, e.Kind)
	}
	if e.Kind == ErrCredentials {
		all = append(all, ErrDenied)
	}
	if e.Err != nil {
		all = append(all, e.Err)
	}
	return all
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
