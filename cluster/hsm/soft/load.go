package soft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// loadFolder is where the tables of a load are made, in the store's folder.
const loadFolder = "load"

// Load implements hsm.Loader, for members of the cluster. Each object is opened
// and authenticated as by Insert; then, since there is nothing to merge with, it
// goes into tables in the order of the store, which the store takes over as they
// are: no lookups, no log, no compaction.
func (s *session) Load(ctx context.Context, job string, parts []iter.Seq2[hsm.MaskedObject, error]) (n hsm.Inserted, err error) {
	done, err := s.enter(ctx, hsm.RoleHSM)
	if err != nil {
		return n, err
	}
	defer done()
	l, err := s.h.startLoad(job, len(parts))
	if err != nil {
		return n, err
	}
	defer func() {
		err = errors.Join(err, l.clean())
		s.audit(ctx, "insert", 0, fmt.Sprintf("loaded %d", n.Added+n.Unchanged), err)
	}()
	if err := l.read(ctx, parts); err != nil {
		return n, err
	}
	if err := l.finish(ctx); err != nil {
		return n, err
	}
	return hsm.Inserted{Added: len(l.refs) - l.resumed, Unchanged: l.resumed}, nil
}

var _ hsm.Loader = (*session)(nil)

// load is one Load.
type load struct {
	h       *HSM
	dir     string
	job     string
	keep    bool         // the tables, for a later load of the job
	done    map[int]bool // parts that an earlier one has read
	resumed int          // objects in them

	mu      sync.Mutex
	names   int // of tables
	tables  []*table
	state   *reconcile.State
	live    int64
	refs    []hsm.KeyRef // all of them: none may come twice
	special []arrival    // users and policies, which are kept in memory
}

func (h *HSM) startLoad(job string, parts int) (*load, error) {
	fs := h.opts.FS
	l := &load{h: h, dir: fs.PathJoin(h.store.dir, loadFolder), job: job, state: reconcile.NewState(h.keys().FingerprintKeys(), 0), done: map[int]bool{}}
	if err := l.mustBeEmpty(); err != nil {
		return nil, err
	}
	if err := fs.RemoveAll(l.dir); err != nil {
		return nil, h.store.wrap("load", err)
	}
	if l.keep = job != "" && h.opts.LoadDir != ""; l.keep {
		l.dir = h.opts.LoadDir
	}
	if err := fs.MkdirAll(l.dir, 0o700); err != nil {
		return nil, h.store.wrap("load", err)
	}
	if !l.keep {
		return l, nil
	}
	if err := syncFolder(fs, fs.PathDir(l.dir)); err != nil {
		return nil, h.store.wrap("load", err)
	}
	return l, l.resume(parts)
}

func (l *load) mustBeEmpty() error {
	if n := l.h.states[hsm.ScopeLineage].Root().Count; n > 0 || len(l.h.InDoubt()) > 0 {
		return fmt.Errorf("%w: HSM %s holds %d objects; only an empty one can be loaded", hsm.ErrExist, l.h.opts.ID, n)
	}
	return nil
}

// clean removes the tables that the store has not taken over, but for those that
// are kept.
func (l *load) clean() error {
	return l.h.store.wrap("load", l.h.opts.FS.RemoveAll(l.h.opts.FS.PathJoin(l.h.store.dir, loadFolder)))
}

// numbered is a part and its number.
type numbered struct {
	number  int
	objects iter.Seq2[hsm.MaskedObject, error]
}

// read opens the objects of all parts and writes the tables.
func (l *load) read(ctx context.Context, parts []iter.Seq2[hsm.MaskedObject, error]) error {
	next := make(chan numbered)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(next)
		for i, p := range parts {
			if l.done[i] {
				continue
			}
			select {
			case next <- numbered{i, p}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for range min(runtime.GOMAXPROCS(0), len(parts)) {
		g.Go(func() error {
			w := &loadWorker{load: l, opener: l.h.keys().NewOpener(), tally: newTally(l.h.keys().FingerprintKeys())}
			return w.run(ctx, next)
		})
	}
	return g.Wait()
}

// finish makes the objects durable and visible. Each table is on disk; the store
// takes them over in a few steps. If we die between two of them the store holds a
// part of the objects, each whole: whoever loads has not been told that it is
// done, and throws the store away (server.Create does).
func (l *load) finish(ctx context.Context) error {
	slices.Sort(l.refs)
	for i := range l.refs {
		if i > 0 && l.refs[i] == l.refs[i-1] {
			return fmt.Errorf("%w: %s comes twice", hsm.ErrInvalid, l.refs[i])
		}
	}
	h := l.h
	h.moment.Lock()
	defer h.moment.Unlock()
	if err := l.mustBeEmpty(); err != nil {
		return err
	}
	if err := h.rememberLatest(); err != nil { // if we die after it, the clock is ahead of nothing
		return err
	}
	h.absent.expect(len(l.refs))
	for _, ref := range l.refs { // before anybody can see them
		h.absent.add(objectKey(hsm.ScopeLineage, ref))
	}
	for _, group := range disjoint(l.tables) {
		group, err := l.handOver(group)
		if err != nil {
			return h.store.wrap("load", err)
		}
		if err := h.store.guard(func() error { return h.store.db.Ingest(ctx, group) }); err != nil {
			return err
		}
	}
	h.states[hsm.ScopeLineage].Join(l.state)
	h.liveKeys.Add(l.live)
	h.floor.objects.Add(int64(len(l.refs)))
	for _, a := range l.special {
		h.learn(a.rec, a.masked.Object)
	}
	h.raiseFloor()
	return nil
}

// disjoint groups tables so that those of one group do not overlap, which the
// store demands of what it takes over in one step.
func disjoint(tables []*table) (groups [][]string) {
	slices.SortFunc(tables, func(a, b *table) int { return bytes.Compare(a.first, b.first) })
	var ends [][]byte
next:
	for _, t := range tables {
		for i := range groups {
			if bytes.Compare(ends[i], t.first) < 0 {
				groups[i], ends[i] = append(groups[i], t.path), t.last
				continue next
			}
		}
		groups, ends = append(groups, []string{t.path}), append(ends, t.last)
	}
	return groups
}
