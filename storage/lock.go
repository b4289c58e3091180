package storage

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// LockMode is how firmly a lock holds.
type LockMode string

// The modes. They have S3's meaning.
const (
	// Governance: who has a special right may take the lock off.
	Governance LockMode = "governance"
	// Compliance: nobody may, before it has ended.
	Compliance LockMode = "compliance"
)

// ParseLockMode reads a mode; "" is Governance.
func ParseLockMode(s string) (LockMode, error) {
	switch m := LockMode(s); m {
	case "":
		return Governance, nil
	case Governance, Compliance:
		return m, nil
	}
	return "", fmt.Errorf("%w: lock mode %q: want %s or %s", ErrLocation, s, Governance, Compliance)
}

// Retention is a lock on an object. The zero Retention is none.
type Retention struct {
	Mode  LockMode
	Until time.Time
}

// ErrNoLock: the place cannot lock objects.
var ErrNoLock = errors.New("the store does not lock objects")

// Locker is a Store that can keep objects from being deleted. Not every Store is
// one; ask by a type assertion. Whether the bucket has object lock shows at the
// first call: ErrNoLock.
type Locker interface {
	// Lock keeps name from being deleted until r.Until: Delete returns ErrLocked.
	// A lock is extended and never shortened, and the mode of one that holds is not
	// changed, which takes a right of its own: if the object is locked for as long
	// already, Lock changes nothing. It returns the lock that holds from then on,
	// which may be longer than r, or of the other mode. ErrNotExist if there is no
	// such object.
	Lock(ctx context.Context, name string, r Retention) (Retention, error)
	// Retention returns the lock on name, which may have ended; the zero Retention
	// if there is none. ErrNotExist if there is no such object.
	Retention(ctx context.Context, name string) (Retention, error)
}

// Extend returns what Lock should set, and whether that differs from what there
// is.
func (r Retention) Extend(want Retention) (Retention, bool) {
	out := want
	if r.Until.After(out.Until) {
		out.Until = r.Until
	}
	if r.Until.After(time.Now()) {
		out.Mode = r.Mode
	}
	return out, out.Mode != r.Mode || !out.Until.Equal(r.Until)
}
