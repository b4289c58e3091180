package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/storage"
)

// WithLock returns the store such that what a snapshot or a copy needs cannot be
// deleted for d from when it is written: packs, indexes, envelope and manifest,
// those of older snapshots included that an increment builds on, whose locks are
// extended before its manifest is written. To extend every lock with each
// increment would cost a request for each pack, so locks are set for up to an
// eighth more than d, a day at most. Marks and records are not locked.
//
// storage.ErrNoLock if the store has no locks; whether the bucket has shows at the
// first put.
func WithLock(store storage.Store, mode storage.LockMode, d time.Duration) (storage.Store, error) {
	locker, ok := store.(storage.Locker)
	if !ok {
		return nil, fmt.Errorf("lock for %s: %w", d, storage.ErrNoLock)
	}
	return &lockingStore{Store: store, locker: locker, mode: mode, d: d, until: map[string]time.Time{}, weak: map[string]bool{}}, nil
}

// maxSlack is the most by which a lock is longer than asked for.
const maxSlack = 24 * time.Hour

type lockingStore struct {
	storage.Store
	locker storage.Locker
	mode   storage.LockMode
	d      time.Duration

	mu    sync.Mutex
	until map[string]time.Time // of the locks that are known
	weak  map[string]bool      // whose lock is of mode governance, and compliance was asked for
}

// Put puts, and locks. An object named by its content that exists already is as
// good as put, and is locked as well.
func (s *lockingStore) Put(ctx context.Context, name string, body io.ReadSeeker, size int64) error {
	err := s.Store.Put(ctx, name, body, size)
	content := slices.ContainsFunc(objectPrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
	locked := content || strings.HasPrefix(name, format.ManifestPrefix)
	if !locked || err != nil && !(content && errors.Is(err, storage.ErrExist)) {
		return err
	}
	if lockErr := s.extend(ctx, []string{name}); lockErr != nil {
		return lockErr
	}
	return err
}

// extend locks objects for at least d from now.
func (s *lockingStore) extend(ctx context.Context, names []string) error {
	now := time.Now()
	var short []string
	s.mu.Lock()
	for _, name := range names {
		if s.until[name].Before(now.Add(s.d)) {
			short = append(short, name)
		}
	}
	s.mu.Unlock()
	until := now.Add(s.d + min(s.d/8, maxSlack))
	return parallel(ctx, readers, len(short), func(ctx context.Context, i int) error {
		held, err := s.locker.Lock(ctx, short[i], storage.Retention{Mode: s.mode, Until: until})
		if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.until[short[i]] = until
		s.weak[short[i]] = s.mode == storage.Compliance && held.Mode != s.mode
		return nil
	})
}

// Lock and Retention are those of the store beneath.
func (s *lockingStore) Lock(ctx context.Context, name string, r storage.Retention) (storage.Retention, error) {
	return s.locker.Lock(ctx, name, r)
}

func (s *lockingStore) Retention(ctx context.Context, name string) (storage.Retention, error) {
	return s.locker.Retention(ctx, name)
}

// extendLocks extends the locks of objects if the store is one that locks.
func extendLocks(ctx context.Context, store storage.Store, names []string) error {
	if s, ok := store.(*lockingStore); ok {
		return s.extend(ctx, names)
	}
	return nil
}

// lockNotes says which of a snapshot's objects are locked less firmly than was asked for.
func lockNotes(store storage.Store, names []string) []string {
	s, ok := store.(*lockingStore)
	if !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, name := range names {
		if s.weak[name] {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%d objects that it needs were locked in mode governance before, and stay so until that lock has ended: who may bypass governance can delete them", n)}
}

// Locked is the lock that holds on everything that a snapshot needs.
type Locked struct {
	ID      string
	Objects int
	// Retention is the weakest of their locks: its mode is governance if that of any
	// is, and none has ended before its end.
	storage.Retention
}

// weaken joins the lock on one more object.
func (l *Locked) weaken(r storage.Retention) {
	if l.Objects++; l.Objects == 1 || r.Until.Before(l.Until) {
		l.Until = r.Until
	}
	if l.Objects == 1 || r.Mode == storage.Governance {
		l.Mode = r.Mode
	}
}

// Lock keeps everything that a snapshot needs from being deleted until a time: a
// lock is extended and never shortened, and its mode stays while it holds. It returns
// the lock that holds then, which may be longer than r, or of mode governance where
// compliance was asked for. It may be run again where it stopped. storage.ErrNoLock,
// ErrNoSnapshot.
func Lock(ctx context.Context, store storage.Store, id string, r storage.Retention, o OpenOptions) (*Locked, error) {
	locker, ok := store.(storage.Locker)
	if !ok {
		return nil, fmt.Errorf("lock: %w", storage.ErrNoLock)
	}
	s, err := Open(ctx, store, id, o)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	l := &Locked{ID: s.ID()}
	// The manifest is the last: while it can go, so may the others.
	names := append(neededBy(s.manifest), format.ManifestPath(s.manifest.Sequence))
	for _, part := range [][]string{names[:len(names)-1], names[len(names)-1:]} {
		err := parallel(ctx, readers, len(part), func(ctx context.Context, i int) error {
			held, err := locker.Lock(ctx, part[i], r)
			if err != nil {
				return missing(err)
			}
			mu.Lock()
			defer mu.Unlock()
			l.weaken(held)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", s.ID(), err)
		}
	}
	return l, nil
}

// lockedUntil tells until when a lock keeps an object, as far as the store and
// the credentials can tell; zero if they cannot, and then Delete is the judge.
func lockedUntil(ctx context.Context, store storage.Store, name string) (time.Time, error) {
	locker, ok := store.(storage.Locker)
	if !ok {
		return time.Time{}, nil
	}
	r, err := locker.Retention(ctx, name)
	switch {
	case errors.Is(err, storage.ErrNoLock), errors.Is(err, storage.ErrNotExist), errors.Is(err, storage.ErrDenied):
		return time.Time{}, nil
	}
	return r.Until, err
}
