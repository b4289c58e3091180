package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
)

// Create lays out a cluster: the cluster's CA, one folder per HSM with its
// identity, sealed keys, object store and audit log, the profile cluster.yaml,
// and the certificates of an appliance and of clients. It returns the profile.
//
// All of it is made in a hidden folder beside DIR, .NAME.hsmbackup-new, and
// renamed to DIR as the last step, so DIR holds a whole cluster or is as it was
// before; what an interrupted run left is removed by the next one, but for the
// objects that it had loaded (.NAME.hsmbackup-load), with which Fill goes on, and what it
// had copied of them to further HSMs (.NAME.hsmbackup-copies). When Create
// returns, the cluster is on disk.
//
// ErrFolder if DIR is not empty, cannot be made, or is being created by another
// process; hsm.ErrInvalid if the Spec makes no sense.
func Create(ctx context.Context, s Spec) (*profile.Profile, error) {
	if err := s.validate(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(s.Dir)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrFolder, s.Dir, err)
	}
	staging := filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir)+".hsmbackup-new")
	left := leftovers(strings.TrimSuffix(staging, "-new") + "-copies")
	loaded := strings.TrimSuffix(staging, "-new") + "-load"
	unlock, err := stage(dir, staging, left)
	if err != nil {
		tidy(dir, staging, loaded, left)
		return nil, err
	}
	defer unlock()
	// If we die before the end, what was loaded and copied is there for the next run. If we fail
	// we leave nothing. If we die after the rename there is a whole cluster with these beside it,
	// until the next run, which is refused, removes them.
	defer os.RemoveAll(loaded)
	defer os.RemoveAll(string(left))
	if err := build(ctx, s, staging, loaded, left); err != nil {
		return nil, errors.Join(err, os.RemoveAll(staging))
	}
	// If we die before the rename DIR is as it was, and the staging folder is
	// rubbish; after it there is a whole cluster. Unlike os.Rename this replaces a
	// folder that is empty, and no other.
	if err := renameFolder(staging, dir); err != nil {
		return nil, errors.Join(fmt.Errorf("%w %s: %w", ErrFolder, dir, err), os.RemoveAll(staging))
	}
	if err := hsm.SyncFolder(filepath.Dir(dir)); err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrFolder, dir, err)
	}
	return profile.Load(dir)
}

// tidy removes what a run that died between its last two steps, the rename and this, has
// left beside a whole cluster. What it cannot remove, or another process works on, stays.
func tidy(dir, staging, loaded string, left leftovers) {
	if _, err := profile.Load(dir); err != nil {
		return // no cluster: a creation may still go on with them
	}
	isLeft := func(path string) bool { _, err := os.Lstat(path); return err == nil }
	if !slices.ContainsFunc([]string{loaded, string(left), staging, staging + ".lock"}, isLeft) {
		return
	}
	lock, err := lockPath(staging+".lock", dir)
	if err != nil {
		return
	}
	defer lock.Close()
	if cmp.Or(os.RemoveAll(loaded), os.RemoveAll(string(left)), os.RemoveAll(staging)) == nil {
		os.Remove(staging + ".lock")
	}
}

// stage makes sure that dir is missing or empty and staging is empty and ours; what copies
// were in it go to left.
func stage(dir, staging string, left leftovers) (unlock func(), err error) {
	if err := mustBeEmpty(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrFolder, dir, err)
	}
	lock, err := lockPath(staging+".lock", dir)
	if err != nil {
		return nil, err
	}
	unlock = func() { os.Remove(staging + ".lock"); lock.Close() }
	if err := cmp.Or(left.gather(staging), os.RemoveAll(staging), os.Mkdir(staging, 0o700)); err != nil {
		unlock()
		return nil, fmt.Errorf("%w %s: %w", ErrFolder, dir, err)
	}
	return unlock, nil
}

func mustBeEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w %s: %w", ErrFolder, dir, err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%w %s is not empty; name a new one", ErrFolder, dir)
	}
	return nil
}

// layout is a cluster in the making.
type layout struct {
	spec    Spec
	dir     string
	loaded  string // what Fill loads, beside dir
	left    leftovers
	keys    *secrets // without a TLS key: each HSM has its own
	ca      *pki.Authority
	profile *profile.Profile
	hsms    []*Config
	members []hsm.Member
}

func build(ctx context.Context, s Spec, dir, loaded string, left leftovers) error {
	l, err := newLayout(s, dir)
	if err != nil {
		return err
	}
	l.loaded, l.left = loaded, left
	for _, c := range l.hsms {
		if err := l.folder(c); err != nil {
			return fmt.Errorf("lay out %s: %w", c.Name, err)
		}
	}
	if err := l.objects(ctx); err != nil {
		return err
	}
	for _, kind := range []pki.Kind{pki.KindAppliance, pki.KindClient} {
		if err := l.credential(kind); err != nil {
			return err
		}
	}
	if err := l.profile.Save(filepath.Join(l.dir, profile.FileName)); err != nil {
		return err
	}
	return l.sync()
}

func newLayout(s Spec, dir string) (_ *layout, err error) {
	l := &layout{spec: s, dir: dir}
	keyring := s.Keyring
	if keyring == nil {
		keyring = hsm.NewKeyring()
		l.ca, err = pki.NewAuthority(keyring.Lineage())
	} else {
		l.ca, err = pki.ParseAuthority(s.CA)
	}
	if err != nil {
		return nil, err
	}
	if l.members, err = s.members(); err != nil {
		return nil, err
	}
	l.keys = &secrets{keyring: keyring, ca: l.ca.PEM()}
	l.profile = &profile.Profile{
		Name: s.Name, ID: hsm.NewClusterID(), Lineage: keyring.Lineage(), Region: s.Region, CA: string(l.ca.CertPEM()),
		Client: "client.pem", Appliance: "appliance.pem",
	}
	for _, m := range l.members {
		l.profile.HSMs = append(l.profile.HSMs, profile.HSM{ID: m.ID, Name: m.Name, Address: m.Address, Zone: m.Zone, Dir: m.Name})
		l.hsms = append(l.hsms, &Config{
			ID: m.ID, Name: m.Name, Cluster: l.profile.ID, ClusterName: s.Name, Lineage: keyring.Lineage(),
			Region: s.Region, Zone: m.Zone, Address: m.Address,
		})
	}
	return l, nil
}

func (l *layout) path(c *Config) string { return filepath.Join(l.dir, c.Name) }

func (l *layout) identity(kind pki.Kind, name string) pki.Identity {
	return pki.Identity{Cluster: l.profile.ID, Kind: kind, Name: name}
}

// folder makes everything in an HSM's folder except its object store and audit
// log.
func (l *layout) folder(c *Config) error {
	folder := l.path(c)
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	newSeal := l.spec.Seal
	if newSeal == nil {
		newSeal = seal.NewFile
	}
	sl, err := newSeal(folder)
	if err != nil {
		return err
	}
	cert, key, err := l.ca.Issue(l.identity(pki.KindHSM, c.ID.String()), CertificateLife)
	if err != nil {
		return err
	}
	defer key.Wipe()
	sealed, err := closeSecrets(sl, l.keys.keyring, l.keys.ca, key)
	if err != nil {
		return err
	}
	c.Seal = sl.Kind()
	return errors.Join(
		writeFile(filepath.Join(folder, sealedFile), sealed, 0o600),
		writeFile(filepath.Join(folder, certFile), cert, 0o644),
		writeFile(filepath.Join(folder, caFile), l.ca.CertPEM(), 0o644),
		c.save(folder))
}

func (l *layout) credential(kind pki.Kind) error {
	cert, key, err := l.ca.Issue(l.identity(kind, string(kind)), CertificateLife)
	if err != nil {
		return err
	}
	defer key.Wipe()
	return pki.WriteIdentityFile(filepath.Join(l.dir, string(kind)+".pem"), cert, key, l.ca.CertPEM())
}

// sync makes the names of all files durable; their contents are already.
func (l *layout) sync() error {
	for _, c := range l.hsms {
		if err := hsm.SyncFolder(l.path(c)); err != nil {
			return err
		}
	}
	return hsm.SyncFolder(l.dir)
}

// objects fills the object stores: the first HSM's with the cluster's first
// objects or its source's, the others' with copies of that store.
func (l *layout) objects(ctx context.Context) error {
	want, err := l.first(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(copiers)
	for _, c := range l.hsms[1:] {
		g.Go(func() error {
			if err := l.copyTo(ctx, c, want); err != nil {
				return fmt.Errorf("fill %s: %w", c.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// first fills the first HSM, closes it in order, and returns its roots.
func (l *layout) first(ctx context.Context) (roots [2]hsm.Root, err error) {
	first, err := l.open(ctx, l.hsms[0], false)
	if err != nil {
		return roots, err
	}
	defer func() { err = errors.Join(err, first.close()) }()
	if err := l.fill(ctx, first); err != nil {
		return roots, err
	}
	if err := l.adaptPolicy(ctx, first); err != nil {
		return roots, err
	}
	return rootsOf(ctx, first)
}

func rootsOf(ctx context.Context, d *device) (roots [2]hsm.Root, err error) {
	info, err := d.self.Info(ctx)
	return [2]hsm.Root{info.Root, info.ClusterRoot}, err
}

// copiers is how many HSMs are filled at a time; each store takes some tens of
// MiB of memory meanwhile.
const copiers = 2

// adaptPolicy lowers the policy of a clone with fewer HSMs or zones than its
// source's policy asks for, in the clone's profile: the settings themselves are
// the lineage's.
func (l *layout) adaptPolicy(ctx context.Context, d *device) error {
	info, err := d.self.Info(ctx)
	if err != nil {
		return err
	}
	s, n, zones := info.Settings, len(l.hsms), l.spec.zones()
	if s.MinCopies > n || s.MinZones > zones {
		n = min(n, s.MinCopies)
		l.profile.MinCopies, l.profile.MinZones, l.profile.CheckOnUse = n, min(s.MinZones, zones, n), s.CheckOnUse && n > 1
	}
	return nil
}

func (l *layout) open(ctx context.Context, c *Config, untidied bool) (*device, error) {
	return openDevice(ctx, l.path(c), c, l.keys, deviceOptions{
		create: true, untidied: untidied, loaded: l.loaded, version: l.spec.Version, sealEnvelope: l.spec.SealEnvelope, iterations: l.spec.Iterations, now: time.Now, log: slog.Default(),
	})
}

// fill writes the members and, in a new cluster, the policy and first admin.
func (l *layout) fill(ctx context.Context, d *device) error {
	for _, change := range l.firstChanges() {
		if _, err := d.self.Change(ctx, change); err != nil {
			return fmt.Errorf("first objects: %w", err)
		}
	}
	if l.spec.Fill == nil {
		d.record("create-cluster", d.principal(), 0, fmt.Sprintf("%s %s", l.spec.Name, l.profile.ID), nil)
		return nil
	}
	if err := l.spec.Fill(ctx, d.self); err != nil {
		return err
	}
	d.record("restore", d.principal(), 0, fmt.Sprintf("%s as %s %s", l.spec.Source, l.spec.Name, l.profile.ID), nil)
	return nil
}

func (l *layout) firstChanges() (changes []hsm.Change) {
	for _, m := range l.members {
		changes = append(changes, hsm.Change{Kind: hsm.ChangeMember, Member: &m})
	}
	if l.spec.Fill != nil {
		return changes
	}
	return append(changes,
		hsm.Change{Kind: hsm.ChangeUserCreate, User: l.spec.Admin, Role: hsm.RoleAdmin, Password: l.spec.Password},
		hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: l.spec.MinCopies, MinZones: l.spec.MinZones, CheckOnUse: l.spec.CheckOnUse, Custodians: l.spec.Custodians, Threshold: l.spec.Threshold}})
}

// copyTo gives one more HSM a copy of the first's object store, byte for byte,
// which belongs to no HSM in particular, and makes sure that it opens and holds
// what the first does. The bytes are copied and not linked: what happens to one
// HSM's disk must not happen to another's.
func (l *layout) copyTo(ctx context.Context, c *Config, want [2]hsm.Root) (err error) {
	if err := copyStore(ctx, c.Name, filepath.Join(l.path(l.hsms[0]), storeDir), filepath.Join(l.path(c), storeDir), l.left); err != nil {
		return err
	}
	to, err := l.open(ctx, c, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	got, err := rootsOf(ctx, to)
	if err == nil && got != want {
		err = fmt.Errorf("%w: the copy has another root", hsm.ErrCorrupt)
	}
	to.record("insert", to.principal(), 0, fmt.Sprintf("the %d objects of %s, as a copy of its object store", got[0].Count, l.hsms[0].Name), err)
	return err
}
