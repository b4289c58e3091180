// Package storage is the contract of write-once object storage: what a
// snapshot repository needs of a folder, of Amazon S3, or of a server that
// speaks S3.
//
// Objects are created once and never overwritten. That one rule replaces lock
// files and coordination: of several writers of one name exactly one wins and
// the others learn that they lost.
//
// The drivers are in the packages file, s3 and minio; package open turns a
// LOCATION of the command line into a Store. This package imports none of
// them.
package storage

import (
	"context"
	"io"
	"iter"
	"time"
)

// Store holds write-once objects under slash separated names (see CheckName).
// The sentences below have tests in storagetest named after them; what takes a
// misbehaving server or network to see is tested by each driver.
//
// A Store is safe for concurrent use. Objects of one Store are never visible in
// another Store whose location differs. Opening a Store does not touch the
// place: a missing bucket, a refused credential or an unreachable server is
// reported by the first call that meets it.
//
// Names that CheckName refuses are refused by every method with ErrName before
// anything is sent. A call whose context is already cancelled does nothing and
// returns the context's error. Every error is one line and says what was done,
// on which object and where; the sentinels of this package are recognised with
// errors.Is.
//
// Drivers retry what is worth retrying (lost connections, 5xx, slow down) a few
// times with growing pauses; what a method returns is final. Callers need no
// retry loop of their own around a single call.
type Store interface {
	// Put creates name with the size bytes read from body. The object is durable
	// when Put returns nil. Put is atomic: readers see all of the object or no
	// object. Put never overwrites: it returns ErrExist if the name exists and
	// leaves the object, which is durable then, as it was. Of many racing writers of one name exactly
	// one gets nil, all others ErrExist.
	//
	// The body may be read several times; each reading starts with a seek to 0.
	// A body that does not hold exactly size bytes is refused with ErrSize and
	// nothing is stored. Put does not close the body.
	//
	// An error other than ErrExist, ErrSize and ErrName means that the object may
	// or may not have been stored (an answer can be lost on its way); it is never
	// stored in part. A later Put of the same name settles it: nil or ErrExist.
	// Within one call a lost answer is settled by the driver: each Put marks what
	// it sends with a random identity, so that a retry that finds the name taken
	// knows its own object from another writer's, even if their bytes are equal.
	//
	// Drivers may send a large body in parts; of those nothing is visible before
	// the last step, and what a crash leaves of them is invisible and removed by a
	// later Put or by the store.
	//
	// One name must not be a folder of another (a and a/b): not every driver can
	// hold both, and one that cannot refuses the second with ErrExist or ErrName.
	Put(ctx context.Context, name string, body io.ReadSeeker, size int64) error

	// Get opens name for reading from offset. A length below 0 means to the end;
	// a range that reaches beyond the end stops at the end, so that an offset at
	// or beyond the end reads no bytes. Get returns ErrNotExist if there is no
	// such object. What Put acknowledged, Get finds at once. The reader fails
	// rather than end early: io.EOF means that the whole range was delivered. The
	// caller closes the reader; cancelling ctx ends it too.
	Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error)

	// List yields the objects whose name begins with prefix, ascending by name in
	// byte order. The prefix need not end at a slash; an empty prefix lists all.
	// What Put acknowledged before List was called is yielded; what is put or
	// deleted meanwhile may be. Unfinished writes are never yielded. An error is
	// yielded once, last. The sequence may be left early and ranged over again.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]

	// Delete removes name. It returns nil if the object is already missing. An
	// object under retention is refused with ErrLocked and stays. The removal is
	// durable when Delete returns nil. Never put a deleted name again: some stores
	// refuse it.
	Delete(ctx context.Context, name string) error
}

// Info describes one object.
type Info struct {
	Name     string
	Size     int64
	Modified time.Time // when the store took it, by the store's clock
}
