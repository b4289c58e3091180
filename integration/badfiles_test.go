package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"
)

// badFiles are ways in which a file is not what it should be. Each puts something
// at path, where nothing is; good is what should be there.
var badFiles = []struct {
	name string
	put  func(path, good string) error
}{
	{"missing", func(string, string) error { return nil }},
	{"empty", func(path, _ string) error { return os.WriteFile(path, nil, 0o600) }},
	{"a folder", func(path, _ string) error { return os.Mkdir(path, 0o700) }},
	{"a pipe", func(path, _ string) error { return syscall.Mkfifo(path, 0o600) }},
	{"unreadable", func(path, _ string) error {
		if os.Getuid() == 0 { // whom nothing is unreadable to
			return os.Symlink(path, path)
		}
		return os.WriteFile(path, nil, 0)
	}},
	{"huge", func(path, good string) error {
		if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
			return err
		}
		return os.Truncate(path, 1<<33) // sparse; reading all of it would be noticed
	}},
	{"binary", func(path, _ string) error {
		return os.WriteFile(path, []byte(strings.Repeat("\x00\xff\x1b[2J\x80", 1000)), 0o600)
	}},
	{"half", func(path, good string) error { return os.WriteFile(path, []byte(good[:len(good)/2]), 0o600) }},
}

// complains runs the program, and demands that it fails as it should: with an exit
// code of its own, one line, a hint line, nothing else, and no word about its own
// insides.
func (m *machine) complains(t *testing.T, what string, args ...string) {
	t.Helper()
	r := m.run(t, args...)
	lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
	switch {
	case r.code < 1 || r.code > 4 || r.stdout != "":
		t.Errorf("%s: exit code %d: %v", what, r.code, r)
	case len(lines) != 2 || !strings.HasPrefix(lines[0], "hsmbackup: ") || !strings.HasPrefix(lines[1], "hint: "):
		t.Errorf("%s: want one line and a hint line: %v", what, r)
	case !utf8.ValidString(r.stderr) || strings.ContainsAny(r.stderr, "\x00\x1b") || strings.Contains(r.stderr, "goroutine ") || len(lines[0]) > 700:
		t.Errorf("%s: %q", what, r.stderr)
	case strings.Contains(lines[1], "with the HSMs' logs at hand"):
		t.Errorf("%s: nobody thought of this: %v", what, r)
	}
}

// TestBadFiles gives every verb of clusters, HSMs, users and keys that reads a
// file everything but that file. Each says so, changes nothing, and works when the
// file is back.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	c := newCluster(t, m, "east", 1)
	ref := c.generate(t, "stays", "--attribute", "wrap=true", "unwrap=true")
	write(t, m.path("key.bin"), strings.Repeat("k", 34))
	write(t, m.path("config.yaml"), "clusters:\n  payments: "+c.dir+"\n")
	alice, admin, nobody := c.alice(), c.admin(), c.nobody()
	for _, tt := range []struct {
		name, file string
		m          *machine
		args       []string
	}{
		{"profile: cluster info", filepath.Join(c.dir, "cluster.yaml"), nobody, []string{"cluster", "info"}},
		{"profile: key list", filepath.Join(c.dir, "cluster.yaml"), alice, []string{"key", "list"}},
		{"profile: user list", filepath.Join(c.dir, "cluster.yaml"), admin, []string{"user", "list"}},
		{"client identity: key list", filepath.Join(c.dir, "client.pem"), alice, []string{"key", "list"}},
		{"client identity: user create", filepath.Join(c.dir, "client.pem"), admin.with("HSMBACKUP_NEW_PASSWORD=eve-is-here-11"), []string{"user", "create", "eve"}},
		{"appliance: cluster info", filepath.Join(c.dir, "appliance.pem"), nobody, []string{"cluster", "info", "--credential", filepath.Join(c.dir, "appliance.pem")}},
		{"configuration: key list", m.path("config.yaml"), alice.with("HSMBACKUP_CLUSTER=payments", "HSMBACKUP_CONFIG="+m.path("config.yaml")), []string{"key", "list"}},
		{"key import", m.path("key.bin"), alice, []string{"key", "import", "aes", "--label", "never", "--in", m.path("key.bin")}},
		{"key unwrap", m.path("key.bin"), alice, []string{"key", "unwrap", "aes", "--label", "never", "--unwrapping-key", "key-reference=" + ref, "--in", m.path("key.bin")}},
		{"sdk config", m.path("config.yaml"), alice, []string{"key", "list", "--sdk-config", m.path("config.yaml")}},
	} {
		c.badFile(t, tt.m, tt.name, tt.file, tt.args)
	}
	var list struct{ Total int }
	c.alice().json(t, &list, "key", "list")
	if list.Total != 1 {
		t.Errorf("%d keys after everything was refused, want 1", list.Total)
	}
	if users := c.admin().ok(t, "user", "list"); strings.Contains(users, "eve") {
		t.Errorf("a user was made by a command that failed: %s", users)
	}
	c.badFolders(t)
}

// badFile runs a command with every bad file in the place of a good one.
func (c *testCluster) badFile(t *testing.T, m *machine, name, file string, args []string) {
	t.Helper()
	good := read(t, file)
	for _, bad := range badFiles {
		if bad.name == "a pipe" && slices.Contains(args, "--in") {
			continue // a shell's <(…) is one
		}
		must(t, os.Remove(file))
		must(t, bad.put(file, good))
		m.complains(t, name+" with the file "+bad.name, args...)
		must(t, os.RemoveAll(file))
		write(t, file, good)
	}
}

// badFolders starts the HSM with a bad file in the place of each of its own, and
// then as it was.
func (c *testCluster) badFolders(t *testing.T) {
	t.Helper()
	c.killAll()
	for _, file := range []string{"hsm.yaml", "hsm.crt", "ca.crt", "sealed.age", "seal.key"} {
		c.badFile(t, c.nobody(), "hsm serve, "+file, filepath.Join(c.hsmDir(0), file), []string{"hsm", "serve", c.hsmDir(0)})
	}
	for _, dir := range []string{c.path("nowhere"), filepath.Join(c.dir, "cluster.yaml"), c.dir, "/dev/null"} {
		c.nobody().complains(t, "hsm serve "+dir, "hsm", "serve", dir)
		c.as("admin", rootPIN).complains(t, "cluster create in "+dir, "cluster", "create", "x", "--region", "r", "--dir", filepath.Join(c.dir, "cluster.yaml"))
	}
	c.startAll(t)
	var list struct{ Total int }
	c.alice().json(t, &list, "key", "list")
	if list.Total != 1 {
		t.Errorf("%d keys after all those starts, want 1", list.Total)
	}
}
