package soft

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestManyGuessesAtOnce: guessing in parallel gives no more guesses.
func TestManyGuessesAtOnce(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	var wrong, locked atomic.Int64
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			_, _, err := h.Module(hsm.Principal{}).Login(t.Context(), hsm.RoleCryptoUser, "alice", hsm.NewSecret([]byte("a wrong guess")))
			switch {
			case errors.Is(err, hsm.ErrLogin):
				wrong.Add(1)
			case errors.Is(err, hsm.ErrLocked):
				locked.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if wrong.Load() != hsm.MaxFailedLogins+1 || locked.Load() != 40-hsm.MaxFailedLogins-1 {
		t.Errorf("%d guesses were compared and %d refused", wrong.Load(), locked.Load())
	}
}

// TestManyLoginsAtOnce: right passwords are not held up by each other.
func TestManyLoginsAtOnce(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { login(t, h, "alice") })
	}
	wg.Wait()
}

// TestSketchUnderLoad: cells of one call are of one moment, whatever is written
// meanwhile; reconcile finds out if the items are not those of the prefix.
func TestSketchUnderLoad(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		s := login(t, h, "alice")
		wg.Go(func() {
			if err := writeUntil(ctx, s, func(string, hsm.KeyRef) {}); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	for range 20 {
		n := 0
		for _, err := range peer(t, h).Cells(t.Context(), 4000) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n == 200 { // past the prefix
				break
			}
		}
	}
	cancel()
	wg.Wait()
	checkStore(t, h)
}

// TestNoStaleKeys: once a change has returned, no use sees the key as it was.
func TestNoStaleKeys(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	s := login(t, h, "alice")
	k := createKey(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	use := func() error {
		_, err := s.Use(t.Context(), hsm.Use{Kind: hsm.UseMAC, Key: k.Ref, Params: hsm.Params{Mechanism: "aes-cmac"}})
		return err
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_ = use() // fills the cache all the time
			}
		})
	}
	for i := range 200 {
		value, want := "false", hsm.ErrAttribute
		if i%2 == 1 {
			value, want = "true", nil
		}
		apply(t, s, hsm.Change{Kind: hsm.ChangeAttribute, Ref: k.Ref, Name: "sign", Value: value})
		if err := use(); !errors.Is(err, want) {
			t.Fatalf("sign=%s: %v", value, err)
		}
	}
	cancel()
	wg.Wait()
}

// TestOneOperationManyCallers: all steps of operations at once, from many
// sides, end in one of the outcomes there are, and in a store that is whole.
func TestOneOperationManyCallers(t *testing.T) {
	o := testOptions(vfs.NewMem())
	h := withUser(t, open(t, o))
	s := peer(t, h)
	for range 30 {
		op, m := randomOp(), handmade(t, o.Keyring, "alice", time.Now())
		steps := []func() error{
			func() error { return s.Prepare(t.Context(), op, time.Minute, []hsm.MaskedObject{m}) },
			func() error { return s.Commit(t.Context(), op) },
			func() error { return s.Abort(t.Context(), op) },
			func() error { _, err := s.Resolve(t.Context(), op); return err },
			func() error { return h.ResolveAs(t.Context(), op, true) },
			func() error { _, err := s.Insert(t.Context(), each([]hsm.MaskedObject{m})); return err },
		}
		var wg sync.WaitGroup
		for _, step := range append(steps, steps...) {
			wg.Go(func() {
				if err := step(); err != nil && !errors.Is(err, hsm.ErrOp) && !errors.Is(err, hsm.ErrExist) && !errors.Is(err, hsm.ErrDenied) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if p := h.ops.get(op); p != nil {
			if err := s.Abort(t.Context(), op); err != nil {
				t.Error(err)
			}
		}
		cur := must[*held](t)(h.read(hsm.ScopeLineage, m.Ref))
		if cur == nil || cur.rec.Destroyed {
			t.Error("an inserted key is lost, though no owner aborted its creation")
		}
	}
	checkStore(t, h)
	if n := len(h.ops.byRef); n != 0 {
		t.Errorf("%d references are still reserved", n)
	}
}

// TestInsertFromManySides merges the same objects from many goroutines.
func TestInsertFromManySides(t *testing.T) {
	o := testOptions(vfs.NewMem())
	h := open(t, o)
	var objects []hsm.MaskedObject
	for range 700 {
		objects = append(objects, handmade(t, o.Keyring, "alice", time.Now()))
	}
	var added atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		s := peer(t, h)
		wg.Go(func() {
			got, err := s.Insert(t.Context(), each(objects))
			if err != nil || got.Added+got.Unchanged != len(objects) {
				t.Errorf("%+v, %v", got, err)
			}
			added.Add(int64(got.Added))
		})
	}
	wg.Wait()
	if added.Load() != int64(len(objects)) {
		t.Errorf("%d objects counted as added, there are %d", added.Load(), len(objects))
	}
	checkStore(t, h)
}

// TestClose: what is under way ends, what comes later is refused.
func TestClose(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	s := login(t, h, "alice")
	for range 50 {
		createKey(t, s)
	}
	started, closed := make(chan struct{}), make(chan error)
	go func() {
		<-started
		closed <- h.Close()
	}()
	n := 0
	for _, err := range peer(t, h).Objects(t.Context()) {
		if err != nil {
			t.Error(err)
		}
		if n++; n == 1 {
			close(started)
			time.Sleep(10 * time.Millisecond) // Close begins, and waits
		}
	}
	if n != 52 {
		t.Errorf("%d objects listed while the HSM was closed, want 52", n)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := h.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
	if _, err := s.Key(t.Context(), 1); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("after close: %v", err)
	}
	if _, err := h.Module(hsm.Principal{}).Session(t.Context()); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("session after close: %v", err)
	}
}

// TestAudit: management commands are reported with who, what and outcome, uses
// are not, and passwords never are.
func TestAudit(t *testing.T) {
	var mu sync.Mutex
	var log []string
	o := testOptions(vfs.NewMem())
	o.Audit = func(_ context.Context, event string, who hsm.Principal, ref hsm.KeyRef, detail string, err error) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, fmt.Sprintf("%s by %s %s ref %t ok %t: %s", event, who.Role, who.Name, ref != 0, err == nil, detail))
	}
	h := withUser(t, open(t, o))
	s := login(t, h, "alice")
	k := createKey(t, s)
	log = nil
	if _, err := s.Use(t.Context(), hsm.Use{Kind: hsm.UseRandom, Length: 8}); err != nil {
		t.Error(err)
	}
	if len(log) != 0 {
		t.Errorf("a use was reported: %q", log)
	}
	apply(t, s, hsm.Change{Kind: hsm.ChangeUserPassword, User: "alice", Password: hsm.NewSecret([]byte("correct horse"))})
	_, err := s.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserCreate, User: "eve", Role: hsm.RoleAdmin, Password: hsm.NewSecret([]byte("correct horse"))})
	if !errors.Is(err, hsm.ErrDenied) {
		t.Error(err)
	}
	apply(t, s, hsm.Change{Kind: hsm.ChangeDestroy, Ref: k.Ref})
	want := []string{
		"user-password by crypto-user alice ref false ok true: ", "user-create by crypto-user alice ref false ok false: admin eve",
		"destroy by crypto-user alice ref true ok true: ",
	}
	for i, w := range want {
		if i >= len(log) || !strings.HasPrefix(log[i], w) {
			t.Errorf("reported %q, want %q", log, want)
			break
		}
	}
	if strings.Contains(strings.Join(log, ""), "horse") {
		t.Error("a password was reported")
	}
}
