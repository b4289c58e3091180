package clone

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync/atomic"
	"time"

	"filippo.io/age"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/server"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/synckey"
)

// DrillOptions say how a drill runs.
type DrillOptions struct {
	Executable string // runs "hsm serve FOLDER"
	Store      storage.Store
	Dir        string // empty folder for both regions
	Keys       int    // AES keys made beside those of every type
	HSMs       int    // per region
	Version    string
	Log        io.Writer         // what the HSM processes say
	Step       func(what string) // told when a step begins

	// Progress is told within a step of how many objects are through, of how many, and of
	// how many bytes, or 0 where it is not bytes that take the time. A count of keys begins
	// with none of them. Several goroutines call it.
	Progress func(done, total, bytes int64)

	iterations int // as of server.Spec; tests take few
}

// drill is a drill under way.
type drill struct {
	o        DrillOptions
	types    []hsm.CreateRequest // one key of each is made
	report   *Report
	identity *age.HybridIdentity
	one, two *region
	people   people
	answers  []answer
	gone     []hsm.KeyRef // destroyed in region one after the snapshot
	session  hsm.KeyRef   // a session key of region one, while alice is logged in
	started  time.Time    // of the snapshot
}

// step is one part of a drill.
type step struct {
	what string
	run  func(context.Context) error
}

// region is a running cluster and the sessions of its users.
type region struct {
	profile *profile.Profile
	fleet   *server.Fleet
	admin   *cluster.Cluster
	auto    *cluster.Cluster // with the appliance's certificate
	users   map[string]*cluster.Cluster
}

// person is a user of the drill, with a password that nobody keeps.
type person struct {
	name     string
	role     hsm.Role
	password hsm.Secret
}

type people struct{ root, alice, bob, carol person }

// Drill loses a region, for practice: region one starts as processes, its users
// make and use keys of every type, a snapshot is taken and restored as region
// two, region one goes on, synckey brings region two up to date, and every key
// is compared and used. The report says what was measured and, in
// Proof.Failures, everything that is not as it should be.
//
// The error is for a drill that could not be carried through; a drill that was
// and found fault has a report with OK false.
func Drill(ctx context.Context, o DrillOptions) (_ *Report, err error) {
	d, err := newDrill(o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	for _, s := range d.steps() {
		if o.Step != nil {
			o.Step(s.what)
		}
		if err := s.run(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return d.report, d.finish(ctx)
}

func newDrill(o DrillOptions) (*drill, error) {
	identity, err := age.GenerateHybridIdentity()
	if err != nil {
		return nil, fmt.Errorf("make a custodian: %w", err)
	}
	return &drill{o: o, types: everyType(), report: newReport(o.Version), identity: identity, people: newPeople()}, nil
}

func (d *drill) steps() []step {
	return []step{
		{"start region one", d.startOne},
		{"make users and keys of every type", d.populate},
		{"use every key", d.askOne},
		{"take a snapshot", d.snapshot},
		{"restore it as region two", d.restore},
		{"go on in region one: make, change and destroy keys", d.goOn},
		{"synckey region two with region one", d.synckey},
		{"prove it: roots, check values, every key used", d.prove},
	}
}

func newPeople() people {
	return people{
		root: newPerson("root", hsm.RoleAdmin), alice: newPerson("alice", hsm.RoleCryptoUser),
		bob: newPerson("bob", hsm.RoleCryptoUser), carol: newPerson("carol", hsm.RoleCryptoUser),
	}
}

func newPerson(name string, role hsm.Role) person {
	b := make([]byte, 15)
	rand.Read(b)
	return person{name: name, role: role, password: hsm.NewSecret([]byte(base32.StdEncoding.EncodeToString(b)))}
}

func (p person) credential() cluster.Credential {
	return cluster.Credential{Role: p.role, Name: p.name, Password: p.password}
}

func (d *drill) spec(name string) server.Spec {
	return server.Spec{
		Name: name, Region: name, Dir: filepath.Join(d.o.Dir, name), HSMs: d.o.HSMs, MinCopies: min(2, d.o.HSMs), CheckOnUse: d.o.HSMs > 1,
		Version: d.o.Version, SealEnvelope: backup.SealEnvelope, Admin: d.people.root.name, Password: d.people.root.password,
		Custodians: []string{d.identity.Recipient().String()}, Threshold: 1, Iterations: d.o.iterations,
	}
}

func (d *drill) startOne(ctx context.Context) error {
	p, err := server.Create(ctx, d.spec("region-one"))
	if err != nil {
		return err
	}
	d.one, err = d.start(ctx, p)
	return err
}

// start runs a region's processes and logs in its admin and its appliance.
func (d *drill) start(ctx context.Context, p *profile.Profile) (*region, error) {
	r := &region{profile: p, users: map[string]*cluster.Cluster{}}
	var err error
	if r.fleet, err = server.StartFleet(ctx, d.o.Executable, p, d.o.Log); err != nil {
		return r, err
	}
	if r.admin, err = cluster.Open(ctx, p, d.people.root.credential()); err != nil {
		return r, err
	}
	r.auto, err = cluster.Open(ctx, p, cluster.Credential{Identity: p.AppliancePath()})
	return r, err
}

// login opens a session for one more user.
func (r *region) login(ctx context.Context, p person) error {
	if r.users[p.name] != nil {
		return nil
	}
	c, err := cluster.Open(ctx, r.profile, p.credential())
	if err != nil {
		return err
	}
	r.users[p.name] = c
	return nil
}

func (r *region) stop() error {
	if r == nil {
		return nil
	}
	var errs []error
	for _, c := range r.users {
		errs = append(errs, c.Close())
	}
	for _, c := range []*cluster.Cluster{r.admin, r.auto} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	if r.fleet != nil {
		r.fleet.Stop()
	}
	return errors.Join(errs...)
}

func (d *drill) progress(done, total, bytes int64) {
	if d.o.Progress != nil {
		d.o.Progress(done, total, bytes)
	}
}

// tally returns what to call when one more of total keys is through.
func (d *drill) tally(total int) func() {
	var done atomic.Int64
	d.progress(0, int64(total), 0)
	return func() { d.progress(done.Add(1), int64(total), 0) }
}

func (d *drill) stop() error { return errors.Join(d.one.stop(), d.two.stop()) }

func (d *drill) snapshot(ctx context.Context) error {
	d.started = time.Now()
	taken, err := backup.Take(ctx, Origin(d.one.auto), d.o.Store, backup.TakeOptions{
		Recipients: []string{d.identity.Recipient().String()}, RequireAll: true,
		Progress: func(p backup.Progress) {
			d.report.Snapshot.BytesRead = p.Bytes
			d.progress(int64(p.Objects), int64(p.TotalObjects), p.Bytes)
		},
	})
	if err != nil {
		return err
	}
	d.report.Snapshot.ID, d.report.Snapshot.Objects = taken.ID, int(taken.Objects)
	d.report.Snapshot.BytesStored = int64(taken.BytesStored)
	d.report.Snapshot.Seconds = time.Since(d.started).Seconds()
	return nil
}

// restore makes region two from the snapshot alone: store and identity. The
// clock of the RTO stops at the first answer of a key in region two.
func (d *drill) restore(ctx context.Context) error {
	lost := time.Now()
	d.report.RPOSeconds = lost.Sub(d.started).Seconds()
	trust := d.one.profile.Lineage
	s, err := backup.Open(ctx, d.o.Store, d.report.Snapshot.ID, backup.OpenOptions{Identities: []age.Identity{d.identity}, Trust: &trust})
	if err != nil {
		return err
	}
	restored, err := Restore(ctx, s, d.spec("region-two"), d.progress)
	if err != nil {
		return err
	}
	d.report.Restore.Seconds = restored.Seconds
	if d.two, err = d.start(ctx, restored.Profile); err != nil {
		return err
	}
	for _, p := range []person{d.people.alice, d.people.bob} {
		if err := d.two.login(ctx, p); err != nil {
			return fmt.Errorf("log %s in: %w", p.name, err)
		}
	}
	if err := d.answers[0].check(ctx, d.one, d.two); err != nil {
		d.fault("first use after the restore: %v", err)
	}
	d.report.RTOSeconds = time.Since(lost).Seconds()
	return d.compareRoots(ctx, "after the restore")
}

func (d *drill) synckey(ctx context.Context) error {
	r, err := synckey.Run(ctx, d.one.auto, d.two.auto, synckey.Options{Users: true, Destroyed: true})
	if err != nil {
		return err
	}
	d.report.Synckey = SynckeyReport{
		Missing: r.Missing, Changed: r.Changed, Destroyed: r.DestroyedAtSrc, Applied: r.Applied, Seconds: r.Seconds,
		SketchBytes: r.SketchBytes, ObjectBytes: r.ObjectBytes, RoundTrips: r.RoundTrips,
	}
	if !r.RootsEqual {
		d.fault("after synckey %d objects still differ", r.Remaining)
	}
	return nil
}
