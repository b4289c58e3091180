package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
)

// CopyOptions says how to copy a snapshot.
type CopyOptions struct {
	// Trust is the lineage that must have signed the snapshot.
	Trust *hsm.Lineage
	// Source is the location of the source, for the record; it holds no credentials.
	Source string
	// Tags replace those of the snapshot in the destination's listing; none: they stay.
	Tags     map[string]string
	Software string // named in the record
	// Progress is called now and then, never twice at a time: objects of the
	// repository that are there of all, and the bytes that were copied.
	Progress func(Progress)

	wait func(context.Context, time.Duration) error // of tests; nil: as long as it says
}

// CopyReport is what Copy did.
type CopyReport struct {
	ID      string `json:"id"`
	Source  string `json:"source"`
	Already bool   `json:"already"` // the snapshot was there before
	Copied  int    `json:"objects_copied"`
	Bytes   int64  `json:"bytes_copied"`
	Present int    `json:"objects_present"` // were there before
	State   State  `json:"state"`
	// Notes are what an operator should look at.
	Notes []string `json:"notes,omitempty"`
}

// copyWorkers is how many packs are in memory at a time.
const copyWorkers = 3

// Copy copies a snapshot, the newest if id is "", into another repository: what
// of it is missing there. Everything is read back and compared with its hash
// before the manifest is written, last; until then the destination shows the
// snapshot as CREATE_IN_PROGRESS, and a prune there leaves its packs alone. The
// copy has the number of its source, since the number is signed.
//
// A copy that was interrupted goes on when it is run again. The source is only
// read; the destination needs the rights of a backup: to create, read and list.
//
// Errors: ErrCorrupt names a damaged object, of the source or of the destination,
// where nothing can be overwritten; hsm.ErrLineage if the destination holds
// snapshots of another lineage; ErrOccupied if it holds another snapshot under
// the number, or has had this one and deleted it.
func Copy(ctx context.Context, from, to storage.Store, id string, o CopyOptions) (*CopyReport, error) {
	s, err := Open(ctx, from, id, OpenOptions{Trust: o.Trust})
	if err != nil {
		return nil, fmt.Errorf("copy: %w", &sourceError{err})
	}
	c := &copying{from: from, to: to, options: o, source: s, report: &CopyReport{ID: s.ID(), Source: o.Source, State: StateReady}}
	if err := c.run(ctx); err != nil {
		return nil, fmt.Errorf("copy %s: %w", s.ID(), err)
	}
	c.report.Notes = append(c.report.Notes, lockNotes(to, neededBy(s.manifest))...)
	return c.report, nil
}

// SourceDamaged tells whether a snapshot cannot be copied because it is damaged, was
// forged, or is not given out where it comes from.
func SourceDamaged(err error) bool {
	var s *sourceError
	return errors.As(err, &s) && (damaged(err) || errors.Is(err, hsm.ErrSignature) || Unreadable(err))
}

// sourceError is an error of the source.
type sourceError struct{ error }

func (e *sourceError) Error() string { return "source: " + e.error.Error() }
func (e *sourceError) Unwrap() error { return e.error }

// copying is one call of Copy.
type copying struct {
	from, to storage.Store
	options  CopyOptions
	source   *Snapshot

	mu     sync.Mutex
	report *CopyReport
	done   Progress
}

func (c *copying) run(ctx context.Context) error {
	covered, err := c.destination(ctx)
	if err != nil {
		return err
	}
	// If we die after the record, the destination shows a copy in progress.
	resumed, err := c.record(ctx)
	if err != nil {
		return err
	}
	names := neededBy(c.source.manifest)
	c.done.TotalObjects = len(names) + 1
	for range maxTries {
		// If we die in here, there are objects that no manifest names. The next run
		// reads them back and goes on.
		strays, err := c.objects(ctx, names, covered)
		if err != nil {
			return err
		}
		// From the manifest on the copy exists, whole, unless a prune that did not
		// know of it was removing an object just then: once that is over we look again.
		if err := c.manifest(ctx); err != nil {
			return err
		}
		// The record of an earlier run may be too old to hold a prune back.
		if strays || resumed {
			if err := c.sweepsOver(ctx, format.ManifestPath(c.source.id.Sequence)); err != nil {
				return err
			}
		}
		if err := presence(ctx, c.to, c.source.manifest); !errors.Is(err, ErrCorrupt) {
			return err
		}
		covered = nil
	}
	return fmt.Errorf("%w: objects of the destination vanish; prune it with a longer grace period", ErrRaced)
}

// destination sees that the copy may go there, and returns which objects belong
// to snapshots there that are whole.
func (c *copying) destination(ctx context.Context) (map[string][]int, error) {
	inv, err := TakeInventory(ctx, c.to)
	if errors.Is(err, storage.ErrNoBucket) {
		return nil, nil // a folder that the first put makes; a missing bucket refuses the put
	}
	if err != nil {
		return nil, fmt.Errorf("destination: %w", err)
	}
	for _, e := range inv.Snapshots {
		if e.there() && e.Err == nil && e.Lineage != c.source.Lineage() {
			return nil, fmt.Errorf("%w: the destination holds snapshots of %s, the source of %s", hsm.ErrLineage, e.Lineage, c.source.Lineage())
		}
		if e.id.Sequence != c.source.id.Sequence {
			continue
		}
		switch {
		case Unreadable(e.Err):
			return nil, fmt.Errorf("destination: %w", e.Err)
		case e.id != c.source.id:
			return nil, fmt.Errorf("%w: the destination holds another snapshot of this number", ErrOccupied)
		case e.State == StateDeleted:
			return nil, &deletedError{e.Deleted}
		case e.there():
			if c.report.Already, c.report.State = true, e.State; e.Copy == nil {
				c.report.Notes = append(c.report.Notes, "it was taken there: the destination is where the snapshot comes from, or the source itself under another name")
			}
		}
	}
	return inv.needed, nil
}

// deletedError: the destination has deleted the snapshot, and does not get it
// again.
type deletedError struct{ at time.Time }

func (e *deletedError) Error() string {
	return fmt.Sprintf("%v: it was deleted there at %s", ErrOccupied, e.at.UTC().Format(time.RFC3339))
}

func (e *deletedError) Unwrap() error { return ErrOccupied }

// WasDeleted tells whether Copy refused because the destination has deleted the
// snapshot.
func WasDeleted(err error) bool {
	var e *deletedError
	return errors.As(err, &e)
}

// record says where the snapshot comes from, unless it is there already: then a
// record is, or the destination took it itself. resumed tells that an earlier run left
// the record.
func (c *copying) record(ctx context.Context) (resumed bool, err error) {
	if c.report.Already {
		return false, nil
	}
	stored, err := format.EncodeCopy(format.CopyRecord{
		Sequence: c.source.id.Sequence, Manifest: c.source.id.Manifest, Source: c.options.Source, Begun: time.Now(), Tags: c.options.Tags, Software: c.options.Software,
	})
	if err != nil {
		return false, err
	}
	done, err := createOnce(ctx, c.to, format.CopyPath(c.source.id.Sequence), stored)
	if err != nil || done {
		return false, err
	}
	there, err := readCopy(ctx, c.to, c.source.id.Sequence)
	if err == nil && there.Manifest != c.source.id.Manifest {
		err = fmt.Errorf("%w: the destination has a record of another copy of this number", ErrOccupied)
	}
	return true, err
}

// objects brings over what is missing, and reads back everything that no whole
// snapshot of the destination vouches for. strays tells whether it relies on objects
// that were there and that no snapshot there needs.
func (c *copying) objects(ctx context.Context, names []string, covered map[string][]int) (strays bool, err error) {
	there, err := c.present(ctx)
	if err != nil {
		return false, err
	}
	stray := func(name string) bool { return there[name] && len(covered[name]) == 0 }
	if strays = slices.ContainsFunc(names, stray); strays {
		// A sweep that began before the record may be about to remove them.
		if err := c.sweepsOver(ctx, format.CopyPath(c.source.id.Sequence)); err != nil {
			return false, err
		}
		if there, err = c.present(ctx); err != nil {
			return false, err
		}
	}
	if err := extendLocks(ctx, c.to, present(names, there)); err != nil {
		return false, err
	}
	return strays, c.bring(ctx, names, there, stray)
}

// present lists what is there of packs, indexes and envelopes.
func (c *copying) present(ctx context.Context) (map[string]bool, error) {
	there := map[string]bool{}
	for _, prefix := range objectPrefixes {
		for info, err := range c.to.List(ctx, prefix) {
			if errors.Is(err, storage.ErrNoBucket) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("destination: list %s: %w", prefix, err)
			}
			there[info.Name] = true
		}
	}
	return there, nil
}

// sweepsOver waits until every sweep of the destination is over that began before the
// store took our object: those that begin later see it, and leave alone what
// it needs. A sweep marks the beginning of each of its turns, and a turn takes
// sweepTurn at most.
func (c *copying) sweepsOver(ctx context.Context, object string) error {
	ours, err := storedAt(ctx, c.to, object)
	if err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	log, err := readMarks(ctx, c.to)
	if err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	var left time.Duration
	for _, m := range log.marks {
		if m.Action == format.ActionSweep && !m.at.After(ours) {
			left = max(left, m.at.Add(2*sweepTurn).Sub(ours))
		}
	}
	if left <= 0 {
		return nil
	}
	if c.options.wait != nil {
		return c.options.wait(ctx, left)
	}
	select {
	case <-time.After(left):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// bring copies what is not there and reads back what is new or stray.
func (c *copying) bring(ctx context.Context, names []string, there map[string]bool, stray func(string) bool) error {
	return parallel(ctx, copyWorkers, len(names), func(ctx context.Context, i int) error {
		name, copied := names[i], int64(0)
		if !there[name] {
			var err error
			if copied, err = c.object(ctx, name); err != nil {
				return err
			}
		}
		if !there[name] || stray(name) {
			if err := readBack(ctx, c.to, name); err != nil {
				return fmt.Errorf("destination: %w", err)
			}
		}
		c.count(there[name], copied)
		return nil
	})
}

func present(names []string, there map[string]bool) (out []string) {
	for _, name := range names {
		if there[name] {
			out = append(out, name)
		}
	}
	return out
}

// object copies one object, having checked that it is what its name says.
func (c *copying) object(ctx context.Context, name string) (int64, error) {
	hash, limit := nameIn(name)
	stored, err := fetch(ctx, c.from, name, hash, limit)
	if err != nil {
		return 0, &sourceError{err}
	}
	return int64(len(stored)), putNamed(ctx, c.to, name, stored, hash)
}

// nameIn returns the hash that a path ends in, and how large such an object may
// be.
func nameIn(path string) (format.Name, int64) {
	limits := []int64{format.MaxStoredPack, format.MaxIndex, format.MaxEnvelope}
	hash, kind := format.ParseObjectPath(path)
	return hash, limits[kind]
}

// readBack compares a stored object with the hash in its name, without holding
// it in memory.
func readBack(ctx context.Context, store storage.Store, path string) error {
	want, limit := nameIn(path)
	r, err := store.Get(ctx, path, 0, limit+1)
	if err != nil {
		return missing(err)
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return err
	}
	if !bytes.Equal(h.Sum(nil), want[:]) {
		return fmt.Errorf("%w: %s: its content has another hash than its name", ErrCorrupt, path)
	}
	return nil
}

// manifest writes the manifest, and reads it back.
func (c *copying) manifest(ctx context.Context) error {
	_, stored, err := loadManifest(ctx, c.from, c.source.id.Sequence)
	if err != nil {
		return &sourceError{err}
	}
	if format.NameOf(stored) != c.source.id.Manifest {
		return &sourceError{fmt.Errorf("%w: manifest %s changed meanwhile", ErrCorrupt, c.report.ID)}
	}
	done, err := createOnce(ctx, c.to, format.ManifestPath(c.source.id.Sequence), stored)
	if err != nil {
		return err
	}
	if !done {
		return fmt.Errorf("%w: the destination holds another snapshot of this number by now", ErrOccupied)
	}
	if err := extendLocks(ctx, c.to, []string{format.ManifestPath(c.source.id.Sequence)}); err != nil {
		return err
	}
	_, back, err := loadManifest(ctx, c.to, c.source.id.Sequence)
	if err == nil && !bytes.Equal(back, stored) {
		err = fmt.Errorf("%w: manifest %s is read back as other bytes", ErrCorrupt, c.report.ID)
	}
	if err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	return nil
}

func (c *copying) count(present bool, copied int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if present {
		c.report.Present++
	} else {
		c.report.Copied++
		c.report.Bytes += copied
	}
	c.done.Objects++
	c.done.Bytes += copied
	if c.options.Progress != nil {
		c.options.Progress(c.done)
	}
}
