package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

const tenMinutes = 10 * time.Minute

// skewed opens a client of three HSMs, the second of which has a wrong clock.
func skewed(t *testing.T, by time.Duration, minCopies int, cred Credential) (*world, *box, *Cluster) {
	t.Helper()
	w := newWorld(t, 3, minCopies, true)
	odd := w.boxes[1]
	odd.skew.Store(int64(by))
	c := w.open(cred)
	w.awaitUp(c)
	return w, odd, c
}

func (c *Cluster) remoteOf(b *box) *remote {
	for _, r := range c.all() {
		if r.id() == b.member.ID {
			return r
		}
	}
	return nil
}

// forceFirst makes the client choose b for the next object it makes, by the load
// of the others.
func (c *Cluster) forceFirst(b *box) (undo func()) {
	for _, r := range c.all() {
		if r.id() != b.member.ID {
			r.load.Add(1000)
		}
	}
	return func() {
		for _, r := range c.all() {
			if r.id() != b.member.ID {
				r.load.Add(-1000)
			}
		}
	}
}

// TestCreateDespiteAFastClock: its peers refuse what the HSM makes. The key is
// made on another, nothing of the first attempt is left, and the HSM is avoided
// from then on.
func TestCreateDespiteAFastClock(t *testing.T) {
	for name, request := range map[string]func() hsm.CreateRequest{"aes": aes, "pair": ec} {
		t.Run(name, func(t *testing.T) {
			w, odd, c := skewed(t, tenMinutes, 2, asUser)
			defer c.forceFirst(odd)()
			made, err := c.Create(t.Context(), request(), Policy{})
			if err != nil {
				t.Fatal(err)
			}
			if !c.remoteOf(odd).ahead() {
				t.Error("the HSM with the fast clock is not avoided")
			}
			if err := c.Wait(timeout(t, 10*time.Second), made.Keys[0].Ref); err != nil {
				t.Error(err)
			}
			for _, b := range w.boxes {
				live, destroyed := b.keysOn()
				if h, _ := b.running(); len(live) != len(made.Keys) || len(destroyed) > 0 || len(h.InDoubt()) > 0 {
					t.Errorf("%s: live %v, destroyed %v, in doubt %v", b.member.Name, live, destroyed, h.InDoubt())
				}
			}
			w.setFaults(func(b *box, call string) fault {
				if b == odd && call == "Create" {
					t.Errorf("asked to create again")
				}
				return pass
			})
			mustCreate(t, c, request())
			w.quiet()
			w.converge()
		})
	}
}

// TestCreateOnTheFastHSMOnly: where no other HSM can do it, the error names the
// clock, and no key is left.
func TestCreateOnTheFastHSMOnly(t *testing.T) {
	w, odd, c := skewed(t, tenMinutes, 2, asUser)
	w.setFaults(func(b *box, call string) fault {
		if b != odd && call == "Create" {
			return full
		}
		return pass
	})
	_, err := c.Create(t.Context(), aes(), Policy{})
	if !errors.Is(err, hsm.ErrFuture) || !errors.Is(err, ErrMinCopies) || !strings.Contains(err.Error(), "the clock of "+odd.member.ID.String()+" is minutes ahead") {
		t.Errorf("Create: %v; want ErrFuture, naming %s", err, odd.member.ID)
	}
	w.converge()
	w.checkNoKeys()
}

// TestCreateDespiteASlowClock: one HSM refuses what all others make. Where its
// copy is not needed the others suffice; where it is, it makes the key itself.
func TestCreateDespiteASlowClock(t *testing.T) {
	for n := 1; n <= 3; n++ {
		t.Run(fmt.Sprintf("N=%d", n), func(t *testing.T) {
			w, odd, c := skewed(t, -tenMinutes, n, asUser)
			for range 3 {
				for _, b := range w.boxes {
					undo := c.forceFirst(b)
					made, err := c.Create(t.Context(), aes(), Policy{})
					undo()
					if err != nil {
						t.Fatal(err)
					}
					if got := w.holders(made.Keys[0].Ref); got < n {
						t.Errorf("the key is on %d HSMs; want %d", got, n)
					}
				}
			}
			if n < 3 && c.remoteOf(w.boxes[0]).ahead() && c.remoteOf(w.boxes[2]).ahead() {
				t.Error("both HSMs with the right clock are avoided")
			}
			c.Close()
			odd.skew.Store(0)
			w.converge()
		})
	}
}

// TestInsertDespiteASlowClock: what one HSM refuses and the others take is in.
func TestInsertDespiteASlowClock(t *testing.T) {
	w, _, c := skewed(t, -tenMinutes, 2, Credential{})
	objects := w.maskedElsewhere()
	if n, err := c.Insert(t.Context(), values(objects)); err != nil || n.Added != 1 {
		t.Errorf("Insert: %+v, %v", n, err)
	}
	if n := w.holders(objects[0].Ref); n != 2 {
		t.Errorf("the key is on %d HSMs; want 2", n)
	}
	for _, b := range w.boxes {
		b.skew.Store(int64(-tenMinutes))
	}
	if _, err := c.Insert(t.Context(), values(w.maskedElsewhere())); !errors.Is(err, hsm.ErrFuture) {
		t.Errorf("Insert where all refuse: %v; want ErrFuture", err)
	}
}

func newUser(name string) hsm.Change {
	return hsm.Change{Kind: hsm.ChangeUserCreate, User: name, Role: hsm.RoleCryptoUser, Password: secret("some-password")}
}

// TestChangeOnAFastHSM: what is set of users and keys is stamped by what the HSMs said
// of their clocks, and not by that of the one that makes the change.
func TestChangeOnAFastHSM(t *testing.T) {
	w, odd, c := skewed(t, tenMinutes, 2, asAdmin)
	defer c.forceFirst(odd)()
	changed, err := c.Change(t.Context(), newUser("eve"))
	if err != nil || len(changed.Copies) != 3 || changed.Results[0].HSM != odd.member.ID {
		t.Fatalf("Change: %+v, %v; want it made on %s, and on all", changed, err, odd.member.ID)
	}
	w.converge()
}

// TestChangeDespiteASlowClock: two of three HSMs have the change, which suffices.
func TestChangeDespiteASlowClock(t *testing.T) {
	w, odd, c := skewed(t, -tenMinutes, 2, asAdmin)
	undo := c.forceFirst(w.boxes[0])
	changed, err := c.Change(t.Context(), newUser("eve"))
	undo()
	if err != nil || len(changed.Copies) != 2 || !slices.Equal(changed.Missing, []hsm.HSMID{odd.member.ID}) {
		t.Errorf("Change: %+v, %v; want it on two", changed, err)
	}
	odd.skew.Store(0)
	w.converge()
}

// TestAvoidedHSMIsUsedAgain: when the time is over, and when there is no other.
func TestAvoidedHSMIsUsedAgain(t *testing.T) {
	w := newWorld(t, 3, 1, false)
	c := w.open(asUser)
	w.awaitUp(c)
	r := c.remoteOf(w.boxes[1])
	defer c.forceFirst(w.boxes[1])()
	r.avoid()
	if got := c.pickToWrite(nil, nil); got == r || got == nil {
		t.Error("an HSM to be avoided is chosen to create on")
	}
	if got := c.pick(nil, nil); got != r {
		t.Error("an HSM to be avoided for writing is not used for reading")
	}
	if got := c.pickToWrite(nil, []covered{{holders: []hsm.HSMID{r.id()}}}); got != r {
		t.Error("the one holder is not chosen")
	}
	r.avoided.Store(time.Now().Add(-time.Second).UnixNano())
	if got := c.pickToWrite(nil, nil); got != r {
		t.Error("not used again when the time is over")
	}
}

func TestRefusalBeforeAnythingIsMadeNamesNoKey(t *testing.T) {
	w := newWorld(t, 1, 2, true)
	_, err := w.open(asUser).Create(t.Context(), aes(), Policy{})
	if !errors.Is(err, ErrAvailability) || strings.Contains(err.Error(), "0x0000000000000000") || !strings.Contains(err.Error(), "; The key does not meet the availability requirements - ") {
		t.Errorf("Create: %v", err)
	}
}

// TestWaitSaysWhatIsNotInSync in place of the name of the context's error.
func TestWaitSaysWhatIsNotInSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 2, true)
		c := w.open(asUser)
		w.boxes[2].away.Store(true)
		c.answering(t.Context(), 3) // it notices
		check := func(target error, want string) {
			t.Helper()
			err := c.Wait(timeout(t, 300*time.Millisecond), 0)
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, target) {
				t.Errorf("Wait: %v; want %v and DeadlineExceeded", err, target)
				return
			}
			if text := err.Error(); !strings.HasPrefix(text, "not within ") || !strings.Contains(text, want) || strings.Contains(text, "deadline") {
				t.Errorf("Wait: %q; want %q", text, want)
			}
		}
		check(hsm.ErrUnavailable, ": 2 of 3 HSMs answer; "+w.boxes[2].member.Address+": ")
		for range 2 {
			mustCreate(t, c, aes())
		}
		w.boxes[2].away.Store(false)
		w.awaitUp(c)
		check(ErrDrift, "2 objects are not on all 3 HSMs")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.Wait(ctx, 0); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "not within") {
			t.Errorf("Wait when cancelled: %v", err)
		}
	})
}
