package integration

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hsmbackup/hsmbackup/integration/miniotest"
)

// TestServerDiesUnderSnapshotAndRestore kills the MinIO server (kill -9) at a
// request of a snapshot, and of a restore, and starts it again with its data.
// The command rides it out or says in one line that the store is away; nothing is
// half done, and the same command succeeds.
func TestServerDiesUnderSnapshotAndRestore(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newMachine(t))
	minio := miniotest.Start(t)
	minio.CreateBucket("backups")
	store := newFaultyStore(t, minio)
	m := b.nobody().with(minio.Env()...)
	location := store.location("backups/dies")
	m.ok(t, "snapshot", "--to", location)
	alice, appliance := open(t, b.testCluster), openAppliance(t, b.testCluster)
	defer alice.Close()
	defer appliance.Close()

	for n := 1; ; n += 5 {
		createKeys(t, alice, fmt.Sprintf("before-death-%d", n), 1)
		struck := runWhileServerDies(t, store, minio, m, n, "snapshot", "--to", location)
		checkSnapshots(t, m, location, b.identity)
		var s struct{ Root string }
		m.json(t, &s, "snapshot", "--to", location)
		root, err := appliance.Root(context.Background())
		must(t, err)
		if want := hex.EncodeToString(root.Sum[:]); s.Root != want {
			t.Fatalf("after the server died at request %d the snapshot has root %s, the cluster %s", n, s.Root, want)
		}
		b.root = s.Root
		if !struck {
			break
		}
	}
	for n := 2; ; n += 4 {
		dir := fmt.Sprintf("west-%d", n)
		restore := b.restore(location, dir)
		struck := runWhileServerDies(t, store, minio, m, n, restore...)
		if _, err := os.Stat(b.path(dir)); err != nil { // it failed, and left nothing
			m.ok(t, restore...)
		}
		b.restoredWell(t, dir)
		if !struck {
			break
		}
	}
}

// runWhileServerDies runs a command and kills the server at its nth request: the
// request is lost, or its answer. The server starts again as soon as the command
// has met that. It tells whether there were so many requests.
func runWhileServerDies(t *testing.T, store *faultyStore, server *miniotest.Server, m *machine, n int, args ...string) (struck bool) {
	t.Helper()
	var requests atomic.Int64
	dead := make(chan struct{})
	store.set(func(w http.ResponseWriter, r *http.Request) bool {
		if requests.Add(1) != int64(n) {
			return false
		}
		if n%2 == 0 {
			store.pass.ServeHTTP(discard{http.Header{}}, r)
		}
		server.Stop()
		close(dead)
		panic(http.ErrAbortHandler)
	})
	defer store.set(nil)
	p := m.start(t, args...)
	select {
	case <-dead:
		struck = true
		server.Restart()
	case <-p.done:
	}
	<-p.done
	if code := p.cmd.ProcessState.ExitCode(); code != 0 && (code != 1 || !struck) {
		t.Errorf("%v: exit code %d: %s", args, code, p.stderr.String())
	}
	return struck
}

// TestHSMsAreRestartedUnderASnapshot kills one HSM after the other and starts it
// again while the first pack is on its way. The snapshot reads them anew, and lacks nothing.
func TestHSMsAreRestartedUnderASnapshot(t *testing.T) {
	t.Parallel()
	m, minio := newMachine(t), miniotest.Start(t)
	identity, recipient := custodian(t, m, "custodian.txt")
	c := newCluster(t, m, "east", 3, "--custodian", recipient)
	c.generate(t, "one")
	minio.CreateBucket("backups")
	store := newFaultyStore(t, minio)
	var once sync.Once
	reached, restarted := make(chan struct{}), make(chan struct{})
	store.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/packs/") {
			once.Do(func() { close(reached) })
			<-restarted
		}
		return false
	})
	location, keys, ended := store.location("backups/restarted"), c.nobody().with(minio.Env()...), make(chan result, 1)
	go func() { ended <- keys.run(t, "snapshot", "--to", location, "--require-all", "--json") }()
	<-reached
	for _, h := range c.hsms {
		h.kill()
		c.startAll(t)
		c.wait(t)
	}
	close(restarted)
	r := <-ended
	if r.code != 0 {
		t.Fatal(r)
	}
	var s struct {
		Root     string
		Coverage struct{ Answered, Missing []string }
	}
	decode(t, r.stdout, &s)
	if s.Root != c.root(t) || len(s.Coverage.Answered) != 3 || len(s.Coverage.Missing) != 0 {
		t.Errorf("%+v", s)
	}
	checkSnapshots(t, keys, location, identity)
}

// TestTheDiskFillsUp takes a snapshot into a folder on a disk that is too small
// for it.
func TestTheDiskFillsUp(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newMachine(t))
	disk := b.path("disk")
	must(t, os.Mkdir(disk, 0o700))
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=16k"); err != nil {
		// Without the right to mount the same is tested where a limit on the size of
		// files stands for the full disk (storage/file) and in package backup.
		t.Logf("no small disk can be mounted here: %v", err)
		return
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	location := filepath.Join(disk, "store")
	filler := filepath.Join(disk, "filler")
	must(t, os.WriteFile(filler, make([]byte, 8<<10), 0o600))
	line := b.nobody().refused(t, 1, "storage", "snapshot", "--to", location)
	if !strings.Contains(line, "full") {
		t.Errorf("the error does not say that the disk is full: %s", line)
	}
	if left, _ := filepath.Glob(filepath.Join(location, "manifests", "*")); len(left) != 0 {
		t.Errorf("a snapshot that does not fit left %q", left)
	}
	must(t, os.Remove(filler))
	must(t, unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, "size=4m"))
	b.nobody().ok(t, "snapshot", "--to", location)
	checkSnapshots(t, b.nobody(), location, b.identity)
	b.ok(t, b.restore(location, "west")...)
}
