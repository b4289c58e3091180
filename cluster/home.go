package cluster

// WithSessionKeysTogether makes all session keys on one HSM, the same for as long as
// it is in use and has room, so that one can wrap another or be derived with it.
// Otherwise they go where there is least to do. Session keys of before are lost with
// their HSM either way, and stay on one that is full; the next one chooses another.
func WithSessionKeysTogether() Option { return func(c *Cluster) { c.together = true } }

// pickHome is pickToWrite for session keys that stay together.
func (c *Cluster) pickHome(passed map[*remote]bool, where []covered) *remote {
	home := c.home.Load()
	if home != nil && home.current() != nil && !passed[home] {
		if holdsAll(home, where) {
			return home
		}
		return c.pickToWrite(passed, where) // the base key is elsewhere
	}
	r := c.pickToWrite(passed, where)
	if r == nil || c.home.CompareAndSwap(home, r) {
		return r
	}
	// Another call has chosen meanwhile.
	if now := c.home.Load(); now.current() != nil && !passed[now] && holdsAll(now, where) {
		return now
	}
	return r
}

// pickerFor chooses how to find an HSM to create on.
func (c *Cluster) pickerFor(token bool) picker {
	if c.together && !token {
		return c.pickHome
	}
	return c.pickToWrite
}
