package integration

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/clone"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/hsmtest"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server"
	"github.com/hsmbackup/hsmbackup/integration/miniotest"
	"github.com/hsmbackup/hsmbackup/storage/file"
)

// Every command is killed with SIGKILL at many points and then run again as it
// was. Points are requests to the store where there is one to count them, and
// moments spread over the time that an undisturbed run takes where not; which
// moment it is decides nothing about what the test demands.

// TestKillSnapshotAtEveryRequest kills a snapshot before and after each request
// it makes to the store.
func TestKillSnapshotAtEveryRequest(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newRaceMachine(t))
	minio := miniotest.Start(t)
	minio.CreateBucket("backups")
	store := newFaultyStore(t, minio)
	m := b.nobody().with(minio.Env()...)
	location := store.location("backups/killed")
	m.ok(t, "snapshot", "--to", location)
	alice, appliance := open(t, b.testCluster), openAppliance(t, b.testCluster)
	defer alice.Close()
	defer appliance.Close()

	killed := 0
	for n := 1; ; n++ {
		createKeys(t, alice, fmt.Sprintf("before-kill-%d", n), 1)
		finished := killAtRequest(t, store, m, n, "snapshot", "--to", location)
		if !finished {
			killed++
		}
		checkSnapshots(t, m, location, b.identity)
		var s struct{ Root string }
		m.json(t, &s, "snapshot", "--to", location)
		root, err := appliance.Root(context.Background())
		must(t, err)
		if want := hex.EncodeToString(root.Sum[:]); s.Root != want {
			t.Fatalf("after a kill at request %d the snapshot has root %s, the cluster %s", n, s.Root, want)
		}
		if finished {
			break
		}
	}
	if killed < 4 {
		t.Errorf("killed at %d requests only; a snapshot makes more", killed)
	}
	t.Logf("killed at %d points", killed)
	m.ok(t, b.restore(location, "west")...)
}

// killAtRequest runs a command and kills it at its nth request to the store: an
// odd n before the server sees it, an even n after the server has acted and
// before it answers the command. It tells whether the command finished before.
func killAtRequest(t *testing.T, store *faultyStore, m *machine, n int, args ...string) (finished bool) {
	t.Helper()
	var requests atomic.Int64
	var p atomic.Pointer[process]
	started := make(chan struct{})
	strike := func() {
		<-started
		p.Load().kill()
	}
	store.set(func(w http.ResponseWriter, r *http.Request) bool {
		if requests.Add(1) != int64((n+1)/2) {
			return false
		}
		if n%2 == 0 { // let the server act, and nobody hear of it
			store.pass.ServeHTTP(discard{http.Header{}}, r)
		}
		strike()
		return true
	})
	defer store.set(nil)
	p.Store(m.start(t, args...))
	close(started)
	<-p.Load().done
	return p.Load().cmd.ProcessState.Exited()
}

// discard is an answer that nobody hears.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

// checkSnapshots demands that every snapshot that is listed is whole.
func checkSnapshots(t *testing.T, m *machine, location, identity string) {
	t.Helper()
	var list struct {
		Snapshots []struct{ ID string }
		Total     int
	}
	m.json(t, &list, "snapshots", location)
	if list.Total == 0 || list.Total != len(list.Snapshots) {
		t.Fatalf("snapshots: %+v", list)
	}
	last := list.Snapshots[0].ID
	for _, s := range list.Snapshots {
		last = max(last, s.ID)
	}
	m.ok(t, "snapshots", "verify", location, last, "--level", "root", "--identity", identity)
}

// moments are the points of time at which commands are killed, as shares of the
// time that an undisturbed run takes.
var moments = []float64{0.05, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95}

// killAfter runs a command and kills it after some time. It tells whether the
// command finished before.
func killAfter(t *testing.T, m *machine, d time.Duration, args ...string) (finished bool) {
	t.Helper()
	p := m.start(t, args...)
	select {
	case <-p.done:
	case <-time.After(d):
		p.kill()
	}
	return p.cmd.ProcessState.Exited()
}

func TestKillRestore(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newRaceMachine(t))
	began := time.Now()
	b.ok(t, b.restore(b.store, "undisturbed")...)
	usual := time.Since(began)
	for i, share := range moments {
		dir := fmt.Sprintf("west-%d", i)
		finished := killAfter(t, b.machine, time.Duration(share*float64(usual)), b.restore(b.store, dir)...)
		if _, err := os.Stat(b.path(dir)); (err == nil) != finished && err != nil {
			t.Errorf("the restore finished: %t; its folder: %v", finished, err)
		}
		if _, err := os.Stat(b.path(dir)); err == nil { // all of it, then
			if !finished { // and rubbish beside it perhaps, which the next one removes
				b.refused(t, 4, "folder", b.restore(b.store, dir)...)
			}
			b.restoredWell(t, dir)
			continue
		}
		b.ok(t, b.restore(b.store, dir)...)
		b.restoredWell(t, dir)
	}
}

// restoredWell demands that a restored cluster starts with the snapshot's root,
// and that nothing else is left of its making.
func (b backedUp) restoredWell(t *testing.T, dir string) {
	t.Helper()
	west := &testCluster{machine: b.machine, dir: b.path(dir)}
	west.startAll(t)
	defer west.killAll()
	if root := west.root(t); root != b.root {
		t.Errorf("%s has root %s, the snapshot %s", dir, root, b.root)
	}
	b.leftNothing(t, dir)
}

// leftNothing demands that nothing is left beside a folder of what was made there.
func (m *machine) leftNothing(t *testing.T, dir string) {
	t.Helper()
	left, err := filepath.Glob(m.path("." + dir + ".*"))
	if must(t, err); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// removed takes away a folder, and what its making left beside it.
func (m *machine) removed(t *testing.T, dir string) {
	t.Helper()
	left, err := filepath.Glob(m.path("." + dir + ".*"))
	must(t, err)
	for _, path := range append(left, m.path(dir)) {
		must(t, os.RemoveAll(path))
	}
}

// TestKillRestoreGoesOn kills a restore of many keys again and again, each time when it
// has come some way further. The next run does not begin anew: it says how many objects
// were there, more each time, and the last one ends with the snapshot's root.
func TestKillRestoreGoesOn(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	store, identity, root := manyKeys(t, m, 30_000)
	restore := []string{"restore", "--from", store, "--identity", identity, "--name", "payments", "--region", "west", "--hsms", "2", "--dir", m.path("west"), "--json"}
	notes := func() int {
		names, err := filepath.Glob(m.path(".west.hsmbackup-load/*.unit"))
		must(t, err)
		return len(names)
	}
	var kills []int
	for tries := 0; len(kills) < 3; {
		before := notes()
		p := m.start(t, restore...)
		for end := time.Now().Add(deadline); notes() <= before && p.alive(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the restore does not come any further")
			}
		}
		p.kill()
		if notes() > before {
			kills = append(kills, notes())
			continue
		}
		// It was over, or about to be, before this process saw it: once more from the beginning.
		if tries++; tries == 5 {
			t.Fatalf("killed with %v units loaded, want three kills", kills)
		}
		kills = nil
		m.removed(t, "west")
	}
	copied := killWhileCopying(t, m, restore)
	var r struct {
		Objects int
		Resumed int `json:"resumed_objects"`
		Root    string
	}
	m.json(t, &r, restore[:len(restore)-1]...)
	if r.Resumed < r.Objects/2 || r.Root != root {
		t.Errorf("%d of %d objects were there, root %s, want %s", r.Resumed, r.Objects, r.Root, root)
	}
	m.leftNothing(t, "west")
	kept := 0
	for path, was := range copied {
		now, err := os.Stat(path)
		switch {
		case err != nil || read(t, path) != was.bytes: // the second run has made another table of that name
		case os.SameFile(was.info, now):
			kept++
		default:
			t.Errorf("%s was whole and was copied again", path)
		}
	}
	if kept == 0 {
		t.Errorf("none of the %d tables that were whole is in use", len(copied))
	}
	west := &testCluster{machine: m, dir: m.path("west")}
	west.startAll(t)
	defer west.killAll()
	if got := west.root(t); got != root {
		t.Errorf("it has root %s, the snapshot %s", got, root)
	}
	t.Logf("killed with %v units loaded", kills)
}

type copiedTable struct {
	info  os.FileInfo
	bytes string
}

// killWhileCopying runs a restore on and kills it while the second HSM has some tables of
// the first one and not yet all. It returns those that are whole, under the names they are to have
// in the end. A restore that was over before the kill is taken away and done anew.
func killWhileCopying(t *testing.T, m *machine, restore []string) map[string]copiedTable {
	t.Helper()
	for range 20 {
		p := m.start(t, restore...)
		for deadline := time.Now().Add(2 * time.Minute); len(storeTables(t, m, ".west.hsmbackup-new", "hsm-2")) < 3 && p.alive(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the restore does not come to the second HSM")
			}
		}
		p.kill()
		whole := wholeTables(t, m)
		if len(whole) > 0 {
			t.Logf("killed with %d tables copied", len(whole))
			return whole
		}
		must(t, os.RemoveAll(m.path("west")))
	}
	t.Fatal("the restore was over before it could be killed, twenty times in a row")
	return nil
}

func storeTables(t *testing.T, m *machine, folder, h string) []string {
	t.Helper()
	names, err := filepath.Glob(m.path(folder, h, "store", "*.sst"))
	must(t, err)
	return names
}

// wholeTables returns the tables of the second HSM in the making that are those of the first.
func wholeTables(t *testing.T, m *machine) map[string]copiedTable {
	t.Helper()
	whole := map[string]copiedTable{}
	for _, path := range storeTables(t, m, ".west.hsmbackup-new", "hsm-2") {
		info, err := os.Stat(path)
		must(t, err)
		if b := read(t, path); b == read(t, strings.Replace(path, "hsm-2", "hsm-1", 1)) {
			whole[m.path("west", "hsm-2", "store", filepath.Base(path))] = copiedTable{info, b}
		}
	}
	return whole
}

// manyKeys takes a snapshot of so many keys, in packs of 2 MiB.
func manyKeys(t *testing.T, m *machine, n int) (store, identity, root string) {
	t.Helper()
	identity, recipient := custodian(t, m, "custodian.txt")
	keyring := hsm.NewKeyring()
	ca, err := pki.NewAuthority(keyring.Lineage())
	must(t, err)
	objects := hsmtest.Multiply(keyring, "admin", n)
	prof, err := server.Create(t.Context(), server.Spec{
		Name: "payments", Region: "east", Dir: m.path("east"), HSMs: 1, Listen: []string{"127.0.0.1:0"}, MinCopies: 1, Version: "test", SealEnvelope: backup.SealEnvelope,
		Keyring: keyring, CA: ca.PEM(), Fill: func(ctx context.Context, into hsm.Session) error {
			all := func(yield func(hsm.MaskedObject, error) bool) {
				for _, m := range objects {
					if !yield(m, nil) {
						return
					}
				}
			}
			if _, err := into.(hsm.Loader).Load(ctx, "", []iter.Seq2[hsm.MaskedObject, error]{all}); err != nil {
				return err
			}
			_, err := into.Change(ctx, hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 1, Custodians: []string{recipient}, Threshold: 1}})
			return err
		},
	})
	must(t, err)
	east := &testCluster{machine: m, dir: prof.Folder()}
	east.startAll(t)
	defer east.killAll()
	c := openAppliance(t, east)
	defer c.Close()
	store = m.path("store")
	to, err := file.Open(store)
	must(t, err)
	r, err := backup.Take(t.Context(), clone.Origin(c), to, backup.TakeOptions{PackSize: 2 << 20})
	must(t, err)
	return store, identity, hex.EncodeToString(r.Root.Sum[:])
}

func TestKillClusterCreate(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	began := time.Now()
	createCluster(t, m, "undisturbed", 1)
	usual := time.Since(began)
	for i, share := range moments {
		name := fmt.Sprintf("east-%d", i)
		dir := m.path(name)
		admin := m.as("admin", rootPIN)
		killAfter(t, admin, time.Duration(share*float64(usual)), "cluster", "create", "payments", "--region", "east", "--hsms", "1", "--dir", dir)
		c := &testCluster{machine: m, dir: dir}
		if _, err := os.Stat(dir); err != nil {
			c = createCluster(t, m, name, 1)
		}
		c.startAll(t)
		c.admin().ok(t, "user", "list")
		c.killAll()
	}
}

func TestKillSynckey(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newRaceMachine(t))
	b.ok(t, b.restore(b.store, "west")...)
	west := &testCluster{machine: b.machine, dir: b.path("west")}
	west.startAll(t)
	synckey := []string{"synckey", "--src", b.dir, "--dst", west.dir, "--users", "--destroyed"}
	fill := func(label string) {
		alice := open(t, b.testCluster)
		createKeys(t, alice, label, 20)
		must(t, alice.Close())
	}

	fill("undisturbed")
	began := time.Now()
	b.ok(t, synckey...)
	usual := time.Since(began)
	for i, share := range moments {
		fill(fmt.Sprintf("round-%d", i))
		killAfter(t, b.machine, time.Duration(share*float64(usual)), synckey...)
		var s synced
		b.json(t, &s, synckey...)
		if !s.RootsEqual || s.Remaining != 0 || len(s.Conflicts) != 0 {
			t.Fatalf("synckey after a kill: %+v", s)
		}
		if x, y := b.testCluster.root(t), west.root(t); x != y {
			t.Fatalf("after synckey the roots are %s and %s", x, y)
		}
		if info := west.info(t); info.InDoubt != 0 || info.UnderReplicated != 0 {
			t.Errorf("synckey left something half done: %+v", info)
		}
	}
	if a, b := b.references(t), west.references(t); !maps.Equal(a, b) {
		t.Errorf("%d keys in one region, %d in the other", len(a), len(b))
	}
}

// open connects to a cluster as alice, inside the test process.
func open(t testing.TB, c *testCluster) *cluster.Cluster {
	t.Helper()
	p, err := profile.Load(c.dir)
	must(t, err)
	name, password, _ := strings.Cut(alicePIN, ":")
	client, err := cluster.Open(context.Background(), p, cluster.Credential{Role: hsm.RoleCryptoUser, Name: name, Password: hsm.NewSecret([]byte(password))})
	must(t, err)
	return client
}

// openAppliance connects with the appliance's certificate.
func openAppliance(t testing.TB, c *testCluster) *cluster.Cluster {
	t.Helper()
	p, err := profile.Load(c.dir)
	must(t, err)
	client, err := cluster.Open(context.Background(), p, cluster.Credential{Identity: p.AppliancePath()})
	must(t, err)
	return client
}

func aesKey(label string) hsm.CreateRequest {
	return hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32, Attributes: map[string]string{"label": label}}
}

func createKeys(t testing.TB, c *cluster.Cluster, label string, n int) {
	t.Helper()
	for i := range n {
		if _, err := c.Create(context.Background(), aesKey(fmt.Sprintf("%s-%d", label, i)), cluster.Policy{}); err != nil {
			t.Fatal(err)
		}
	}
}

// writer makes keys until it is stopped and remembers which were acknowledged,
// and why each of the others failed. A creation whose outcome the cluster says
// it does not know is neither.
type writer struct {
	c        *cluster.Cluster
	label    string
	acked    map[string]bool
	failed   map[string]error // by label
	made     atomic.Int64
	stopping atomic.Bool
}

func (w *writer) run() {
	w.acked, w.failed = map[string]bool{}, map[string]error{}
	for i := 0; !w.stopping.Load(); i++ {
		label := fmt.Sprintf("%s-%d", w.label, i)
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		made, err := w.c.Create(ctx, aesKey(label), cluster.Policy{})
		cancel()
		var e *cluster.CopiesError
		switch {
		case err == nil:
			w.acked[made.Keys[0].Ref.String()] = true
		case !errors.As(err, &e) || !strings.Contains(e.Outcome, "not known"):
			w.failed[label] = err
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // there may be no HSM to ask
		}
		w.made.Add(1)
	}
}

// writers start callers that make keys at once.
func writers(t *testing.T, c *testCluster, name string, n int) (stop func() []*writer) {
	t.Helper()
	client := open(t, c)
	var wg sync.WaitGroup
	all := make([]*writer, n)
	for i := range all {
		all[i] = &writer{c: client, label: fmt.Sprintf("%s-%d", name, i)}
		wg.Go(all[i].run)
	}
	for _, w := range all {
		for w.made.Load() < 3 {
			time.Sleep(time.Millisecond)
		}
	}
	return func() []*writer {
		for _, w := range all {
			w.stopping.Store(true)
		}
		wg.Wait()
		must(t, client.Close())
		return all
	}
}

// TestKillHSMsUnderLoad kills one HSM after the other, then all at once, while
// callers make keys. What was acknowledged is there afterwards; what was refused
// is not; and all HSMs hold the same.
func TestKillHSMsUnderLoad(t *testing.T) {
	t.Parallel()
	c := newCluster(t, newRaceMachine(t), "east", 3)
	stop := writers(t, c, "one-by-one", 4)
	for _, i := range []int{0, 1, 2} {
		c.hsms[i].kill()
		c.startAll(t)
	}
	c.killAll()
	c.startAll(t)
	ws := stop()
	c.checkWriters(t, ws)

	stop = writers(t, c, "at-once", 4)
	c.killAll()
	ws = stop() // against a cluster that is gone
	c.startAll(t)
	c.checkWriters(t, ws)
}

func (c *testCluster) checkWriters(t *testing.T, ws []*writer) {
	t.Helper()
	c.root(t) // waits, and all are equal
	labels := c.labels(t)
	acked := 0
	for _, w := range ws {
		acked += len(w.acked)
		for ref := range w.acked {
			if _, ok := labels[ref]; !ok {
				t.Errorf("key %s was acknowledged and is lost", ref)
			}
		}
	}
	present := slices.Collect(maps.Values(labels))
	for _, w := range ws {
		for label, err := range w.failed {
			if slices.Contains(present, label) {
				t.Errorf("the creation of %s failed, and the key is there: %v", label, err)
			}
		}
	}
	if i := c.info(t); i.InDoubt != 0 || i.UnderReplicated != 0 || !i.InSync || i.Keys != len(labels) {
		t.Errorf("cluster info: %+v; alice sees %d keys", i, len(labels))
	}
	if acked == 0 {
		t.Error("no key was made at all")
	}
	t.Logf("%d keys acknowledged, %d present", acked, len(labels))
}

// labels maps the keys alice sees to their labels.
func (c *testCluster) labels(t testing.TB) map[string]string {
	t.Helper()
	var list struct {
		Keys []struct {
			Ref   string `json:"key_reference"`
			Label string
		}
	}
	c.alice().json(t, &list, "key", "list")
	out := map[string]string{}
	for _, k := range list.Keys {
		out[k.Ref] = k.Label
	}
	return out
}
