package cluster

import (
	"errors"
	"fmt"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestAChangeBackWins: a change to what the asked HSM has had all the time is a change
// where another was acknowledged in between, which that HSM has missed: what was
// acknowledged last holds on every HSM.
func TestAChangeBackWins(t *testing.T) {
	t.Parallel()
	settings := func(copies int) hsm.Change {
		return hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: copies, CheckOnUse: true}}
	}
	for name, tc := range map[string]struct {
		cred   Credential
		change func(key hsm.KeyRef, which int) hsm.Change
		value  func(b *box, key hsm.KeyRef) (string, error)
	}{
		"settings": {asAdmin, func(_ hsm.KeyRef, which int) hsm.Change { return settings(1 + which) }, func(b *box, _ hsm.KeyRef) (string, error) {
			i, err := b.peer().Info(b.w.t.Context())
			return fmt.Sprint(i.Settings.MinCopies - 1), err
		}},
		"label": {asUser, func(key hsm.KeyRef, which int) hsm.Change {
			return hsm.Change{Kind: hsm.ChangeAttribute, Ref: key, Name: "label", Value: fmt.Sprint(which)}
		}, func(b *box, key hsm.KeyRef) (string, error) {
			k, err := b.peer().Key(b.w.t.Context(), key)
			return k.Label, err
		}},
		"share": {asUser, func(key hsm.KeyRef, which int) hsm.Change {
			return hsm.Change{Kind: []hsm.ChangeKind{hsm.ChangeShare, hsm.ChangeUnshare}[which], Ref: key, User: "carol"}
		}, func(b *box, key hsm.KeyRef) (string, error) {
			k, err := b.peer().Key(b.w.t.Context(), key)
			return fmt.Sprint(1 - len(k.Shares)), err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 3, 2, true)
			w.change(w.boxes[0].as(hsm.RoleAdmin, adminName), hsm.Change{Kind: hsm.ChangeUserCreate, User: "carol", Role: hsm.RoleCryptoUser, Password: secret(userPassword)})
			made, err := w.open(asUser).Create(t.Context(), aes(), Policy{})
			if err != nil {
				t.Fatal(err)
			}
			key := made.Keys[0].Ref
			w.sync()
			change := func(on *box, which int) {
				t.Helper()
				c := w.open(tc.cred)
				c.muster(t.Context())
				defer c.forceFirst(on)()
				changed, err := c.Change(t.Context(), tc.change(key, which))
				if err != nil || changed.Results[0].HSM != on.member.ID {
					t.Fatalf("%+v, %v; want it made on %s", changed, err, on.member.Name)
				}
			}
			change(w.boxes[0], 0)
			w.sync()
			unheard := w.boxes[2]
			unheard.away.Store(true)
			change(w.boxes[0], 1)
			unheard.away.Store(false)
			change(unheard, 0)
			w.sync()
			for _, b := range w.boxes {
				if got, err := tc.value(b, key); err != nil || got != "0" {
					t.Errorf("%s: %q, %v; not as it was acknowledged last", b.member.Name, got, err)
				}
			}
		})
	}
}

// TestAChangeThatOneMayHaveMade is not known not to be made: the HSM that was asked first
// has made it, and its answer was lost; no other knows the user yet.
func TestAChangeThatOneMayHaveMade(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 1, false)
	first := w.boxes[0]
	w.change(first.as(hsm.RoleAdmin, adminName), hsm.Change{Kind: hsm.ChangeUserCreate, User: "carol", Role: hsm.RoleCryptoUser, Password: secret(userPassword)})
	c := w.open(asAdmin)
	w.awaitUp(c)
	defer c.forceFirst(first)()
	w.setFaults(func(b *box, call string) fault {
		if b == first && call == "Change" {
			return lose
		}
		return pass
	})
	_, err := c.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserPassword, User: "carol", Role: hsm.RoleCryptoUser, Password: secret("another-password")})
	if !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("%v; want ErrUnavailable: nobody knows whether it was made", err)
	}
	w.quiet()
	if _, _, err := first.soft.Module(hsm.Principal{Role: hsm.RoleNone}).Login(t.Context(), hsm.RoleCryptoUser, "carol", secret("another-password")); err != nil {
		t.Errorf("the test's HSM has not made it: %v", err)
	}
}
