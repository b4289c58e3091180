package server

import "sync"

// underWay counts what has begun and not ended. Unlike a lock it is waited for on a
// channel, so that in a simulation time goes on meanwhile: what is waited for may itself
// wait for an answer over the network.
type underWay struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // closed when n is 0 again; nil: nobody waits
}

func (u *underWay) begin() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.n++
}

func (u *underWay) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.n--; u.n == 0 && u.none != nil {
		close(u.none)
		u.none = nil
	}
}

// wait returns when nothing is under way. What begins meanwhile is waited for too.
func (u *underWay) wait() {
	u.mu.Lock()
	if u.n == 0 {
		u.mu.Unlock()
		return
	}
	if u.none == nil {
		u.none = make(chan struct{})
	}
	none := u.none
	u.mu.Unlock()
	<-none
}
