package remotetest

import (
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/storage"
)

// locks tests each sentence of storage.Locker.
func (s *suite) locks(t *testing.T) {
	s.server.CreateLockableBucket("lockable")
	place := s.place(t)
	place.Bucket = "lockable"
	store := s.driver(t, place)
	locker := store.(storage.Locker)
	ctx := t.Context()
	put(t, store, "a", "kept")
	put(t, store, "free", "not kept")
	want := func(mode storage.LockMode, until time.Time) {
		t.Helper()
		r, err := locker.Retention(ctx, "a")
		if err != nil || r.Mode != mode || r.Until.Before(until) || r.Until.After(until.Add(2*time.Second)) {
			t.Fatalf("%+v, %v; want %s until %s", r, err, mode, until)
		}
	}
	if r, err := locker.Retention(ctx, "a"); err != nil || r != (storage.Retention{}) {
		t.Fatalf("%+v, %v", r, err)
	}
	hour, day := time.Now().Add(time.Hour), time.Now().Add(24*time.Hour)
	for _, step := range []struct {
		set, want storage.Retention
	}{
		{storage.Retention{Mode: storage.Governance, Until: hour}, storage.Retention{Mode: storage.Governance, Until: hour}},
		{storage.Retention{Mode: storage.Governance, Until: day}, storage.Retention{Mode: storage.Governance, Until: day}},  // extended
		{storage.Retention{Mode: storage.Governance, Until: hour}, storage.Retention{Mode: storage.Governance, Until: day}}, // not shortened
		{storage.Retention{Mode: storage.Compliance, Until: hour}, storage.Retention{Mode: storage.Governance, Until: day}}, // its mode stays
	} {
		held, err := locker.Lock(ctx, "a", step.set)
		if err != nil {
			t.Fatalf("%+v: %v", step.set, err)
		}
		if held.Mode != step.want.Mode || held.Until.Before(step.want.Until) || held.Until.After(step.want.Until.Add(2*time.Second)) {
			t.Errorf("%+v: it says that %+v holds, want %+v", step.set, held, step.want)
		}
		want(step.want.Mode, step.want.Until)
	}
	s.wantErr(t, "delete", store.Delete(ctx, "a"), storage.ErrLocked)
	wantContent(t, store, "a", "kept")
	if err := store.Delete(ctx, "free"); err != nil {
		t.Error(err)
	}
	_, err := locker.Lock(ctx, "missing", storage.Retention{Mode: storage.Governance, Until: hour})
	s.wantErr(t, "lock", err, storage.ErrNotExist)
	_, err = locker.Retention(ctx, "missing")
	s.wantErr(t, "lock", err, storage.ErrNotExist)
}

func (s *suite) noLocks(t *testing.T) {
	store := s.open(t)
	put(t, store, "a", "free")
	locker := store.(storage.Locker)
	_, err := locker.Lock(t.Context(), "a", storage.Retention{Mode: storage.Governance, Until: time.Now().Add(time.Hour)})
	s.wantErr(t, "lock", err, storage.ErrNoLock)
	if err := store.Delete(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}
