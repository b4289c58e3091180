package cluster

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

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
			b.creates(t)
			return nil
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
	synctest.Test(t, func(t *testing.T) {
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
		brief := fast
		brief.connect = 400 * time.Millisecond
		if _, err := w.open(asAdmin, withTiming(brief)).Remove(t.Context(), w.boxes[0].member.ID, false); !errors.Is(err, ErrRemoval) || !strings.Contains(err.Error(), "lacks the masking key") {
			t.Fatalf("%v, want ErrRemoval", err)
		}
		if m := w.boxes[1].known(w.boxes[0].member.ID); m.Leaving || m.Removed {
			t.Errorf("it does not stay: %+v", m)
		}
		take(w.boxes[1:]...)
		if removed, err := w.open(asAdmin).Remove(t.Context(), w.boxes[0].member.ID, false); err != nil || !removed.Drained {
			t.Errorf("%+v, %v", removed, err)
		}
	})
}
