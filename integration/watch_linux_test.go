package integration

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// wan is half of what a round trip takes between the regions.
const wan = 40 * time.Millisecond

// newRegions starts a cluster behind proxies and its clone. What comes from
// outside the first cluster takes a round trip of 80 ms.
func newRegions(t *testing.T) (east *proxied, west *testCluster) {
	t.Helper()
	m := newRaceMachine(t)
	identity, recipient := custodian(t, m, "custodian.txt")
	east = newProxied(t, m, 2, "--custodian", recipient, "--min-copies", "1")
	east.generate(t, "before")
	b := backedUp{east.testCluster, m.path("store"), identity, ""}
	east.nobody().ok(t, "snapshot", "--to", b.store)
	m.ok(t, b.restore(b.store, "west")...)
	west = &testCluster{machine: m, dir: m.path("west")}
	west.startAll(t)
	east.net.set(rule{delay: wan}, func(from, to int) bool { return from == caller || to == caller })
	return east, west
}

// TestSynckeyWatch: over a link of 80 ms that breaks, with HSMs of both sides and
// the watch itself killed and started again, every key arrives; then the roots
// are equal, and told to end it ends in order.
func TestSynckeyWatch(t *testing.T) {
	t.Parallel()
	east, west := newRegions(t)
	start := func() *process {
		return east.machine.start(t, "synckey", "--src", east.dir, "--dst", west.dir, "--watch", "--interval", "200ms", "--json", "--metrics", ":0", "--report", east.path("watch.json"))
	}
	arrives := func(ref string) {
		t.Helper()
		eventually(t, "key "+ref+" in the clone", func() bool { return west.references(t)[ref] })
	}
	p := start()
	p.says(t, `"event":"level"`, 1)
	arrives(east.generate(t, "one"))

	for i := range 3 { // the link breaks in the middle of whatever is under way
		ref := east.generate(t, fmt.Sprint("broken-", i))
		for range 5 {
			east.net.reset(func(link [2]int) bool { return link[0] == caller || link[1] == caller })
			time.Sleep(wan)
		}
		arrives(ref)
	}

	east.process(0).kill()
	west.hsms[0].kill()
	ref := east.generate(t, "while HSMs are down")
	p.says(t, `"event":"failed"`, 1)
	west.startAll(t)
	arrives(ref)
	east.restart(t, 0)

	p.kill()
	ref = east.generate(t, "while none watches")
	p = start()
	arrives(ref)
	url := metricsURL.FindString(p.stderr.String())
	shows(t, url, `hsmbackup_synckey_roots_equal 1`)
	shows(t, url, `hsmbackup_synckey_up 1`)
	shows(t, url, `hsmbackup_synckey_lag_seconds\{quantile="0.99"\} [0-9.e-]+`)
	shows(t, url, `hsmbackup_synckey_differences\{class="new"\} 0`)
	east.heal(t, west)

	must(t, p.cmd.Process.Signal(syscall.SIGTERM))
	<-p.done
	if code := p.cmd.ProcessState.ExitCode(); code != 0 || !strings.Contains(p.stderr.String(), `"event":"ended"`) {
		t.Errorf("told to end, it ended with %d: %s", code, p.stderr.String())
	}
	if report := read(t, east.path("watch.json")); !strings.Contains(report, `"roots_equal": true`) || !strings.Contains(report, `"lag_p99_seconds"`) {
		t.Errorf("report: %s", report)
	}
}

// heal makes the link quick and whole, and compares the clusters.
func (c *proxied) heal(t *testing.T, clone *testCluster) {
	t.Helper()
	c.net.heal()
	if x, y := c.root(t), clone.root(t); x != y {
		t.Errorf("the roots are %s and %s", x, y)
	}
}

// TestSynckeyWatchRefuses: a limit ends the watch with exit code 4, and nothing
// is applied.
func TestSynckeyWatchRefuses(t *testing.T) {
	t.Parallel()
	east, west := newRegions(t)
	east.net.heal()
	east.generate(t, "one")
	east.generate(t, "two")
	before := west.root(t)
	r := east.machine.run(t, "synckey", "--src", east.dir, "--dst", west.dir, "--watch", "--max-changes", "1")
	if r.code != 4 || !strings.Contains(r.stderr, "max-changes is 1; nothing was applied") {
		t.Errorf("beyond a limit: %v", r)
	}
	if got := west.root(t); got != before {
		t.Errorf("the root was %s and is %s", before, got)
	}
	p := east.machine.start(t, "synckey", "--src", east.dir, "--dst", west.dir, "--watch", "--max-changes", "1", "--keep-watching", "--json")
	p.says(t, `"event":"refused"`, 1)
	east.machine.ok(t, "synckey", "--src", east.dir, "--dst", west.dir)
	p.says(t, `"event":"level"`, 1)
	must(t, p.cmd.Process.Signal(syscall.SIGTERM))
	<-p.done
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("it ended with %d: %s", code, p.stderr.String())
	}
}
