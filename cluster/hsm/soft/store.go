package soft

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// reserve is the free space below which the store takes no more writes: room
// for what pebble still has to flush and compact, so that a full disk is a
// refusal and not a failure half way.
const reserve = 64 << 20

// blockSize is how much of a table is read and checked at a time, some ten objects. Of
// larger ones a scan is no faster, and of smaller ones, such as pebble's 4 KiB, it takes twice as long.
const blockSize = 16 << 10

// store is the object store: pebble, with its failures turned into errors of
// the contract. It is safe for concurrent use.
type store struct {
	db       *pebble.DB
	dir      string
	fs       vfs.FS
	broken   atomic.Pointer[error] // set once the log cannot be trusted any more
	roomy    atomic.Int64          // when there was room, Unix milliseconds
	home     os.FileInfo           // of dir when it was opened; nil: not the system's files
	untidied bool                  // Options.Untidied
	syncer   *syncer               // of the log; nil: the usual way
}

func openStore(dir string, fs vfs.FS, untidied bool) (*store, error) {
	s := &store{dir: dir, fs: fs, untidied: untidied}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return nil, s.wrap("open", err)
	}
	if fs == vfs.Default {
		s.syncer = newSyncer()
	}
	db, err := pebble.Open(dir, s.options())
	if err != nil {
		return nil, errors.Join(s.wrap("open", err), s.syncer.close())
	}
	s.db = db
	if fs == vfs.Default {
		s.home, err = os.Stat(dir)
	}
	if err := errors.Join(err, s.checkFormat()); err != nil {
		return nil, errors.Join(err, db.Close(), s.syncer.close())
	}
	return s, nil
}

func (s *store) options() *pebble.Options {
	o := &pebble.Options{
		FS:                          logFS{FS: s.fs, syncer: s.syncer},
		CacheSize:                   64 << 20,
		MemTableSize:                16 << 20,
		FormatMajorVersion:          pebble.FormatNewest,
		Logger:                      logger{s},
		DisableAutomaticCompactions: s.untidied,
		EventListener: &pebble.EventListener{
			BackgroundError: func(error) {}, // retried by pebble; what is lost, Fatalf reports
			DataCorruption:  func(pebble.DataCorruptionInfo) {},
		},
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		o.Levels[i].BlockSize = blockSize
		o.Levels[i].IndexBlockSize = 256 << 10 // one level of index
	}
	return o
}

// fatal is what Fatalf panics with.
type fatal struct{ err error }

func (f fatal) Error() string { return f.err.Error() }

// logger drops pebble's chatter. Fatalf must not return: it marks the store
// broken and panics. A panic in the goroutine of a commit is recovered there,
// and the caller gets an error; in pebble's background it ends the process.
type logger struct{ s *store }

func (logger) Infof(string, ...any)  {}
func (logger) Errorf(string, ...any) {}
func (l logger) Fatalf(format string, args ...any) {
	panic(fatal{l.s.fail(fmt.Errorf(format, args...))})
}

// fail marks the store broken and returns the error that it answers with.
func (s *store) fail(cause error) error {
	err := fmt.Errorf("%w: object store %s: %v; check the disk, then start this HSM again", hsm.ErrUnavailable, s.dir, cause)
	s.broken.CompareAndSwap(nil, &err)
	return err
}

// check returns why the store serves no more, or nil.
func (s *store) check() error {
	if err := s.broken.Load(); err != nil {
		return *err
	}
	return nil
}

// checkFormat marks a new store with the version of its layout, and refuses one
// of another version.
func (s *store) checkFormat() error {
	b, err := get(s.db, []byte{prefixFormat})
	switch {
	case err != nil:
		return s.wrap("open", err)
	case b == nil:
		return s.wrap("open", s.db.Set([]byte{prefixFormat}, []byte{storeFormat}, pebble.Sync))
	case !bytes.Equal(b, []byte{storeFormat}):
		return fmt.Errorf("%w: object store %s is of a version this software does not know; use a newer one", hsm.ErrCorrupt, s.dir)
	}
	return nil
}

// atHome finds out that the folder was deleted or replaced under the open
// store: what is written then is on no disk that will be found again.
func (s *store) atHome() error {
	if s.home == nil {
		return nil
	}
	now, err := os.Stat(s.dir)
	if err == nil && os.SameFile(s.home, now) {
		return nil
	}
	return s.fail(errors.New("the folder was deleted, replaced or unmounted while it was open"))
}

// room refuses with ErrFull when the disk has no more than the reserve, and for
// good when the store's folder is gone.
func (s *store) room() error {
	now := time.Now().UnixMilli()
	if now-s.roomy.Load() < 10 {
		return nil // what is written in that time is far less than the reserve
	}
	if err := s.atHome(); err != nil {
		return err
	}
	usage, err := s.fs.GetDiskUsage(s.dir)
	if err != nil || usage.AvailBytes > reserve {
		s.roomy.Store(now)
		return nil // a file system that cannot tell fails at the write
	}
	return fmt.Errorf("%w: object store %s has %d MiB left, all of them reserved; free some space", hsm.ErrFull, s.dir, usage.AvailBytes>>20)
}

// commit writes a batch atomically and durably. ErrFull: nothing was written.
// ErrUnavailable: it may have been, and the store serves no more.
func (s *store) commit(b *pebble.Batch) error {
	if err := s.writable(); err != nil {
		return err
	}
	return s.guard(func() error { return b.Commit(pebble.Sync) })
}

// writable returns why nothing can be written now, or nil.
func (s *store) writable() error {
	if err := s.check(); err != nil {
		return err
	}
	return s.room()
}

// guard runs what changes the store. If that fails, the store serves no more.
func (s *store) guard(change func() error) (err error) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case fatal:
			err = v.err
		default:
			panic(v)
		}
	}()
	if err := change(); err != nil {
		return s.fail(err)
	}
	return nil
}

// wrap says which folder failed and what to do about it.
func (s *store) wrap(what string, err error) error {
	switch {
	case err == nil || errors.Is(err, hsm.ErrCorrupt) || errors.Is(err, hsm.ErrUnavailable):
		return err
	case pebble.IsCorruptionError(err):
		return fmt.Errorf("%w: object store %s: %s: %v; replace this HSM: a new one fills itself from its peers", hsm.ErrCorrupt, s.dir, what, err)
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%w: object store %s: %s: %v", hsm.ErrFull, s.dir, what, err)
	}
	return fmt.Errorf("%w: object store %s: %s: %w", hsm.ErrUnavailable, s.dir, what, err)
}

func (s *store) close() (err error) {
	defer func() {
		if v, ok := recover().(fatal); ok {
			err = v.err
		}
	}()
	if err := s.check(); err != nil {
		_ = s.db.Close() // it reports the same failure again
		_ = s.syncer.close()
		return err
	}
	return errors.Join(s.wrap("close", s.db.Close()), s.syncer.close())
}

// get returns a copy of the value under key, nil if there is none.
func get(r pebble.Reader, key []byte) ([]byte, error) {
	v, c, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return bytes.Clone(v), c.Close()
}

// scan calls yield for every key with the prefix, ascending, until it returns
// false. Key and value are valid during the call only.
func scan(r pebble.Reader, prefix []byte, yield func(key, value []byte) (bool, error)) error {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: prefixEnd(prefix)})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		more, err := yield(it.Key(), it.Value())
		if err != nil || !more {
			return errors.Join(err, it.Close())
		}
	}
	return errors.Join(it.Error(), it.Close())
}
