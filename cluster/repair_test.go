package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// on fails the named calls to one HSM.
func (w *world) on(target *box, f fault, calls ...string) {
	w.setFaults(func(b *box, call string) fault {
		if b == target && slices.Contains(calls, call) {
			return f
		}
		return pass
	})
}

// TestTooFewPreparedLeavesNoTombstone: nothing is committed before enough HSMs
// are prepared.
func TestTooFewPreparedLeavesNoTombstone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 3, false)
		c := w.open(asUser)
		w.on(w.boxes[1], drop, "Prepare", "Create")
		_, err := c.Create(t.Context(), aes(), Policy{})
		if !errors.Is(err, ErrMinCopies) || !strings.Contains(err.Error(), "on 2 of 3 HSMs, min-copies is 3") {
			t.Errorf("Create: %v", err)
		}
		w.converge()
		for _, b := range w.boxes {
			if live, destroyed := b.keysOn(); len(live)+len(destroyed) > 0 {
				t.Errorf("%s has %v, and tombstones %v", b.member.Name, live, destroyed)
			}
		}
	})
}

// TestHSMThatMissedPrepareGetsTheKey: without server-side sync.
func TestHSMThatMissedPrepareGetsTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 2, false)
		c := w.open(asUser)
		w.on(w.boxes[1], full, "Prepare", "Create")
		made, err := c.Create(t.Context(), aes(), Policy{})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if n := w.holders(made.Keys[0].Ref); n != 3 {
			t.Errorf("the key is on %d HSMs; want 3 without server-side sync", n)
		}
	})
}

// TestHSMsThatForgetWhatTheyPrepared: HSMs are started again between prepare and
// commit, one, some or all of them, also the only one there is. The creation
// succeeds, and server-side sync has nothing to do but what it always has: HSMs
// that were away when enough had committed.
func TestHSMsThatForgetWhatTheyPrepared(t *testing.T) {
	for _, c := range []struct{ hsms, copies, restarts int }{{1, 1, 1}, {3, 1, 3}, {3, 2, 1}, {3, 2, 2}, {3, 2, 3}, {3, 3, 3}} {
		t.Run(fmt.Sprintf("%dof%d,copies=%d", c.restarts, c.hsms, c.copies), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, c.hsms, c.copies, false)
				client := w.open(asUser)
				var once [3]sync.Once
				w.setFaults(func(b *box, call string) fault {
					if i := slices.Index(w.boxes, b); call == "Commit" && i < c.restarts {
						once[i].Do(func() { b.kill(); b.start() })
					}
					return pass
				})
				made, err := client.Create(t.Context(), aes(), Policy{})
				if err != nil {
					t.Fatal(err)
				}
				client.Close()
				if n := w.holders(made.Keys[0].Ref); n < c.copies {
					t.Errorf("the key is on %d HSMs; want %d without server-side sync", n, c.copies)
				}
				w.converge()
				if n := w.holders(made.Keys[0].Ref); n != c.hsms {
					t.Errorf("the key is on %d of %d HSMs after server-side sync", n, c.hsms)
				}
			})
		})
	}
}

// TestPartialCommitIsUndone: two of three have committed when time runs out. All
// that answer end with a tombstone, at once.
func TestPartialCommitIsUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, calls := range [][]string{{"Commit"}, {"Commit", "Insert"}} {
			w := newWorld(t, 3, 3, false)
			c := w.open(asUser)
			w.setFaults(func(b *box, call string) fault {
				if b == w.boxes[2] && slices.Contains(calls, call) && w.tombstones() == 0 {
					return drop
				}
				return pass
			})
			_, err := c.Create(t.Context(), aes(), Policy{Timeout: 250 * time.Millisecond})
			if !errors.Is(err, ErrMinCopies) {
				t.Fatalf("Create: %v; want ErrMinCopies", err)
			}
			w.quiet()
			for _, b := range w.boxes {
				if live, destroyed := b.keysOn(); len(live) != 0 || len(destroyed) != 1 {
					t.Errorf("%s: live %v, destroyed %v; want a tombstone", b.member.Name, live, destroyed)
				}
			}
			w.converge()
			w.checkNoKeys()
		}
	})
}

// TestResidueNamesWhoTookNoTombstone: what one HSM committed server-side sync may
// have brought to another, which the client does not reach and which took no part. The
// same where those that were told cannot show their tombstones any more.
func TestResidueNamesWhoTookNoTombstone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, hidden := range []bool{false, true} {
			w := newWorld(t, 3, 2, false)
			w.boxes[2].away.Store(true)
			c := w.open(asUser)
			w.setFaults(func(b *box, call string) fault {
				if b == w.boxes[1] && call == "Commit" || hidden && call == "Extract" {
					return drop
				}
				return pass
			})
			_, err := c.Create(t.Context(), aes(), Policy{Timeout: 250 * time.Millisecond})
			var short *CopiesError
			if !errors.As(err, &short) || w.tombstones() == 0 {
				t.Fatalf("Create: %v, with %d tombstones; want ErrMinCopies, after a commit", err, w.tombstones())
			}
			if !slices.Contains(short.Undelivered, w.boxes[2].member.ID) {
				t.Errorf("hidden %t: residue on %v, want %s among them", hidden, short.Undelivered, w.boxes[2].member.ID)
			}
			w.quiet()
			w.converge()
			w.checkNoKeys()
		}
	})
}

func (w *world) tombstones() (n int) {
	for _, b := range w.boxes {
		_, destroyed := b.keysOn()
		n += len(destroyed)
	}
	return n
}

// TestCommitOfUnknownOutcomeIsUndone: an HSM commits and dies before it answers,
// and the others cannot commit in time. When it is back its key must not spread.
func TestCommitOfUnknownOutcomeIsUndone(t *testing.T) {
	for _, hsms := range []int{2, 3} {
		for _, commitsLater := range []bool{true, false} {
			t.Run(fmt.Sprintf("%dHSMs/%t", hsms, commitsLater), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, hsms, hsms, false)
					c := w.open(asUser)
					late := time.Now().Add(time.Hour)
					if commitsLater {
						late = time.Now().Add(300 * time.Millisecond)
					}
					w.setFaults(func(b *box, call string) fault {
						switch {
						case call != "Commit":
						case b == w.boxes[0]:
							return killing
						case time.Now().Before(late):
							return drop
						}
						return pass
					})
					_, err := c.Create(t.Context(), aes(), Policy{Timeout: 250 * time.Millisecond})
					id := w.boxes[0].member.ID.String()
					if !errors.Is(err, ErrMinCopies) || !strings.Contains(err.Error(), "failed to tombstone on node:"+id) {
						t.Errorf("Create: %v", err)
					}
					c.Close() // it will not help
					w.converge()
					w.checkNoKeys()
				})
			})
		}
	}
}

// TestRandomFaults lets any number of calls fail in any way. A failing seed is
// printed and replays.
func TestRandomFaults(t *testing.T) {
	seed := rand.Uint64()
	for round := range uint64(16) {
		t.Run(fmt.Sprintf("seed=%d", seed+round), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				randomFaults(t, seed+round)
			})
		})
	}
}

func randomFaults(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	n := 1 + r.IntN(3)
	w := newWorld(t, 3, n, false)
	quick := fast
	quick.call, quick.cleanup = 100*time.Millisecond, 300*time.Millisecond
	c := w.open(asUser, withTiming(quick))
	rolls := make(chan fault, 1000)
	for range cap(rolls) {
		rolls <- []fault{pass, pass, pass, pass, drop, lose, lose, killing, kill, full}[r.IntN(10)]
	}
	w.setFaults(func(b *box, call string) fault {
		if !slices.Contains(protocol, call) {
			return pass
		}
		select {
		case f := <-rolls:
			return f
		default:
			return pass
		}
	})
	made, err := c.Create(context.Background(), aes(), Policy{Timeout: 250 * time.Millisecond})
	c.Close()
	w.quiet()
	if err == nil && w.holders(made.Keys[0].Ref) < n {
		t.Errorf("Create succeeded, and the key is on %d HSMs; want %d", w.holders(made.Keys[0].Ref), n)
	}
	w.converge()
	on := map[hsm.KeyRef]int{}
	for _, b := range w.boxes {
		live, _ := b.keysOn()
		for _, ref := range live {
			on[ref]++
		}
	}
	switch {
	case err == nil && (len(on) != 1 || on[made.Keys[0].Ref] != 3):
		t.Errorf("Create made %s; there is %v", made.Keys[0].Ref, on)
	case err != nil && len(on) > 0 && !strings.Contains(err.Error(), "is not known before"):
		t.Errorf("Create failed with %v; there is %v", err, on)
	}
}
