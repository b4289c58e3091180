package cluster

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestDiscardReachesAnHSMThatWasAway: session keys that are not wanted any more are
// destroyed at once, or when their HSM answers again in the same session; the others
// stay.
func TestDiscardReachesAnHSMThatWasAway(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	c := w.open(asUser, WithSessionKeysTogether())
	w.awaitUp(c)
	request := aes()
	request.Token = false
	var keys []hsm.KeyRef
	for range 5 {
		made, err := c.Create(t.Context(), request, Policy{})
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, made.Keys[0].Ref)
	}
	there := func() (n int) {
		for _, err := range c.Keys(t.Context(), hsm.Filter{Refs: keys}) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	c.Discard(t.Context(), keys[0])
	if n := there(); n != 4 {
		t.Errorf("%d session keys after one was discarded", n)
	}
	home := w.boxes[0]
	for _, b := range w.boxes {
		if b.member.ID == c.home.Load().id() {
			home = b
		}
	}
	home.away.Store(true)
	for _, ref := range keys[1:4] {
		c.Discard(t.Context(), ref)
	}
	home.away.Store(false)
	w.awaitUp(c)
	for end := time.Now().Add(time.Minute); there() != 1 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := there(); n != 1 {
		t.Errorf("%d session keys are there after the HSM came back, want the one that is wanted", n)
	}
	if _, err := c.Use(t.Context(), mac(keys[4])); err != nil {
		t.Error(err)
	}
	home.away.Store(true)
	c.Discard(t.Context(), keys[4])
	home.kill()
	w.heal()
	w.awaitUp(c)
	if n := there(); n != 0 {
		t.Errorf("%d session keys are there after the HSM started again", n)
	}
	c.Discard(t.Context(), keys[4]) // is not there
}

// TestLostSessionKeysAreDestroyed: session keys whose creation is answered when nobody
// hears it are destroyed once the HSM answers again, in the same session; the caller
// gets a key of another HSM.
func TestLostSessionKeysAreDestroyed(t *testing.T) {
	w := newWorld(t, 2, 1, false)
	c := w.open(asUser)
	w.awaitUp(c)
	request := ec()
	request.Token = false
	var loses atomic.Int32
	var lost atomic.Pointer[box]
	w.setFaults(func(b *box, call string) fault {
		if call == "Create" && loses.Add(-1) >= 0 {
			lost.Store(b)
			return lose
		}
		return pass
	})
	onlyWanted := func(want int) {
		t.Helper()
		n := -1
		for end := time.Now().Add(time.Minute); n != want && time.Now().Before(end); time.Sleep(time.Millisecond) {
			n = 0
			w.awaitUp(c)
			for _, err := range c.Keys(t.Context(), hsm.Filter{}) {
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
		}
		if n != want {
			t.Errorf("%d session keys are there, want %d", n, want)
		}
	}
	loses.Store(1)
	made, err := c.Create(t.Context(), request, Policy{})
	if err != nil || lost.Load() == nil || made.Coverage[0] == lost.Load().member.ID {
		t.Fatalf("made %v, %v", made, err)
	}
	onlyWanted(2)
	loses.Store(2)
	if _, err := c.Create(t.Context(), request, Policy{}); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("made on nobody: %v", err)
	}
	onlyWanted(2)
}
