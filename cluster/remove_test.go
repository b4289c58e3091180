package cluster

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// known returns what an HSM knows of a member.
func (b *box) known(id hsm.HSMID) hsm.Member {
	b.w.t.Helper()
	members, err := b.peer().Members(context.Background())
	if err != nil {
		b.w.t.Fatal(err)
	}
	for _, m := range members {
		if m.ID == id {
			return m
		}
	}
	return hsm.Member{}
}

// TestRemovalThatFailsAtTheEnd: an HSM whose removal was refused stays a member like
// the others; if it may be known as removed somewhere, it goes on to take nothing.
func TestRemovalThatFailsAtTheEnd(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault   fault
		leaving bool
		want    error
	}{
		"refused everywhere":      {full, false, hsm.ErrFull},
		"done, and no answer":     {lose, true, hsm.ErrUnavailable},
		"not done, and no answer": {drop, true, hsm.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 3, 2, false)
			c := w.open(Credential{Role: hsm.RoleAdmin, Name: adminName, Password: secret(adminPassword)})
			m := w.boxes[2].member
			m.Leaving = true
			if _, err := c.Change(t.Context(), hsm.Change{Kind: hsm.ChangeMember, Member: &m}); err != nil {
				t.Fatal(err)
			}
			var calls atomic.Int64
			w.setFaults(func(_ *box, call string) fault {
				if call == "Change" && calls.Add(1) <= 3 {
					return tc.fault
				}
				return pass
			})
			_, err := c.finishRemoval(t.Context(), m, true)
			if !errors.Is(err, tc.want) || strings.Contains(err.Error(), "stays LEAVING") != tc.leaving {
				t.Errorf("%v, want %v; it stays LEAVING: %t", err, tc.want, tc.leaving)
			}
			w.setFaults(nil)
			w.sync()
			got := w.boxes[0].known(m.ID)
			if stays := got.Leaving || got.Removed; stays != tc.leaving {
				t.Errorf("leaving %t, removed %t; want a member like the others: %t", got.Leaving, got.Removed, !tc.leaving)
			}
		})
	}
}

// generated makes a key on two HSMs.
func (c *Cluster) generated(t *testing.T) hsm.KeyRef {
	t.Helper()
	made, err := c.Create(t.Context(), aes(), Policy{MinCopies: 2})
	if err != nil {
		t.Fatal(err)
	}
	return made.Keys[0].Ref
}

// orders lists the orders in which so many steps of two come, each a list of 0 and 1. The
// first step is that of 0: the two are alike.
func orders(steps int) (all [][]int) {
	for _, rest := range interleavings(steps-1, steps) {
		all = append(all, append([]int{0}, rest...))
	}
	return all
}

func interleavings(a, b int) [][]int {
	if a == 0 && b == 0 {
		return [][]int{nil}
	}
	var all [][]int
	if a > 0 {
		for _, rest := range interleavings(a-1, b) {
			all = append(all, append([]int{0}, rest...))
		}
	}
	if b > 0 {
		for _, rest := range interleavings(a, b-1) {
			all = append(all, append([]int{1}, rest...))
		}
	}
	return all
}

// removal is one Remove, step by step.
type removal struct {
	c       *Cluster
	m       hsm.Member
	session hsm.Session
	staying int
	force   bool
	err     error
	did     int
}

func (w *world) removalOf(b *box, force bool) *removal {
	r := &removal{c: w.open(asAdmin), m: b.member, force: force}
	session, end, err := r.c.visit(w.t.Context(), r.m)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(end)
	r.session = session
	return r
}

// step does the next step, unless one has failed.
func (r *removal) step(t *testing.T) {
	if r.err != nil {
		return
	}
	switch r.did++; r.did {
	case 1:
		r.err = r.c.announce(t.Context(), &r.m, r.session)
	case 2:
		r.staying, r.err = r.c.recheck(t.Context(), r.m, r.session, r.force)
	case 3:
		if r.err = r.c.evacuate(t.Context(), r.m, r.session, r.staying); r.err != nil && r.force {
			r.err = nil
		}
	}
}

// TestTwoRemovalsAtOnce: whichever step of one removal comes between which of another,
// the two do not both take the other's HSM for one that stays. What is on those two alone
// is copied to an HSM that stays, or one removal is refused; and so it is if fewer HSMs
// would be left than the policy wants copies.
func TestTwoRemovalsAtOnce(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		copies int
		full   bool // the HSM that stays takes nothing
		deaf   bool // nobody hears of a removal at first but the HSM itself
	}{
		"a key is on these two alone":               {1, true, false},
		"a key is on these two alone, nobody hears": {1, true, true},
		"one HSM would be left":                     {2, false, false},
	} {
		for _, order := range orders(3) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, 3, tc.copies, false)
				w.boxes[2].away.Store(true)
				key := w.open(asUser).generated(t)
				w.boxes[2].away.Store(false)
				if w.holders(key) != 2 {
					t.Fatalf("the key is on %d HSMs", w.holders(key))
				}
				both := []*removal{w.removalOf(w.boxes[0], false), w.removalOf(w.boxes[1], false)}
				var mine atomic.Pointer[box]
				w.setFaults(func(b *box, call string) fault {
					switch {
					case tc.full && b == w.boxes[2] && call == "Insert":
						return full
					case tc.deaf && mine.Load() != nil && (call == "Change" && b != mine.Load() || call == "Members" && b != w.boxes[2]):
						return drop
					}
					return pass
				})
				for _, i := range order {
					if mine.Store(nil); both[i].did < 2 {
						mine.Store(w.boxes[i])
					}
					both[i].step(t)
				}
				for _, r := range both {
					if r.err != nil && !errors.Is(r.err, ErrRemoval) && !away(r.err) && !errors.Is(r.err, ErrNoHSM) {
						t.Errorf("order %v: %v", order, r.err)
					}
				}
				if both[0].err == nil && both[1].err == nil {
					t.Errorf("order %v: both HSMs are removed", order)
				}
			})
		}
	}
}

// TestTheLastTwoAreNotRemovedAtOnce, by force either.
func TestTheLastTwoAreNotRemovedAtOnce(t *testing.T) {
	t.Parallel()
	for _, order := range orders(3) {
		w := newWorld(t, 2, 1, false)
		both := []*removal{w.removalOf(w.boxes[0], true), w.removalOf(w.boxes[1], true)}
		for _, i := range order {
			both[i].step(t)
		}
		if both[0].err == nil && both[1].err == nil {
			t.Errorf("order %v: no HSM is left", order)
		}
	}
}

// TestRemovalCopiesWhatIsOnTwoThatLeave: one after the other takes everything along.
func TestRemovalCopiesWhatIsOnTwoThatLeave(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4, 2, false)
	w.boxes[2].away.Store(true)
	w.boxes[3].away.Store(true)
	key := w.open(asUser).generated(t)
	w.heal()
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i := range errs {
		c := w.open(asAdmin)
		wg.Go(func() { _, errs[i] = c.Remove(t.Context(), w.boxes[i].member.ID, false) })
	}
	wg.Wait()
	stays := 2
	for i, err := range errs {
		if err != nil {
			stays++
			t.Logf("HSM %d: %v", i, err)
		}
	}
	if n := w.holders(key); n < stays {
		t.Errorf("the key is on %d HSMs, %d stay", n, stays)
	}
	for _, b := range w.boxes[2:] {
		if live, _ := b.keysOn(); len(live) != 1 {
			t.Errorf("an HSM that stays holds %v", live)
		}
	}
}

// TestARemovalTakesEverythingAlong: of each kind of object that HSMs have in common, what
// is on the leaving one alone, since server-side sync had no time, is on all that stay
// when it is removed.
func TestARemovalTakesEverythingAlong(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	invite := &hsm.Invite{ID: hsm.NewInviteID(), Key: [32]byte{1}, Expires: time.Now().Add(time.Hour)}
	ref := hsm.InviteRef(invite.ID)
	other := hsm.Member{ID: hsm.NewHSMID(), Name: "gone", Address: "gone:2223", Removed: true}
	settled := other
	settled.Settled, settled.Keep = time.Now().UnixMilli(), true
	asks := func(c hsm.Change) func(b *box) error {
		return func(b *box) error { _, err := b.as(hsm.RoleAdmin, adminName).Change(ctx, c); return err }
	}
	info := func(b *box) hsm.Info { i, _ := b.peer().Info(ctx); return i }
	for name, tc := range map[string]struct {
		before, make func(b *box) error // before: everywhere
		is           func(b *box) bool
	}{
		"a key": {nil, func(b *box) error {
			s, op := b.as(hsm.RoleCryptoUser, userName), hsm.OpID{7}
			if _, err := s.Create(ctx, op, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32}); err != nil {
				return err
			}
			return s.Commit(ctx, op)
		}, func(b *box) bool { live, _ := b.keysOn(); return len(live) == 1 }},
		"a user": {nil, asks(hsm.Change{Kind: hsm.ChangeUserCreate, User: "eve", Role: hsm.RoleCryptoUser, Password: secret("eve-password")}),
			func(b *box) bool { users, _ := b.peer().Users(ctx); return len(users) == 3 }},
		"a setting": {nil, asks(hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 1, CheckOnUse: true}}),
			func(b *box) bool { return info(b).Settings.CheckOnUse }},
		"a token's timeout": {nil, asks(hsm.Change{Kind: hsm.ChangeQuorumTimeout, Name: hsm.TimeoutGenerated, Value: "900"}),
			func(b *box) bool { return info(b).Timeouts.Generated == 900*time.Second }},
		"a member, and an admin's word on it": {asks(hsm.Change{Kind: hsm.ChangeMember, Member: &other}),
			asks(hsm.Change{Kind: hsm.ChangeMember, Member: &settled}), func(b *box) bool { return b.known(other.ID).Keep }},
		"failed logins": {nil, func(b *box) error {
			h, _ := b.running()
			for range hsm.MaxFailedLogins + 1 {
				if _, _, err := h.Module(hsm.Principal{}).Login(ctx, hsm.RoleCryptoUser, userName, secret("wrong-password")); !errors.Is(err, hsm.ErrLogin) {
					return err
				}
			}
			return nil
		}, func(b *box) bool {
			h, _ := b.running()
			_, _, err := h.Module(hsm.Principal{}).Login(ctx, hsm.RoleCryptoUser, userName, secret(userPassword))
			return errors.Is(err, hsm.ErrLocked)
		}},
		"an invitation": {nil, func(b *box) error {
			i := *invite
			i.Voters = []hsm.HSMID{b.member.ID}
			return asks(hsm.Change{Kind: hsm.ChangeInvite, Invite: &i})(b)
		}, func(b *box) bool { h, _ := b.running(); _, err := h.FindInvite(ctx, invite.ID); return err == nil }},
		"a vote on an invitation": {func(b *box) error {
			i := *invite
			i.Voters = []hsm.HSMID{b.w.boxes[0].member.ID}
			return asks(hsm.Change{Kind: hsm.ChangeInvite, Invite: &i})(b)
		}, func(b *box) error {
			_, err := b.peer().Change(ctx, hsm.Change{Kind: hsm.ChangeClaim, Ref: ref, Claim: &hsm.Claim{Joiner: 9}})
			return err
		}, func(b *box) bool {
			h, _ := b.running()
			i, err := h.FindInvite(ctx, invite.ID)
			return err == nil && len(i.Claims) == 1
		}},
		"a revocation": {nil, asks(hsm.Change{Kind: hsm.ChangeRevoke, Revoked: &hsm.Revocation{Kind: "client", Name: "old", Until: time.Now()}}),
			func(b *box) bool { h, _ := b.running(); r, err := h.Revocations(ctx); return err == nil && len(r) == 1 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 3, 1, false)
			for _, b := range w.boxes {
				if tc.before == nil {
					break
				}
				if err := tc.before(b); err != nil {
					t.Fatal(err)
				}
			}
			c, leaver := w.open(asAdmin), w.boxes[0]
			if err := tc.make(leaver); err != nil {
				t.Fatal(err)
			}
			if !tc.is(leaver) || tc.is(w.boxes[1]) || tc.is(w.boxes[2]) {
				t.Fatal("it is not on the leaving HSM alone")
			}
			removed, err := c.Remove(t.Context(), leaver.member.ID, false)
			if err != nil || !removed.Drained {
				t.Fatalf("%+v, %v", removed, err)
			}
			for _, b := range w.boxes[1:] {
				if !tc.is(b) {
					t.Errorf("it is not on %s", b.member.Name)
				}
			}
		})
	}
}

// TestARemovalWaitsForMaskingKeys: a rotation that only the leaving HSM knows of is not
// undone by its removal.
func TestARemovalWaitsForMaskingKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 1, false)
	rotated, err := w.keyring.Rotated(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	take := func(boxes ...*box) {
		for _, b := range boxes {
			h, _ := b.running()
			if err := h.SetKeyring(rotated); err != nil {
				t.Fatal(err)
			}
		}
	}
	take(w.boxes[0])
	c := w.open(asAdmin)
	if _, err := c.Remove(t.Context(), w.boxes[0].member.ID, false); !errors.Is(err, ErrRemoval) || !strings.Contains(err.Error(), "lacks the masking key") {
		t.Fatalf("%v, want ErrRemoval", err)
	}
	if m := w.boxes[1].known(w.boxes[0].member.ID); m.Leaving || m.Removed {
		t.Errorf("it does not stay: %+v", m)
	}
	take(w.boxes[1:]...)
	if removed, err := c.Remove(t.Context(), w.boxes[0].member.ID, false); err != nil || !removed.Drained {
		t.Errorf("%+v, %v", removed, err)
	}
}
