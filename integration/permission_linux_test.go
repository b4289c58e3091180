package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const nobody = 65534

// ordinary is the cluster's machine for a user whom permissions stop, who has a folder
// of their own there with the cluster's profile and a copy of the store. If the tests are
// run by root, the program is run by somebody else.
func ordinary(t *testing.T, b backedUp) (m *machine, store string) {
	t.Helper()
	home := b.path("nobody")
	must(t, os.Mkdir(home, 0o755))
	for _, name := range []string{"cluster.yaml", "appliance.pem"} {
		write(t, filepath.Join(home, name), read(t, filepath.Join(b.dir, name)))
	}
	write(t, filepath.Join(home, "custodian.txt"), read(t, b.identity))
	m = b.nobody().with("HOME="+home, "XDG_CONFIG_HOME="+home, "XDG_CACHE_HOME="+home, "TMPDIR="+home, "HSMBACKUP_CLUSTER="+home)
	program := filepath.Join(home, "hsmbackup")
	must(t, os.Link(hsmbackup(t, m.race), program))
	store = filepath.Join(home, "store")
	must(t, os.CopyFS(store, os.DirFS(b.store)))
	m.dir = home
	m.wrap = func(cmd *exec.Cmd) { cmd.Path = program }
	if os.Geteuid() != 0 {
		return m, store
	}
	must(t, filepath.WalkDir(home, func(path string, _ fs.DirEntry, err error) error {
		if path == program { // which other machines run, too
			return err
		}
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	}))
	for path := b.machine.dir; path != filepath.Dir(os.TempDir()) && path != os.TempDir(); path = filepath.Dir(path) {
		must(t, os.Chmod(path, 0o711)) // so that the way there is open
	}
	m.wrap = func(cmd *exec.Cmd) {
		cmd.Path = program
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return m, store
}

// closed runs f while a file or folder has other permissions.
func closed(t *testing.T, path string, mode fs.FileMode, f func()) {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	must(t, os.Chmod(path, mode))
	defer func() { must(t, os.Chmod(path, info.Mode().Perm())) }()
	f()
}

// TestFolderWithoutPermission: a store in a folder of which a part may not be read or
// written. What does not need that part goes on; everything else fails in one line that
// names it, and leaves nothing.
func TestFolderWithoutPermission(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newMachine(t))
	m, store := ordinary(t, b)
	p := permissions{m, store, 0}
	verifyAll := []string{"snapshots", "verify", store, "--all", "--level", "root", "--identity", "custodian.txt"}
	first, second := filepath.Join(store, "manifests", "0000000001"), filepath.Join(store, "manifests", "0000000002")
	pack, index, envelope := filepath.Join(store, newestFile(t, b.store, "packs")), filepath.Join(store, newestFile(t, b.store, "index")), filepath.Join(store, newestFile(t, b.store, "envelopes"))

	for name, path := range map[string]string{"the store": store, "the manifests": filepath.Dir(first)} {
		t.Run(name, func(t *testing.T) {
			closed(t, path, 0, func() {
				for _, args := range [][]string{
					{"snapshots", store}, {"snapshots", "verify", store}, {"snapshots", "verify", store, "1"}, {"snapshots", "delete", store, "1"}, {"snapshots", "prune", store, "--keep-last", "1"},
					{"snapshots", "forecast", store}, {"snapshot", "--to", store}, {"snapshots", "copy", "--from", store, "--to", "copy"}, p.restore("west"),
				} {
					wantLine(t, m.refused(t, 1, "permission", args...), "access denied: permission denied")
				}
			})
		})
	}
	t.Run("nothing may be written", func(t *testing.T) { p.readOnly(t) })
	t.Run("the folder of temporary files", func(t *testing.T) {
		closed(t, filepath.Join(store, "+tmp"), 0o500, func() {
			wantLine(t, m.refused(t, 1, "permission", "snapshot", "--to", store, "--full"), "access denied: +tmp: permission denied")
		})
	})
	t.Run("an old manifest", func(t *testing.T) {
		closed(t, first, 0, func() {
			r := m.run(t, "snapshots", store)
			if r.code != 3 || !strings.Contains(r.stdout, "NOT READ: get manifests/0000000001") || !strings.Contains(r.stdout, "0000000002  2") {
				t.Errorf("listed: %v", r)
			}
			p.restores(t)
			wantLine(t, m.refused(t, 1, "permission", p.restore("none", "--snapshot", "1")...), "manifests/0000000001")
			wantLine(t, m.refused(t, 1, "permission", "snapshots", "delete", store, "1"), "manifests/0000000001")
			p.copies(t, "manifests/0000000001")
			if r := m.run(t, verifyAll...); r.code != 3 || !strings.Contains(r.stdout, "manifests/0000000001") || !strings.Contains(r.stdout, "snapshot 0000000002, level root: good") {
				t.Errorf("verify --all: %v", r)
			}
			m.ok(t, "snapshots", "prune", store, "--keep-last", "1", "--now", "--grace", "0s")
		})
	})
	t.Run("the newest manifest", func(t *testing.T) {
		closed(t, second, 0, func() {
			wantLine(t, m.refused(t, 1, "permission", p.restore("none")...), "manifests/0000000002")
			wantLine(t, m.refused(t, 1, "permission", "snapshot", "--to", store), "manifests/0000000002")
			p.restores(t, "--snapshot", "1")
		})
	})
	t.Run("a pack", func(t *testing.T) {
		closed(t, pack, 0, func() {
			wantLine(t, m.refused(t, 1, "permission", p.restore("none")...), filepath.Base(pack))
			p.restores(t, "--snapshot", "1")
			p.copies(t, filepath.Base(pack))
			if r := m.run(t, verifyAll...); r.code != 3 || !strings.Contains(r.stdout, filepath.Base(pack)) || !strings.Contains(r.stdout, "snapshot 0000000001, level root: good") {
				t.Errorf("verify --all: %v", r)
			}
		})
	})
	t.Run("an index", func(t *testing.T) { closed(t, index, 0, func() { p.restores(t) }) })
	t.Run("the envelope", func(t *testing.T) {
		closed(t, envelope, 0, func() {
			wantLine(t, m.refused(t, 1, "permission", p.restore("none")...), filepath.Base(envelope))
		})
	})
	m.ok(t, verifyAll...)
}

// permissions is a store and the machine of somebody whom permissions stop.
type permissions struct {
	*machine
	store string
	n     int
}

func (p *permissions) restore(dir string, more ...string) []string {
	return append([]string{"restore", "--from", p.store, "--identity", "custodian.txt", "--name", "payments", "--region", "west", "--hsms", "1", "--dir", dir}, more...)
}

// restores restores what may be read.
func (p *permissions) restores(t *testing.T, more ...string) {
	t.Helper()
	p.n++
	p.ok(t, p.restore(fmt.Sprintf("west-%d", p.n), more...)...)
	if left, _ := filepath.Glob(filepath.Join(p.dir, "none*")); len(left) > 0 {
		t.Errorf("a restore that failed left %q", left)
	}
}

// copies copies all snapshots but one ("not copied: "), which is named.
func (p *permissions) copies(t *testing.T, victim string) {
	t.Helper()
	p.n++
	to := fmt.Sprintf("copy-%d", p.n)
	r := p.run(t, "snapshots", "copy", "--from", p.store, "--to", to, "--all")
	if r.code != 1 || strings.Count(r.stdout, " copied: ") != 2 || !strings.Contains(r.stdout, "not copied: ") || !strings.Contains(r.stdout, victim) || !strings.Contains(r.stderr, "\nhint: ") {
		t.Errorf("copy --all: %v", r)
	}
	p.ok(t, "snapshots", "verify", to, "--all")
}

// readOnly: what may be read and not written is listed, verified, restored and copied.
func (p *permissions) readOnly(t *testing.T) {
	err := filepath.WalkDir(p.store, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(path, 0o500)
			t.Cleanup(func() { must(t, os.Chmod(path, 0o700)) })
		}
		return err
	})
	must(t, err)
	p.ok(t, "snapshots", p.store)
	if out := p.ok(t, "snapshots", "verify", p.store); !strings.Contains(out, "note: not recorded: ") {
		t.Errorf("it does not say that there is no record: %s", out)
	}
	p.restores(t)
	p.ok(t, "snapshots", "copy", "--from", p.store, "--to", "copy-read-only", "--all")
	p.ok(t, "snapshot", "--to", p.store) // nothing changed, and nothing is to be written
	for _, args := range [][]string{{"snapshot", "--to", p.store, "--full"}, {"snapshots", "delete", p.store, "1"}, {"snapshots", "keep", p.store, "1"}} {
		p.refused(t, 1, "permission", args...)
	}
	if r := p.run(t, "snapshots", "prune", p.store, "--keep-last", "1"); r.code != 1 || !strings.Contains(r.stderr, "permission denied") {
		t.Errorf("prune: %v", r)
	}
	if left, _ := filepath.Glob(filepath.Join(p.store, "+tmp", "*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestFolderThatIsFull gives the program a limit on the size of files, which the system
// reports as it does a full disk, in the middle of a pack and of a restored cluster.
func TestFolderThatIsFull(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newMachine(t))
	m := b.nobody()
	m.wrap = func(cmd *exec.Cmd) {
		cmd.Args = append([]string{"sh", "-c", `ulimit -f 1 && exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
	}
	wantLine(t, m.refused(t, 1, "storage", "snapshot", "--to", b.path("other")), "the store is full")
	wantLine(t, m.refused(t, 1, "storage", "snapshots", "copy", "--from", b.store, "--to", b.path("copy")), "the store is full")
	m.refused(t, 1, "full", b.restore(b.store, "west")...)
	for _, left := range []string{"west", ".west*", "other/manifests/*", "other/+tmp/*", "copy/manifests/*", "copy/+tmp/*"} {
		if found, _ := filepath.Glob(b.path(left)); len(found) > 0 {
			t.Errorf("left behind: %q", found)
		}
	}
	good := b.nobody()
	good.ok(t, "snapshot", "--to", b.path("other"))
	good.ok(t, "snapshots", "copy", "--from", b.store, "--to", b.path("copy"))
	good.ok(t, "snapshots", "verify", b.path("copy"), "--all", "--level", "use", "--identity", b.identity)
	good.ok(t, b.restore(b.store, "west")...)
}
