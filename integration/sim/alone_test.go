package sim

import (
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"
)

// enoughMemory is where Go collects garbage after all while a seed runs. A seed makes some
// 300 MB of it, with two regions 1.5 GB, and 2.5 GB was the most of two hundred seeds.
const enoughMemory = 4 << 30

// alone makes Go run one goroutine at a time, and collect no garbage meanwhile, which would
// make goroutines wait for it, until the function that it returns is called.
func alone() (over func()) {
	procs := runtime.GOMAXPROCS(1)
	runtime.GC()
	percent, limit := debug.SetGCPercent(-1), debug.SetMemoryLimit(-1)
	debug.SetMemoryLimit(min(limit, enoughMemory))
	return func() {
		debug.SetMemoryLimit(limit)
		debug.SetGCPercent(percent)
		runtime.GOMAXPROCS(procs)
	}
}

// TestNothingTakesTheProcessor: built with the overlay, a goroutine runs for as long as it
// wants to, though another one waits. Without, Go lets the other one run after 10 ms.
func TestNothingTakesTheProcessor(t *testing.T) {
	if !*flagExact {
		t.Skip("only with -sim.exact")
	}
	defer alone()()
	var other atomic.Bool
	go other.Store(true)
	for began := time.Now(); time.Since(began) < 200*time.Millisecond; {
	}
	if other.Load() {
		t.Error("another goroutine took the processor: this was built without the overlay of make test")
	}
}
