package cluster

import (
	"context"
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// remoteDialer connects over mutual TLS, with the credential's identity or else
// the profile's client identity. Only the profile's own CA is trusted, and an HSM
// must prove the id that the member list gives it.
func remoteDialer(p *profile.Profile, cred Credential) (Dialer, error) {
	path := cred.Identity
	if path == "" {
		path = p.ClientPath()
	}
	if path == "" {
		return nil, fmt.Errorf("%w: profile %s names no client identity", hsm.ErrInvalid, p.Path())
	}
	file := &identityFile{path: path, profile: p}
	id, err := file.load()
	if err != nil {
		return nil, err
	}
	// A certificate that has expired is found before any HSM is asked.
	if _, err := pki.ClientConfig(id.Cert, id.Key, []byte(p.CA), p.ID); err != nil {
		return nil, fmt.Errorf("identity file %s: %w", path, err)
	}
	return func(ctx context.Context, m hsm.Member) (hsm.Module, error) {
		id, err := file.load()
		if err != nil {
			return nil, err
		}
		var ids []hsm.HSMID
		if m.ID != 0 {
			ids = append(ids, m.ID)
		}
		config, err := pki.ClientConfig(id.Cert, id.Key, []byte(p.CA), p.ID, ids...)
		if err != nil {
			return nil, err
		}
		return rpc.Dial(ctx, m.Address, config)
	}, nil
}
