package cluster

import (
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestALaterChangeWinsAfterARestart: a change was acknowledged by HSMs whose clocks were
// minutes ahead. They are started again, with the right time; a change that is made then,
// on an HSM that has not heard of the first, is the later one all the same.
func TestALaterChangeWinsAfterARestart(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	a, b, late := w.boxes[0], w.boxes[1], w.boxes[2]
	c := w.open(asUser)
	w.awaitUp(c)
	ref := mustCreate(t, c, aes())
	if err := c.Wait(timeout(t, time.Minute), ref); err != nil {
		t.Fatal(err)
	}
	label := func(on *box, to string) {
		t.Helper()
		defer c.forceFirst(on)()
		if _, err := c.Change(t.Context(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: ref, Name: "label", Value: to}); err != nil {
			t.Fatal(err)
		}
	}

	late.away.Store(true)
	c.answering(t.Context(), 3) // it notices
	for _, x := range []*box{a, b} {
		x.skew.Store(int64(4 * time.Minute))
	}
	label(a, "first")
	for _, x := range []*box{a, b} {
		x.kill()
		x.skew.Store(0)
		x.start()
	}
	late.away.Store(false)
	w.awaitUp(c)
	a.away.Store(true)
	c.answering(t.Context(), 3)
	label(late, "second")

	a.away.Store(false)
	c.Close()
	w.converge()
	for _, x := range w.boxes {
		k, err := x.peer().Key(t.Context(), ref)
		if err != nil || k.Label != "second" {
			t.Errorf("%s: the label is %q (%v), and %q was acknowledged last", x.member.Name, k.Label, err, "second")
		}
	}
}
