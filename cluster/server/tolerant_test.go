package server

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
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

// TestRefusalsAreFew: an object is tried again later and later, at once when a clock was
// set; there is room for so many, which those leave that are not offered any more.
func TestRefusalsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r refusals
		object := func(i int) hsm.Object { return hsm.Object{Ref: hsm.KeyRef(i)} }
		tries := 0
		for began := time.Now(); time.Since(began) < time.Hour; time.Sleep(time.Second) {
			if r.lately(object(0)) == nil {
				tries++
				r.add(object(0), hsm.ErrFuture)
			}
		}
		if tries < 6 || tries > 13 {
			t.Errorf("an object was tried %d times in an hour", tries)
		}
		if r.forget(); r.lately(object(0)) != nil {
			t.Error("it is not tried again though a clock was set")
		}
		for i := range maxRefusals {
			if !r.add(object(i), hsm.ErrFuture) {
				t.Fatalf("no room for the %dth", i+1)
			}
		}
		if r.add(object(maxRefusals), hsm.ErrFuture) {
			t.Error("there is no end to them")
		}
		time.Sleep(firstRefusal + time.Hour)
		if !r.add(object(maxRefusals), hsm.ErrFuture) {
			t.Error("those that are not offered any more take room")
		}
	})
}
