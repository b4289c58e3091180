package backup

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/storage"
)

// UndeleteWindow is how long a snapshot that is pending deletion can be had back.
const UndeleteWindow = 7 * 24 * time.Hour

// markLog is all marks of a repository, ascending by number (FORMAT.md §9).
type markLog struct {
	marks []takenMark
	next  uint64 // the number after the highest
	bad   error  // a mark that does not decode: nothing may be added
}

// takenMark is a mark and when the store took it.
type takenMark struct {
	format.Mark
	at time.Time
}

// readers is how many small objects are fetched at a time.
const readers = 8

// readMarks reads the log as it was at one moment: a mark that vanishes while it
// is read, because a prune tidied up, sends us back to the list.
func readMarks(ctx context.Context, store storage.Store) (*markLog, error) {
	for range maxTries {
		log, whole, err := readListedMarks(ctx, store)
		if err != nil || whole {
			return log, err
		}
	}
	return nil, fmt.Errorf("%w: marks vanish while they are read", ErrRaced)
}

// readListedMarks is one attempt; whole is false if a mark vanished.
func readListedMarks(ctx context.Context, store storage.Store) (log *markLog, whole bool, err error) {
	log = &markLog{next: 1}
	var infos []storage.Info
	for info, err := range store.List(ctx, format.MarkPrefix) {
		if err != nil {
			return nil, false, err
		}
		if n, ok := format.ParseMarkPath(info.Name); ok {
			infos = append(infos, info)
			log.next = max(log.next, n+1)
		}
	}
	log.marks = make([]takenMark, len(infos))
	errs := make([]error, len(infos))
	err = parallel(ctx, readers, len(infos), func(ctx context.Context, i int) (err error) {
		log.marks[i], err = readMark(ctx, store, infos[i])
		if errs[i] = err; damaged(err) || errors.Is(err, storage.ErrNotExist) {
			return nil
		}
		return err
	})
	for _, e := range errs {
		if errors.Is(e, storage.ErrNotExist) {
			return nil, false, err
		}
		log.bad = cmp.Or(log.bad, e)
	}
	log.marks = slices.DeleteFunc(log.marks, func(m takenMark) bool { return m.Number == 0 })
	return log, true, err
}

func readMark(ctx context.Context, store storage.Store, info storage.Info) (takenMark, error) {
	stored, err := storage.ReadAll(ctx, store, info.Name, format.MaxMark)
	if errors.Is(err, storage.ErrTooLarge) {
		return takenMark{}, fmt.Errorf("%w: %s: more than %d bytes", ErrCorrupt, info.Name, format.MaxMark)
	}
	if err != nil {
		return takenMark{}, err
	}
	m, err := format.DecodeMark(stored)
	if err == nil && format.MarkPath(m.Number) != info.Name {
		err = fmt.Errorf("%w: it is mark %s under another number", ErrCorrupt, format.ID(m.Number))
	}
	if err != nil {
		return takenMark{}, fmt.Errorf("%s: %w", info.Name, err)
	}
	if info.Modified.IsZero() { // a store that does not tell: then nothing is due
		info.Modified = time.Now()
	}
	return takenMark{Mark: m, at: info.Modified}, nil
}

// standing is what the marks say of one snapshot.
type standing struct {
	keep    bool
	deleted time.Time // when the store took the standing delete mark; zero: none stands
	removed time.Time // when the store took the first remove mark; zero: none
	due     bool      // it had been pending for the whole window when that mark came
}

// goes is when a snapshot whose remove mark stands may be removed. Whoever may
// write marks can forge one: without a deletion that was due, as after a prune that
// did not wait, it leaves as much time to see it as a deletion does.
func (v standing) goes() time.Time {
	if v.due {
		return v.removed
	}
	return v.removed.Add(UndeleteWindow)
}

// standings returns what the marks say of every snapshot they name.
func (l *markLog) standings() map[format.Marked]standing {
	out := map[format.Marked]standing{}
	for _, m := range l.marks {
		for _, s := range m.Snapshots {
			v := out[s]
			switch m.Action {
			case format.ActionKeep, format.ActionNoKeep:
				v.keep = m.Action == format.ActionKeep
			case format.ActionDelete:
				if v.deleted.IsZero() { // a second delete does not give more time
					v.deleted = m.at
				}
			case format.ActionUndelete:
				v.deleted = time.Time{}
			case format.ActionRemove:
				if v.removed.IsZero() {
					v.removed, v.due = m.at, !v.deleted.IsZero() && !v.deleted.Add(UndeleteWindow).After(m.at)
				}
			}
			out[s] = v
		}
	}
	return out
}

// lastRemove is when the store took the newest remove mark.
func (l *markLog) lastRemove() (at time.Time) {
	for _, m := range l.marks {
		if m.Action == format.ActionRemove && m.at.After(at) {
			at = m.at
		}
	}
	return at
}

// addMark adds a mark to the log. decide sees the log as it is and returns the
// mark's action, snapshots and reason, or nil if there is nothing to say any
// more; it is asked again if another writer was first. The mark that is returned
// is in the log; nil if decide wanted none.
func addMark(ctx context.Context, store storage.Store, software string, decide func(*markLog) (*format.Mark, error)) (*format.Mark, error) {
	for range maxTries {
		log, err := readMarks(ctx, store)
		if errors.Is(err, storage.ErrNoBucket) {
			return nil, fmt.Errorf("%w: the repository holds none: %w", ErrNoSnapshot, err)
		}
		if err != nil {
			return nil, err
		}
		if log.bad != nil {
			return nil, fmt.Errorf("the log of retention cannot be read: %w", log.bad)
		}
		m, err := decide(log)
		if m == nil || err != nil {
			return nil, err
		}
		m.Number, m.Written, m.Software = log.next, time.Now(), software
		slices.SortFunc(m.Snapshots, func(a, b format.Marked) int { return cmp.Compare(a.Sequence, b.Sequence) })
		stored, err := format.EncodeMark(*m)
		if err != nil {
			return nil, err
		}
		done, err := createOnce(ctx, store, format.MarkPath(m.Number), stored)
		if err != nil {
			return nil, err
		}
		if done {
			return m, nil
		}
	}
	return nil, fmt.Errorf("%w: %d times in a row", ErrRaced, maxTries)
}

// createOnce puts an object whose name others may want too. done is false if
// another writer has it. A driver that lost an answer may report our own object
// as another's: equal bytes are taken for ours, since they say the same.
func createOnce(ctx context.Context, store storage.Store, path string, stored []byte) (done bool, err error) {
	err = store.Put(ctx, path, bytes.NewReader(stored), int64(len(stored)))
	if !errors.Is(err, storage.ErrExist) {
		return err == nil, err
	}
	there, err := storage.ReadAll(ctx, store, path, int64(len(stored)))
	switch {
	case errors.Is(err, storage.ErrTooLarge), errors.Is(err, storage.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	}
	return bytes.Equal(there, stored), nil
}

// spent returns the numbers of marks that decide nothing any more, and have not
// for a day: a listing is not of one moment, and a reader must not miss a mark
// that is gone and the newer one, too, that made it needless. What they say of a
// snapshot that is being removed decides as long as its manifest is there.
func (l *markLog) spent(there map[format.Marked]bool) (out []uint64) {
	var clock time.Time // not later than the store's
	for _, m := range l.marks {
		clock = later(clock, m.at)
	}
	limit := clock.Add(-DefaultGrace)
	now := l.standings()
	for _, m := range l.marks {
		decides := m.Action == format.ActionRemove || m.Number+1 == l.next || m.at.After(limit) || slices.ContainsFunc(m.Snapshots, func(id format.Marked) bool {
			return there[id] || now[id].removed.IsZero() || now[id].removed.After(limit)
		})
		if !decides {
			out = append(out, m.Number)
		}
	}
	return out
}

// later returns the later of two times.
func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
