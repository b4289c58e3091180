package backup

import (
	"context"
	"errors"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/storage"
)

// usedNumbers lists the numbers of snapshots that marks name, which are not used
// again; none if the credentials may not read marks. Marks that are much older than
// the manifest of base are not read: what they name is not above it, since a number
// is taken after the highest there is.
func usedNumbers(ctx context.Context, store storage.Store, base uint64) (map[uint64]bool, error) {
	since, err := storedAt(ctx, store, format.ManifestPath(base))
	if err != nil {
		return nil, err
	}
	var infos []storage.Info
	for info, err := range store.List(ctx, format.MarkPrefix) {
		if unreadable(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if _, ok := format.ParseMarkPath(info.Name); ok && (info.Modified.IsZero() || info.Modified.After(since.Add(-DefaultGrace))) {
			infos = append(infos, info)
		}
	}
	marks := make([]takenMark, len(infos))
	err = parallel(ctx, readers, len(infos), func(ctx context.Context, i int) (err error) {
		marks[i], err = readMark(ctx, store, infos[i])
		if damaged(err) || unreadable(err) || errors.Is(err, storage.ErrNotExist) { // tidied up: it said nothing any more
			return nil
		}
		return err
	})
	out := map[uint64]bool{}
	for _, m := range marks {
		for _, s := range m.Snapshots {
			out[s.Sequence] = true
		}
	}
	return out, err
}

// unreadable tells whether there is nothing to be read: the credentials may not, or
// there is no folder yet.
func unreadable(err error) bool {
	return errors.Is(err, storage.ErrDenied) || errors.Is(err, storage.ErrNoBucket)
}

// storedAt is when the store took an object; zero if it is not there or the store
// does not tell.
func storedAt(ctx context.Context, store storage.Store, path string) (time.Time, error) {
	for info, err := range store.List(ctx, path) {
		if unreadable(err) {
			break
		}
		if err != nil {
			return time.Time{}, err
		}
		if info.Name == path {
			return info.Modified, nil
		}
	}
	return time.Time{}, nil
}

// recorded tells whether a record of a copy or of a verification names a number.
func recorded(ctx context.Context, store storage.Store, n uint64) (bool, error) {
	for _, prefix := range []string{format.CopyPath(n), format.VerifiedPrefix + format.ID(n) + "/"} {
		for _, err := range store.List(ctx, prefix) {
			if unreadable(err) {
				break
			}
			return err == nil, err
		}
	}
	return false, nil
}
