package server

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
	"github.com/hsmbackup/hsmbackup/cluster/metrics"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// set shows one value of a metric that was described.
type set = func(name string, value float64, labels ...string)

// watch listens for those who ask how the HSM fares, and returns what is to be
// told of every call.
func (s *Server) watch(address string) (rpc.Observer, error) {
	all := metrics.NewRegistry(s.options.Version)
	r := all.With(map[string]string{"cluster": s.config.Cluster.String(), "hsm": s.config.ID.String()})
	r.Gauge("hsmbackup_hsm_info", "Always 1; the labels tell which HSM this is.", "name", "cluster_name", "region", "zone").
		Set(1, s.config.Name, s.config.ClusterName, s.config.Region, s.config.Zone)
	r.Collect(hsmDescs, func(set set) { showHSM(set, s.device.self, s.device.soft) })
	r.Collect(trafficDescs, s.traffic.show)
	r.Collect(syncDescs, func(set set) { s.sync.show(set) })
	r.Collect(auditDescs, func(set set) { showAudit(set, s.device.audit) })
	r.Collect(certificateDescs, func(set set) { showCertificates(set, s.folder) })
	calls := r.Counter("hsmbackup_operations_total", "Calls that have ended, by operation and outcome.", "operation", "code")
	took := r.Histogram("hsmbackup_operation_seconds", "How long calls took inside the HSM.", metrics.LatencyBuckets(), "operation")
	var err error
	s.metrics, err = metrics.Listen(address, all, s.checks()...)
	return func(operation string, d time.Duration, code string) {
		calls.Add(1, operation, code)
		took.Observe(d.Seconds(), operation)
	}, err
}

// MetricsAddress returns where metrics are shown, empty if nowhere.
func (s *Server) MetricsAddress() string {
	if s.metrics == nil {
		return ""
	}
	return s.metrics.Address()
}

// show serves the metrics until ctx ends; done is closed then. That nobody can
// watch the HSM any more does not stop it.
func (s *Server) show(ctx context.Context) (done chan struct{}) {
	done = make(chan struct{})
	if s.metrics == nil {
		close(done)
		return done
	}
	log := s.options.Log.With("hsm", s.config.ID.String(), "address", s.metrics.Address())
	if s.metrics.Local() {
		log.Info("metrics are shown on this machine")
	} else {
		log.Warn("metrics are shown to everybody who reaches the address; there is no login")
	}
	go func() {
		defer close(done)
		if err := s.metrics.Serve(ctx); err != nil {
			log.Error("metrics are not shown any more", "error", err)
		}
	}()
	return done
}

// freshness is how long ago an HSM may have heard from another one and count as
// in sync; at least five rounds.
const freshness = 10 * time.Second

// checks are the conditions for this HSM to be worth calling.
func (s *Server) checks() []metrics.Check {
	return []metrics.Check{
		{Name: "store", Run: s.storeServes},
		{Name: "member", Run: s.isJoined},
		{Name: "state", Run: func(context.Context) error { return s.servesAll() }},
		{Name: "audit", Run: func(context.Context) error { return s.device.audit.Ready() }},
		{Name: "sync", Run: s.inSync},
		{Name: "clock", Run: func(context.Context) error { return s.sync.clockServes() }},
	}
}

// servesAll refuses every state but that of an HSM that does all there is to do.
func (s *Server) servesAll() error {
	if state := s.phase(); state != hsm.StateActive {
		return s.notNow(state)
	}
	return nil
}

func (s *Server) storeServes(ctx context.Context) error {
	info, err := s.device.self.Info(ctx)
	if err == nil && info.State != "ACTIVE" {
		err = fmt.Errorf("%w: the object store is %s; see the log of this HSM", hsm.ErrUnavailable, info.State)
	}
	return err
}

func (s *Server) isJoined(ctx context.Context) error {
	members, err := s.device.self.Members(ctx)
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.ID == s.config.ID {
			if m.Removed {
				return removed(m.ID)
			}
			return nil
		}
	}
	return fmt.Errorf("%w: %s is not a member of its cluster", hsm.ErrDenied, s.config.ID)
}

// inSync asks for one peer, not for all: an HSM that is down must not make all
// others look so.
func (s *Server) inSync(context.Context) error {
	if s.sync.lately(s.fresh) {
		return nil
	}
	err := fmt.Errorf("%w: no round of sync with any other HSM has ended well for %s", hsm.ErrUnavailable, s.fresh)
	if why := s.sync.whyNot(); why != "" {
		err = fmt.Errorf("%w: %s", err, why)
	}
	return err
}

var hsmDescs = []metrics.Desc{
	{Name: "hsm_unhealthy", Help: "1 if the object store is broken and this HSM has to be replaced or started again."},
	{Name: "hsm_keys_token_occupied", Help: "Token keys."},
	{Name: "hsm_keys_session_occupied", Help: "Session keys, of all sessions."},
	{Name: "hsm_session_count", Help: "Open sessions, those of other HSMs included."},
	{Name: "hsm_users_available", Help: "Users that fit beside those there are."},
	{Name: "hsm_users_max", Help: "Users that a cluster is made for."},
	{Name: "hsmbackup_objects", Help: "Keys, users, settings and tombstones."},
	{Name: "hsmbackup_min_copies", Help: "HSMs that must hold a key, as the cluster's policy says."},
	{Name: "hsmbackup_operations_provisional", Help: "Creations that are prepared and not settled."},
	{Name: "hsmbackup_operations_in_doubt", Help: "Creations past their lease whose outcome the other HSMs have to tell."},
}

// informer describes an HSM.
type informer interface {
	Info(ctx context.Context) (hsm.Info, error)
}

// counter counts what an HSM holds.
type counter interface{ Counts() soft.Counts }

// maxUsers is the number of users of a CloudHSM cluster (cloudhsm.md §2.6).
const maxUsers = 1024

func showHSM(set set, i informer, c counter) {
	n := c.Counts()
	set("hsm_keys_session_occupied", float64(n.SessionKeys))
	set("hsm_session_count", float64(n.Sessions))
	set("hsm_users_available", float64(max(maxUsers-n.Users, 0)))
	set("hsm_users_max", maxUsers)
	set("hsmbackup_operations_provisional", float64(n.Provisional))
	info, err := i.Info(context.Background())
	set("hsm_unhealthy", truth(err != nil || info.State != "ACTIVE"))
	if err != nil {
		return
	}
	set("hsm_keys_token_occupied", float64(info.Keys))
	set("hsmbackup_objects", float64(info.Root.Count+info.ClusterRoot.Count))
	set("hsmbackup_min_copies", float64(info.Settings.MinCopies))
	set("hsmbackup_operations_in_doubt", float64(info.InDoubt))
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

var trafficDescs = []metrics.Desc{
	{Name: "hsm_ssl_ctxs_occupied", Help: "TLS connections of clients and other HSMs that are open."},
	{Name: "hsm_interface_octets_input_total", Help: "Bytes received from clients and other HSMs.", Counter: true},
	{Name: "hsm_interface_octets_output_total", Help: "Bytes sent to clients and other HSMs.", Counter: true},
}

func (t *traffic) show(set set) {
	set("hsm_ssl_ctxs_occupied", float64(t.accepted.Load()))
	set("hsm_interface_octets_input_total", float64(t.in.Load()))
	set("hsm_interface_octets_output_total", float64(t.out.Load()))
}

var auditDescs = []metrics.Desc{
	{Name: "hsmbackup_audit_entries_total", Help: "Entries of the audit log, since its beginning.", Counter: true},
	{Name: "hsmbackup_audit_lost_total", Help: "Entries that could not be written, since the HSM was started.", Counter: true},
	{Name: "hsmbackup_audit_writable", Help: "0 while the audit log cannot be written: the HSM takes no changes then."},
}

// recorder is an audit log.
type recorder interface {
	Head() (entries uint64, hash string)
	Lost() uint64
	Ready() error
}

func showAudit(set set, a recorder) {
	entries, _ := a.Head()
	set("hsmbackup_audit_entries_total", float64(entries))
	set("hsmbackup_audit_lost_total", float64(a.Lost()))
	set("hsmbackup_audit_writable", truth(a.Ready() == nil))
}

var certificateDescs = []metrics.Desc{
	{Name: "hsmbackup_certificate_expiry_timestamp_seconds", Help: "When the first certificate in the file expires, in Unix time.", Labels: []string{"certificate"}},
}

// showCertificates reads the files each time: they are renewed while the HSM
// runs.
func showCertificates(set set, folder string) {
	for label, file := range map[string]string{"hsm": certFile, "ca": caFile} {
		b, err := hsm.ReadSmallFile(filepath.Join(folder, file))
		if err != nil {
			continue // what is not shown raises the alarm
		}
		if at, err := pki.NotAfter(b); err == nil {
			set("hsmbackup_certificate_expiry_timestamp_seconds", float64(at.Unix()), label)
		}
	}
}

var syncDescs = []metrics.Desc{
	{Name: "hsmbackup_keys_under_replicated", Help: "Objects of this HSM that are not known to be on some other one: the most that one of them lacks."},
	{Name: "hsmbackup_keys_under_replicated_oldest_seconds", Help: "For how long the first of them has not been; 0 if there are none."},
	{Name: "hsmbackup_sync_lag_seconds", Help: "Time since this HSM had everything that all others had."},
	{Name: "hsmbackup_sync_peer_lag_seconds", Help: "Time since the last round of sync with a peer.", Labels: []string{"peer"}},
	{Name: "hsmbackup_sync_peer_keys_missing", Help: "Objects of this HSM that are not known to be on a peer.", Labels: []string{"peer"}},
	{Name: "hsmbackup_sync_rounds_total", Help: "Rounds of sync with a peer: the roots were equal, what differed was pulled, or it failed.", Counter: true, Labels: []string{"peer", "result"}},
	{Name: "hsmbackup_sync_objects_total", Help: "Objects that sync brought from a peer.", Counter: true, Labels: []string{"peer", "result"}},
	{Name: "hsmbackup_clock_ahead_seconds", Help: "How far this HSM's clock is ahead of the middle of its own and its peers'; negative: behind. Above 300 the others refuse what it makes, below -300 it refuses what they make."},
	{Name: "hsmbackup_sync_bytes_total", Help: "Bytes that reconciling with a peer took: of sketches, and of masked objects.", Counter: true, Labels: []string{"peer", "part"}},
}

func (s *syncer) show(set set) {
	info, err := s.session.Info(context.Background())
	if err != nil {
		return
	}
	if at := s.lastSync(); !at.IsZero() {
		set("hsmbackup_sync_lag_seconds", time.Since(at).Seconds())
	}
	set("hsmbackup_clock_ahead_seconds", s.clockOffset().Seconds())
	most, oldest := 0, time.Duration(0)
	for id, p := range s.watched() {
		n, since := p.missing(info.Root.Count)
		most = max(most, n)
		if !since.IsZero() {
			oldest = max(oldest, time.Since(since))
		}
		set("hsmbackup_sync_peer_keys_missing", float64(n), id.String())
		p.show(set, id.String())
	}
	set("hsmbackup_keys_under_replicated", float64(most))
	set("hsmbackup_keys_under_replicated_oldest_seconds", oldest.Seconds())
}

func (p *progress) show(set set, peer string) {
	n := p.numbers()
	if !n.synced.IsZero() {
		set("hsmbackup_sync_peer_lag_seconds", time.Since(n.synced).Seconds(), peer)
	}
	set("hsmbackup_sync_rounds_total", float64(n.equal), peer, "equal")
	set("hsmbackup_sync_rounds_total", float64(n.pulls), peer, "pulled")
	set("hsmbackup_sync_rounds_total", float64(n.failures), peer, "failed")
	set("hsmbackup_sync_objects_total", float64(n.added), peer, "added")
	set("hsmbackup_sync_objects_total", float64(n.changed), peer, "changed")
	set("hsmbackup_sync_objects_total", float64(n.conflicts), peer, "conflict")
	set("hsmbackup_sync_bytes_total", float64(n.sketchBytes), peer, "sketch")
	set("hsmbackup_sync_bytes_total", float64(n.objectBytes), peer, "objects")
}
