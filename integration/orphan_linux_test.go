package integration

import "testing"

// TestHSMsEndWithWhoStartedThem: when cluster start is killed, none of its HSMs goes on
// with nobody to stop it, though each began anew once for its runtime's sake; and the
// cluster starts again.
func TestHSMsEndWithWhoStartedThem(t *testing.T) {
	t.Parallel()
	c := createCluster(t, newMachine(t), "east", 2)
	for range 2 {
		p := c.start(t, "cluster", "start", c.dir)
		p.waitReady(t)
		p.kill()
		eventually(t, "an HSM goes on after cluster start was killed", func() bool {
			return c.nobody().run(t, "cluster", "info", c.dir).code != 0
		})
	}
}
