package integration

import (
	"testing"
)

// TestSynckeyFollowsARotation of the masking key in one clone with the consent of
// custodians, and says so when it cannot: nothing is brought over then.
func TestSynckeyFollowsARotation(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newMachine(t))
	b.ok(t, b.restore(b.store, "west")...)
	west := &testCluster{machine: b.machine, dir: b.path("west")}
	west.startAll(t)
	synckey := func(src, dst *testCluster, more ...string) []string {
		return append([]string{"synckey", "--src", src.dir, "--dst", dst.dir}, more...)
	}
	stranger, _ := custodian(t, b.machine, "stranger.txt")

	rotate(t, b.testCluster)
	b.generate(t, "after the rotation")
	before := west.root(t)
	var s synced
	dry := b.admin().run(t, synckey(b.testCluster, west, "--dry-run", "--json")...)
	if decode(t, dry.stdout, &s); dry.code != 3 || s.Missing != 1 {
		t.Errorf("a dry run: %v", dry)
	}
	b.admin().refused(t, 4, "masking_key", synckey(b.testCluster, west)...)
	b.admin().refused(t, 4, "masking_key", synckey(west, b.testCluster, "--both")...)
	b.admin().refused(t, 1, "backup", synckey(b.testCluster, west, "--identity", stranger)...)
	b.refused(t, 4, "denied", synckey(b.testCluster, west, "--identity", b.identity)...) // an appliance adopts nothing
	if west.root(t) != before || len(west.references(t)) != 2 {
		t.Fatal("something was brought over without consent")
	}

	s = synced{}
	b.admin().with("HSMBACKUP_USE_PIN="+alicePIN).json(t, &s, synckey(b.testCluster, west, "--identity", b.identity, "--use-check", "all")...)
	if s.Applied != 1 || s.Remaining != 0 || !s.RootsEqual || west.root(t) != b.testCluster.root(t) {
		t.Errorf("with consent: %+v", s)
	}
	b.json(t, &s, synckey(b.testCluster, west)...) // consent is given once, not at every run

	rotate(t, west) // and back, by hand
	west.generate(t, "after the second rotation")
	b.admin().refused(t, 4, "masking_key", synckey(west, b.testCluster)...)
	b.admin().refused(t, 2, "usage", "cluster", "adopt-masking-keys", b.dir, "--source", west.dir)
	b.admin().ok(t, "cluster", "adopt-masking-keys", b.dir, "--source", west.dir, "--identity", b.identity)
	if b.json(t, &s, synckey(west, b.testCluster)...); !s.RootsEqual || s.Applied != 1 {
		t.Errorf("after the second rotation: %+v", s)
	}
}

// rotate makes a new masking key and checks that every HSM seals with it.
func rotate(t *testing.T, c *testCluster) {
	t.Helper()
	var m struct {
		Sealing, Newest uint64
		Epochs          []uint64
		Done            bool
	}
	if c.admin().json(t, &m, "cluster", "rotate-masking-key", c.dir); m.Sealing != m.Newest || len(m.Epochs) < 2 || !m.Done {
		t.Fatalf("after the rotation: %+v", m)
	}
}
