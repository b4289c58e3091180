package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// heapFloor is what a process that serves may let its heap grow to before it is
// collected. What it keeps is a few megabytes, so that Go's own rule, twice what is
// kept, would collect it many times a second under load.
const heapFloor = 64 << 20

// collectRarely has the heap collected when it has doubled, but not below the floor.
// GOGC, where it is set, stays what the operator wants.
func collectRarely() {
	if os.Getenv("GOGC") != "" {
		return
	}
	debug.SetGCPercent(gcPercent(0))
	watchCollections()
}

// watchCollections adjusts the rule after every collection, which ends what nobody
// refers to.
func watchCollections() {
	runtime.AddCleanup(new([16]byte), func(int) {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		if live[0].Value.Kind() == metrics.KindUint64 {
			debug.SetGCPercent(gcPercent(live[0].Value.Uint64()))
		}
		watchCollections()
	}, 0)
}

// gcPercent is by how much the heap may grow over what was live.
func gcPercent(live uint64) int {
	return int(max(100, heapFloor*100/max(live, heapFloor/32)))
}
