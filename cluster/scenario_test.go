package cluster

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// The scenarios of cloudhsm.md §9.1. Those not in this file carry their number in
// their names: 4 (also in package integration), 5, 6 and 10 in this package; 7 in
// package synckey; 9 in package backup.

// logged collects what a client logs.
type logged struct {
	mu    sync.Mutex
	lines []string
}

func (l *logged) Enabled(context.Context, slog.Level) bool { return true }
func (l *logged) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logged) WithGroup(string) slog.Handler            { return l }
func (l *logged) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, r.Message)
	return nil
}

func (l *logged) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// TestScenario1OneOfThreeAwayDuringCreate: success, and the third catches up.
func TestScenario1OneOfThreeAwayDuringCreate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for away := range 3 {
			w := newWorld(t, 3, 2, true)
			c := w.open(asUser)
			w.boxes[away].away.Store(true)
			ref := mustCreate(t, c, aes())
			if n := w.holders(ref); n != 2 {
				t.Errorf("%d copies while one HSM is away; want 2", n)
			}
			w.converge() // checks that the roots are equal
			if n := w.holders(ref); n != 3 {
				t.Errorf("%d copies after it healed; want 3", n)
			}
		}
	})
}

// TestScenario2OneOfTwoAwayDuringCreate: failure, and no residue; what could not be
// cleaned up is logged in CloudHSM's words.
func TestScenario2OneOfTwoAwayDuringCreate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 2, true)
		log := &logged{}
		c := w.open(asUser, WithLog(slog.New(log)))
		w.boxes[1].away.Store(true)
		if _, err := c.Create(t.Context(), aes(), Policy{}); !errors.Is(err, ErrMinCopies) || !errors.Is(err, ErrAvailability) {
			t.Errorf("Create: %v", err)
		}
		w.converge()
		w.checkNoKeys()

		// The HSM goes away after it has prepared, so that the cleanup does not reach it.
		w.awaitUp(c)
		w.setFaults(func(b *box, call string) fault {
			if b == w.boxes[1] && (call == "Commit" || call == "Abort" || call == "Insert") {
				return drop
			}
			return pass
		})
		_, err := c.Create(t.Context(), aes(), Policy{Timeout: 300 * time.Millisecond})
		var short *CopiesError
		if !errors.As(err, &short) || len(short.Refs) != 1 || !slices.Equal(short.Undelivered, []hsm.HSMID{w.boxes[1].member.ID}) {
			t.Fatalf("Create: %v", err)
		}
		want := "liquidSecurity ERR: print_node_ts_status:\n[create_object_min_nodes]Key: " + short.Refs[0].String() + " failed to tombstone on node:" + w.boxes[1].member.ID.String()
		if text := log.text(); !strings.Contains(text, want) {
			t.Errorf("the log says:\n%s\nwant:\n%s", text, want)
		}
		c.Close() // it does not come back
		w.converge()
		w.checkNoKeys()
		again := mustCreate(t, w.open(asUser), aes())
		if again == short.Refs[0] {
			t.Error("the reference was used again")
		}
	})
}

// TestScenario3CreatorDiesAndIsReplaced: the key lives on, and the new HSM in its
// place gets everything.
func TestScenario3CreatorDiesAndIsReplaced(t *testing.T) {
	for creator := range 3 {
		w := newWorld(t, 3, 2, true)
		c := w.open(asUser)
		ref := mustCreate(t, c, aes())
		want, err := c.Use(t.Context(), mac(ref))
		if err != nil {
			t.Fatal(err)
		}
		b := w.boxes[creator]
		b.kill()
		if got, err := c.Use(t.Context(), mac(ref)); err != nil || !slices.Equal(got, want) {
			t.Errorf("use after the death of %s: %v", b.member.Name, err)
		}
		c.Close()
		w.replace(creator)
		w.converge()
		if n := w.holders(ref); n != 3 {
			t.Errorf("after the replacement the key is on %d HSMs", n)
		}
		if got, err := w.open(asUser).Use(t.Context(), mac(ref)); err != nil || !slices.Equal(got, want) {
			t.Errorf("use after the replacement: %v", err)
		}
	}
}

// replace puts a new, empty HSM in the place of one that is gone for good.
func (w *world) replace(i int) {
	w.t.Helper()
	old := w.boxes[i].member
	admin := w.boxes[(i+1)%len(w.boxes)].as(hsm.RoleAdmin, adminName)
	gone := old
	gone.Removed = true
	w.change(admin, hsm.Change{Kind: hsm.ChangeMember, Member: &gone})
	member := old
	member.ID = hsm.NewHSMID()
	w.change(admin, hsm.Change{Kind: hsm.ChangeMember, Member: &member})
	w.boxes[i] = &box{w: w, member: member, fs: memFS()}
	w.boxes[i].start()
}

// TestScenario8SessionKeyStays: absent on other members, from what a snapshot
// reads, and gone with its session; promoted, it is a token key everywhere.
func TestScenario8SessionKeyStays(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	c, backup := w.open(asUser), w.open(Credential{})
	r := aes()
	r.Token = false
	ref := mustCreate(t, c, r)
	k, err := c.Key(t.Context(), ref)
	if err != nil || len(k.Coverage) != 1 {
		t.Fatalf("Key: %+v, %v", k, err)
	}
	for _, b := range w.boxes {
		if _, err := b.as(hsm.RoleCryptoUser, userName).Key(t.Context(), ref); !errors.Is(err, hsm.ErrNotFound) {
			t.Errorf("%s, in another session: %v; want ErrNotFound", b.member.Name, err)
		}
	}
	inBackup := func() bool {
		listed := slices.ContainsFunc(collect(t, backup.Objects(t.Context())), func(o hsm.Object) bool { return o.Ref == ref })
		return listed || len(collect(t, backup.Extract(t.Context(), slices.Values([]hsm.KeyRef{ref})))) > 0
	}
	if inBackup() {
		t.Error("a snapshot would hold the session key")
	}
	if _, err := c.Create(t.Context(), hsm.CreateRequest{Method: hsm.MethodPromote, Token: true, Key: ref}, Policy{}); err != nil {
		t.Fatal(err)
	}
	mustWait(t, c, ref)
	if n := w.holders(ref); n != 3 || !inBackup() {
		t.Errorf("after promotion the key is on %d HSMs, in a snapshot: %t", n, inBackup())
	}
	gone := mustCreate(t, c, r)
	c.Close()
	if _, err := w.open(asUser).Use(t.Context(), mac(gone)); !errors.Is(err, hsm.ErrNotFound) {
		t.Errorf("use after its session: %v", err)
	}
}
