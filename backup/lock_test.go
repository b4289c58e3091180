package backup

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/storage"
)

// lockable is a store with locks, which nothing but their end takes off.
type lockable struct {
	storage.Store
	mu   sync.Mutex
	held map[string]storage.Retention
}

func (l *lockable) Lock(ctx context.Context, name string, r storage.Retention) (storage.Retention, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	set, _ := l.held[name].Extend(r)
	l.held[name] = set
	return set, ctx.Err()
}

func (l *lockable) Retention(ctx context.Context, name string) (storage.Retention, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[name], ctx.Err()
}

func newLockable(t *testing.T) *lockable {
	return &lockable{Store: newStore(t), held: map[string]storage.Retention{}}
}

// takeLocked takes a snapshot whose objects are locked.
func takeLocked(t *testing.T, c *testCluster, l *lockable, mode storage.LockMode, full bool) *Report {
	t.Helper()
	store, err := WithLock(l, mode, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	o := c.options()
	o.Full = full
	return mustTake(t, c, store, o)
}

// TestLockTellsWhatHolds: the mode of a lock that holds is not changed, so who asks for
// compliance and builds on what is locked in governance is told.
func TestLockTellsWhatHolds(t *testing.T) {
	c, l := newTestCluster(t, 1), newLockable(t)
	c.cheap(t)
	keys(c.hsm(0), 3)
	if r := takeLocked(t, c, l, storage.Governance, false); len(r.Notes) != 0 {
		t.Errorf("governance as asked for: %q", r.Notes)
	}
	keys(c.hsm(0), 1)
	r := takeLocked(t, c, l, storage.Compliance, false)
	if len(r.Notes) != 1 || !strings.HasPrefix(r.Notes[0], "3 objects that it needs were locked in mode governance") { // pack, index, envelope of the first
		t.Errorf("an increment in compliance to a parent in governance: %q", r.Notes)
	}
	until := time.Now().Add(2 * time.Hour)
	got, err := Lock(t.Context(), l, "2", storage.Retention{Mode: storage.Compliance, Until: until}, OpenOptions{})
	if err != nil || got.ID != "0000000002" || got.Objects != 6 || got.Mode != storage.Governance || got.Until.Before(until) {
		t.Errorf("locked: %+v, %v", got, err)
	}
	for name, r := range l.held { // as if they had ended
		l.held[name] = storage.Retention{Mode: r.Mode, Until: time.Now().Add(-time.Minute)}
	}
	got, err = Lock(t.Context(), l, "2", storage.Retention{Mode: storage.Compliance, Until: until}, OpenOptions{})
	if err != nil || got.Mode != storage.Compliance {
		t.Errorf("once they have ended: %+v, %v", got, err)
	}
	got, err = Lock(t.Context(), l, "2", storage.Retention{Mode: storage.Governance, Until: until.Add(-time.Hour)}, OpenOptions{})
	if err != nil || got.Mode != storage.Compliance || !got.Until.Equal(until) {
		t.Errorf("shorter and weaker than what holds: %+v, %v", got, err)
	}
}

// TestCopyTellsWhatHolds: the same of a copy.
func TestCopyTellsWhatHolds(t *testing.T) {
	c, from, l := newTestCluster(t, 1), newStore(t), newLockable(t)
	c.cheap(t)
	keys(c.hsm(0), 3)
	mustTake(t, c, from, c.options())
	for mode, notes := range map[storage.LockMode]int{storage.Governance: 0, storage.Compliance: 1} {
		l.held = map[string]storage.Retention{}
		to, err := WithLock(l, storage.Governance, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Copy(t.Context(), from, to, "", CopyOptions{}); err != nil {
			t.Fatal(err)
		}
		if to, err = WithLock(l, mode, 2*time.Hour); err != nil {
			t.Fatal(err)
		}
		r, err := Copy(t.Context(), from, to, "", CopyOptions{})
		if err != nil || len(r.Notes) != notes {
			t.Errorf("%s on governance: %+v, %v", mode, r, err)
		}
	}
}
