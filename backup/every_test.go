package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
)

// countingStore counts calls, and fails all of them while it is down.
type countingStore struct {
	storage.Store
	puts, gets, lists atomic.Int64
	down              atomic.Bool
	put               func(name string) // called before each Put
}

func (s *countingStore) fail(n *atomic.Int64) error {
	if n.Add(1); s.down.Load() {
		return fmt.Errorf("%w: connection refused", storage.ErrUnreachable)
	}
	return nil
}

func (s *countingStore) Put(ctx context.Context, name string, body io.ReadSeeker, size int64) error {
	if err := s.fail(&s.puts); err != nil {
		return err
	}
	if s.put != nil {
		s.put(name)
	}
	return s.Store.Put(ctx, name, body, size)
}

func (s *countingStore) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := s.fail(&s.gets); err != nil {
		return nil, err
	}
	return s.Store.Get(ctx, name, offset, length)
}

func (s *countingStore) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	if err := s.fail(&s.lists); err != nil {
		return func(yield func(storage.Info, error) bool) { yield(storage.Info{}, err) }
	}
	return s.Store.List(ctx, prefix)
}

// countingSource counts what an HSM is asked.
type countingSource struct {
	hsm.Sketcher
	roots, others *atomic.Int64
}

func (c countingSource) Root(ctx context.Context) (hsm.Root, error) {
	c.roots.Add(1)
	return c.Sketcher.Root(ctx)
}

func (c countingSource) FingerprintKeys(ctx context.Context) (hsm.FingerprintKeys, error) {
	c.others.Add(1)
	return c.Sketcher.FingerprintKeys(ctx)
}

func (c countingSource) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	c.others.Add(1)
	return c.Sketcher.Objects(ctx)
}

func (c countingSource) Cells(ctx context.Context, from int) iter.Seq2[hsm.Cell, error] {
	c.others.Add(1)
	return c.Sketcher.Cells(ctx, from)
}

func (c countingSource) Extract(ctx context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	c.others.Add(1)
	return c.Sketcher.Extract(ctx, refs)
}

// TestAnUnchangedClusterCostsOneMessage: each HSM is asked for its root, the
// store for the one name that a newer snapshot would have, and nothing is written.
func TestAnUnchangedClusterCostsOneMessage(t *testing.T) {
	c := newTestCluster(t, 3)
	keys(c.hsm(0), 100)
	c.sync(t)
	var roots, others atomic.Int64
	c.wrap = func(s NamedSource) NamedSource {
		s.Sketcher = countingSource{s.Sketcher, &roots, &others}
		return s
	}
	store := &countingStore{Store: newRAMStore()}
	s := NewSeries(c, store, c.options())
	for range 2 {
		if _, err := s.Take(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []*atomic.Int64{&roots, &others, &store.puts, &store.gets, &store.lists} {
		n.Store(0)
	}
	const rounds = 50
	for range rounds {
		if r, err := s.Take(t.Context()); err != nil || !r.Unchanged {
			t.Fatal(r, err)
		}
	}
	got := []int64{roots.Load(), others.Load(), store.puts.Load(), store.gets.Load(), store.lists.Load()}
	if want := []int64{3 * rounds, 0, 0, rounds, 0}; !slices.Equal(got, want) {
		t.Errorf("%d takes of an unchanged cluster cost %d roots, %d other calls, %d puts, %d gets, %d lists; want %d", rounds, got[0], got[1], got[2], got[3], got[4], want)
	}
}

// happened collects events.
type happened struct {
	mu     sync.Mutex
	events []Event
}

func (h *happened) note(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

// take returns the kinds of the events since the last call, without those of
// snapshots.
func (h *happened) take() (kinds []EventKind, snapshots int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e.Kind == EventTaken {
			snapshots++
			continue
		}
		kinds = append(kinds, e.Kind)
	}
	h.events = nil
	return kinds, snapshots
}

// TestEveryGoesOn: hours of changes, and of a store and HSMs that are away, make
// one event for each thing, and everything is in the store in the end.
func TestEveryGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.cheap(t)
		ram := newRAMStore()
		store, seen := &countingStore{Store: ram}, &happened{}
		s := NewSeries(c, store, c.options())
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Every(ctx, EveryOptions{Interval: 5 * time.Second, Event: seen.note}) }()
		expect := func(what string, after time.Duration, minSnapshots int, want ...EventKind) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			kinds, snapshots := seen.take()
			if !slices.Equal(kinds, want) || snapshots < minSnapshots || minSnapshots == 0 && snapshots > 0 {
				t.Fatalf("%s: events %v and %d snapshots; want %v and %d", what, kinds, snapshots, want, minSnapshots)
			}
		}
		expect("an empty cluster", time.Second, 1)
		for range 40 {
			c.hsm(0).NewKey("key")
			c.sync(t)
			time.Sleep(6 * time.Second)
		}
		expect("changes", 6*time.Second, 40)
		expect("nothing, for hours", 3*time.Hour, 0)
		c.setDown(2, true)
		expect("an HSM goes", 10*time.Minute, 0, EventMissing)
		c.setDown(2, false)
		expect("it comes back", 10*time.Minute, 0, EventMissing)
		store.down.Store(true)
		calls := store.gets.Load() + store.lists.Load()
		expect("the store goes", 50*time.Minute, 0, EventFailed)
		if tries := store.gets.Load() + store.lists.Load() - calls; tries > 2*70 {
			t.Errorf("%d calls to a store that was away for 50 minutes", tries)
		}
		if st := s.Status(); st.Failing == nil || time.Since(st.Covered) < 50*time.Minute {
			t.Errorf("status %+v", st)
		}
		c.hsm(1).NewKey("while it was away")
		c.sync(t)
		store.down.Store(false)
		expect("it comes back", 2*time.Minute, 1, EventRecovered)
		for i := range c.ids {
			c.setDown(i, true)
		}
		expect("all HSMs go", 30*time.Minute, 0, EventFailed)
		for i := range c.ids {
			c.setDown(i, false)
		}
		expect("they come back", 2*time.Minute, 0, EventRecovered)
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if st := s.Status(); st.Newest != fmtID(42) || st.Failing != nil || st.Unchanged < 2000 {
			t.Errorf("status %+v", st)
		}
		if got := restore(t, c.open(t, ram, "")); rootOf(t, got) != rootOf(t, c.hsm(0)) {
			t.Error("the newest snapshot restores to another root")
		}
	})
}

// TestEveryForWeeks: four weeks of changes, with a prune beside it every few hours, more
// often than its grace period. What the repository holds does not grow from week to
// week, and the series goes on over it.
func TestEveryForWeeks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		c.cheap(t)
		p := &pruned{testCluster: c, store: &clockStore{Store: newRAMStore(), taken: map[string]time.Time{}, locked: map[string]bool{}}}
		s := NewSeries(c, wallClock{p.store}, c.options())
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		seen := &happened{}
		go func() { ended <- s.Every(ctx, EveryOptions{Interval: time.Hour, Event: seen.note}) }()
		ref := c.hsm(0).NewKey("first")
		var objects []int
		const days, seldom = 28, 6 // a prune every so many hours
		for hour := range days * 24 {
			if hour%seldom == 0 {
				c.hsm(0).SetLabel(ref, fmt.Sprint("label of ", hour))
				c.sync(t)
			}
			if time.Sleep(time.Hour); hour%seldom != 0 {
				continue
			}
			synctest.Wait()
			p.store.tick(time.Since(p.store.now))
			p.prune(t, PruneOptions{Policy: Policy{Within: Period{Hours: 12}, Daily: 3}, Grace: 20 * time.Hour})
			objects = append(objects, len(names(t, p.store)))
		}
		if kinds, n := seen.take(); len(kinds) > 0 || n < days*24/seldom {
			t.Errorf("events %v and %d snapshots", kinds, n)
		}
		// Seven days pass before the first snapshot goes.
		if third, fourth := slices.Max(objects[len(objects)/2:len(objects)*3/4]), slices.Max(objects[len(objects)*3/4:]); fourth > third+third/8 {
			t.Errorf("the repository held %d objects in the third week, and %d in the fourth: %v", third, fourth, objects)
		}
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if got := restore(t, c.open(t, p.store, "")); rootOf(t, got) != rootOf(t, c.hsm(0)) {
			t.Error("the newest snapshot restores to another root")
		}
		all, err := List(t.Context(), p.store)
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range all {
			mustVerify(t, c, p.store, one.ID)
		}
	})
}

// wallClock is a store that takes objects at the time there is.
type wallClock struct{ *clockStore }

func (w wallClock) Put(ctx context.Context, name string, body io.ReadSeeker, size int64) error {
	w.tick(time.Since(w.now))
	return w.clockStore.Put(ctx, name, body, size)
}

// TestEveryEndsInOrder: told to end while a pack is on its way, it writes the
// manifest first; a take that outlasts its grace is given up, without a snapshot.
func TestEveryEndsInOrder(t *testing.T) {
	for name, c := range map[string]struct {
		slow time.Duration
		want int
	}{"in time": {5 * time.Second, 1}, "too slow": {time.Minute, 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cluster, ram := newTestCluster(t, 1), newRAMStore()
				cluster.cheap(t)
				keys(cluster.hsm(0), 3)
				ctx, stop := context.WithCancel(t.Context())
				store := &slowStore{&countingStore{Store: ram}, func() { stop() }, c.slow}
				if err := NewSeries(cluster, store, cluster.options()).Every(ctx, EveryOptions{Interval: time.Second}); err != nil {
					t.Fatal(err)
				}
				if all, err := List(t.Context(), ram); err != nil || len(all) != c.want {
					t.Errorf("%d snapshots, %v; want %d", len(all), err, c.want)
				}
			})
		})
	}
}

// slowStore takes its time over the first Put, after calling begun.
type slowStore struct {
	*countingStore
	begun func()
	time  time.Duration
}

func (s *slowStore) Put(ctx context.Context, name string, body io.ReadSeeker, size int64) error {
	if s.puts.Load() == 0 {
		s.begun()
		select {
		case <-time.After(s.time):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return s.countingStore.Put(ctx, name, body, size)
}

// TestEveryDoesNotGoOnInVain: what time cannot mend is an error at once.
func TestEveryDoesNotGoOnInVain(t *testing.T) {
	c := newTestCluster(t, 1)
	o := c.options()
	o.Recipients = []string{"nobody"}
	err := NewSeries(c, newRAMStore(), o).Every(t.Context(), EveryOptions{Interval: time.Second})
	wantErr(t, err, ErrRecipient)
	if err := NewSeries(c, newRAMStore(), c.options()).Every(t.Context(), EveryOptions{}); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("no interval: %v", err)
	}
}

// TestTwoHosts: two series on one repository, each remembering its own last
// snapshot, miss nothing and lose nothing.
func TestTwoHosts(t *testing.T) {
	c := newTestCluster(t, 2)
	c.cheap(t)
	store := newRAMStore()
	hosts := []*Series{NewSeries(c, store, c.options()), NewSeries(c, store, c.options())}
	for round := range 15 {
		c.hsm(round % 2).NewKey("key")
		if round%3 == 0 {
			c.sync(t)
		}
		var wg sync.WaitGroup
		for i, s := range hosts {
			if round%4 == i { // one of them alone
				continue
			}
			wg.Go(func() {
				if _, err := s.Take(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		s := c.open(t, store, "")
		restored := restore(t, s)
		for i := range c.ids {
			if done := insertAll(t, c.hsm(i), restored); done.Added+done.Changed > 0 {
				t.Fatalf("round %d: snapshot %s lacks %+v of HSM %d", round, s.ID(), done, i)
			}
		}
	}
	c.sync(t)
	for i, s := range hosts {
		if r, err := s.Take(t.Context()); err != nil || i > 0 && !r.Unchanged {
			t.Error(r, err)
		}
	}
	all, err := List(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range all {
		mustVerify(t, c, store, one.ID)
	}
}
