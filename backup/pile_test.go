package backup

import (
	"fmt"
	"testing"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Tests merge early, so that all of them meet merged snapshots.
func init() { mergeCount = 3 }

func TestPile(t *testing.T) {
	sizes := func(n ...uint64) (packs []format.PackEntry) {
		for _, size := range n {
			packs = append(packs, format.PackEntry{Size: size})
		}
		return packs
	}
	const tiny, small, middle, large = 3 << 10, 40 << 10, 600 << 10, 16 << 20
	for name, c := range map[string]struct {
		packs []format.PackEntry
		want  string
	}{
		"none":              {nil, "map[]"},
		"two tiny":          {sizes(large, tiny, tiny), "map[]"},
		"three tiny":        {sizes(large, tiny, small, tiny, tiny), "map[1:true 3:true 4:true]"},
		"three small":       {sizes(small, tiny, small, small, middle), "map[0:true 1:true 2:true 3:true]"},
		"middle takes all":  {sizes(middle, small, middle, tiny, middle, large), "map[0:true 1:true 2:true 3:true 4:true]"},
		"large stay":        {sizes(large, large, large, large), "map[]"},
		"alternates do not": {[]format.PackEntry{{Size: tiny, Alternate: true}, {Size: tiny, Alternate: true}, {Size: tiny, Alternate: true}}, "map[]"},
	} {
		if got := fmt.Sprint(pile(c.packs)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestIncrementsDoNotPileUp: with a change each time, a snapshot names few packs,
// restores, and can be built on by a take that remembers nothing.
func TestIncrementsDoNotPileUp(t *testing.T) {
	c := newTestCluster(t, 2)
	c.cheap(t)
	store := newRAMStore()
	for range 20 {
		c.hsm(0).NewKey("first")
	}
	c.sync(t)
	s := NewSeries(c, store, c.options())
	merged := uint64(0)
	for i := range 60 {
		ref := c.hsm(i % 2).NewKey(fmt.Sprint("key ", i))
		if i%5 == 0 {
			c.hsm(0).SetLabel(firstRef(c, i), fmt.Sprint("label ", i))
		}
		if i%9 == 0 {
			c.hsm(i % 2).Destroy(ref)
		}
		c.sync(t)
		r, err := s.Take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && (r.NewObjects == 0 || r.NewObjects > 2) {
			t.Fatalf("increment %d: %d new objects", i, r.NewObjects)
		}
		merged += r.Merged
		if n := len(s.known.Packs); n > len(classes)*mergeCount+2 {
			t.Fatalf("snapshot %s names %d packs", r.ID, n)
		}
		if i%6 == 5 {
			if restored := restore(t, c.open(t, store, r.ID)); rootOf(t, restored) != rootOf(t, c.hsm(0)) {
				t.Fatalf("snapshot %s restores to another root", r.ID)
			}
			mustVerify(t, c, store, r.ID)
			if !mustTake(t, c, store, c.options()).Unchanged {
				t.Fatal("a take that remembers nothing finds something else")
			}
		}
	}
	if merged == 0 {
		t.Error("nothing was merged")
	}
}

func firstRef(c *testCluster, i int) hsm.KeyRef {
	ref, _ := c.hsm(0).At(i % 5)
	return ref
}

// TestMergingKeepsUnsettledStates: what one HSM alone shows of an object, here
// that it was destroyed, is not replaced by what the lead shows of it.
func TestMergingKeepsUnsettledStates(t *testing.T) {
	defer func(n int) { mergeCount = n }(mergeCount)
	mergeCount = 2
	c, store := newTestCluster(t, 2), newStore(t)
	c.cheap(t)
	refs := keys(c.hsm(0), 3)
	c.sync(t)
	mustTake(t, c, store, c.options())
	c.hsm(0).Destroy(refs[0])
	later := c.hsm(1).NewKey("later")
	if r := mustTake(t, c, store, c.options()); r.Unsettled == 0 {
		t.Fatalf("the second snapshot is settled: %+v", r)
	}
	c.hsm(1).Destroy(later) // the other HSM leads now, and there is something to write
	r := mustTake(t, c, store, c.options())
	restored := restore(t, c.open(t, store, r.ID))
	for i := range c.ids {
		if done := insertAll(t, c.hsm(i), restored); done.Added+done.Changed != 0 {
			t.Errorf("the snapshot lacks what HSM %d held: %+v", i, done)
		}
	}
	if o, ok := restored.Get(refs[0]); !ok || !o.Tombstone {
		t.Errorf("the destroyed key is back")
	}
	mustVerify(t, c, store, r.ID)
}
