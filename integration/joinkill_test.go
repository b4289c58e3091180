package integration

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// TestKillJoin kills an HSM's join at moments from its beginning to its end. The
// same command with the same token then goes on, whatever had been done; what comes
// of it is one member that has every key, and nothing else, neither a second member
// nor a folder, is left.
func TestKillJoin(t *testing.T) {
	t.Parallel()
	c := newCluster(t, newMachine(t), "east", 2)
	ref := c.generate(t, "before")
	join := func(token, dir string) (*machine, []string) {
		return c.with("HSMBACKUP_JOIN_TOKEN=" + token), []string{"hsm", "join", "--dir", c.path(dir)}
	}
	began := time.Now()
	m, args := join(c.invite(t), "undisturbed")
	m.ok(t, args...)
	usual := time.Since(began)
	c.serveJoined(t, "undisturbed")
	// Later where the join was killed, earlier where it was over: how long one takes
	// depends on what else the machine does.
	killed, joins, after := 0, 0, usual/2
	for i := 0; killed < 2 && i < 6; i++ {
		dir := fmt.Sprintf("killed-%d", i)
		m, args := join(c.invite(t), dir)
		if joins++; killAfter(t, m, after, args...) {
			after /= 3
		} else {
			killed++
			after = after * 5 / 3
		}
		if _, err := os.Stat(c.path(dir)); err != nil {
			m.ok(t, args...)
		}
		c.serveJoined(t, dir)
		c.leftNothing(t, dir)
		if n := len(c.info(t).HSMs); n != 4+i {
			t.Fatalf("%d HSMs after %d joins to 2: %+v", n, 2+i, c.info(t))
		}
	}
	if killed == 0 {
		t.Errorf("every join was over before it was killed, the last after %s", after)
	}
	c.root(t) // waits, and all are equal
	var where struct{ Coverage, Missing []string }
	c.alice().json(t, &where, "key", "where", "key-reference="+ref)
	if len(where.Coverage) != 3+joins || len(where.Missing) != 0 {
		t.Errorf("the key is on %v, not on %v", where.Coverage, where.Missing)
	}
}

// serveJoined starts an HSM that has joined, and waits until all members count.
func (c *testCluster) serveJoined(t *testing.T, dir string) {
	t.Helper()
	p := c.start(t, "hsm", "serve", c.path(dir))
	c.hsms = append(c.hsms, p)
	p.waitReady(t)
	eventually(t, dir+" does not join", func() bool {
		for _, h := range c.info(t).HSMs {
			if h.State != "ACTIVE" {
				return false
			}
		}
		return true
	})
}
