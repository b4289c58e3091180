package backup

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestHistories draws histories of a cluster whose HSMs change, sync now and
// then, come and go, and are backed up. After each snapshot:
//
//   - it holds all that any HSM that answered held when it began: inserting that
//     into the restored replica changes nothing;
//   - it restores to the root it names, unless it says that it is unsettled;
//   - it verifies.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		h := &history{T: r, outer: t, c: newTestCluster(t, 3)}
		h.c.cheap(t)
		store := newRAMStore()
		keys(h.c.hsm(0), 3)
		for range rapid.IntRange(4, 18).Draw(r, "steps") {
			if rapid.IntRange(0, 3).Draw(r, "snapshot") == 0 {
				h.snapshot(store)
			} else {
				h.step()
			}
		}
		for i := range h.c.ids {
			h.c.setDown(i, false)
		}
		h.c.sync(t)
		h.snapshot(store)
		if s := h.c.open(t, store, ""); !s.Settled() {
			r.Fatalf("all HSMs agree and answer, and the snapshot is unsettled: %s", h.log)
		}
	})
}

type history struct {
	*rapid.T
	outer *testing.T
	c     *testCluster
	log   []string
}

func (h *history) say(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

// step changes the cluster in one way.
func (h *history) step() {
	i := rapid.IntRange(0, len(h.c.ids)-1).Draw(h.T, "hsm")
	one := h.c.hsm(i)
	switch kind := rapid.SampledFrom([]string{"key", "label", "label", "destroy", "sync", "sync", "down", "up", "full sync"}).Draw(h.T, "step"); kind {
	case "key":
		h.say("%d: key", i)
		one.NewKey("new")
	case "label", "destroy":
		if one.Len() == 0 {
			return
		}
		ref, _ := one.At(rapid.IntRange(0, one.Len()-1).Draw(h.T, "object"))
		o, _ := one.Get(ref)
		h.say("%d: %s %s", i, kind, ref)
		if kind == "destroy" {
			one.Destroy(ref)
		} else if !o.Tombstone {
			one.SetLabel(ref, rapid.StringMatching("[a-z]{3}").Draw(h.T, "label"))
		}
	case "sync":
		j := rapid.IntRange(0, len(h.c.ids)-1).Draw(h.T, "to")
		h.say("sync %d to %d", i, j)
		insertAll(h.outer, one, h.c.hsm(j))
	case "full sync":
		h.say("sync all")
		h.c.sync(h.outer)
	default:
		h.say("%d: %s", i, kind)
		h.c.setDown(i, kind == "down")
	}
}

func (h *history) snapshot(store *ramStore) {
	answered, _, _ := h.c.Sources(h.outer.Context())
	if len(answered) == 0 {
		return
	}
	o := h.c.options()
	o.Full = rapid.IntRange(0, 9).Draw(h.T, "full") == 0
	report, err := Take(h.outer.Context(), h.c, store, o)
	if err != nil {
		h.Fatalf("%v: %s", err, h.log)
	}
	h.say("snapshot %s parent %s unchanged %t unsettled %d", report.ID, report.Parent, report.Unchanged, report.Unsettled)
	s := h.c.open(h.outer, store, report.ID)
	restored := restore(h.outer, s)
	if s.Settled() && rootOf(h.outer, restored) != report.Root {
		h.Fatalf("snapshot %s restores to another root: %s", report.ID, h.log)
	}
	for _, a := range answered {
		if done := insertAll(h.outer, hsm.Source(a), restored); done.Added+done.Changed+len(done.Conflicts) != 0 {
			h.Fatalf("snapshot %s lacks what %s held (%+v): %s", report.ID, a.ID, done, h.log)
		}
	}
	mustVerify(h.outer, h.c, store, report.ID)
}
