package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
)

// State is where a snapshot is in its life (FORMAT.md §9).
type State string

// The states. They have CloudHSM's names.
const (
	StateReady      State = "READY"
	StatePending    State = "PENDING_DELETION"
	StateDeleted    State = "DELETED"
	StateInProgress State = "CREATE_IN_PROGRESS" // a copy that is not whole yet
)

// Entry is a snapshot in an inventory, with all that marks and records say of it.
type Entry struct {
	Summary
	State    State
	Keep     bool      // never expires
	Pending  time.Time // since when it is pending deletion
	DeleteAt time.Time // when it is due; of a pending one
	Deleted  time.Time // of a deleted one
	Removing bool      // its manifest is being deleted: it cannot be had back
	Verified []Verified
	Copy     *CopyInfo

	id     format.Marked
	stored time.Time // when the store took the manifest
}

// Verified is a record of verification.
type Verified struct {
	Level    Level     `json:"level"`
	At       time.Time `json:"at"`
	OK       bool      `json:"ok"`
	Checked  int       `json:"packs_checked"`
	Packs    int       `json:"packs"`
	KeysUsed int       `json:"keys_used,omitempty"`
	Signed   bool      `json:"signed"`

	path string
}

// whole tells whether the record says that everything is good.
func (v Verified) whole() bool { return v.OK && v.Checked == v.Packs }

// CopyInfo says where a copy is from.
type CopyInfo struct {
	Source string            `json:"source"` // location
	Begun  time.Time         `json:"copied"`
	Tags   map[string]string `json:"tags,omitempty"` // instead of the source's
}

// Inventory is everything that a repository's manifests, marks and records say.
type Inventory struct {
	Snapshots []Entry  // ascending by id, those deleted included
	Notes     []string // marks and records that cannot be read

	log     *markLog
	needed  map[string][]int // name of an object: positions in Snapshots
	unknown []int            // positions of manifests that cannot be read
	copies  map[uint64]storage.Info
}

// TakeInventory reads all manifests, marks and records.
func TakeInventory(ctx context.Context, store storage.Store) (*Inventory, error) {
	inv := &Inventory{needed: map[string][]int{}, copies: map[uint64]storage.Info{}}
	var err error
	if inv.log, err = readMarks(ctx, store); err != nil {
		return nil, err
	}
	if inv.log.bad != nil {
		inv.Notes = append(inv.Notes, fmt.Sprintf("a mark is passed over: %v", inv.log.bad))
	}
	if err := inv.manifests(ctx, store); err != nil {
		return nil, err
	}
	inv.apply(inv.log.standings())
	if err := inv.copyRecords(ctx, store); err != nil {
		return nil, err
	}
	return inv, inv.verifications(ctx, store)
}

// manifests reads all manifests, of which those that do not open are listed with
// Err, as List does.
func (inv *Inventory) manifests(ctx context.Context, store storage.Store) error {
	var infos []storage.Info
	for info, err := range store.List(ctx, format.ManifestPrefix) {
		if err != nil {
			return err
		}
		if _, ok := format.ParseManifestPath(info.Name); ok {
			infos = append(infos, info)
		}
	}
	read := make([]*Entry, len(infos))
	var mu sync.Mutex
	needs := map[string][]int{}
	err := parallel(ctx, readers, len(infos), func(ctx context.Context, i int) error {
		n, _ := format.ParseManifestPath(infos[i].Name)
		s, m, err := readEntry(ctx, store, n)
		if err != nil || s == nil {
			return err
		}
		s.stored = infos[i].Modified
		read[i] = s
		mu.Lock()
		defer mu.Unlock()
		if m != nil {
			for _, path := range neededBy(m) {
				needs[path] = append(needs[path], i)
			}
		}
		return nil
	})
	if err == nil {
		err = allUnreadable(read, func(s *Entry) error { return s.Err })
	}
	if err != nil {
		return err
	}
	position := make([]int, len(infos))
	for i, s := range read {
		if s == nil {
			continue
		}
		if position[i] = len(inv.Snapshots); s.Err != nil {
			inv.unknown = append(inv.unknown, position[i])
		}
		inv.Snapshots = append(inv.Snapshots, *s)
	}
	for path, by := range needs {
		for k, i := range by {
			by[k] = position[i]
		}
		inv.needed[path] = by
	}
	return nil
}

// allUnreadable returns the error of the first manifest if the store gives out none at
// all: that is no matter of single objects.
func allUnreadable[T any](read []*T, errOf func(*T) error) (first error) {
	for _, r := range read {
		if r == nil { // gone meanwhile
			continue
		}
		err := errOf(r)
		if !Unreadable(err) {
			return nil
		}
		first = cmp.Or(first, err)
	}
	return first
}

// neededBy lists the objects that a manifest names.
func neededBy(m *format.Manifest) []string {
	out := make([]string, 1, 1+2*len(m.Packs))
	out[0] = format.EnvelopePath(m.Envelope)
	for _, p := range m.Packs {
		out = append(out, format.PackPath(p.Pack), format.IndexPath(p.Index))
	}
	return out
}

// readEntry reads one manifest: nil if it is gone, with Err if it does not open.
func readEntry(ctx context.Context, store storage.Store, n uint64) (*Entry, *format.Manifest, error) {
	path := format.ManifestPath(n)
	bad := func(err error, name format.Name) *Entry {
		return &Entry{Summary: Summary{ID: format.ID(n), Err: err}, State: StateReady, id: format.Marked{Sequence: n, Manifest: name}}
	}
	stored, err := storage.ReadAll(ctx, store, path, format.MaxManifest)
	switch {
	case errors.Is(err, storage.ErrNotExist):
		return nil, nil, nil
	case errors.Is(err, storage.ErrTooLarge):
		return bad(fmt.Errorf("%w: %s: more than %d bytes", ErrCorrupt, path, format.MaxManifest), format.Name{}), nil, nil
	case Unreadable(err):
		return bad(err, format.Name{}), nil, nil
	case err != nil:
		return nil, nil, err
	}
	m, err := openManifest(stored, n)
	switch {
	case damaged(err) || errors.Is(err, hsm.ErrSignature):
		return bad(fmt.Errorf("%s: %w", path, err), format.NameOf(stored)), nil, nil
	case err != nil:
		return nil, nil, err
	}
	return &Entry{Summary: summarize(m), State: StateReady, id: format.Marked{Sequence: n, Manifest: format.NameOf(stored)}}, m, nil
}

// apply sets the states by what the marks say, and adds the snapshots that are
// gone.
func (inv *Inventory) apply(standings map[format.Marked]standing) {
	there := map[format.Marked]bool{}
	for i := range inv.Snapshots {
		s := &inv.Snapshots[i]
		there[s.id] = true
		v := standings[s.id]
		s.Keep, s.Removing = v.keep, !v.removed.IsZero()
		switch {
		case s.Removing:
			s.State, s.Pending, s.DeleteAt = StatePending, v.removed, v.goes()
		case !v.deleted.IsZero():
			s.State, s.Pending, s.DeleteAt = StatePending, v.deleted, v.deleted.Add(UndeleteWindow)
		}
	}
	for id, v := range standings {
		if !v.removed.IsZero() && !there[id] {
			inv.Snapshots = append(inv.Snapshots, Entry{Summary: Summary{ID: format.ID(id.Sequence)}, State: StateDeleted, Deleted: v.removed, id: id})
		}
	}
}

// copyRecords reads where copies are from. A record without a manifest is of a
// copy in progress.
func (inv *Inventory) copyRecords(ctx context.Context, store storage.Store) error {
	at := map[uint64]int{}
	for i, s := range inv.Snapshots {
		at[s.id.Sequence] = i
	}
	for info, err := range store.List(ctx, format.CopyPrefix) {
		if err != nil {
			return err
		}
		n, ok := format.ParseCopyPath(info.Name)
		if !ok {
			continue
		}
		c, err := readCopy(ctx, store, n)
		if damaged(err) {
			inv.Notes = append(inv.Notes, fmt.Sprintf("a record is passed over: %v", err))
			continue
		}
		if err != nil {
			return err
		}
		made := &CopyInfo{Source: c.Source, Begun: c.Begun, Tags: c.Tags}
		i, there := at[n]
		switch {
		case !there:
			inv.copies[n] = info
			inv.Snapshots = append(inv.Snapshots, Entry{Summary: Summary{ID: format.ID(n), Tags: c.Tags}, State: StateInProgress, Copy: made, id: format.Marked{Sequence: n, Manifest: c.Manifest}})
		case inv.Snapshots[i].id.Manifest == c.Manifest:
			inv.Snapshots[i].Copy = made
			if len(c.Tags) > 0 {
				inv.Snapshots[i].Tags = c.Tags
			}
		default:
			inv.Notes = append(inv.Notes, fmt.Sprintf("%s is of another snapshot than manifest %s", info.Name, format.ID(n)))
		}
	}
	inv.restorePositions()
	return nil
}

func readCopy(ctx context.Context, store storage.Store, n uint64) (format.CopyRecord, error) {
	path := format.CopyPath(n)
	stored, err := storage.ReadAll(ctx, store, path, format.MaxRecord)
	if errors.Is(err, storage.ErrTooLarge) {
		return format.CopyRecord{}, fmt.Errorf("%w: %s: more than %d bytes", ErrCorrupt, path, format.MaxRecord)
	}
	if err != nil {
		return format.CopyRecord{}, err
	}
	c, err := format.DecodeCopy(stored)
	if err == nil && c.Sequence != n {
		err = fmt.Errorf("%w: it is the record of snapshot %s", ErrCorrupt, format.ID(c.Sequence))
	}
	if err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// restorePositions sorts the snapshots and follows with the positions.
func (inv *Inventory) restorePositions() {
	before := slices.Clone(inv.Snapshots)
	slices.SortStableFunc(inv.Snapshots, func(a, b Entry) int {
		switch {
		case a.id.Sequence < b.id.Sequence:
			return -1
		case a.id.Sequence > b.id.Sequence:
			return 1
		}
		return 0
	})
	now := map[format.Marked]int{}
	for i, s := range inv.Snapshots {
		now[s.id] = i
	}
	for _, by := range inv.needed {
		for k, i := range by {
			by[k] = now[before[i].id]
		}
	}
	for k, i := range inv.unknown {
		inv.unknown[k] = now[before[i].id]
	}
}

// verifications reads the records of verification of the snapshots that are there.
func (inv *Inventory) verifications(ctx context.Context, store storage.Store) error {
	at := map[uint64]int{}
	for i, s := range inv.Snapshots {
		if s.there() && s.Err == nil {
			at[s.id.Sequence] = i
		}
	}
	var paths []string
	for info, err := range store.List(ctx, format.VerifiedPrefix) {
		if err != nil {
			return err
		}
		if v, ok := format.ParseVerificationPath(info.Name); ok {
			if _, there := at[v.Sequence]; there {
				paths = append(paths, info.Name)
			}
		}
	}
	read, bad := make([]*Verified, len(paths)), make([]error, len(paths))
	err := parallel(ctx, readers, len(paths), func(ctx context.Context, i int) error {
		v, _ := format.ParseVerificationPath(paths[i])
		s := inv.Snapshots[at[v.Sequence]]
		r, err := readVerified(ctx, store, paths[i], s.id, s.Lineage)
		switch {
		case errors.Is(err, storage.ErrNotExist):
			return nil
		case damaged(err) || errors.Is(err, hsm.ErrSignature) || errors.Is(err, hsm.ErrLineage):
			bad[i] = err
			return nil
		}
		read[i] = r
		return err
	})
	if err != nil {
		return err
	}
	for i, r := range read {
		if bad[i] != nil {
			inv.Notes = append(inv.Notes, fmt.Sprintf("a record is passed over: %v", bad[i]))
		}
		if r != nil {
			v, _ := format.ParseVerificationPath(paths[i])
			s := &inv.Snapshots[at[v.Sequence]]
			s.Verified = append(s.Verified, *r)
		}
	}
	for i := range inv.Snapshots {
		slices.SortStableFunc(inv.Snapshots[i].Verified, func(a, b Verified) int { return a.At.Compare(b.At) })
	}
	return nil
}

// there tells whether its manifest is.
func (s *Entry) there() bool { return s.State == StateReady || s.State == StatePending }

// Last returns the newest record of verification of each level, by level.
func (s *Entry) Last() []Verified {
	newest := map[Level]Verified{}
	for _, v := range s.Verified {
		newest[v.Level] = v
	}
	return slices.SortedFunc(maps.Values(newest), func(a, b Verified) int { return levelNumber(a.Level) - levelNumber(b.Level) })
}

// Find returns the status of a snapshot by its id. ErrNoSnapshot.
func (inv *Inventory) Find(id string) (*Entry, error) {
	n, ok := format.ParseID(id)
	if !ok {
		return nil, fmt.Errorf("%w: %q: want up to ten digits", ErrNoSnapshot, id)
	}
	for i := range slices.Backward(inv.Snapshots) { // one that is there comes first
		if s := &inv.Snapshots[i]; s.id.Sequence == n && s.there() {
			return s, nil
		}
	}
	for i := range inv.Snapshots {
		if s := &inv.Snapshots[i]; s.id.Sequence == n {
			return s, nil
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrNoSnapshot, format.ID(n))
}

// originKey names the cluster whose snapshots a rule counts.
type originKey struct {
	lineage hsm.Lineage
	cluster hsm.ClusterID
}

func (s *Entry) origin() originKey { return originKey{s.Lineage, s.Cluster} }

// sound tells whether the snapshot was verified as a whole and nothing was found
// wrong since, unless it was gone over again as thoroughly.
func (s *Entry) sound() bool {
	good := 0 // the highest level at which it is
	for _, v := range slices.Backward(s.Verified) {
		switch {
		case v.whole():
			good = max(good, levelNumber(v.Level))
		case !v.OK && levelNumber(v.Level) > good:
			return false
		}
	}
	return good > 0
}

// protectedLast is why the newest snapshot of a cluster is not removed.
const protectedLast = "it is the last of its cluster"

// protected returns for each snapshot why nothing may remove it, or "".
func (inv *Inventory) protected() []string {
	out := make([]string, len(inv.Snapshots))
	type seen struct{ newest, verified, signed, sound bool }
	groups := map[originKey]*seen{}
	highest := true
	for i, s := range slices.Backward(inv.Snapshots) {
		if !s.there() {
			continue
		}
		if s.Err != nil {
			if highest && errors.Is(s.Err, ErrVersion) { // by another program; what none can read is deleted by name
				out[i] = "it has the highest number"
			}
			highest = false
			continue
		}
		highest = false
		g := groups[s.origin()]
		if g == nil {
			g = &seen{}
			groups[s.origin()] = g
		}
		whole := slices.ContainsFunc(s.Verified, Verified.whole)
		signed := slices.ContainsFunc(s.Verified, func(v Verified) bool { return v.whole() && v.Signed })
		switch {
		case !g.newest:
			out[i] = protectedLast
		case s.Keep:
			out[i] = "it is marked keep"
		case signed && !g.signed:
			out[i] = "it is the last that was verified, with a signature"
		case whole && !g.verified:
			out[i] = "it is the last that was verified"
		case s.sound() && !g.sound:
			out[i] = "it is the last that was verified and not found damaged since"
		}
		g.newest, g.verified, g.signed, g.sound = true, g.verified || whole, g.signed || signed, g.sound || s.sound()
	}
	return out
}
