package remote

import (
	"context"
	"strings"
	"time"

	"github.com/hsmbackup/hsmbackup/storage"
)

// LockBucket is a Bucket with object lock. Errors are the library's own.
type LockBucket interface {
	// SetRetention locks the newest version of key.
	SetRetention(ctx context.Context, key string, r storage.Retention) error
	// GetRetention returns its lock, or the server's error if it has none.
	GetRetention(ctx context.Context, key string) (storage.Retention, error)
}

// lockSecond is what servers keep of a time.
const lockSecond = time.Second

// Lock implements storage.Locker.
func (s *Store) Lock(ctx context.Context, name string, r storage.Retention) (storage.Retention, error) {
	held, err := s.lock(ctx, name, r)
	return held, s.wrap("lock", name, err)
}

func (s *Store) lock(ctx context.Context, name string, r storage.Retention) (storage.Retention, error) {
	b, ok := s.bucket.(LockBucket)
	if !ok {
		return storage.Retention{}, storage.ErrNoLock
	}
	now, err := s.retention(ctx, name)
	if err != nil {
		return storage.Retention{}, err
	}
	r.Until = r.Until.UTC().Truncate(lockSecond).Add(lockSecond)
	set, changes := now.Extend(r)
	if !changes {
		return now, nil
	}
	return set, s.attempt(ctx, func(int) error { return s.noLock(b.SetRetention(ctx, s.prefix+name, set)) })
}

// Retention implements storage.Locker.
func (s *Store) Retention(ctx context.Context, name string) (storage.Retention, error) {
	r, err := s.retention(ctx, name)
	return r, s.wrap("lock", name, err)
}

func (s *Store) retention(ctx context.Context, name string) (r storage.Retention, err error) {
	if err := precheck(ctx, name); err != nil {
		return r, err
	}
	b, ok := s.bucket.(LockBucket)
	if !ok {
		return r, storage.ErrNoLock
	}
	err = s.attempt(ctx, func(int) (err error) {
		r, err = b.GetRetention(ctx, s.prefix+name)
		if a, answered := s.explain(err); answered && a.Code == "NoSuchObjectLockConfiguration" {
			r, err = storage.Retention{}, nil // the object has none
		}
		return s.noLock(err)
	})
	return r, err
}

// noLock recognises a bucket without object lock, which servers tell from other
// invalid requests by their words only.
func (s *Store) noLock(err error) error {
	a, answered := s.explain(err)
	if !answered {
		return err
	}
	m := strings.ToLower(a.Message)
	missing := a.Code == "InvalidRequest" && strings.Contains(m, "missing") && strings.Contains(m, "lock") || a.Code == "ObjectLockConfigurationNotFoundError" ||
		a.Code == "InvalidBucketObjectLockConfiguration" || a.Code == "NotImplemented"
	if !missing {
		return err
	}
	return storage.ErrNoLock
}

var _ storage.Locker = (*Store)(nil)
