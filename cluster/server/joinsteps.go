package server

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
)

// ask asks the token's HSMs in turn until one lets this one in, or refuses it for
// a reason that all others would have too.
func (j *joiner) ask(ctx context.Context) (rpc.JoinReply, error) {
	join, err := j.way()
	if err != nil {
		return rpc.JoinReply{}, err
	}
	transport, err := seal.ParseTransport(hsm.NewSecret(j.pending.Transport))
	if err != nil {
		return rpc.JoinReply{}, err
	}
	request := rpc.JoinRequest{
		Joiner: j.pending.Joiner, Request: j.pending.Request, Recipient: transport.Recipient(),
		Name: j.spec.Name, Address: j.pending.Address, Zone: j.spec.Zone,
	}
	var errs []error
	for _, address := range j.token.Addresses {
		reply, err := join(ctx, address, request)
		switch {
		case err == nil:
			return reply, nil
		case errors.Is(err, pki.ErrRefused):
			err = fmt.Errorf("%w: HSM at %s does not know this token: it is not of this cluster, or not there yet", hsm.ErrUnavailable, address)
		case errors.Is(err, hsm.ErrDenied):
			return rpc.JoinReply{}, fmt.Errorf("%w: %w", ErrTokenRefused, err)
		case !errors.Is(err, hsm.ErrUnavailable):
			return rpc.JoinReply{}, err
		}
		j.spec.Log.Warn("not let in there", "address", address, "error", err)
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return rpc.JoinReply{}, fmt.Errorf("%w: no HSM that it names lets this one in: %w", ErrToken, errors.Join(errs...))
}

// way is how the joiner reaches an HSM to be let in.
func (j *joiner) way() (func(context.Context, string, rpc.JoinRequest) (rpc.JoinReply, error), error) {
	if j.spec.Network != nil {
		return j.spec.Network.Join, nil
	}
	tlsConfig, err := pki.JoinConfig(j.token)
	return func(ctx context.Context, address string, r rpc.JoinRequest) (rpc.JoinReply, error) {
		return rpc.Join(ctx, address, tlsConfig, r)
	}, err
}

// accept checks all that the HSM has sent before any of it is used.
func (j *joiner) accept(r rpc.JoinReply) (*secrets, error) {
	if err := j.token.CheckCA(r.CA); err != nil {
		return nil, err
	}
	tlsKey := hsm.NewSecret(slices.Clone(j.pending.TLSKey))
	if _, err := pki.ServerConfig(r.Certificate, tlsKey, r.CA, j.token.Cluster); err != nil {
		return nil, fmt.Errorf("the certificate that the cluster gave: %w", err)
	}
	transport, err := seal.ParseTransport(hsm.NewSecret(j.pending.Transport))
	if err != nil {
		return nil, err
	}
	plain, err := transport.Open(r.Sealed)
	if err != nil {
		return nil, fmt.Errorf("the keys that the cluster gave: %w", err)
	}
	defer plain.Wipe()
	keyring, ca, err := hsm.DecodeRecovery(plain)
	if err != nil {
		return nil, err
	}
	if keyring.Lineage() != r.Lineage || r.Cluster != j.token.Cluster {
		return nil, fmt.Errorf("%w: the keys that the cluster gave are not its own", hsm.ErrLineage)
	}
	authority, err := pki.ParseAuthority(ca)
	if err != nil {
		return nil, err
	}
	return &secrets{keyring: keyring, ca: ca, tlsKey: tlsKey}, j.token.CheckCA(authority.CertPEM())
}

// write makes everything in the HSM's folder except its object store and audit
// log.
func (j *joiner) write(r rpc.JoinReply, keys *secrets) error {
	i := slices.IndexFunc(r.Members, func(m hsm.Member) bool { return m.ID == j.pending.Joiner })
	if i < 0 {
		return fmt.Errorf("%w: the cluster does not list this HSM", hsm.ErrInvalid)
	}
	me := r.Members[i]
	j.config = &Config{
		ID: me.ID, Name: me.Name, Cluster: r.Cluster, ClusterName: r.ClusterName, Lineage: r.Lineage, Region: r.Region,
		Zone: me.Zone, Address: me.Address, Listen: j.spec.Listen, Seal: j.seal.Kind(),
	}
	if err := j.config.check(); err != nil {
		return err
	}
	sealed, err := closeSecrets(j.seal, keys.keyring, keys.ca, keys.tlsKey)
	if err != nil {
		return err
	}
	return errors.Join(
		writeFile(filepath.Join(j.staging, sealedFile), sealed, 0o600),
		writeFile(filepath.Join(j.staging, certFile), r.Certificate, 0o644),
		writeFile(filepath.Join(j.staging, caFile), r.CA, 0o644),
		j.config.save(j.staging))
}

// fill makes the object store and copies what the cluster holds into it. What
// is added meanwhile, and what other HSMs have, the HSM fetches when it is served,
// before it counts.
func (j *joiner) fill(ctx context.Context, r rpc.JoinReply, keys *secrets) (err error) {
	d, err := openDevice(ctx, j.staging, j.config, keys, deviceOptions{create: true, version: j.spec.Version, now: j.spec.Now, log: j.spec.Log, fs: j.spec.FS, audit: j.spec.Audit})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	d.record("join-cluster", d.principal(), 0, fmt.Sprintf("%s %s", r.ClusterName, r.Cluster), nil)
	var errs []error
	for _, m := range r.Members {
		if !m.Counts() {
			continue
		}
		if err = j.fillFrom(ctx, d, func() (hsm.Module, error) { return j.dial(ctx, m, r, keys) }); err == nil {
			return nil
		}
		j.spec.Log.Warn("not copied from there", "address", m.Address, "error", err)
		errs = append(errs, err)
	}
	return fmt.Errorf("copy the cluster's objects: %w", errors.Join(errs...))
}

// dial reaches a member with the certificate that the cluster gave.
func (j *joiner) dial(ctx context.Context, m hsm.Member, r rpc.JoinReply, keys *secrets) (hsm.Module, error) {
	if j.spec.Network != nil {
		return j.spec.Network.Dial(ctx, m)
	}
	tlsConfig, err := pki.ClientConfig(r.Certificate, keys.tlsKey, r.CA, r.Cluster, m.ID)
	if err != nil {
		return nil, err
	}
	return rpc.Dial(ctx, m.Address, tlsConfig)
}

func (j *joiner) fillFrom(ctx context.Context, d *device, dial func() (hsm.Module, error)) (err error) {
	module, err := dial()
	if err != nil {
		return err
	}
	defer module.Close()
	session, err := module.Session(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, session.Close()) }()
	for _, scope := range []hsm.Scope{hsm.ScopeCluster, hsm.ScopeLineage} {
		if _, err := reconcile.Sync(ctx, session.Scoped(scope), d.self.Scoped(scope)); err != nil {
			return err
		}
	}
	return nil
}
