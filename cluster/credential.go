package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// Why a certificate is refused.
var (
	ErrExpired = pki.ErrExpired
	ErrRevoked = pki.ErrRevoked
)

// IssueIdentity makes an identity file, with a key of its own that stays here, for
// an appliance or a client called name: an admin. With replace it takes the place
// of another; otherwise that is fs.ErrExist. The file appears whole or not at all.
func (c *Cluster) IssueIdentity(ctx context.Context, kind, name string, validity time.Duration, path string, replace bool) (expires time.Time, err error) {
	request, key, err := pki.NewRequest()
	if err != nil {
		return time.Time{}, err
	}
	defer key.Wipe()
	cert, err := anyHSM(ctx, c, func(ctx context.Context, s hsm.Session) ([]byte, error) {
		issuer, ok := s.(rpc.Issuer)
		if !ok {
			return nil, fmt.Errorf("%w: this HSM issues no certificates", hsm.ErrDenied)
		}
		return issuer.Issue(ctx, pki.Kind(kind), name, request, validity)
	})
	if err != nil {
		return time.Time{}, err
	}
	if err := pki.SaveIdentityFile(path, cert, key, []byte(c.profile.CA), replace); err != nil {
		return time.Time{}, err
	}
	_, expires, err = pki.CertificateTimes(cert)
	return expires, err
}

// RevokeIdentity ends all certificates of this kind and name that were issued until
// now: an admin. They are refused at once by every HSM that learns of it, and their
// connections end; new ones may be issued under the name.
func (c *Cluster) RevokeIdentity(ctx context.Context, kind, name string) (*Changed, error) {
	id := pki.Identity{Cluster: c.profile.ID, Kind: pki.Kind(kind), Name: name}
	if err := id.Check(); err != nil {
		return nil, err
	}
	if id.Kind != pki.KindAppliance && id.Kind != pki.KindClient {
		return nil, fmt.Errorf("%w: certificate of kind %q: want appliance or client; an HSM is removed with hsm remove", hsm.ErrInvalid, kind)
	}
	return c.Change(ctx, hsm.Change{Kind: hsm.ChangeRevoke, Revoked: &hsm.Revocation{Kind: kind, Name: name, Until: time.Now()}})
}

// identityFile is an identity file that may be replaced while it is in use: each
// connection is made with what it holds then.
type identityFile struct {
	path    string
	profile *profile.Profile

	mu   sync.Mutex
	last *pki.Credential
}

// load reads the file; if that fails, what it held before serves on.
func (f *identityFile) load() (*pki.Credential, error) {
	id, err := pki.LoadIdentityFile(f.path)
	if err == nil && id.Identity.Cluster != f.profile.ID {
		err = fmt.Errorf("%w: identity %s is of %s, the profile of %s", hsm.ErrDenied, f.path, id.Identity.Cluster, f.profile.ID)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.last = id
	}
	if f.last != nil {
		return f.last, nil
	}
	return nil, err
}
