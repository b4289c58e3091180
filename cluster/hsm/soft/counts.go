package soft

// Counts are numbers that whoever watches an HSM wants to see. They reveal
// nothing about whose keys they are.
type Counts struct {
	Sessions    int
	SessionKeys int
	Users       int
	Provisional int // operations prepared and not settled, in doubt or not
}

// Counts counts. It may be called at any time, also after Close.
func (h *HSM) Counts() Counts {
	c := Counts{Provisional: h.ops.count()}
	c.Sessions, c.SessionKeys = h.sessions.counts()
	h.users.mu.RLock()
	defer h.users.mu.RUnlock()
	c.Users = len(h.users.byName)
	return c
}

func (t *sessionTable) counts() (sessions, keys int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s := range t.open {
		s.mu.Lock()
		keys += len(s.keys)
		s.mu.Unlock()
	}
	return len(t.open), keys
}
