package hsm

import (
	"testing"
	"time"
)

// TestVerdict: what a member that cannot be asked means for an operation in doubt.
func TestVerdict(t *testing.T) {
	gone := time.UnixMilli(1_800_000_000_000)
	ms := gone.UnixMilli()
	later := func(d time.Duration) time.Time { return gone.Add(d) }
	for name, c := range map[string]struct {
		m                    Member
		began                time.Time
		waits, decided, keep bool
	}{
		"a member":                         {Member{}, gone, false, false, false},
		"drained":                          {Member{Removed: true, RemovedAt: ms, Drained: true}, gone, false, false, false},
		"removed by force, before":         {Member{Removed: true, RemovedAt: ms}, later(-time.Hour), true, false, false},
		"removed by force, a moment later": {Member{Removed: true, RemovedAt: ms}, later(time.Second), true, false, false},
		"removed by force, clocks apart":   {Member{Removed: true, RemovedAt: ms}, later(2 * MaxAhead), true, false, false},
		"removed by force, well after":     {Member{Removed: true, RemovedAt: ms}, later(afterRemoval + time.Millisecond), false, false, false},
		"removed at an unknown time":       {Member{Removed: true}, later(time.Hour), true, false, false},
		"settled":                          {Member{Removed: true, RemovedAt: ms, Settled: ms + 5000, Keep: true}, later(time.Second), false, true, true},
		"settled, later operation":         {Member{Removed: true, RemovedAt: ms, Settled: ms}, later(time.Second), true, false, false},
		"set back, before":                 {Member{Doubt: ms}, later(-time.Second), true, false, false},
		"set back, after":                  {Member{Doubt: ms}, later(time.Second), false, false, false},
		"set back, then removed":           {Member{Doubt: ms + time.Hour.Milliseconds(), Removed: true, RemovedAt: ms}, later(30 * time.Minute), true, false, false},
	} {
		if waits, decided, keep := c.m.Verdict(c.began); waits != c.waits || decided != c.decided || keep != c.keep {
			t.Errorf("%s: waits %t, decided %t, keep %t; want %t, %t, %t", name, waits, decided, keep, c.waits, c.decided, c.keep)
		}
	}
}

// TestMembersAsTwoHSMsKnowThem: With has the later of two states, in either order.
func TestMembersAsTwoHSMsKnowThem(t *testing.T) {
	id := NewHSMID()
	for name, tc := range map[string]struct{ a, b, want Member }{
		"joined":  {Member{ID: id, Joining: true}, Member{ID: id}, Member{ID: id}},
		"leaving": {Member{ID: id, Leaving: true}, Member{ID: id}, Member{ID: id, Leaving: true}},
		"removed": {Member{ID: id, Removed: true, Drained: true, RemovedAt: 7}, Member{ID: id, Leaving: true}, Member{ID: id, Removed: true, Drained: true, RemovedAt: 7}},
		"doubt":   {Member{ID: id, Doubt: 3}, Member{ID: id, Doubt: 5, Settled: 4, Keep: true}, Member{ID: id, Doubt: 5, Settled: 4, Keep: true}},
	} {
		if ab, ba := tc.a.With(tc.b), tc.b.With(tc.a); ab != tc.want || ba != tc.want {
			t.Errorf("%s: %+v and %+v, want %+v", name, ab, ba, tc.want)
		}
	}
}
