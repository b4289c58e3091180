package rpc

import "sync"

// idleWorkers is how many goroutines stay to answer requests.
const idleWorkers = 64

// workers run functions on goroutines that stay: their stacks have grown, which takes a
// new one a good part of the time that an answer does. The last to have become idle is
// the next to work: what it needs is still in the processor's cache. The zero value is
// ready.
type workers struct {
	mu     sync.Mutex
	idle   []chan func()
	closed bool
}

// do runs f, on a goroutine of its own if none is idle.
func (w *workers) do(f func()) {
	w.mu.Lock()
	n := len(w.idle)
	if n == 0 {
		w.mu.Unlock()
		go w.run(f)
		return
	}
	next := w.idle[n-1]
	w.idle = w.idle[:n-1]
	w.mu.Unlock()
	next <- f
}

func (w *workers) run(f func()) {
	mine := make(chan func(), 1)
	for f != nil {
		f()
		f = nil // and what it holds
		if w.wait(mine) {
			f = <-mine
		}
	}
}

// wait makes a worker an idle one, unless there are enough.
func (w *workers) wait(mine chan func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || len(w.idle) == idleWorkers {
		return false
	}
	w.idle = append(w.idle, mine)
	return true
}

// close ends the idle ones, and those that work when they have done so.
func (w *workers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.idle {
		close(c)
	}
	w.idle, w.closed = nil, true
}
