package rpc

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestWorkers: everything is done, however much there is at once; few goroutines stay,
// and none after the end.
func TestWorkers(t *testing.T) {
	before := runtime.NumGoroutine()
	var w workers
	var done atomic.Int64
	for range 20 {
		var all sync.WaitGroup
		hold := make(chan struct{})
		for range 4 * idleWorkers {
			all.Add(1)
			w.do(func() {
				defer all.Done()
				<-hold
				done.Add(1)
			})
		}
		close(hold)
		all.Wait()
	}
	if n := done.Load(); n != 20*4*idleWorkers {
		t.Errorf("%d of %d functions ran", n, 20*4*idleWorkers)
	}
	down := func(to int) bool {
		for end := time.Now().Add(time.Minute); runtime.NumGoroutine() > to && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		return runtime.NumGoroutine() <= to
	}
	if !down(before + idleWorkers) {
		t.Errorf("%d goroutines stay, %d were there before", runtime.NumGoroutine(), before)
	}
	w.close()
	if !down(before) {
		t.Errorf("%d goroutines after the end, %d before", runtime.NumGoroutine(), before)
	}
	late := make(chan struct{})
	w.do(func() { close(late) })
	<-late
	if !down(before) {
		t.Error("a goroutine stays after the end")
	}
}
