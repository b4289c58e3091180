package cluster

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// An HSM whose clock is minutes ahead makes objects that its peers refuse
// (hsm.ErrFuture). It must not break the writes of the whole cluster: such an HSM
// is noted, and for a while others are chosen to create and change keys on. It
// still takes copies of what they make.
//
// Which of two clocks is wrong is not decided. If the refusing HSM is the one
// that is behind, avoiding its peers leads to that HSM, whose objects all accept.

// avoid notes that the objects made on the HSM are refused by its peers.
func (r *remote) avoid() { r.avoided.Store(time.Now().Add(r.c.timing.clock).UnixNano()) }

// ahead tells whether that was noted a short while ago.
func (r *remote) ahead() bool { return time.Now().UnixNano() < r.avoided.Load() }

// pickToWrite is pick for an HSM to make objects on: preferably none whose
// objects its peers refuse.
func (c *Cluster) pickToWrite(passed map[*remote]bool, where []covered) *remote {
	shunned := map[*remote]bool{}
	maps.Copy(shunned, passed)
	for _, r := range c.all() {
		if r.ahead() {
			shunned[r] = true
		}
	}
	if r := c.pick(shunned, where); r != nil || len(shunned) == len(passed) {
		return r
	}
	return c.pick(passed, where)
}

// mostRefuse tells whether more HSMs refuse objects for their time than accept
// them.
func mostRefuse(refused, accepted int) bool { return refused > accepted }

// refusedForTime lists the HSMs that refused an object as from the future.
func refusedForTime(results []Result) []hsm.HSMID {
	var ids []hsm.HSMID
	for _, r := range results {
		if errors.Is(r.Err, hsm.ErrFuture) {
			ids = append(ids, r.HSM)
		}
	}
	slices.Sort(ids)
	return ids
}

// clockText says whose clocks differ, and what to do.
func clockText(ahead hsm.HSMID, refused []hsm.HSMID) string {
	names := make([]string, len(refused))
	for i, id := range refused {
		names[i] = id.String()
	}
	return fmt.Sprintf("the clock of %s is minutes ahead of that of %s; set the clocks right", ahead, strings.Join(names, ", "))
}
