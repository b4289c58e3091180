package cluster

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// failSecondCommit lets one HSM commit and the other never.
func (w *world) failSecondCommit() {
	w.setFaults(func(b *box, call string) fault {
		if b == w.boxes[1] && call == "Commit" {
			return drop
		}
		return pass
	})
}

// TestFailedCreationOfAKeyThatIsNotDestroyable leaves nothing either.
func TestFailedCreationOfAKeyThatIsNotDestroyable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 2, false)
		c := w.open(asUser)
		w.failSecondCommit()
		r := aes()
		r.Attributes["destroyable"] = "false"
		if _, err := c.Create(t.Context(), r, Policy{Timeout: 300 * time.Millisecond}); !errors.Is(err, ErrMinCopies) {
			t.Fatalf("Create: %v; want ErrMinCopies", err)
		}
		w.heal()
		w.converge()
		if n := w.keyCount(); n != 0 {
			t.Errorf("%d keys are left", n)
		}
	})
}

// TestFailedInsertDestroysNothing: the key exists elsewhere, so the copies that
// were committed stay, and the error says so.
func TestFailedInsertDestroysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 2, false)
		c := w.open(asUser)
		objects := w.maskedElsewhere()
		w.failSecondCommit()
		_, err := c.Create(t.Context(), hsm.CreateRequest{Method: hsm.MethodInsert, Token: true, Masked: objects}, Policy{Timeout: 300 * time.Millisecond})
		if !errors.Is(err, ErrMinCopies) || !strings.Contains(err.Error(), "stays where it was") {
			t.Fatalf("Create: %v; want ErrMinCopies, and that the key stays", err)
		}
		w.heal()
		w.converge()
		for _, b := range w.boxes {
			if live, _ := b.keysOn(); len(live) != 1 || live[0] != objects[0].Ref {
				t.Errorf("%s has %v, want the inserted key", b.member.Name, live)
			}
		}
	})
}

// TestOwnPasswordChangeOfAnAdmin ends the client's own sessions on the other
// HSMs, and the client finds back, whatever role it named.
func TestOwnPasswordChangeOfAnAdmin(t *testing.T) {
	w := newWorld(t, 3, 2, false)
	who := asAdmin
	who.Role = hsm.RoleNone
	c := w.open(who)
	if _, err := c.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserPassword, User: adminName, Role: hsm.RoleAdmin, Password: secret("a-new-password")}); err != nil {
		t.Fatal(err)
	}
	w.sync()
	for range 20 {
		if _, err := c.Users(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.awaitUp(c)
}
