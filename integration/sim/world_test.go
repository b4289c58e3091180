package sim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server"
	"github.com/hsmbackup/hsmbackup/integration/history"
)

// world is one simulation.
type world struct {
	seed    uint64
	plant   plant
	still   bool
	revokes bool
	planted planted
	keyring *hsm.Keyring
	ca      hsm.Secret
	dir     string // for the folders of HSMs
	net     *network
	trace   *trace
	checker *checker
	history *history.Recorder
	regions []*region
	over    chan struct{} // closed when the simulation ends

	work sync.WaitGroup // all goroutines

	mu         sync.Mutex
	violations []string
	stats      stats
}

// stats counts what a simulation went through.
type stats struct {
	created, failed, unknown, used, destroyed, faults int
	kinds                                             map[string]int
}

// region is one cluster.
type region struct {
	w       *world
	name    string
	id      hsm.ClusterID
	made    *profile.Profile
	policy  cluster.Policy
	repairs int
	ahead   time.Duration // how far a clock has been ahead since the last repair
	round   int

	people    []*person // only the region's admin and the checker, in turns
	custodian appointed // as people

	mu      sync.Mutex
	boxes   []*box   // lost ones too
	revoked []string // what every HSM must know of
}

const (
	adminName = "root"
	password  = "a-password"
)

// users are the crypto users of every simulation.
var users = []string{"alice", "bob"}

func secret(s string) hsm.Secret { return hsm.NewSecret([]byte(s)) }

func (w *world) violate(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.trace.add("VIOLATION %s", text)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violations = append(w.violations, text)
}

func (w *world) failed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.violations) > 0
}

// count counts something that happened.
func (w *world) count(f func(*stats)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.stats)
}

// background runs f on its own. The simulation ends after all such work.
func (w *world) background(f func()) { w.work.Go(f) }

// everyBox lists all HSMs that there have ever been.
func (w *world) everyBox() (all []*box) {
	w.mu.Lock()
	regions := slices.Clone(w.regions)
	w.mu.Unlock()
	for _, r := range regions {
		all = append(all, r.everyone()...)
	}
	return all
}

// members lists the HSMs that belong to the region and are not lost.
func (r *region) members() []*box {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.boxes), func(b *box) bool {
		return b.gone.Load() || b.isCopy || b.removed() || b.stage.get() != belongs
	})
}

// owns tells whether keys with this label are made in the region.
func (r *region) owns(label string) bool { return strings.HasPrefix(label, r.name+"/") }

// regionOf tells in which region a caller is.
func (w *world) regionOf(e *endpoint) string {
	name, _, _ := strings.Cut(e.name, "/")
	return name
}

// newRegion makes a cluster as the program does, and puts the object stores on disks in
// memory. All HSMs run when it returns. One that is not the first is a clone of that.
func (w *world) newRegion(name string, hsms int, p cluster.Policy, from *region) *region {
	r := &region{w: w, name: name, policy: p}
	w.mu.Lock()
	w.regions = append(w.regions, r)
	w.mu.Unlock()
	spec := server.Spec{
		Name: name, Region: name, Dir: filepath.Join(w.dir, name+".created"), HSMs: hsms, MinCopies: p.MinCopies, CheckOnUse: p.CheckOnUse,
		Version: "sim", Iterations: 1, Keyring: w.keyring, CA: w.ca, Source: "a simulation", Fill: r.first,
	}
	if from != nil {
		spec.Fill = func(ctx context.Context, into hsm.Session) error {
			_, err := reconcile.Copy(ctx, from.boxes[0].eye, into)
			return err
		}
	}
	for i := range hsms {
		spec.Listen, spec.Zones = append(spec.Listen, r.address(i+1)), append(spec.Zones, fmt.Sprintf("zone-%d", i+1))
	}
	var err error
	if r.made, err = server.Create(context.Background(), spec); err != nil {
		w.violate("%s: %v", name, err)
		return r
	}
	r.id = r.made.ID
	for _, h := range r.made.HSMs {
		b := r.newBox(func(b *box) {
			b.folder = r.made.Resolve(h.Dir)
			b.said.Store(&hsm.Member{ID: h.ID, Name: h.Name, Address: h.Address, Zone: h.Zone})
		})
		if err := moveToMemory(filepath.Join(b.folder, storeDir), b.image); err != nil {
			w.violate("%s: %v", b.name, err)
		}
		b.start(0)
	}
	if from == nil {
		r.hire()
	}
	return r
}

// moveToMemory moves an object store to a disk in memory.
func moveToMemory(from string, to *vfs.MemFS) error {
	files, err := os.ReadDir(from)
	if err = errors.Join(err, to.MkdirAll(storeDir, 0o700)); err != nil {
		return err
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(from, f.Name()))
		if err == nil {
			err = store(to, f.Name(), b)
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(syncFolders(to), os.RemoveAll(from))
}

// first makes the first objects of a region.
func (r *region) first(ctx context.Context, into hsm.Session) error {
	_, err := into.Change(ctx, hsm.Change{Kind: hsm.ChangeUserCreate, User: adminName, Role: hsm.RoleAdmin, Password: secret(password)})
	if err == nil {
		_, err = into.Change(ctx, hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: r.policy.MinCopies, CheckOnUse: r.policy.CheckOnUse}})
	}
	return err
}

// hire makes the crypto users, on all HSMs at once.
func (r *region) hire() {
	first := r.boxes[0]
	s, err := first.soft.Module(hsm.Principal{Role: hsm.RoleAdmin, Name: adminName}).Session(context.Background())
	for _, u := range users {
		if err == nil {
			_, err = s.Change(context.Background(), hsm.Change{Kind: hsm.ChangeUserCreate, User: u, Role: hsm.RoleCryptoUser, Password: secret(password)})
		}
	}
	if err != nil {
		r.w.violate("%s: %v", first.name, err)
	}
	for _, b := range r.boxes[1:] {
		r.copy(first, b, hsm.ScopeLineage)
	}
}

func (r *region) copy(from, to *box, s hsm.Scope) {
	if _, err := reconcile.Copy(context.Background(), from.eye.Scoped(s), to.eye.Scoped(s)); err != nil {
		r.w.violate("copy %s to %s: %v", from.name, to.name, err)
	}
}

// address is that of the n-th HSM of a region.
func (r *region) address(n int) string { return fmt.Sprintf("%s-hsm-%d:2223", r.name, n) }

// newBox adds an HSM with an empty disk, which does not run. Others see it once it is as
// complete makes it.
func (r *region) newBox(complete func(b *box)) *box {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.boxes) + 1
	b := &box{w: r.w, region: r, name: fmt.Sprintf("%s/hsm-%d", r.name, n), image: newImage()}
	b.said.Store(&hsm.Member{ID: hsm.NewHSMID(), Name: fmt.Sprintf("hsm-%d", n), Address: r.address(n), Zone: fmt.Sprintf("zone-%d", n)})
	complete(b)
	r.boxes = append(r.boxes, b)
	return b
}

func (r *region) profile() *profile.Profile {
	p := &profile.Profile{Name: r.name, ID: r.id, Lineage: r.w.keyring.Lineage(), Region: r.name, CA: r.made.CA}
	for _, b := range r.members() {
		m := b.member()
		p.HSMs = append(p.HSMs, profile.HSM{ID: m.ID, Name: m.Name, Address: m.Address, Zone: m.Zone})
	}
	return p
}

// script says what a simulation goes through.
type script struct {
	seed    uint64
	plant   plant
	regions int
	rounds  int           // of storm and calm
	storm   time.Duration // of one round
	still   bool          // members neither join nor leave, unless HSMs are lost
	revokes bool          // an HSM that is to be removed alone knows of a revocation
	dir     string        // empty
}

// result is what came out of one.
type result struct {
	seed       uint64
	violations []string
	sum        string // of the trace
	trace      *trace
	virtual    time.Duration
	stats      stats
	looks      int
}

// simulate runs one simulation in a bubble of its own.
func simulate(t *testing.T, s script) (res result) {
	t.Helper()
	defer alone()()
	cryptotest.SetGlobalRandom(t, s.seed)
	var w *world
	s.dir = t.TempDir()
	synctest.Test(t, func(*testing.T) { w, res = run(s) })
	if err := os.RemoveAll(s.dir); err != nil { // not only when the last seed has run
		t.Fatal(err)
	}
	if len(res.violations) == 0 {
		for _, v := range history.Check(w.history.History()) {
			res.violations = append(res.violations, v.Error())
		}
	}
	return res
}

// tooLong is a virtual time in which a simulation is over, unless something waits
// for ever.
const tooLong = 6 * time.Hour

func run(s script) (*world, result) {
	w := &world{seed: s.seed, still: s.still, revokes: s.revokes, plant: s.plant, dir: s.dir, keyring: hsm.NewKeyring(), over: make(chan struct{}), stats: stats{kinds: map[string]int{}}}
	ca, err := pki.NewAuthority(w.keyring.Lineage())
	if err != nil {
		panic(err)
	}
	w.ca = ca.PEM()
	w.trace, w.checker, w.net = newTrace(), newChecker(w), newNetwork(w)
	w.history = history.NewRecorder(func() int64 { return int64(w.trace.now()) })
	stuck := time.AfterFunc(tooLong, func() { panic(fmt.Sprintf("seed %d is stuck", s.seed)) })
	w.play(s)
	virtual := w.trace.now()
	close(w.over)
	for _, b := range w.everyBox() {
		b.kill()
	}
	w.work.Wait()
	stuck.Stop()
	return w, result{
		seed: s.seed, violations: w.violations, sum: w.trace.sum(), trace: w.trace, virtual: virtual, stats: w.stats, looks: w.checker.looks,
	}
}

// play is the simulation: one cluster or two, their clients, and rounds of storm
// and calm.
func (w *world) play(s script) {
	d := w.dice("script")
	policy := []cluster.Policy{{MinCopies: 2, CheckOnUse: true}, {MinCopies: 2, CheckOnUse: true}, {MinCopies: 1}, {MinCopies: 2}, {MinCopies: 3, CheckOnUse: true}}[d.n(5)]
	hsms := max(policy.MinCopies, 2) + d.n(3)
	if w.plant == countLeaver { // it takes two that alone hold a key, and no other fault
		policy, hsms = cluster.Policy{MinCopies: 1}, 4
	}
	all := []*side{{region: w.newRegion("east", hsms, policy, nil)}}
	var synckey *agent
	if s.regions == 2 {
		all = append(all, &side{region: w.newRegion("west", hsms, policy, all[0].region)})
		synckey = newAgent(all[0].region, all[1].region)
	}
	time.Sleep(d.between(time.Second, 2*time.Second))
	for _, x := range all {
		x.callers = newCallers(x.region, 2+d.n(2))
	}
	for round := 0; round < s.rounds && !w.failed(); round++ {
		w.trace.add("round %d", round)
		w.round(all, synckey, round+1, s.storm)
	}
	for _, x := range all {
		x.callers.end()
	}
}

// side is a region and its clients.
type side struct {
	region  *region
	callers *callers
	nemesis *nemesis
}

// round is a storm and the calm after it.
func (w *world) round(all []*side, synckey *agent, round int, storm time.Duration) {
	w.net.stormy.Store(true)
	var raging, working sync.WaitGroup
	for _, x := range all {
		x.region.round = round
		x.callers.work()
		x.nemesis = newNemesis(x.region, x.callers, synckey, round)
		raging.Go(func() { x.nemesis.rage(storm) })
	}
	over := make(chan struct{})
	if synckey != nil {
		working.Go(func() { synckey.work(round, over) })
	}
	raging.Wait()
	for _, x := range all {
		x.callers.rest()
	}
	close(over)
	working.Wait()
	for _, x := range all {
		x.nemesis.stop()
	}
	w.net.heal()
	for _, x := range all {
		x.region.wake()
		x.region.repair()
		x.region.expelled()
	}
	w.calm(all, synckey)
}

// calm waits until all HSMs hold the same, and then checks what must hold.
func (w *world) calm(all []*side, synckey *agent) {
	for _, x := range all {
		w.settle(x.region)
	}
	if synckey != nil && !w.failed() {
		synckey.join()
	}
	if w.failed() {
		return
	}
	for _, x := range all {
		for _, b := range x.region.members() {
			w.checker.look(b)
		}
		w.checker.settled(x.region)
		w.checker.people(x.region)
		w.checker.attributes(x.region)
		w.checker.revoked(x.region)
	}
	w.history.Settled()
}

// settleWithin bounds the time in which a cluster comes together after the last
// fault: leases of creations, and clocks that were minutes ahead.
const settleWithin = 20 * time.Minute

// settle waits until all HSMs hold the same, and then checks what must hold.
func (w *world) settle(r *region) {
	began := time.Now()
	time.Sleep(callerLease + 5*time.Second) // what clients left behind is over then
	for {
		diff := w.checker.differences(r)
		if len(diff) == 0 && w.net.flights.Load() == 0 {
			break
		}
		if time.Since(began) > settleWithin && len(diff) > 0 {
			w.violate("%s after the last fault: %s", settleWithin, strings.Join(diff, "; "))
			return
		}
		if w.failed() {
			return
		}
		time.Sleep(w.dice("settle", fmt.Sprint(w.trace.now())).between(200*time.Millisecond, 400*time.Millisecond))
	}
	w.trace.add("settled after %s", time.Since(began))
}
