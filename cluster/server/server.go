package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
	"github.com/hsmbackup/hsmbackup/cluster/metrics"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
)

// SealEnvelope seals the recovery envelope to custodians (backup.SealEnvelope).
type SealEnvelope func(ctx context.Context, secret hsm.Secret, custodians []string, threshold int) ([]byte, error)

// Options are what a process adds to the folder it serves.
type Options struct {
	Version      string
	SealEnvelope SealEnvelope
	// OpenSeal opens the seal named by the configuration; nil knows file only.
	OpenSeal     func(kind, folder string) (seal.Seal, error)
	SyncInterval time.Duration    // 0: SyncInterval
	Log          *slog.Logger     // nil: slog.Default
	Now          func() time.Time // nil: time.Now
	Iterations   int              // PBKDF2 of new passwords; 0: the default
	Metrics      string           // where to show metrics, HOST:PORT; empty: as the configuration says
	Network      *Network         // nil: TLS and gRPC
	FS           soft.FS          // of the object store, which is in the folder store there; nil: the folder's
	Audit        OpenAudit        // nil: the audit log is in the folder
	// Ready is called once Serve has made the HSM serve users; or after some
	// seconds in which it could not, and then it does later, and says so in its
	// log. Nil: nobody is told.
	Ready func()
}

func (o *Options) complete(folder string) {
	if o.OpenSeal == nil {
		o.OpenSeal = func(kind, _ string) (seal.Seal, error) {
			if kind != "file" {
				return seal.Seal{}, fmt.Errorf("%w: seal %q is not known here", hsm.ErrInvalid, kind)
			}
			return seal.OpenFile(folder)
		}
	}
	if o.SyncInterval == 0 {
		o.SyncInterval = SyncInterval
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Ready == nil {
		o.Ready = func() {}
	}
}

// Server is one HSM serving its folder.
type Server struct {
	config    *Config
	options   Options
	folder    string
	lock      *os.File
	secrets   *secrets
	device    *device
	lis       net.Listener
	rpc       *rpc.Server
	sync      *syncer
	traffic   traffic
	metrics   *metrics.Server // nil: none
	fresh     time.Duration   // see freshness
	tls       *pki.Serving
	place     *place
	sightings sightings
	ready     sync.Once
	seal      seal.Seal
	keys      maskingKeys
}

// Open opens the HSM in folder: seal, audit log, object store, listener; and
// writes its own member record anew if it has moved. It does not serve yet.
//
// ErrFolder if the folder is no HSM's, is damaged, or is being served by another
// process; seal.ErrSeal if the seal does not open; audit.ErrBroken; hsm.ErrLineage
// if the keys are not those the configuration names; hsm.ErrCorrupt if the object
// store is damaged; hsm.ErrDenied if the HSM was removed from its cluster;
// hsm.ErrUnavailable if it cannot listen at its address; metrics.ErrAddress if it
// cannot show its metrics.
func Open(ctx context.Context, folder string, o Options) (_ *Server, err error) {
	o.complete(folder)
	s := &Server{options: o, folder: folder, fresh: max(freshness, 5*o.SyncInterval), place: newPlace(), keys: maskingKeys{peers: map[hsm.HSMID]hsm.Info{}}}
	if s.config, err = LoadConfig(folder); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.lock, err = lockPath(filepath.Join(folder, lockFile), folder); err != nil {
		return nil, err
	}
	if err = s.unseal(folder); err != nil {
		return nil, err
	}
	s.device, err = openDevice(ctx, folder, s.config, s.secrets, deviceOptions{
		version: o.Version, sealEnvelope: o.SealEnvelope, iterations: o.Iterations, now: o.Now, log: o.Log, changed: s.place.poke, fs: o.FS, audit: o.Audit,
	})
	if err != nil {
		return nil, err
	}
	if err = s.listen(folder); err != nil {
		return nil, err
	}
	if err = s.announce(ctx); err != nil {
		return nil, err
	}
	return s, s.locate(ctx)
}

func (s *Server) unseal(folder string) error {
	sl, err := s.options.OpenSeal(s.config.Seal, folder)
	if err != nil {
		return err
	}
	s.seal = sl
	if s.secrets, err = openSecrets(folder, sl); err != nil {
		return err
	}
	if got := s.secrets.keyring.Lineage(); got != s.config.Lineage {
		return fmt.Errorf("%w: %s holds the keys of %s, its configuration names %s", hsm.ErrLineage, folder, got, s.config.Lineage)
	}
	return nil
}

// listen makes everything that has to do with the network.
func (s *Server) listen(folder string) error {
	cert, err := s.certificate(folder)
	if err != nil {
		return err
	}
	ca, err := hsm.ReadSmallFile(filepath.Join(folder, caFile))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFolder, err)
	}
	s.tls, err = pki.NewServing(cert, s.secrets.tlsKey, ca, s.config.Cluster, pki.Checks{Revoked: s.revoked, Invite: s.inviteKey})
	if err != nil {
		return fmt.Errorf("%s: %w", folder, err)
	}
	dial := s.dialTLS
	if s.options.Network != nil {
		dial = s.options.Network.Dial
	}
	s.sync = newSyncer(s.config.ID, s.device.self, softLocal{s.device.soft}, dial, s.options.SyncInterval, s.options.Log)
	s.sync.after, s.sync.greeting, s.sync.setBack = s.afterRound, s.greeting, s.setBackBy
	s.sync.keys = s.exchangeKeys
	if s.options.Network != nil {
		return nil
	}
	options := []rpc.ServerOption{rpc.WithLogger(s.options.Log), rpc.WithJoin(s.admit), rpc.WithSettle(s.device.settle)}
	if address := cmp.Or(s.options.Metrics, s.config.Metrics); address != "" {
		observe, err := s.watch(address)
		if err != nil {
			return err
		}
		options = append(options, rpc.WithObserver(observe))
	}
	s.rpc = rpc.NewServer(s.module, s.tls.Config(), options...)
	if s.lis, err = net.Listen("tcp", s.config.listen()); err != nil {
		return fmt.Errorf("%w: %s cannot listen on %s: %w; stop what listens there, or change the address in %s", hsm.ErrUnavailable, s.config.Name, s.config.listen(), err, configFile)
	}
	s.lis = s.traffic.listener(s.lis)
	return nil
}

// announce writes the HSM's own member record where it differs from the
// configuration: the address may have changed while it was down. The others
// learn of it when server-side sync connects to them.
func (s *Server) announce(ctx context.Context) error {
	members, err := s.device.self.Members(ctx)
	if err != nil {
		return err
	}
	// An HSM whose own store does not know of it has not joined yet.
	me := hsm.Member{ID: s.config.ID, Joining: true}
	for _, m := range members {
		if m.ID == me.ID {
			me = m
		}
	}
	was := me
	me.Name, me.Address, me.Zone = s.config.Name, s.advertised(), s.config.Zone
	switch {
	case me.Removed:
		s.sync.farewell(ctx, members)
		return removed(me.ID)
	case me == was:
		return nil
	}
	_, err = s.device.self.Change(ctx, hsm.Change{Kind: hsm.ChangeMember, Member: &me})
	return err
}

// advertised returns the address that others use: the configuration's, with the
// port that a free one turned out to be.
func (s *Server) advertised() string {
	host, port, _ := net.SplitHostPort(s.config.Address) // checked by LoadConfig
	if port != "0" {
		return s.config.Address
	}
	_, port, _ = net.SplitHostPort(s.lis.Addr().String())
	return net.JoinHostPort(host, port)
}

// removed is the error of an HSM that is no member any more.
func removed(id hsm.HSMID) error {
	return removedError{fmt.Errorf("%w: %s was removed from the cluster; invite it again as a new HSM", hsm.ErrDenied, id)}
}

// ErrRemoved: the HSM is a member of its cluster no more, for good. It comes with
// hsm.ErrDenied.
var ErrRemoved = errors.New("removed from the cluster")

// removedError is ErrRemoved beside what it says.
type removedError struct{ error }

func (e removedError) Unwrap() error { return e.error }

func (e removedError) Is(target error) bool { return target == ErrRemoved }

// module maps the identity in a peer's certificate to its rights. A removed
// member keeps a valid certificate and has no more rights than anybody; it can
// still ask for the members, and so learns that it was removed.
func (s *Server) module(id pki.Identity) hsm.Module {
	p := hsm.Principal{Role: hsm.RoleNone, Name: id.Name}
	switch id.Kind {
	case pki.KindAppliance:
		p.Role = hsm.RoleAppliance
	case pki.KindHSM:
		if s.isMember(id) {
			p.Role = hsm.RoleHSM
		}
	case pki.KindJoiner:
		return nil
	}
	return served{Module: s.device.soft.Module(p), server: s}
}

// isMember asks the object store each time: a removal counts at once for new
// sessions. That a removed HSM comes back is said in the log.
func (s *Server) isMember(who pki.Identity) bool {
	id, ok := who.HSM()
	if !ok {
		return false
	}
	members, err := s.device.self.Members(context.Background())
	if err != nil {
		s.options.Log.Error("members", "error", err)
		return false
	}
	i := slices.IndexFunc(members, func(m hsm.Member) bool { return m.ID == id })
	if i >= 0 && members[i].Removed {
		s.options.Log.Warn("removed HSM refused: it came back", "hsm", id.String())
	}
	return i >= 0 && !members[i].Removed
}

// Address returns where the server is reached.
func (s *Server) Address() string { return s.advertised() }

// Config returns the HSM's configuration.
func (s *Server) Config() Config { return *s.config }

// readyTimeout is how long Options.Ready waits for an HSM to catch up with its
// peers.
const readyTimeout = 10 * time.Second

// isReady calls Options.Ready, once.
func (s *Server) isReady() { s.ready.Do(s.options.Ready) }

// Serve serves until the context ends, and then lets calls finish for a moment:
// nil. hsm.ErrDenied when the HSM learns that it was removed from the cluster. It
// is called once.
func (s *Server) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	background.Go(func() { s.keepPlace(ctx) })
	background.Go(func() { s.keepCertificate(ctx) })
	late := time.AfterFunc(readyTimeout, s.isReady)
	defer late.Stop()
	synced := make(chan error, 1)
	go func() {
		synced <- s.sync.run(ctx)
		cancel()
	}()
	served := make(chan error, 1)
	go func() {
		served <- s.serveCalls(ctx)
		cancel()
	}()
	shown := s.show(ctx)
	<-ctx.Done()
	if s.rpc != nil {
		s.rpc.Stop()
	}
	<-shown
	return errors.Join(<-served, <-synced)
}

// Close releases the folder. If the server was opened and not served, it stops
// listening. It is called after Serve has returned, and may be called again.
func (s *Server) Close() error {
	var errs []error
	if s.rpc != nil {
		s.rpc.Stop()
	}
	if s.lis != nil {
		s.lis.Close() // Serve has closed it already, if it was called
	}
	if s.metrics != nil {
		_ = s.metrics.Close() // Serve has closed it already, if it was called
	}
	if s.device != nil {
		errs = append(errs, s.device.close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
		s.lock = nil
	}
	s.secrets.wipe()
	return errors.Join(errs...)
}
