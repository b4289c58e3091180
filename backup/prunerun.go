package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/storage"
)

// PruneReport is what Execute did.
type PruneReport struct {
	Marked  []string `json:"marked"`  // snapshots that are pending deletion now
	Removed []string `json:"removed"` // snapshots that are gone
	Skipped []string `json:"skipped"` // that another host kept, had back or removed meanwhile
	Objects int      `json:"objects_removed"`
	Bytes   int64    `json:"bytes_removed"`
	Locked  []string `json:"locked"` // objects that a lock kept: not an error
}

// Execute does what the plan says, in the order of FORMAT.md §12. It may be
// interrupted anywhere: a plan made afterwards goes on where it stopped. It may
// run beside snapshots, copies and other prunes on other hosts.
func (p *PrunePlan) Execute(ctx context.Context, store storage.Store) (*PruneReport, error) {
	x := &pruning{PrunePlan: p, store: store, report: &PruneReport{Marked: []string{}, Removed: []string{}, Skipped: []string{}, Locked: []string{}}}
	for _, step := range []func(context.Context) error{x.mark, x.sweepOrphans, x.remove, x.sweepNamed, x.tidy} {
		if err := step(ctx); err != nil {
			return x.report, fmt.Errorf("prune: %w", err)
		}
	}
	slices.Sort(x.report.Locked)
	return x.report, nil
}

// pruning is one execution.
type pruning struct {
	*PrunePlan
	store storage.Store

	tidied bool // to make room

	mu     sync.Mutex
	report *PruneReport
}

// addMark adds a mark. A full store may have no room for it, and so none for what
// makes room: then what needs no mark goes first.
func (x *pruning) addMark(ctx context.Context, decide func(*markLog) (*format.Mark, error)) (*format.Mark, error) {
	m, err := addMark(ctx, x.store, x.options.Software, decide)
	if errors.Is(err, storage.ErrFull) && !x.tidied {
		x.tidied = true
		if err := x.tidy(ctx); err != nil {
			return nil, err
		}
		m, err = addMark(ctx, x.store, x.options.Software, decide)
	}
	if errors.Is(err, storage.ErrFull) {
		err = fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	return m, err
}

func (p *PrunePlan) with(a PruneAction) (out []format.Marked) {
	for _, s := range p.Snapshots {
		if s.Action == a {
			out = append(out, s.id)
		}
	}
	return out
}

// mark makes snapshots pending. If we die here, some are pending and nothing
// else has changed: undelete has seven days.
func (x *pruning) mark(ctx context.Context) error {
	for chunk := range slices.Chunk(x.with(PruneDelete), format.MaxMarked) {
		m, err := x.addMark(ctx, func(log *markLog) (*format.Mark, error) {
			now := log.standings()
			return markOf(format.ActionDelete, "no rule keeps it", chunk, func(id format.Marked) bool {
				v := now[id]
				return !v.keep && v.deleted.IsZero() && v.removed.IsZero()
			}), nil
		})
		if err != nil {
			return err
		}
		x.report.Marked = append(x.report.Marked, x.skip(chunk, m)...)
	}
	return nil
}

// markOf makes a mark of those ids that still fit, nil if none does.
func markOf(a format.Action, reason string, ids []format.Marked, fits func(format.Marked) bool) *format.Mark {
	m := &format.Mark{Action: a, Reason: reason}
	for _, id := range ids {
		if fits(id) {
			m.Snapshots = append(m.Snapshots, id)
		}
	}
	if len(m.Snapshots) == 0 {
		return nil
	}
	return m
}

// skip notes which of the ids a mark does not name, and returns those it does.
func (x *pruning) skip(ids []format.Marked, m *format.Mark) (named []string) {
	for _, id := range ids {
		if m != nil && slices.Contains(m.Snapshots, id) {
			named = append(named, format.ID(id.Sequence))
		} else {
			x.report.Skipped = append(x.report.Skipped, format.ID(id.Sequence))
		}
	}
	return named
}

// remove takes manifests away that are due. First the mark that says so: if we
// die after it, the next prune goes on with the manifests; from the mark on
// nobody can have the snapshots back, and before it everybody can. Packs stay.
func (x *pruning) remove(ctx context.Context) error {
	ids := x.with(PruneRemove)
	if len(ids) == 0 {
		return nil
	}
	free, err := x.unlocked(ctx, ids)
	if err != nil {
		return err
	}
	clock, err := x.clock(ctx)
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(free, format.MaxMarked) {
		going, err := x.condemn(ctx, chunk, clock)
		if err != nil {
			return err
		}
		for _, id := range going {
			gone, err := x.delete(ctx, format.ManifestPath(id.Sequence))
			if err != nil {
				return err
			}
			if gone {
				x.report.Removed = append(x.report.Removed, format.ID(id.Sequence))
			}
		}
	}
	return nil
}

// unlocked leaves out those whose manifest is locked, where the store can tell:
// a mark that nothing takes back would say that they are going, and they stay.
func (x *pruning) unlocked(ctx context.Context, ids []format.Marked) ([]format.Marked, error) {
	var out []format.Marked
	for _, id := range ids {
		until, err := lockedUntil(ctx, x.store, format.ManifestPath(id.Sequence))
		if err != nil {
			return nil, err
		}
		if until.After(time.Now()) {
			x.report.Locked = append(x.report.Locked, format.ManifestPath(id.Sequence))
			continue
		}
		out = append(out, id)
	}
	return out, nil
}

// condemn adds the mark that says that the snapshots are being removed, and returns
// those it names. A mark of an earlier prune, which was interrupted or which a lock
// refused, is said again: the grace period is that of the newest mark, and whoever saw a
// manifest right before it goes has all of it ahead.
func (x *pruning) condemn(ctx context.Context, ids []format.Marked, clock time.Time) ([]format.Marked, error) {
	m, err := x.addMark(ctx, func(log *markLog) (*format.Mark, error) {
		now := log.standings()
		return markOf(format.ActionRemove, "", ids, func(id format.Marked) bool {
			v := now[id]
			switch {
			case !v.removed.IsZero():
				return x.options.Now || !v.goes().After(clock)
			case v.deleted.IsZero(): // nobody had it back since we planned
				return !v.keep && x.options.Now && !x.pending(id)
			}
			return !v.keep && (x.options.Now || !v.deleted.Add(UndeleteWindow).After(clock))
		}), nil
	})
	if err != nil {
		return nil, err
	}
	var going []format.Marked
	if m != nil {
		going = m.Snapshots
	}
	for _, id := range ids {
		if !slices.Contains(going, id) {
			x.report.Skipped = append(x.report.Skipped, format.ID(id.Sequence))
		}
	}
	return going, nil
}

// pending tells whether the plan found the snapshot pending deletion.
func (p *PrunePlan) pending(id format.Marked) bool {
	return slices.ContainsFunc(p.Snapshots, func(s PlannedSnapshot) bool { return s.id == id && s.State == StatePending })
}

// clock reads the store's clock: it puts a mark and sees when the store took it.
// What is due or old is never judged by our own.
func (x *pruning) clock(ctx context.Context) (time.Time, error) {
	m, err := x.addMark(ctx, func(*markLog) (*format.Mark, error) { return &format.Mark{Action: format.ActionSweep}, nil })
	if err != nil {
		return time.Time{}, err
	}
	path := format.MarkPath(m.Number)
	for info, err := range x.store.List(ctx, path) {
		if err != nil {
			return time.Time{}, err
		}
		if info.Name == path {
			return info.Modified, nil
		}
	}
	return time.Time{}, fmt.Errorf("%w: mark %s is not listed after it was stored", ErrCorrupt, path)
}

// sweepTurn is how long a sweep deletes on what it has read of the manifests. A copy
// that finds objects which nothing needs waits twice as long before it relies on
// them (copy.go), so that a sweep that has not seen it is over, and its last
// request too.
const sweepTurn = time.Minute

// sweepOrphans removes what no manifest names that there is, before any is removed: a
// remove mark begins the grace period anew.
func (x *pruning) sweepOrphans(ctx context.Context) error { return x.sweep(ctx, false) }

// sweepNamed removes what the manifests named that have just been removed. That is done
// at once only without a grace period.
func (x *pruning) sweepNamed(ctx context.Context) error { return x.sweep(ctx, true) }

// sweep removes what no manifest needs, in turns. If we die here, fewer objects
// are left that nothing needs.
func (x *pruning) sweep(ctx context.Context, named bool) error {
	left := slices.DeleteFunc(slices.Clone(x.Objects), func(o PlannedObject) bool { return o.named != named })
	done := Progress{Objects: x.report.Objects, Bytes: x.report.Bytes, TotalObjects: len(x.Objects)}
	for len(left) > 0 && x.Held == "" {
		until := time.Now().Add(sweepTurn)
		spare, err := x.look(ctx, left)
		if err != nil || x.Held != "" {
			return err
		}
		now := spare[:min(len(spare), cmp.Or(x.options.perTurn, len(spare)))]
		again, err := x.sweepUntil(ctx, until, now, &done)
		if err != nil {
			return err
		}
		if len(now) > 0 && len(again) == len(now) {
			return fmt.Errorf("no object could be deleted within %v: %w", sweepTurn, context.DeadlineExceeded)
		}
		left = append(again, spare[len(now):]...)
	}
	return nil
}

// look reads the manifests again, after the removal of those that went: a snapshot
// that was written until now is among them and keeps its packs; one that is written
// later has seen that its parent is gone, or begins with packs too young to go. The
// mark that it begins with tells others that a turn has begun.
func (x *pruning) look(ctx context.Context, objects []PlannedObject) ([]PlannedObject, error) {
	clock, err := x.clock(ctx)
	if err != nil {
		return nil, err
	}
	inv := &Inventory{needed: map[string][]int{}, copies: map[uint64]storage.Info{}}
	if err := inv.manifests(ctx, x.store); err != nil {
		return nil, err
	}
	// After the manifests: of one that is gone by then the mark is seen that went before it.
	if inv.log, err = readMarks(ctx, x.store); err != nil {
		return nil, err
	}
	if err := inv.copyRecords(ctx, x.store); err != nil {
		return nil, err
	}
	again := PrunePlan{At: clock, options: x.options}
	again.hold(inv, make([]bool, len(inv.Snapshots)))
	limit := clock.Add(-x.options.Grace)
	if again.Held != "" || inv.log.bad != nil || inv.log.lastRemove().After(limit) {
		x.Held = cmp.Or(again.Held, "the grace period has begun anew")
		return nil, nil
	}
	return slices.DeleteFunc(slices.Clone(objects), func(o PlannedObject) bool {
		return len(inv.needed[o.Name]) > 0 || !again.spare(o.stored, limit)
	}), nil
}

// sweepUntil deletes objects until the turn is over, and returns what is left.
func (x *pruning) sweepUntil(ctx context.Context, until time.Time, objects []PlannedObject, done *Progress) ([]PlannedObject, error) {
	turn, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	over := make([]bool, len(objects))
	err := parallel(turn, readers, len(objects), func(turn context.Context, i int) error {
		gone, err := x.delete(turn, objects[i].Name)
		if err != nil {
			return err
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		over[i] = true
		if gone {
			x.report.Objects++
			x.report.Bytes += objects[i].Size
		}
		done.Objects++
		done.Bytes += objects[i].Size
		if x.options.Progress != nil {
			x.options.Progress(*done)
		}
		return nil
	})
	if err != nil && (ctx.Err() != nil || turn.Err() == nil) {
		return nil, err
	}
	var left []PlannedObject
	for i, o := range objects {
		if !over[i] {
			left = append(left, o)
		}
	}
	return left, nil
}

// delete removes one object. What a lock keeps is noted and no error.
func (x *pruning) delete(ctx context.Context, name string) (gone bool, err error) {
	err = x.store.Delete(ctx, name)
	if errors.Is(err, storage.ErrLocked) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.report.Locked = append(x.report.Locked, name)
		return false, nil
	}
	return err == nil, err
}

// tidy removes marks and records that say nothing any more, so that their number
// stays bounded. The marks that say that snapshots were removed stay, and the
// one with the highest number. If we die here, the next prune does the rest.
func (x *pruning) tidy(ctx context.Context) error {
	inv, err := TakeInventory(ctx, x.store)
	if err != nil {
		return err
	}
	var going []string
	there, manifests := map[uint64]*Entry{}, map[format.Marked]bool{}
	for i := range inv.Snapshots {
		if s := &inv.Snapshots[i]; s.there() || s.State == StateInProgress {
			there[s.id.Sequence], manifests[s.id] = s, s.there()
		}
	}
	for _, n := range inv.log.spent(manifests) {
		going = append(going, format.MarkPath(n))
	}
	for info, err := range x.store.List(ctx, format.VerifiedPrefix) {
		if err != nil {
			return err
		}
		v, ok := format.ParseVerificationPath(info.Name)
		if s := there[v.Sequence]; ok && (s == nil && wasRemoved(inv, v.Sequence) || s != nil && s.superseded(info.Name)) {
			going = append(going, info.Name)
		}
	}
	for _, name := range going {
		if _, err := x.delete(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func wasRemoved(inv *Inventory, sequence uint64) bool {
	return slices.ContainsFunc(inv.Snapshots, func(s Entry) bool { return s.id.Sequence == sequence && s.State == StateDeleted })
}

// superseded tells whether newer records of the same level say at least as much.
func (s *Entry) superseded(path string) bool {
	i := slices.IndexFunc(s.Verified, func(v Verified) bool { return v.path == path })
	if i < 0 {
		return false // not read, or not understood: not ours to judge
	}
	old := s.Verified[i]
	return slices.ContainsFunc(s.Verified[i+1:], func(v Verified) bool {
		says := v.whole() || !old.whole() && (old.OK || !v.OK) // that a part is good does not unsay damage
		return v.Level == old.Level && says && (v.Signed || !old.Signed)
	})
}
