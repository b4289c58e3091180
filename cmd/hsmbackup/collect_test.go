package main

import (
	"runtime/debug"
	"testing"
)

// TestCollectRarely: a small heap grows to the floor, a large one by as much as it is.
func TestCollectRarely(t *testing.T) {
	for live, want := range map[uint64]int{0: 3200, 1 << 20: 3200, 2 << 20: 3200, 16 << 20: 400, 64 << 20: 100, 1 << 30: 100} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d bytes live: %d %%, want %d", live, got, want)
		}
	}
	old := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(old) })
	t.Setenv("GOGC", "75")
	collectRarely()
	if got := debug.SetGCPercent(100); got != 100 {
		t.Errorf("GOGC was overruled: %d %%", got)
	}
}
