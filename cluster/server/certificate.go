package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server/audit"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
)

// Every HSM holds the key of the cluster's authority, and so makes its own
// certificate anew when a third of its life is left, or when it starts with one
// that has expired. The key pair stays. Connections made before go on.

// renewCheck is the longest time between two looks at the certificate.
const renewCheck = time.Hour

// Bounds of the validity of certificates that are asked for.
const (
	minCertificateLife = time.Minute
	maxCertificateLife = 10 * 365 * 24 * time.Hour
)

// certificate reads the HSM's certificate, and renews it first if it is due.
func (s *Server) certificate(folder string) ([]byte, error) {
	cert, err := hsm.ReadSmallFile(filepath.Join(folder, certFile))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFolder, err)
	}
	issued, expires, err := pki.CertificateTimes(cert)
	if err != nil || time.Until(expires) > expires.Sub(issued)/3 {
		return cert, nil // if it does not decode, whoever uses it says so
	}
	renewed, err := renew(folder, s.config, s.secrets)
	if err != nil {
		s.options.Log.Error("the HSM's certificate cannot be renewed", "expires", expires, "error", err)
		return cert, nil
	}
	s.options.Log.Info("the HSM's certificate was renewed", "expired", expires)
	return renewed, nil
}

// renew makes a new certificate for the HSM's key and puts it in place of the one
// before. If we die on the way the one before is there.
func renew(folder string, c *Config, keys *secrets) ([]byte, error) {
	ca, err := pki.ParseAuthority(keys.ca)
	if err != nil {
		return nil, err
	}
	if until := time.Until(ca.Expires()); until < 24*time.Hour {
		return nil, fmt.Errorf("%w: the cluster's authority expires at %s", pki.ErrExpired, ca.Expires().UTC().Format(time.RFC3339))
	}
	cert, err := ca.Renew(keys.tlsKey, pki.HSMIdentity(c.Cluster, c.ID), CertificateLife)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(folder, certFile)
	if err := replaceFile(path, cert, 0o644); err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrFolder, folder, err)
	}
	return cert, nil
}

// keepCertificate renews the certificate while the HSM serves.
func (s *Server) keepCertificate(ctx context.Context) {
	for {
		issued, expires := s.tls.Issued(), s.tls.Expires()
		due := expires.Add(-expires.Sub(issued) / 3)
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(max(time.Until(due), time.Second/10), renewCheck)):
		}
		if time.Now().Before(due) {
			continue
		}
		cert, err := renew(s.folder, s.config, s.secrets)
		if err == nil {
			err = s.tls.Replace(cert)
		}
		s.device.record("renew-certificate", s.device.principal(), 0, "", err)
		if err == nil {
			s.options.Log.Info("the HSM's certificate was renewed", "expires", s.tls.Expires())
			continue
		}
		s.options.Log.Error("the HSM's certificate cannot be renewed", "expires", expires, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(renewCheck):
		}
	}
}

// certificateNotice says when a certificate is about to expire that should have
// been renewed long ago.
func (s *Server) certificateNotice() string {
	issued, expires := s.tls.Issued(), s.tls.Expires()
	if left := time.Until(expires); left > expires.Sub(issued)/6 {
		return ""
	}
	return "its certificate expires at " + expires.UTC().Format(time.RFC3339) + " and cannot be renewed; see its log"
}

// Issue implements rpc.Issuer: an admin has a certificate made for an appliance or
// a client, which keeps its key to itself.
func (s servedSession) Issue(ctx context.Context, kind pki.Kind, name string, request []byte, validity time.Duration) (cert []byte, err error) {
	who := s.Principal()
	defer func() {
		s.server.device.record("issue-certificate", who, 0, fmt.Sprintf("%s %s for %s", kind, name, validity), err)
	}()
	if who.Role != hsm.RoleAdmin {
		return nil, fmt.Errorf("%w: only an admin has certificates issued", hsm.ErrDenied)
	}
	if err := errors.Join(s.server.serves(), s.server.recordable()); err != nil {
		return nil, err
	}
	id := pki.Identity{Cluster: s.server.config.Cluster, Kind: kind, Name: name}
	if err := checkIssue(id, validity); err != nil {
		return nil, err
	}
	ca, err := pki.ParseAuthority(s.server.secrets.ca)
	if err != nil {
		return nil, err
	}
	if err := afterRevocations(ctx, s.server.place.now.Load().revoked[string(kind)+"/"+name]); err != nil {
		return nil, err
	}
	return ca.IssueFor(request, id, validity)
}

// afterRevocations waits until a certificate issued now counts as issued after
// until: certificates count whole seconds.
func afterRevocations(ctx context.Context, until time.Time) error {
	next := until.Truncate(time.Second).Add(time.Second)
	select {
	case <-time.After(time.Until(next)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func checkIssue(id pki.Identity, validity time.Duration) error {
	if id.Kind != pki.KindAppliance && id.Kind != pki.KindClient {
		return fmt.Errorf("%w: certificate of kind %q: want %s or %s; an HSM gets its own when it joins", hsm.ErrInvalid, id.Kind, pki.KindAppliance, pki.KindClient)
	}
	if validity < minCertificateLife || validity > maxCertificateLife {
		return fmt.Errorf("%w: certificate for %s: want %s to %s", hsm.ErrInvalid, validity, minCertificateLife, maxCertificateLife)
	}
	return id.Check()
}

// Folder is the HSM of a folder that nobody serves, for its operator.
type Folder struct {
	folder string
	config *Config
	lock   *os.File
	keys   *secrets
}

// OpenFolder opens a folder's seal. ErrFolder if it is no HSM's or is being
// served; seal.ErrSeal. The caller closes it.
func OpenFolder(folder string, openSeal func(kind, folder string) (seal.Seal, error)) (_ *Folder, err error) {
	f := &Folder{folder: folder}
	if f.config, err = LoadConfig(folder); err != nil {
		return nil, err
	}
	if f.lock, err = lockPath(filepath.Join(folder, lockFile), folder); err != nil {
		return nil, err
	}
	sl, err := openSeal(f.config.Seal, folder)
	if err == nil {
		f.keys, err = openSecrets(folder, sl)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Close forgets the keys.
func (f *Folder) Close() error {
	f.keys.wipe()
	return f.lock.Close()
}

// Config returns the HSM's configuration.
func (f *Folder) Config() Config { return *f.config }

// Renew makes the HSM's certificate anew, and returns when it expires.
func (f *Folder) Renew() (expires time.Time, err error) {
	defer func() { err = errors.Join(err, f.record("renew-certificate", "", err)) }()
	cert, err := renew(f.folder, f.config, f.keys)
	if err != nil {
		return time.Time{}, err
	}
	_, expires, err = pki.CertificateTimes(cert)
	return expires, err
}

// Issue makes an identity file for an appliance or a client, where no certificate
// is left to ask a running HSM with. With replace it takes the place of another.
func (f *Folder) Issue(kind, name string, validity time.Duration, path string, replace bool) (expires time.Time, err error) {
	defer func() {
		err = errors.Join(err, f.record("issue-certificate", fmt.Sprintf("%s %s for %s", kind, name, validity), err))
	}()
	id := pki.Identity{Cluster: f.config.Cluster, Kind: pki.Kind(kind), Name: name}
	if err := checkIssue(id, validity); err != nil {
		return time.Time{}, err
	}
	ca, err := pki.ParseAuthority(f.keys.ca)
	if err != nil {
		return time.Time{}, err
	}
	// What was revoked until now, the folder may not know.
	if err := afterRevocations(context.Background(), time.Now()); err != nil {
		return time.Time{}, err
	}
	cert, key, err := ca.Issue(id, validity)
	if err != nil {
		return time.Time{}, err
	}
	defer key.Wipe()
	if err := pki.SaveIdentityFile(path, cert, key, ca.CertPEM(), replace); err != nil {
		return time.Time{}, err
	}
	_, expires, err = pki.CertificateTimes(cert)
	return expires, err
}

func (f *Folder) record(event, detail string, outcome error) error {
	log, err := audit.Open(filepath.Join(f.folder, AuditFile), time.Now)
	if err != nil {
		return err
	}
	e := audit.Entry{Event: event, Role: string(hsm.RoleHSM), Name: f.config.ID.String(), Detail: detail}
	if outcome != nil {
		e.Result = outcome.Error()
	}
	return errors.Join(log.Append(e), log.Close())
}
