package integration

import (
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/profile"
)

// eventually waits for what must come about; nothing is measured.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// invite makes a token as the admin.
func (c *testCluster) invite(t testing.TB, more ...string) string {
	t.Helper()
	return strings.TrimSpace(c.admin().ok(t, append([]string{"hsm", "invite"}, more...)...))
}

// join makes the folder of a new HSM, starts it, and waits until it counts.
func (c *testCluster) join(t testing.TB, token, name string, more ...string) (id string) {
	t.Helper()
	var joined struct{ ID string }
	dir := c.path(name)
	c.with("HSMBACKUP_JOIN_TOKEN="+token).json(t, &joined, append([]string{"hsm", "join", "--dir", dir}, more...)...)
	p := c.start(t, "hsm", "serve", dir)
	c.hsms = append(c.hsms, p)
	p.waitReady(t)
	c.waitState(t, joined.ID, "ACTIVE")
	return joined.ID
}

// stateOf is the state that cluster info shows of an HSM; "" if it shows none.
func (c *testCluster) stateOf(t testing.TB, id string) string {
	t.Helper()
	for _, h := range c.info(t).HSMs {
		if h.ID == id {
			return h.State
		}
	}
	return ""
}

func (c *testCluster) waitState(t testing.TB, id, state string) {
	t.Helper()
	eventually(t, id+" does not become "+state, func() bool { return c.stateOf(t, id) == state })
}

// TestAnHSMJoinsAcrossMachines: a cluster grows by an HSM with a folder elsewhere,
// which has every key; the token serves once.
func TestAnHSMJoinsAcrossMachines(t *testing.T) {
	t.Parallel()
	c := newCluster(t, newMachine(t), "east", 2)
	refs := []string{c.generate(t, "one"), c.generate(t, "two")}
	token := c.invite(t)
	id := c.join(t, token, "elsewhere", "--zone", "zone-9", "--name", "third")
	if c.root(t); len(c.info(t).HSMs) != 3 {
		t.Errorf("%+v", c.info(t))
	}
	var where struct{ Coverage, Missing []string }
	c.alice().json(t, &where, "key", "where", "key-reference="+refs[0])
	if len(where.Coverage) != 3 || len(where.Missing) != 0 || !strings.Contains(strings.Join(where.Coverage, " "), id) {
		t.Errorf("the first key is on %v, not on %v", where.Coverage, where.Missing)
	}
	c.addToProfile(t, id)
	for _, p := range c.hsms[:2] { // the new one serves alone
		p.kill()
	}
	if got := c.references(t); len(got) != 2 || !got[refs[1]] {
		t.Errorf("it shows %v", got)
	}
	c.startAll(t)
	c.wait(t)
}

// addToProfile adds a member to the profile, for clients that are to find it when
// the others are gone.
func (c *testCluster) addToProfile(t testing.TB, id string) {
	t.Helper()
	p, err := profile.Load(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range c.info(t).HSMs {
		if h.ID == id {
			p.HSMs = append(p.HSMs, profile.HSM{Address: h.Address})
		}
	}
	if err := p.Save(p.Path()); err != nil {
		t.Fatal(err)
	}
}

// TestTwentyEightHSMs: as many as CloudHSM has in a cluster, from a snapshot of a cluster of
// one, by a restore that is killed when it has filled some of them. Each has every key; a new
// key gets to all of them, and the death of some is not noticed.
func TestTwentyEightHSMs(t *testing.T) {
	createCluster(t, newMachine(t), "east", 28)
	b := newBackedUp(t, newMachine(t))
	kept := b.references(t)
	c := b.restoreTwentyEight(t)
	c.startAll(t)
	c.nobody().ok(t, "cluster", "wait", "--timeout", deadline.String()) // 756 handshakes, on a machine that may be small
	i := c.info(t)
	if len(i.HSMs) != 28 || !i.InSync || i.Keys != len(kept) || i.UnderReplicated != 0 {
		t.Errorf("%+v", i)
	}
	for _, h := range i.HSMs {
		if h.Root != b.root {
			t.Errorf("%s has root %s, the snapshot %s", h.ID, h.Root, b.root)
		}
	}
	if got := c.references(t); !maps.Equal(got, kept) {
		t.Errorf("it shows %v, want %v", got, kept)
	}
	c.generate(t, "everywhere")
	c.wait(t)
	for _, p := range c.hsms[:9] {
		p.kill()
	}
	ref := c.generate(t, "with nine HSMs down", "--min-copies", "19")
	if got := c.references(t); len(got) != len(kept)+2 || !got[ref] {
		t.Errorf("it shows %v", got)
	}
}

// restoreTwentyEight restores into 28 HSMs, killed when some have been filled and others have
// not; then the same command goes on with what had been loaded.
func (b backedUp) restoreTwentyEight(t *testing.T) *testCluster {
	t.Helper()
	restore := []string{"restore", "--from", b.store, "--identity", b.identity, "--name", "payments", "--region", "west", "--hsms", "28", "--dir", b.path("west"), "--json"}
	filled := func(folder string) int {
		stores, err := filepath.Glob(b.path(folder, "hsm-*", "store"))
		must(t, err)
		return len(stores)
	}
	for tries := 0; ; tries++ {
		if tries == 20 {
			t.Fatal("the restore was over before it could be killed, twenty times in a row")
		}
		p := b.start(t, restore...)
		for end := time.Now().Add(deadline); filled(".west.hsmbackup-new") < 3 && p.alive(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the restore fills no HSM")
			}
		}
		p.kill()
		if n := filled(".west.hsmbackup-new"); n >= 3 && n < 28 && filled("west") == 0 {
			t.Logf("killed with %d of 28 HSMs begun", n)
			break
		}
		b.removed(t, "west")
	}
	var r struct {
		Objects int
		Resumed int `json:"resumed_objects"`
		Root    string
	}
	b.json(t, &r, restore...)
	if r.Root != b.root || r.Resumed == 0 || filled("west") != 28 {
		t.Errorf("%+v, want root %s and objects that were there; %d HSMs", r, b.root, filled("west"))
	}
	b.leftNothing(t, "west")
	return &testCluster{machine: b.machine, dir: b.path("west")}
}

// TestTokensAreRefusedClearly: each with one line, the right exit code, and
// nothing half done.
func TestTokensAreRefusedClearly(t *testing.T) {
	t.Parallel()
	c := newCluster(t, newMachine(t), "east", 1, "--min-copies", "1")
	used := c.invite(t)
	c.join(t, used, "second")
	short := c.invite(t, "--expires", "8s") // long enough for a busy machine to hand it out
	made := time.Now()
	dir := c.path("new")
	refuse := func(exit int, code, token, text string) {
		t.Helper()
		line := c.with("HSMBACKUP_JOIN_TOKEN="+token).refused(t, exit, code, "hsm", "join", "--quiet", "--dir", dir)
		if !strings.Contains(line, text) || strings.Contains(line, token) && token != "" {
			t.Errorf("%q, want %q", line, text)
		}
		if left, _ := filepath.Glob(c.path(".new*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	refuse(4, "token_refused", used, "the token was used by hsm-")
	eventually(t, "the token does not expire", func() bool { return time.Since(made) > 10*time.Second })
	refuse(4, "token_refused", short, "the token expired at")
	refuse(2, "invalid", used[:len(used)-5], "damaged")
	refuse(2, "invalid", "garbage", "no join token")
	c.admin().refused(t, 2, "usage", "hsm", "invite", "--expires", "-1s")
	c.alice().refused(t, 4, "denied", "hsm", "invite")
	if info := c.info(t); len(info.HSMs) != 2 {
		t.Errorf("%+v", info)
	}
}

// TestRemoval: an HSM leaves with all it holds elsewhere, stops, and does not come
// back; rules refuse what would leave too few HSMs or lose keys; force does not;
// and a replacement takes the place of a dead one.
func TestRemoval(t *testing.T) {
	t.Parallel()
	c := newCluster(t, newMachine(t), "east", 3)
	refs := []string{c.generate(t, "one"), c.generate(t, "two")}
	third, thirdID := c.hsms[2], c.info(t).idOf("hsm-3")
	var removed struct {
		ID               string
		Removed, Drained bool
	}
	c.admin().json(t, &removed, "hsm", "remove", c.dir, "hsm-3")
	if removed.ID != thirdID || !removed.Removed || !removed.Drained {
		t.Errorf("%+v", removed)
	}
	select {
	case <-third.done:
	case <-time.After(deadline):
		t.Fatal("the removed HSM runs on")
	}
	if said := third.stderr.String(); !strings.Contains(said, "was removed from the cluster") || !strings.Contains(said, "hint: an admin makes a token with hsm invite") {
		t.Errorf("it does not say why it ends, and what next: %s", said)
	}
	c.refused(t, 4, "denied", "hsm", "serve", c.hsmDir(2))
	var all info
	c.nobody().json(t, &all, "cluster", "info", "--all")
	if len(c.info(t).HSMs) != 2 || len(all.HSMs) != 3 || all.HSMs[2].State != "REMOVED" {
		t.Errorf("%+v", all)
	}
	c.admin().refused(t, 1, "not_found", "hsm", "remove", c.dir, thirdID)
	c.admin().refused(t, 4, "removal", "hsm", "remove", c.dir, "hsm-2")
	c.alice().refused(t, 4, "denied removal", "hsm", "remove", c.dir, "hsm-2", "--force")

	c.hsms[1].kill() // for good
	if line := c.admin().refused(t, 4, "removal", "hsm", "remove", c.dir, "hsm-2"); !strings.Contains(line, "would be left") {
		t.Error(line)
	}
	token := c.invite(t, "--replace", "hsm-2")
	id := c.join(t, token, "replacement", "--name", "hsm-2")
	eventually(t, "the dead HSM is not removed", func() bool { return len(c.info(t).HSMs) == 2 })
	c.wait(t)
	if got := c.references(t); !got[refs[0]] || !got[refs[1]] {
		t.Errorf("keys after the replacement: %v", got)
	}
	c.generate(t, "three")
	c.hsms[len(c.hsms)-1].kill()
	c.admin().ok(t, "hsm", "remove", c.dir, id, "--force")
	c.admin().refused(t, 4, "denied", "hsm", "remove", c.dir, "hsm-1", "--force")
	c.admin().ok(t, "cluster", "settle", c.dir, "--drop")
}

func (i info) idOf(name string) string {
	for _, h := range i.HSMs {
		if h.Name == name {
			return h.ID
		}
	}
	return ""
}

// TestCredentials: an appliance's certificate is issued, serves, and is revoked.
func TestCredentials(t *testing.T) {
	t.Parallel()
	c := newCluster(t, newMachine(t), "east", 1, "--min-copies", "1")
	file := c.path("backup-2.pem")
	issue := []string{"credential", "issue", c.dir, "--kind", "appliance", "--name", "backup-2", "--days", "90", "--out", file}
	c.alice().refused(t, 4, "denied", issue...)
	c.admin().ok(t, issue...)
	c.admin().refused(t, 4, "exists", issue...)
	c.nobody().ok(t, "cluster", "info", "--credential", file)
	c.admin().ok(t, "credential", "revoke", c.dir, "--kind", "appliance", "--name", "backup-2")
	line := c.nobody().refused(t, 1, "unreachable", "cluster", "info", "--credential", file)
	if !strings.Contains(line, "does not accept this side's certificate") {
		t.Error(line)
	}
	c.admin().ok(t, append(issue, "--replace")...)
	c.nobody().ok(t, "cluster", "info", "--credential", file)
	c.refused(t, 4, "folder", "hsm", "renew", c.hsmDir(0))
	c.killAll()
	c.ok(t, "hsm", "renew", c.hsmDir(0))
	c.ok(t, append(issue, "--replace", "--dir", c.hsmDir(0))...)
	c.startAll(t)
	c.nobody().ok(t, "cluster", "info", "--credential", file)
	c.admin().refused(t, 2, "invalid", "credential", "revoke", c.dir, "--kind", "hsm", "--name", "hsm-1")
}
