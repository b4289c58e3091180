package server

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestAClockAheadDoesNotStopSync: what an HSM has made since its clock was set hours
// ahead is refused; what it holds from before comes to the others all the same.
func TestAClockAheadDoesNotStopSync(t *testing.T) {
	w := newWorld(t, 2)
	w.createAlice()
	ahead, other := w.boxes[0], w.boxes[1]
	other.stop()
	alice := ahead.alice()
	var before []hsm.KeyRef
	for i := range 20 {
		before = append(before, w.createKey(alice, fmt.Sprint("before-", i)))
	}
	ahead.stop()
	ahead.now = func() time.Time { return time.Now().Add(3 * time.Hour) }
	ahead.start()
	alice = ahead.alice()
	var since []hsm.KeyRef
	for i := range 20 {
		since = append(since, w.createKey(alice, fmt.Sprint("since-", i)))
	}
	// What belongs to the cluster is ahead, too.
	if _, _, err := ahead.client().Login(t.Context(), hsm.RoleNone, "alice", secret("not-her-password")); !errors.Is(err, hsm.ErrLogin) {
		t.Fatal(err)
	}
	other.start()
	w.eventually("keys from before are not on the other HSM", func() bool {
		for _, ref := range before {
			if _, err := other.self().Key(t.Context(), ref); err != nil {
				return false
			}
		}
		return true
	})
	for _, ref := range since {
		if _, err := other.self().Key(t.Context(), ref); !errors.Is(err, hsm.ErrNotFound) {
			t.Errorf("a key from the future: %v", err)
		}
	}
	if at := other.server.sync.lastSync(); !at.IsZero() {
		t.Error("the other HSM counts as in sync, and is not")
	}
}
