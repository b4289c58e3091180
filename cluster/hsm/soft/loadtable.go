package soft

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

const (
	// tableBytes ends a table of objects.
	tableBytes = 64 << 20
	// apartBytes is what a table holds at least that ends with its part: what comes between
	// this part and the next is another worker's, and tables that overlap are all written
	// once more by the store, to tidy up.
	apartBytes = 4 << 20
	// indexEntries are sorted in memory and make one table; they take some 20 MiB.
	indexEntries = 200_000
)

// table is one table in the making: keys in ascending order.
type table struct {
	path        string
	w           *sstable.Writer
	first, last []byte
}

func (l *load) newTable() (*table, error) {
	if err := l.h.store.room(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.names++
	t := &table{path: l.h.opts.FS.PathJoin(l.dir, fmt.Sprintf("%06d.sst", l.names))}
	l.mu.Unlock()
	f, err := l.h.opts.FS.Create(t.path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, l.h.store.wrap("load", err)
	}
	o := l.h.store.options()
	o.EnsureDefaults()
	t.w = sstable.NewWriter(newTableFile(f), o.MakeWriterOptions(len(o.Levels)-1, l.h.store.db.TableFormat()))
	return t, nil
}

func (t *table) set(key, value []byte) error {
	if t.first == nil {
		t.first = bytes.Clone(key)
	}
	t.last = append(t.last[:0], key...)
	return t.w.Set(key, value)
}

// end writes the rest of a table, durably.
func (w *loadWorker) end(t *table) error {
	if t == nil {
		return nil
	}
	if err := t.w.Close(); err != nil {
		return w.h.store.wrap("load", err)
	}
	w.done = append(w.done, t)
	return nil
}

// loadWorker opens objects and writes tables of its own.
type loadWorker struct {
	*load
	last             hsm.KeyRef // in the tables
	objects, digests *table
	opener           *hsm.Opener
	entries          []indexEntry
	keys             []byte // of entries, as far as there is room
	refs             []hsm.KeyRef
	tally            *tally
	live             int64
	special          []arrival
	scratch          [96]byte // of keys

	// of the unit
	parts  []int
	latest uint64 // time of a stamp
	done   []*table
	bytes  int

	total  int // bytes of the units before
	before int // number of the part before
}

type indexEntry struct {
	key []byte
	rel byte
}

func (w *loadWorker) run(ctx context.Context, parts <-chan numbered) error {
	defer w.abandon()
	for part := range parts {
		if w.apart(part.number) {
			if err := w.endTables(); err != nil {
				return err
			}
		}
		if err := w.part(ctx, part.objects); err != nil {
			return err
		}
		if w.parts = append(w.parts, part.number); w.keep && w.bytes >= w.unit() {
			if err := w.endUnit(); err != nil {
				return err
			}
		}
	}
	return w.endUnit()
}

// apart tells whether a part is not to go into the tables of the part before.
func (w *loadWorker) apart(number int) bool {
	follows := number == w.before+1
	w.before = number
	return !follows && w.objects != nil && w.objects.w.Raw().EstimatedSize() > cmp.Or(w.h.opts.loadApart, apartBytes)
}

// unit is how many bytes make a unit.
func (w *loadWorker) unit() int {
	return cmp.Or(w.h.opts.loadUnit, min(max(w.total/unitShare, unitMin), unitMax))
}

func (w *loadWorker) part(ctx context.Context, objects iter.Seq2[hsm.MaskedObject, error]) error {
	var last hsm.KeyRef
	for m, err := range objects {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && m.Ref <= last {
			err = fmt.Errorf("%w: %s after %s in a part to be loaded", hsm.ErrInvalid, m.Ref, last)
		}
		if err != nil {
			return err
		}
		last = m.Ref
		if err := w.take(m); err != nil {
			return err
		}
	}
	return nil
}

// endUnit makes the tables of some whole parts durable, and has the load know of
// them. If we die in here, the parts are read again.
func (w *loadWorker) endUnit() error {
	if err := w.endTables(); err != nil {
		return err
	}
	if err := w.endEntries(); err != nil {
		return err
	}
	if err := w.keepUnit(w.parts, w.done, w.latest); err != nil {
		return err
	}
	w.load.mu.Lock()
	defer w.load.mu.Unlock()
	w.load.state.Join(w.tally.sum())
	w.load.live += w.live
	w.load.refs = append(w.load.refs, w.refs...)
	w.load.special = append(w.load.special, w.special...)
	w.load.tables = append(w.load.tables, w.done...)
	w.tally, w.live, w.refs, w.special = newTally(w.h.keys().FingerprintKeys()), 0, w.refs[:0], nil
	w.parts, w.latest, w.done, w.bytes, w.total = nil, 0, nil, 0, w.total+w.bytes
	return nil
}

// take opens one object and puts it into the tables.
func (w *loadWorker) take(m hsm.MaskedObject) error {
	g, err := w.opener.Glance(m)
	if err != nil {
		return err
	}
	if err := w.h.acceptable(m.Object, g.Cluster, g.Latest, hsm.ScopeLineage); err != nil {
		return err
	}
	if m.Ref <= w.last || w.objects != nil && w.objects.w.Raw().EstimatedSize() > tableBytes {
		if err := w.endTables(); err != nil {
			return err
		}
	}
	if w.objects == nil {
		if w.objects, err = w.newTable(); err != nil {
			return err
		}
		if w.digests, err = w.newTable(); err != nil {
			return err
		}
	}
	key := appendScopedKey(w.scratch[:0], prefixObject, hsm.ScopeLineage, m.Ref)
	if err := w.objects.set(key, m.Bytes); err != nil {
		return w.h.store.wrap("load", err)
	}
	key = appendScopedKey(w.scratch[:0], prefixDigest, hsm.ScopeLineage, m.Ref)
	if err := w.digests.set(key, appendDigest(key[len(key):], m.Object)); err != nil {
		return w.h.store.wrap("load", err)
	}
	w.last, w.refs, w.bytes = m.Ref, append(w.refs, m.Ref), w.bytes+len(m.Bytes)
	w.tally.add(m.Object)
	w.latest = max(w.latest, g.Latest.Time)
	return w.note(m, g)
}

// note keeps what follows from an object besides its bytes.
func (w *loadWorker) note(m hsm.MaskedObject, g hsm.Glance) error {
	if m.Kind != hsm.KindKey {
		m.Bytes = bytes.Clone(m.Bytes) // the record keeps parts of it
		rec, err := w.h.keys().Unmask(m)
		m.Bytes = nil
		w.special = append(w.special, arrival{masked: m, rec: rec})
		return err
	}
	if !m.Tombstone {
		w.live++
	}
	eachEntry(m.Ref, m.Tombstone, g, w.scratch[:], w.addEntry)
	if len(w.entries) < indexEntries {
		return nil
	}
	return w.endEntries()
}

// keySlab is how many bytes of keys are kept in one piece.
const keySlab = 64 << 10

func (w *loadWorker) addEntry(key []byte, rel byte) {
	if len(w.keys)+len(key) > cap(w.keys) {
		w.keys = make([]byte, 0, max(keySlab, len(key)))
	}
	at := len(w.keys)
	w.keys = append(w.keys, key...)
	w.entries = append(w.entries, indexEntry{w.keys[at:len(w.keys):len(w.keys)], rel})
}

func (w *loadWorker) endTables() error {
	objects, digests := w.objects, w.digests
	w.objects, w.digests, w.last = nil, nil, 0
	if err := w.end(objects); err != nil {
		return err
	}
	return w.end(digests)
}

// endEntries makes tables of the index entries gathered so far: one for each
// index, since between their keys lie those of the objects.
func (w *loadWorker) endEntries() error {
	slices.SortFunc(w.entries, func(a, b indexEntry) int { return bytes.Compare(a.key, b.key) })
	for rest := w.entries; len(rest) > 0; {
		n := slices.IndexFunc(rest, func(e indexEntry) bool { return e.key[0] != rest[0].key[0] })
		if n < 0 {
			n = len(rest)
		}
		if err := w.indexTable(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	clear(w.entries)
	w.entries = w.entries[:0]
	return nil
}

func (w *loadWorker) indexTable(entries []indexEntry) error {
	t, err := w.newTable()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if bytes.Equal(e.key, t.last) {
			err = fmt.Errorf("%w: an object comes twice", hsm.ErrInvalid)
		} else {
			err = w.h.store.wrap("load", t.set(e.key, []byte{e.rel}))
		}
		if err != nil {
			_ = t.w.Close() // the first error says it
			return err
		}
	}
	return w.end(t)
}

// abandon closes the tables of a load that failed.
func (w *loadWorker) abandon() {
	for _, t := range []*table{w.objects, w.digests} {
		if t != nil {
			_ = t.w.Close() // its file is removed
		}
	}
}
