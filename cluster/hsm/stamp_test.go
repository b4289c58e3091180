package hsm

import (
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestClockGrowsWhateverTheWallDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		wall := &fakeWall{noon}
		c, last := NewClock(1, wall.now), Stamp{}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			wall.Time = wall.Add(time.Duration(rapid.Int64Range(-int64(time.Hour), int64(time.Hour)).Draw(t, "step")))
			if rapid.Bool().Draw(t, "observe") {
				foreign := Stamp{Time: uint64(wall.Add(time.Duration(rapid.Int64Range(-int64(time.Hour), int64(MaxAhead)).Draw(t, "ahead"))).UnixMilli()) << 16, HSM: 2}
				if err := c.Observe(foreign); err != nil {
					t.Fatal(err)
				}
				last.Time = max(last.Time, foreign.Time)
			}
			next := c.Next()
			if next.Time <= last.Time || next.HSM != 1 || next.Wall().Before(wall.Truncate(time.Millisecond)) {
				t.Fatalf("%v after %v at %v", next, last, wall)
			}
			last = next
		}
	})
}

func TestClockRefusesTheFuture(t *testing.T) {
	wall := &fakeWall{noon}
	c := NewClock(1, wall.now)
	ahead := func(d time.Duration) Stamp { return Stamp{Time: uint64(noon.Add(d).UnixMilli()) << 16, HSM: 2} }
	before := c.Next()
	for _, s := range []Stamp{ahead(MaxAhead + time.Millisecond), ahead(1000 * time.Hour), {Time: 1<<64 - 1, HSM: 2}} {
		wantErr(t, s.Wall().String(), c.Observe(s), ErrFuture)
	}
	if next := c.Next(); next.Time != before.Time+1 {
		t.Error("a refused stamp moved the clock")
	}
	if err := c.Observe(ahead(MaxAhead)); err != nil {
		t.Error(err)
	}
	if err := c.Observe(Stamp{}); err != nil {
		t.Error(err)
	}
	if next := c.Next(); next.Compare(ahead(MaxAhead)) <= 0 {
		t.Error("the clock does not pass what it observed")
	}
}

func TestClockConcurrently(t *testing.T) {
	c, seen, mu := NewClock(1, time.Now), map[uint64]bool{}, sync.Mutex{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				s := c.Next()
				if err := c.Observe(Stamp{Time: s.Time + 3, HSM: 2}); err != nil {
					t.Error(err)
				}
				mu.Lock()
				if seen[s.Time] {
					t.Error("one stamp twice")
				}
				seen[s.Time] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func TestClockNeverSet(t *testing.T) {
	wall := &fakeWall{time.Unix(-100, 0)}
	c := NewClock(1, wall.now)
	if a, b := c.Next(), c.Next(); a.Time == 0 || b.Time != a.Time+1 || a.Wall().Year() != 1970 {
		t.Error("before 1970:", a, b)
	}
}

func TestStampOrder(t *testing.T) {
	sorted := []Stamp{{}, {Time: 0, HSM: 9}, {Time: 1, HSM: 1}, {Time: 1, HSM: 1 << 63}, {Time: 1 << 63, HSM: 0}}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := a.Compare(b); (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("%v against %v: %d", a, b, got)
			}
		}
	}
}
