package cluster

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// known returns what an HSM knows of a member.
func (b *box) known(id hsm.HSMID) hsm.Member {
	b.w.t.Helper()
	members, err := b.peer().Members(context.Background())
	if err != nil {
		b.w.t.Fatal(err)
	}
	for _, m := range members {
		if m.ID == id {
			return m
		}
	}
	return hsm.Member{}
}

// TestRemovalThatFailsAtTheEnd: an HSM whose removal was refused stays a member like
// the others; if it may be known as removed somewhere, it goes on to take nothing.
func TestRemovalThatFailsAtTheEnd(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault   fault
		leaving bool
		want    error
	}{
		"refused everywhere":      {full, false, hsm.ErrFull},
		"done, and no answer":     {lose, true, hsm.ErrUnavailable},
		"not done, and no answer": {drop, true, hsm.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 3, 2, false)
			c := w.open(Credential{Role: hsm.RoleAdmin, Name: adminName, Password: secret(adminPassword)})
			m := w.boxes[2].member
			m.Leaving = true
			if _, err := c.Change(t.Context(), hsm.Change{Kind: hsm.ChangeMember, Member: &m}); err != nil {
				t.Fatal(err)
			}
			var calls atomic.Int64
			w.setFaults(func(_ *box, call string) fault {
				if call == "Change" && calls.Add(1) <= 3 {
					return tc.fault
				}
				return pass
			})
			_, err := c.finishRemoval(t.Context(), m, true)
			if !errors.Is(err, tc.want) || strings.Contains(err.Error(), "stays LEAVING") != tc.leaving {
				t.Errorf("%v, want %v; it stays LEAVING: %t", err, tc.want, tc.leaving)
			}
			w.setFaults(nil)
			w.sync()
			got := w.boxes[0].known(m.ID)
			if stays := got.Leaving || got.Removed; stays != tc.leaving {
				t.Errorf("leaving %t, removed %t; want a member like the others: %t", got.Leaving, got.Removed, !tc.leaving)
			}
		})
	}
}
