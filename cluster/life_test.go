package cluster

import (
	"errors"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestAUserIsMadeInALifeOfItsOwn: by an HSM that has not heard that the user of that
// name was deleted; and the creation does not come true again when an HSM gets it late.
func TestAUserIsMadeInALifeOfItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 2, false)
	c := w.open(asAdmin)
	w.awaitUp(c)
	carol := hsm.Change{Kind: hsm.ChangeUserCreate, User: "carol", Role: hsm.RoleCryptoUser, Password: secret("carol-password")}
	change := func(ch hsm.Change) {
		t.Helper()
		if _, err := c.Change(t.Context(), ch); err != nil {
			t.Fatal(err)
		}
	}
	remove := hsm.Change{Kind: hsm.ChangeUserDelete, User: "carol", Role: hsm.RoleCryptoUser}
	unheard := w.boxes[2]
	unheard.away.Store(true)
	change(carol)
	change(remove)
	unheard.away.Store(false)
	w.awaitUp(c)
	undo := c.forceFirst(unheard)
	change(carol)
	undo()
	w.sync()
	for _, b := range w.boxes {
		if got := b.roleOf("carol"); got != hsm.RoleCryptoUser {
			t.Errorf("%s: carol is %q, after she was made anew", b.member.Name, got)
		}
	}
	change(remove)
	late := carol
	late.Life = 2
	if _, err := w.boxes[0].as(hsm.RoleAdmin, adminName).Change(t.Context(), late); !errors.Is(err, hsm.ErrDestroyed) {
		t.Errorf("the creation, late: %v, want ErrDestroyed", err)
	}
}
