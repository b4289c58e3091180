package backup

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/storage"
)

// Keep marks a snapshot so that it never expires, or, with keep false, lets it
// expire again. One that is pending deletion is refused (ErrRetention): undelete
// it first. Nothing is written if it is so already.
func Keep(ctx context.Context, store storage.Store, id string, keep bool, software string) (*Entry, error) {
	action := format.ActionNoKeep
	if keep {
		action = format.ActionKeep
	}
	return change(ctx, store, id, action, software, func(s *Entry, v standing) (bool, error) {
		if keep && (s.State == StatePending || !v.deleted.IsZero() || !v.removed.IsZero()) {
			return false, fmt.Errorf("%w: snapshot %s is pending deletion", ErrRetention, s.ID)
		}
		return v.keep != keep, nil
	})
}

// Delete makes a snapshot pending deletion: for seven days Undelete has it back,
// then a prune removes it. ErrRetention if it is marked keep, the last of its
// cluster, or the last that was verified. Nothing is written if it is pending
// already; that does not give it more time.
func Delete(ctx context.Context, store storage.Store, id, software string) (*Entry, error) {
	return change(ctx, store, id, format.ActionDelete, software, func(s *Entry, v standing) (bool, error) {
		if v.keep {
			return false, fmt.Errorf("%w: snapshot %s is marked keep", ErrRetention, s.ID)
		}
		return v.deleted.IsZero() && v.removed.IsZero(), nil
	})
}

// Undelete has a snapshot back that is pending deletion. ErrRetention if a prune
// has begun to remove it.
func Undelete(ctx context.Context, store storage.Store, id, software string) (*Entry, error) {
	return change(ctx, store, id, format.ActionUndelete, software, func(s *Entry, v standing) (bool, error) {
		if !v.removed.IsZero() {
			return false, fmt.Errorf("%w: snapshot %s is being removed since %s", ErrRetention, s.ID, v.removed.UTC().Format(time.RFC3339))
		}
		return !v.deleted.IsZero(), nil
	})
}

// change adds a mark about one snapshot if wanted says that there is something
// to change, and returns the status after it.
func change(ctx context.Context, store storage.Store, id string, action format.Action, software string, wanted func(*Entry, standing) (bool, error)) (*Entry, error) {
	inv, err := TakeInventory(ctx, store)
	if err != nil {
		return nil, err
	}
	s, err := inv.Find(id)
	if err != nil {
		return nil, err
	}
	if !s.there() {
		return nil, fmt.Errorf("%w: %s is %s", ErrNoSnapshot, s.ID, s.State)
	}
	if Unreadable(s.Err) { // a mark names the manifest's hash
		return nil, s.Err
	}
	if i := slices.IndexFunc(inv.Snapshots, func(o Entry) bool { return o.id == s.id }); action == format.ActionDelete && s.State == StateReady {
		if why := inv.protected()[i]; why != "" {
			return nil, fmt.Errorf("%w: snapshot %s is not deleted: %s", ErrRetention, s.ID, why)
		}
	}
	_, err = addMark(ctx, store, software, func(log *markLog) (*format.Mark, error) {
		change, err := wanted(s, log.standings()[s.id])
		if !change || err != nil {
			return nil, err
		}
		return &format.Mark{Action: action, Snapshots: []format.Marked{s.id}}, nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", action, s.ID, err)
	}
	if inv, err = TakeInventory(ctx, store); err != nil {
		return nil, err
	}
	return inv.Find(id)
}

// newestFirst sorts positions by time, the newest first, and of equal times the
// later position first.
func newestFirst(of []int, at func(int) time.Time) {
	slices.SortStableFunc(of, func(a, b int) int {
		if c := at(b).Compare(at(a)); c != 0 {
			return c
		}
		return b - a
	})
}
