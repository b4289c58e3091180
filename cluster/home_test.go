package cluster

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// homes makes n session keys at once and returns the HSMs they are on.
func homes(t *testing.T, c *Cluster, n int) []hsm.HSMID {
	t.Helper()
	var mu sync.Mutex
	var out []hsm.HSMID
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			r := aes()
			r.Token = false
			made, err := c.Create(t.Context(), r, Policy{})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, made.Coverage...)
		})
	}
	all.Wait()
	slices.Sort(out)
	return out
}

func TestSessionKeysTogether(t *testing.T) {
	w := newWorld(t, 3, 2, false)
	c := w.open(asUser, WithSessionKeysTogether())
	before := homes(t, c, 12)
	if on := slices.Compact(slices.Clone(before)); len(before) != 12 || len(on) != 1 {
		t.Fatalf("12 session keys are on %v", on)
	}
	w.box(before[0]).kill()
	after := homes(t, c, 12)
	if on := slices.Compact(slices.Clone(after)); len(after) != 12 || len(on) != 1 || on[0] == before[0] {
		t.Errorf("after the death of %v new session keys are on %v", before[0], on)
	}
	if on := slices.Compact(homes(t, w.open(asUser), 3*stay)); len(on) < 2 {
		t.Errorf("without the option all session keys are on %v", on)
	}
}

// TestSessionKeysWhereThereIsRoom: when the HSM of the session keys has no room for
// more they are made together on another; when none has, it is ErrFull.
func TestSessionKeysWhereThereIsRoom(t *testing.T) {
	w := newWorld(t, 3, 2, false)
	c := w.open(asUser, WithSessionKeysTogether())
	before := homes(t, c, 4)
	w.setFaults(func(b *box, call string) fault {
		if call == "Create" && b.member.ID == before[0] {
			return full
		}
		return pass
	})
	after := homes(t, c, 12)
	if on := slices.Compact(slices.Clone(after)); len(after) != 12 || len(on) != 1 || on[0] == before[0] {
		t.Errorf("with %v full new session keys are on %v", before[0], on)
	}
	w.setFaults(func(_ *box, call string) fault {
		if call == "Create" {
			return full
		}
		return pass
	})
	r := aes()
	r.Token = false
	if _, err := c.Create(t.Context(), r, Policy{}); !errors.Is(err, hsm.ErrFull) {
		t.Errorf("a session key where none has room: %v", err)
	}
}
