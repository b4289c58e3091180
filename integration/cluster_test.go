package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The logins of every cluster here.
const (
	rootPIN  = "root:correct-horse-9"
	alicePIN = "alice:alice-is-here-1"
	bobPIN   = "bob:bob-is-here-too-1"
)

// testCluster is a cluster whose HSMs run as processes of their own.
type testCluster struct {
	*machine
	dir  string // of the cluster; also what names it on the command line
	hsms []*process
}

// createCluster lays a cluster out without starting it. custodian is the file of
// an identity made for it.
func createCluster(t testing.TB, m *machine, name string, hsms int, more ...string) *testCluster {
	t.Helper()
	c := &testCluster{machine: m, dir: m.path(name)}
	args := []string{"cluster", "create", "payments", "--region", name, "--hsms", fmt.Sprint(hsms), "--dir", c.dir}
	m.as("admin", rootPIN).ok(t, append(args, more...)...)
	return c
}

// newCluster lays a cluster out, starts it, and makes the crypto users.
func newCluster(t testing.TB, m *machine, name string, hsms int, more ...string) *testCluster {
	t.Helper()
	c := createCluster(t, m, name, hsms, more...)
	c.startAll(t)
	c.createUser(t, alicePIN)
	c.createUser(t, bobPIN)
	return c
}

// custodian makes an identity and returns its file and recipient.
func custodian(t testing.TB, m *machine, name string) (file, recipient string) {
	t.Helper()
	file = m.path(name)
	return file, strings.TrimSpace(m.ok(t, "identity", "generate", file))
}

func (c *testCluster) hsmDir(i int) string { return filepath.Join(c.dir, fmt.Sprintf("hsm-%d", i+1)) }

// startAll starts the HSMs that do not run and waits until all are ready.
func (c *testCluster) startAll(t testing.TB) {
	t.Helper()
	for i := 0; ; i++ {
		if _, err := os.Stat(c.hsmDir(i)); err != nil {
			break
		}
		if i == len(c.hsms) {
			c.hsms = append(c.hsms, nil)
		}
		if p := c.hsms[i]; p == nil || !p.alive() {
			c.hsms[i] = c.start(t, "hsm", "serve", c.hsmDir(i))
			defer c.hsms[i].waitReady(t)
		}
	}
}

// killAll kills every HSM at once, as a loss of power does.
func (c *testCluster) killAll() {
	for _, p := range c.hsms {
		p.kill()
	}
}

func (c *testCluster) createUser(t testing.TB, pin string) {
	t.Helper()
	name, password, _ := strings.Cut(pin, ":")
	c.admin().with("HSMBACKUP_NEW_PASSWORD="+password).ok(t, "user", "create", name, "--cluster", c.dir)
}

// admin, alice, bob and nobody are the machine with a login, or without.
func (c *testCluster) admin() *machine {
	return c.as("admin", rootPIN).with("HSMBACKUP_CLUSTER=" + c.dir)
}
func (c *testCluster) alice() *machine {
	return c.as("crypto-user", alicePIN).with("HSMBACKUP_CLUSTER=" + c.dir)
}
func (c *testCluster) bob() *machine {
	return c.as("crypto-user", bobPIN).with("HSMBACKUP_CLUSTER=" + c.dir)
}
func (c *testCluster) nobody() *machine { return c.with("HSMBACKUP_CLUSTER=" + c.dir) }

// generate makes an AES key as alice and returns its reference.
func (c *testCluster) generate(t testing.TB, label string, more ...string) string {
	t.Helper()
	var k struct {
		Ref string `json:"key_reference"`
	}
	c.alice().json(t, &k, append([]string{"key", "generate", "aes", "--label", label, "--attribute", "encrypt=true", "decrypt=true"}, more...)...)
	return k.Ref
}

// info is cluster info as CLI.md describes it.
type info struct {
	Name, ID, Lineage, Region string
	HSMs                      []struct {
		ID, Name, Address, Zone, State string
		Keys                           int
		Root                           string
		Lag                            float64 `json:"lag_seconds"`
	}
	Keys            int
	InSync          bool `json:"in_sync"`
	InDoubt         int  `json:"in_doubt"`
	UnderReplicated int  `json:"under_replicated"`
	MinCopies       int  `json:"min_copies"`
	CheckOnUse      bool `json:"check_on_use"`
}

func (c *testCluster) info(t testing.TB) info {
	t.Helper()
	var i info
	c.nobody().json(t, &i, "cluster", "info")
	return i
}

// wait waits until every key is on every HSM.
func (c *testCluster) wait(t testing.TB) {
	t.Helper()
	c.nobody().ok(t, "cluster", "wait", "--timeout", deadline.String())
}

// root waits and returns the root that all HSMs share.
func (c *testCluster) root(t testing.TB) string {
	t.Helper()
	c.wait(t)
	i := c.info(t)
	for _, h := range i.HSMs {
		if h.Root != i.HSMs[0].Root {
			t.Fatalf("HSMs with different roots: %+v", i)
		}
	}
	return i.HSMs[0].Root
}

// references lists the keys alice sees.
func (c *testCluster) references(t testing.TB) map[string]bool {
	t.Helper()
	var list struct {
		Keys []struct {
			Ref string `json:"key_reference"`
		}
		Total int
	}
	c.alice().json(t, &list, "key", "list")
	out := map[string]bool{}
	for _, k := range list.Keys {
		out[k.Ref] = true
	}
	if len(out) != list.Total {
		t.Fatalf("key list says %d and shows %d", list.Total, len(out))
	}
	return out
}
