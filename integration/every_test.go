package integration

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// says waits until a process has said something so many times.
func (p *process) says(t *testing.T, what string, times int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d times %s in what %v says", times, what, p.cmd.Args), func() bool {
		return strings.Count(p.stderr.String(), what) >= times
	})
}

// TestSnapshotEvery: the daemon is killed and started again, an HSM and then the
// store go away and come back, a second daemon runs beside it, and every key ends
// up in the store; told to end, it ends in order.
func TestSnapshotEvery(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	identity, recipient := custodian(t, m, "custodian.txt")
	c := newCluster(t, m, "east", 3, "--custodian", recipient)
	store := m.path("store")
	daemon := func() *process {
		return c.nobody().start(t, "snapshot", "--to", store, "--every", "200ms", "--json", "--metrics", ":0")
	}
	stored := func(keys int) {
		t.Helper()
		eventually(t, fmt.Sprintf("a snapshot of %d keys", keys), func() bool {
			var list struct{ Snapshots []struct{ Keys int } }
			m.json(t, &list, "snapshots", store)
			return len(list.Snapshots) > 0 && list.Snapshots[len(list.Snapshots)-1].Keys == keys
		})
	}
	p := daemon()
	c.generate(t, "one")
	stored(1)
	url := metricsURL.FindString(p.stderr.String())
	shows(t, url, `hsmbackup_snapshot_rpo_seconds [0-9.e-]+`)
	shows(t, url, `hsmbackup_snapshot_failing 0`)
	p.kill()
	c.generate(t, "while none runs")
	p, second := daemon(), daemon()
	stored(2)
	c.hsms[2].kill()
	p.says(t, `"event":"missing"`, 1)
	c.generate(t, "on two HSMs")
	stored(3)
	c.startAll(t)
	p.says(t, `"event":"missing"`, 2)
	second.kill()
	c.generate(t, "after all that")
	stored(4)
	c.wait(t)

	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-p.done
	if code := p.cmd.ProcessState.ExitCode(); code != 0 || !strings.Contains(p.stderr.String(), `"event":"ended"`) {
		t.Errorf("told to end, it ended with %d: %s", code, p.stderr.String())
	}
	if said := strings.Count(p.stderr.String(), "\n"); said > 40 {
		t.Errorf("it said %d lines:\n%s", said, p.stderr.String())
	}
	checkSnapshots(t, m, store, identity)
	var last struct{ Root string }
	m.json(t, &last, "snapshots", store, "show")
	if want := c.root(t); last.Root != want {
		t.Errorf("the newest snapshot has root %s, the cluster %s", last.Root, want)
	}
}

// TestSnapshotEveryWaits: it may be started before the cluster, and refuses what
// waiting does not mend.
func TestSnapshotEveryWaits(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	_, recipient := custodian(t, m, "custodian.txt")
	c := createCluster(t, m, "east", 1, "--custodian", recipient)
	p := c.nobody().start(t, "snapshot", "--to", m.path("store"), "--every", "200ms", "--json")
	p.says(t, `"event":"waiting"`, 1)
	c.startAll(t)
	p.says(t, `"event":"taken"`, 1)
	c.nobody().refused(t, 2, "usage", "snapshot", "--to", m.path("store"), "--every", "0s")
	c.nobody().refused(t, 2, "usage", "snapshot", "--to", m.path("store"), "--metrics", ":0")
	c.nobody().refused(t, 2, "usage", "snapshot", "--to", m.path("store"), "--every", "5s", "--full")
	vain := c.nobody().run(t, "snapshot", "--to", m.path("store"), "--every", "1s", "--recipient", "nobody")
	if vain.code != 1 || !strings.Contains(vain.stderr, "hint: recipients are") {
		t.Errorf("in vain: %v", vain)
	}
}

// TestRequireAll: with an HSM away, a snapshot says which, and --require-all
// refuses.
func TestRequireAll(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	_, recipient := custodian(t, m, "custodian.txt")
	c := newCluster(t, m, "east", 3, "--custodian", recipient)
	c.generate(t, "one")
	c.wait(t)
	c.hsms[1].kill()
	var s struct {
		Coverage struct{ Answered, Missing []string }
	}
	eventually(t, "an HSM that does not answer", func() bool {
		m := c.nobody()
		m.json(t, &s, "snapshot", "--to", m.path("store"))
		return len(s.Coverage.Missing) == 1 && len(s.Coverage.Answered) == 2
	})
	for _, h := range c.info(t).HSMs {
		if missing := h.ID == s.Coverage.Missing[0]; missing != (h.State != "ACTIVE") {
			t.Errorf("HSM %s is %s, and the snapshot says that %s is missing", h.ID, h.State, s.Coverage.Missing[0])
		}
	}
	c.nobody().refused(t, 4, "coverage", "snapshot", "--to", m.path("store"), "--require-all")
}
