package soft

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// A load that has a job and a folder to keep its tables in (Options.LoadDir) can be
// gone on with after the process died. Its work falls into units: a worker reads
// some parts whole, and writes their objects to tables of their own. When these are
// on disk, a note NNNNNN.unit says which parts they hold, and a later load of the same job
// takes the tables for the parts. A table that no note names is thrown away.
//
// The tables belong to the store in the making: they are trusted as a store's files are when it is
// opened, and checked as those are, by checksum.

// A unit is a share of what a worker has read so far, within these bounds of bytes of objects:
// so little is lost, and the store does not take over thousands of tables.
const (
	unitShare = 4
	unitMin   = 4 << 20
	unitMax   = tableBytes
)

// maxNote bounds what is read of a note.
const maxNote = 1 << 20

var unitFile = regexp.MustCompile(`^\d{6}\.unit$`)
var tableName = regexp.MustCompile(`^\d{6}\.sst$`)

// unit is a note.
type unit struct {
	Job     string   `json:"job"`
	Version string   `json:"version"` // of the software, which may index objects otherwise
	Parts   []int    `json:"parts"`
	Tables  []string `json:"tables"`
	Latest  uint64   `json:"latest"` // time of the latest stamp in them, which the clock has to know
}

// keepUnit makes the note. If we die before the rename, the parts are read again.
func (l *load) keepUnit(parts []int, tables []*table, latest uint64) error {
	if !l.keep || len(parts) == 0 {
		return nil
	}
	u := unit{Job: l.job, Version: l.h.opts.Version, Parts: parts, Latest: latest}
	for _, t := range tables {
		u.Tables = append(u.Tables, l.h.opts.FS.PathBase(t.path))
	}
	b, err := json.Marshal(u)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.names++
	path := l.h.opts.FS.PathJoin(l.dir, fmt.Sprintf("%06d.unit", l.names))
	l.mu.Unlock()
	return l.h.store.wrap("load", writeNote(l.h.opts.FS, path, b))
}

// writeNote writes a file that is there whole or not at all. The names of the tables
// are durable with its own.
func writeNote(fs vfs.FS, path string, b []byte) error {
	f, err := fs.Create(path+".new", vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close(), fs.Rename(path+".new", path)); err != nil {
		return err
	}
	return syncFolder(fs, fs.PathDir(path))
}

// syncFolder makes the names in a folder durable.
func syncFolder(fs vfs.FS, path string) error {
	folder, err := fs.OpenDir(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// resume takes over what an interrupted load of the same job has left of so many
// parts, and removes all else from the folder.
func (l *load) resume(parts int) error {
	fs := l.h.opts.FS
	names, err := fs.List(l.dir)
	if err != nil {
		return l.h.store.wrap("load", err)
	}
	slices.Sort(names)
	used := map[string]bool{}
	for _, name := range names {
		if n := 0; unitFile.MatchString(name) || tableName.MatchString(name) {
			_, _ = fmt.Sscanf(name, "%06d", &n)
			l.names = max(l.names, n)
		}
		if !unitFile.MatchString(name) {
			continue
		}
		u, err := readNote(fs, fs.PathJoin(l.dir, name))
		if err != nil || !l.fits(u, parts, used) || l.takeUnit(u) != nil {
			continue // as if it were not there: its parts are read again
		}
		used[name] = true
		for _, t := range u.Tables {
			used[t] = true
		}
		for _, i := range u.Parts {
			l.done[i] = true
		}
	}
	for _, name := range names {
		if !used[name] {
			if err := fs.RemoveAll(fs.PathJoin(l.dir, name)); err != nil {
				return l.h.store.wrap("load", err)
			}
		}
	}
	l.resumed = len(l.refs)
	return nil
}

func readNote(fs vfs.FS, path string) (u unit, err error) {
	f, err := fs.Open(path)
	if err != nil {
		return u, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxNote+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return u, err
	}
	if len(b) > maxNote {
		return u, fmt.Errorf("%w: %s: more than %d bytes", hsm.ErrCorrupt, path, maxNote)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return u, d.Decode(&u)
}

// fits tells whether a note is of this job, and of parts and tables that no other
// note names.
func (l *load) fits(u unit, parts int, used map[string]bool) bool {
	if u.Job != l.job || u.Version != l.h.opts.Version {
		return false
	}
	seen := maps.Clone(l.done)
	for _, i := range u.Parts {
		if i < 0 || i >= parts || seen[i] {
			return false
		}
		seen[i] = true
	}
	tables := map[string]bool{}
	for _, name := range u.Tables {
		if !tableName.MatchString(name) || used[name] || tables[name] {
			return false
		}
		tables[name] = true
	}
	return true
}

// takeUnit reads the tables of a unit and takes them over.
func (l *load) takeUnit(u unit) error {
	r := &unitReader{load: l, tally: newTally(l.h.keys().FingerprintKeys()), special: map[hsm.KeyRef]hsm.Object{}}
	for _, prefix := range []byte{prefixDigest, 0} { // digests first: they tell which objects are kept in memory
		for _, name := range u.Tables {
			if err := r.read(l.h.opts.FS.PathJoin(l.dir, name), prefix); err != nil {
				return err
			}
		}
	}
	if r.objects != len(r.refs) || len(r.arrivals) != len(r.special) {
		return fmt.Errorf("%w: %d objects and %d digests", hsm.ErrCorrupt, r.objects, len(r.refs))
	}
	if err := l.h.clock.Observe(hsm.Stamp{Time: u.Latest}); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tables = append(l.tables, r.tables...)
	l.refs = append(l.refs, r.refs...)
	l.special = append(l.special, r.arrivals...)
	l.live += r.live
	l.state.Join(r.tally.sum())
	return nil
}

// unitReader gathers what the tables of a unit hold.
type unitReader struct {
	*load
	tables   []*table
	refs     []hsm.KeyRef
	objects  int
	live     int64
	tally    *tally
	special  map[hsm.KeyRef]hsm.Object
	arrivals []arrival
}

// read goes over one table, if it is one of digests, or if it is not, as asked for;
// every block is checked on the way.
func (r *unitReader) read(path string, prefix byte) (err error) {
	f, err := r.h.opts.FS.Open(path)
	if err != nil {
		return err
	}
	o := r.h.store.options()
	o.EnsureDefaults()
	it, err := pebble.NewExternalIter(o, nil, [][]sstable.ReadableFile{{f}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if !it.First() {
		return errors.Join(it.Error(), fmt.Errorf("%w: %s is empty", hsm.ErrCorrupt, path))
	}
	t := &table{path: path, first: bytes.Clone(it.Key())}
	if (t.first[0] == prefixDigest) != (prefix == prefixDigest) {
		return nil
	}
	for ok := true; ok; ok = it.Next() {
		if err := r.entry(it.Key(), it.Value()); err != nil {
			return err
		}
		t.last = append(t.last[:0], it.Key()...)
	}
	r.tables = append(r.tables, t)
	return it.Error()
}

func (r *unitReader) entry(key, value []byte) error {
	switch key[0] {
	case prefixDigest:
		ref, err := refOf(key)
		if err != nil {
			return err
		}
		o, err := decodeDigest(ref, value)
		if err != nil {
			return err
		}
		r.refs = append(r.refs, ref)
		r.tally.add(o)
		switch {
		case o.Kind != hsm.KindKey:
			r.special[ref] = o
		case !o.Tombstone:
			r.live++
		}
	case prefixObject:
		r.objects++
		ref, err := refOf(key)
		if err != nil {
			return err
		}
		o, ok := r.special[ref]
		if !ok {
			return nil
		}
		m := hsm.MaskedObject{Object: o, Lineage: r.h.keys().Lineage(), Bytes: bytes.Clone(value)}
		rec, err := r.h.admit(m, hsm.ScopeLineage)
		if err != nil {
			return err
		}
		m.Bytes = nil
		r.arrivals = append(r.arrivals, arrival{masked: m, rec: rec})
	}
	return nil
}

// handOver returns the paths that the store may take over: it moves what it takes,
// and tables that are kept are given to it under a second name.
func (l *load) handOver(group []string) ([]string, error) {
	if !l.keep {
		return group, nil
	}
	fs := l.h.opts.FS
	folder := fs.PathJoin(l.h.store.dir, loadFolder)
	if err := fs.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	out := make([]string, len(group))
	for i, path := range group {
		out[i] = fs.PathJoin(folder, fs.PathBase(path))
		if err := vfs.LinkOrCopy(fs, path, out[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}
