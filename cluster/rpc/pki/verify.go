package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Why a certificate is refused. Every refusal matches one of them with errors.Is.
var (
	// ErrForeign: signed by another authority, so of another lineage.
	ErrForeign = errors.New("foreign certificate")
	// ErrCluster: of the right authority, but of another cluster; of a clone,
	// for example.
	ErrCluster = errors.New("certificate of another cluster")
	// ErrExpired: not valid now.
	ErrExpired = errors.New("certificate is not valid now")
	// ErrKind: carries no identity, or one that may not stand on this side, or
	// not the one that was asked for.
	ErrKind = errors.New("certificate of the wrong kind")
	// ErrRevoked: was revoked by an admin, or its HSM was removed.
	ErrRevoked = errors.New("certificate was revoked")
	// ErrRefused: the other side refused this side's certificate. TLS does not
	// say more; the other side's log does.
	ErrRefused = errors.New("certificate was refused")
)

// verifier checks the certificate of the other side.
type verifier struct {
	cas     []*x509.Certificate
	cluster hsm.ClusterID
	usage   x509.ExtKeyUsage
	hsms    []hsm.HSMID // if any, it must be one of these
	revoked func(id Identity, issued time.Time) error
	now     func() time.Time
}

func (v *verifier) connection(state tls.ConnectionState) error {
	if state.Version < tls.VersionTLS13 {
		return fmt.Errorf("%w: TLS 1.3 is required", ErrRefused)
	}
	if len(state.PeerCertificates) == 0 {
		return fmt.Errorf("%w: the other side showed no certificate", ErrForeign)
	}
	_, err := v.leaf(state.PeerCertificates[0])
	return err
}

// leaf checks one certificate. The order of the checks decides what the user
// reads: whose it is before how old it is.
func (v *verifier) leaf(cert *x509.Certificate) (Identity, error) {
	if !v.signed(cert) {
		return Identity{}, fmt.Errorf("%w: %q is signed by %q, not by this cluster's CA; use a certificate of this cluster", ErrForeign, cert.Subject.CommonName, cert.Issuer.CommonName)
	}
	id, err := IdentityOf(cert)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrKind, err)
	}
	if id.Cluster != v.cluster {
		return Identity{}, fmt.Errorf("%w: %s %s belongs to %s, this is %s", ErrCluster, id.Kind, id.Name, id.Cluster, v.cluster)
	}
	if err := v.times(cert, id); err != nil {
		return Identity{}, err
	}
	if err := v.kind(cert, id); err != nil {
		return Identity{}, err
	}
	if v.revoked != nil {
		if err := v.revoked(id, IssuedAt(cert)); err != nil {
			return Identity{}, err
		}
	}
	return id, v.chain(cert, id)
}

// IssuedAt returns the moment that a certificate counts as issued at.
func IssuedAt(cert *x509.Certificate) time.Time { return cert.NotBefore.Add(backdate) }

func (v *verifier) signed(cert *x509.Certificate) bool {
	return slices.ContainsFunc(v.cas, func(ca *x509.Certificate) bool { return cert.CheckSignatureFrom(ca) == nil })
}

func (v *verifier) times(cert *x509.Certificate, id Identity) error {
	switch now := v.now(); {
	case now.After(cert.NotAfter):
		return fmt.Errorf("%w: that of %s %s expired on %s; %s", ErrExpired, id.Kind, id.Name, cert.NotAfter.UTC().Format(time.RFC3339), remedy(id.Kind))
	case now.Before(cert.NotBefore):
		return fmt.Errorf("%w: that of %s %s begins on %s; check the clocks of both sides", ErrExpired, id.Kind, id.Name, cert.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// remedy says how to get a new certificate.
func remedy(k Kind) string {
	if k == KindHSM {
		return "start that HSM again, or run hsm renew on its folder"
	}
	return "issue a new one with credential issue, with --dir and an HSM's folder if no other certificate is left"
}

func (v *verifier) kind(cert *x509.Certificate, id Identity) error {
	if !slices.Contains(cert.ExtKeyUsage, v.usage) || v.usage == x509.ExtKeyUsageServerAuth && id.Kind != KindHSM {
		return fmt.Errorf("%w: %s %s may not stand on this side", ErrKind, id.Kind, id.Name)
	}
	if len(v.hsms) == 0 {
		return nil
	}
	if got, ok := id.HSM(); !ok || !slices.Contains(v.hsms, got) {
		return fmt.Errorf("%w: %s answered, want %s; the address belongs to another HSM now", ErrKind, id.Name, v.hsms[0])
	}
	return nil
}

// chain is the standard library's whole verification on top: constraints,
// critical extensions, the authority's own validity.
func (v *verifier) chain(cert *x509.Certificate, id Identity) error {
	roots := x509.NewCertPool()
	for _, ca := range v.cas {
		roots.AddCert(ca)
	}
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: v.now(), KeyUsages: []x509.ExtKeyUsage{v.usage}})
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return fmt.Errorf("%w: that of the CA of %s %s expired", ErrExpired, id.Kind, id.Name)
	}
	if err != nil {
		return fmt.Errorf("%w: %s %s: %w", ErrForeign, id.Kind, id.Name, err)
	}
	return nil
}
