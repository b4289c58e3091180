package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// probe is a session whose methods misbehave in ways a sound HSM cannot be
// made to: it tests the wire, not an HSM. Methods it does not have panic.
type probe struct {
	hsm.Session
	module *probeModule
}

type probeModule struct {
	hsm.Module
	info    func(context.Context) (hsm.Info, error)
	use     func(context.Context, hsm.Use) ([]byte, error)
	users   []hsm.UserInfo
	insert  func(iter.Seq2[hsm.MaskedObject, error]) (hsm.Inserted, error)
	cells   atomic.Int64
	objects func(context.Context) error
	closed  atomic.Int64
}

func (m *probeModule) Session(context.Context) (hsm.Session, error) { return &probe{module: m}, nil }

func (p *probe) Principal() hsm.Principal                   { return hsm.Principal{} }
func (p *probe) Lineage() hsm.Lineage                       { return hsm.Lineage{1} }
func (p *probe) Info(ctx context.Context) (hsm.Info, error) { return p.module.info(ctx) }
func (p *probe) Users(context.Context) ([]hsm.UserInfo, error) {
	return p.module.users, nil
}
func (p *probe) Use(ctx context.Context, u hsm.Use) ([]byte, error) {
	if p.module.use != nil {
		return p.module.use(ctx, u)
	}
	return u.Data, nil
}
func (p *probe) Close() error { p.module.closed.Add(1); return nil }

func (p *probe) Insert(_ context.Context, objects iter.Seq2[hsm.MaskedObject, error]) (hsm.Inserted, error) {
	return p.module.insert(objects)
}

func (p *probe) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	return func(yield func(hsm.Object, error) bool) {
		for ref := hsm.KeyRef(1); ; ref++ {
			if !yield(hsm.Object{Ref: ref, Kind: hsm.KindKey}, p.module.objects(ctx)) {
				return
			}
		}
	}
}

var probeKeys = hsm.NewKeyring()

// Extract answers with a large object for every reference.
func (p *probe) Extract(_ context.Context, refs iter.Seq[hsm.KeyRef]) iter.Seq2[hsm.MaskedObject, error] {
	return func(yield func(hsm.MaskedObject, error) bool) {
		for ref := range refs {
			m, err := probeKeys.Mask(&hsm.Record{
				Kind: hsm.KindKey, Ref: ref, Core: hsm.Core{Class: hsm.ClassSecret, Type: "aes", Owner: "bob"}, Material: hsm.NewSecret(make([]byte, 5000)),
			})
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

func (p *probe) Cells(_ context.Context, from int) iter.Seq2[hsm.Cell, error] {
	return func(yield func(hsm.Cell, error) bool) {
		for i := from; ; i++ {
			p.module.cells.Add(1)
			if !yield(hsm.Cell{Count: int64(i)}, nil) {
				return
			}
		}
	}
}

func newProbe(t testing.TB, m *probeModule, opts ...ServerOption) (*site, hsm.Session) {
	t.Helper()
	s := &site{t: t, cluster: hsm.NewClusterID(), id: hsm.NewHSMID()}
	s.serve(func(pki.Identity) hsm.Module { return m }, opts...)
	return s, open(t, s.dial(pki.KindClient, "probe"))
}

func TestPanicStaysInside(t *testing.T) {
	var out bytes.Buffer
	m := &probeModule{info: func(context.Context) (hsm.Info, error) { panic("key material") }}
	s, remote := newProbe(t, m, WithLogger(slog.New(slog.NewTextHandler(&out, nil))))
	_, err := remote.Info(t.Context())
	if !errors.Is(err, ErrInternal) {
		t.Errorf("%v, want ErrInternal", err)
	}
	m.info = func(context.Context) (hsm.Info, error) { return hsm.Info{}, errors.New("pebble: disk on fire") }
	if _, err := remote.Info(t.Context()); !errors.Is(err, ErrInternal) || strings.Contains(err.Error(), "pebble") {
		t.Errorf("%v, want ErrInternal and no details", err)
	}
	if _, err := remote.Members(t.Context()); !errors.Is(err, ErrInternal) { // a nil pointer
		t.Errorf("%v, want ErrInternal", err)
	}
	s.server.Stop()
	if log := out.String(); strings.Contains(log, "key material") || !strings.Contains(log, "operation=Info") || !strings.Contains(log, "disk on fire") {
		t.Errorf("log: %s", log)
	}
}

func TestDeadlineReachesTheHSM(t *testing.T) {
	ended := make(chan error, 1)
	m := &probeModule{info: func(ctx context.Context) (hsm.Info, error) {
		<-ctx.Done()
		ended <- ctx.Err()
		return hsm.Info{}, ctx.Err()
	}}
	_, remote := newProbe(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	if _, err := remote.Info(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 1)
	defer cancel()
	if _, err := remote.Info(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want DeadlineExceeded", err)
	}
}

func TestAllConflictsArrive(t *testing.T) {
	want := make([]hsm.KeyRef, 2*batchConflicts+1)
	for i := range want {
		want[i] = hsm.KeyRef(i + 1)
	}
	m := &probeModule{insert: func(objects iter.Seq2[hsm.MaskedObject, error]) (hsm.Inserted, error) {
		return hsm.Inserted{Added: 1, Changed: 2, Unchanged: 3, Conflicts: want}, fmt.Errorf("%w: later", hsm.ErrFuture)
	}}
	_, remote := newProbe(t, m)
	n, err := remote.Insert(t.Context(), objects())
	if !errors.Is(err, hsm.ErrFuture) || n.Added != 1 || n.Changed != 2 || n.Unchanged != 3 || len(n.Conflicts) != len(want) {
		t.Errorf("%d %d %d, %d conflicts, %v", n.Added, n.Changed, n.Unchanged, len(n.Conflicts), err)
	}
}

// An HSM that stops listening early must not block a caller with much to send.
func TestInsertRefusedEarly(t *testing.T) {
	m := &probeModule{insert: func(objects iter.Seq2[hsm.MaskedObject, error]) (hsm.Inserted, error) {
		for range objects {
			return hsm.Inserted{}, fmt.Errorf("%w: no room", hsm.ErrFull)
		}
		return hsm.Inserted{}, nil
	}}
	_, remote := newProbe(t, m)
	endless := func(yield func(hsm.MaskedObject, error) bool) {
		for yield(hsm.MaskedObject{Object: hsm.Object{Ref: 1}, Bytes: make([]byte, 1000)}, nil) {
		}
	}
	if _, err := remote.Insert(t.Context(), endless); !errors.Is(err, hsm.ErrFull) {
		t.Errorf("%v, want ErrFull", err)
	}
}

func TestLongListing(t *testing.T) {
	_, remote := newProbe(t, &probeModule{objects: func(context.Context) error { return nil }})
	got, err := first(remote.Objects(t.Context()), 3*batchObjects+1)
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range got {
		if o.Ref != hsm.KeyRef(i+1) {
			t.Fatalf("object %d is %s", i, o.Ref)
		}
	}
}

// A listing whose last batch is full ends as it should, with its error.
func TestListingThatFails(t *testing.T) {
	for _, good := range []int{0, 1, batchObjects - 1, batchObjects, batchObjects + 1} {
		n := 0
		_, remote := newProbe(t, &probeModule{objects: func(context.Context) error {
			if n++; n > good {
				return fmt.Errorf("%w: a sector", hsm.ErrCorrupt)
			}
			return nil
		}})
		if got, err := collect(remote.Objects(t.Context())); !errors.Is(err, hsm.ErrCorrupt) || len(got) > good {
			t.Errorf("%d objects, %v; want at most %d and ErrCorrupt", len(got), err, good)
		}
	}
}

// Extraction keeps the order, runs ahead, and pulls the references from one
// goroutine, between the objects it yields.
func TestLongExtraction(t *testing.T) {
	_, remote := newProbe(t, &probeModule{})
	for _, count := range []int{0, 1, batchRefs - 1, batchRefs, batchRefs + 1, (aheadRefs + 2) * batchRefs} {
		pulled, got := 0, 0 // without a lock: the race detector judges
		refs := func(yield func(hsm.KeyRef) bool) {
			for pulled < count {
				pulled++
				if !yield(hsm.KeyRef(pulled)) {
					return
				}
			}
		}
		for m, err := range remote.Extract(t.Context(), refs) {
			if got++; err != nil || m.Ref != hsm.KeyRef(got) || pulled < got {
				t.Fatalf("object %d of %d: %s, %v", got, count, m.Ref, err)
			}
		}
		if got != count {
			t.Errorf("%d objects, want %d", got, count)
		}
	}
}

func TestManyUsersArrive(t *testing.T) {
	m := &probeModule{users: make([]hsm.UserInfo, 20_000)}
	for i := range m.users {
		m.users[i] = hsm.UserInfo{Name: fmt.Sprintf("user%d", i), Role: hsm.RoleCryptoUser, Ref: hsm.KeyRef(i + 1)}
	}
	_, remote := newProbe(t, m)
	if got, err := remote.Users(t.Context()); err != nil || len(got) != len(m.users) || got[19_999] != m.users[19_999] {
		t.Errorf("%d users, %v", len(got), err)
	}
}

// A caller who has decoded after n cells costs the HSM few more than n.
func TestCellsAreNotWasted(t *testing.T) {
	m := &probeModule{}
	s, remote := newProbe(t, m)
	for _, n := range []int{1, 100, 1000, 10_000, 100_000} {
		m.cells.Store(0)
		if _, err := first(remote.Cells(t.Context(), 0), n); err != nil {
			t.Fatal(err)
		}
		eventually(t.Context(), t, "the stream has ended", func() bool { return s.server.gate.idling() })
		if made, most := m.cells.Load(), int64(max(aheadCells+1, 4*n)); made < int64(n) || made > most {
			t.Errorf("%d cells were made for %d wanted, at most %d should be", made, n, most)
		}
	}
}

func (g *gate) idling() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.running == 0
}

// A caller who stops ranging ends the HSM's work.
func TestEarlyEndOfAListing(t *testing.T) {
	m := &probeModule{objects: func(ctx context.Context) error { return ctx.Err() }}
	s, remote := newProbe(t, m)
	if got, err := first(remote.Objects(t.Context()), 3); err != nil || len(got) != 3 {
		t.Fatal(got, err)
	}
	eventually(t.Context(), t, "the listing has ended", func() bool { return s.server.gate.idling() })
}

func TestConcurrentUse(t *testing.T) {
	m := &probeModule{info: func(context.Context) (hsm.Info, error) { return hsm.Info{ID: 7}, nil }}
	_, remote := newProbe(t, m)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for range 20 {
				if i, err := remote.Info(t.Context()); err != nil || i.ID != 7 {
					t.Error(i, err)
				}
			}
			one, err := remote.(*session).replica.Session(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			if err := one.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := m.closed.Load(); n != 32 {
		t.Errorf("%d of 32 sessions were closed when Close had returned", n)
	}
}

func TestStopLetsCallsEnd(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	m := &probeModule{info: func(context.Context) (hsm.Info, error) {
		close(started)
		<-release
		return hsm.Info{ID: 9}, nil
	}}
	s, remote := newProbe(t, m)
	done := make(chan error, 1)
	go func() {
		i, err := remote.Info(t.Context())
		if err == nil && i.ID != 9 {
			err = errors.New("wrong answer")
		}
		done <- err
	}()
	<-started
	go s.server.Stop()
	eventually(t.Context(), t, "new calls are refused", func() bool {
		_, err := remote.Members(t.Context())
		return errors.Is(err, hsm.ErrUnavailable)
	})
	close(release)
	if err := <-done; err != nil {
		t.Errorf("the running call: %v", err)
	}
	s.server.Stop()
	if m.closed.Load() != 1 {
		t.Error("the session was not closed when Stop had returned")
	}
}
