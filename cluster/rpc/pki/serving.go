package pki

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Serving is the TLS identity of an HSM while it serves. The certificate can be
// replaced at any time: connections made afterwards use the new one. It is safe
// for concurrent use.
type Serving struct {
	key     hsm.Secret
	ca      []byte
	cluster hsm.ClusterID
	checks  Checks
	now     atomic.Pointer[servingNow]
}

// servingNow is what a certificate makes.
type servingNow struct {
	cert     []byte
	leaf     *x509.Certificate
	ordinary *tls.Config
	join     *tls.Config // nil: nobody joins here
}

// Checks are what only the HSM knows. Both are called during handshakes.
type Checks struct {
	// Revoked refuses a certificate; nil accepts all that verify.
	Revoked func(id Identity, issued time.Time) error
	// Invite returns the Ed25519 public key of an invitation; nil lets nobody join.
	Invite func(name string) (key [32]byte, err error)
}

// NewServing makes the identity, and refuses what ServerConfig refuses.
func NewServing(certPEM []byte, keyPEM hsm.Secret, caPEM []byte, cluster hsm.ClusterID, checks Checks) (*Serving, error) {
	s := &Serving{key: keyPEM, ca: caPEM, cluster: cluster, checks: checks}
	return s, s.Replace(certPEM)
}

// Replace takes another certificate for the same key into use. On an error the
// one before stays.
func (s *Serving) Replace(certPEM []byte) error {
	ordinary, v, err := newConfig(certPEM, s.key, s.ca, s.cluster, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return err
	}
	v.usage, v.revoked = x509.ExtKeyUsageClientAuth, s.checks.Revoked
	ordinary.ClientAuth, ordinary.NextProtos = tls.RequireAnyClientCert, protocols()
	next := &servingNow{cert: bytes.Clone(certPEM), leaf: ordinary.Certificates[0].Leaf, ordinary: ordinary}
	if s.checks.Invite != nil {
		next.join = ordinary.Clone()
		pair := ordinary.Certificates[0]
		pair.Certificate = slices.Clone(pair.Certificate)
		for _, ca := range v.cas { // a joiner knows the authority's fingerprint only
			pair.Certificate = append(pair.Certificate, ca.Raw)
		}
		next.join.Certificates, next.join.VerifyConnection = []tls.Certificate{pair}, s.joiner
		next.join.NextProtos = []string{"h2"} // joiners have no sessions to make calls in
	}
	s.now.Store(next)
	return nil
}

// Config is the TLS configuration of the server. Joiners, who say so in the
// handshake, are checked against the key of their invitation, and everybody else
// against the authority: neither passes for the other.
func (s *Serving) Config() *tls.Config {
	cfg := s.now.Load().ordinary.Clone()
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		now := s.now.Load()
		if hello.ServerName == joinName && now.join != nil {
			return now.join, nil
		}
		return now.ordinary, nil
	}
	return cfg
}

// Client is the configuration of a call to another HSM (ClientConfig).
func (s *Serving) Client(ids ...hsm.HSMID) (*tls.Config, error) {
	return ClientConfig(s.now.Load().cert, s.key, s.ca, s.cluster, ids...)
}

// Expires returns when the certificate does, Issued when it was made.
func (s *Serving) Expires() time.Time { return s.now.Load().leaf.NotAfter }

// Issued returns when the certificate was made.
func (s *Serving) Issued() time.Time { return IssuedAt(s.now.Load().leaf) }

// joinName is the server name that joiners ask for. It is no host's.
const joinName = "join.hsmbackup.invalid"

// joiner verifies a joiner: its certificate is that of an invitation this HSM
// knows. TLS 1.3 has verified that it holds the private key, which is the token.
func (s *Serving) joiner(state tls.ConnectionState) error {
	id, err := PeerIdentity(state)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrKind, err)
	case state.Version < tls.VersionTLS13:
		return fmt.Errorf("%w: TLS 1.3 is required", ErrRefused)
	case id.Kind != KindJoiner:
		return fmt.Errorf("%w: %s %s does not join", ErrKind, id.Kind, id.Name)
	case id.Cluster != s.cluster:
		return fmt.Errorf("%w: the token is for %s, this is %s", ErrCluster, id.Cluster, s.cluster)
	}
	want, err := s.checks.Invite(id.Name)
	if err != nil {
		return err
	}
	got, ok := state.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok || subtle.ConstantTimeCompare(got, want[:]) != 1 {
		return fmt.Errorf("%w: the key is not that of invitation %s", ErrForeign, id.Name)
	}
	return nil
}

// CAFingerprint is the SHA-256 of an authority's certificate, which pins it.
func CAFingerprint(caPEM []byte) ([32]byte, error) {
	cas, err := parseCAs(caPEM)
	if err != nil {
		return [32]byte{}, err
	}
	return sha256.Sum256(cas[0].Raw), nil
}

// JoinConfig is the TLS configuration with which the holder of a token joins. The
// HSM must show a certificate of the token's cluster, signed by the authority
// that the token pins: nobody in between can pass for it, and nothing of the
// token's secret is ever sent.
func JoinConfig(t *Token) (*tls.Config, error) {
	key := ed25519.NewKeyFromSeed(t.Seed.Reveal())
	id := Identity{Cluster: t.Cluster, Kind: KindJoiner, Name: t.Invite.String()}
	template := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: id.Name}, URIs: []*url.URL{id.uri()},
		NotBefore: time.Unix(0, 0), NotAfter: t.notAfter(), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usages(KindJoiner),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("certificate of a joiner: %w", err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13,
		SessionTicketsDisabled: true, ServerName: joinName, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, // of host names; VerifyConnection verifies the chain and the identity
		VerifyConnection:   t.verify,
	}, nil
}

// verify checks the HSM that answers: what it shows beside its own certificate
// must be the authority that the token pins.
func (t *Token) verify(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return fmt.Errorf("%w: the other side showed no certificate", ErrForeign)
	}
	for _, ca := range state.PeerCertificates[1:] {
		if ca.IsCA && sha256.Sum256(ca.Raw) == t.CA {
			v := &verifier{cas: []*x509.Certificate{ca}, cluster: t.Cluster, usage: x509.ExtKeyUsageServerAuth, now: time.Now}
			return v.connection(state)
		}
	}
	return fmt.Errorf("%w: who answers there is not of the cluster that the token is for", ErrForeign)
}

// CheckCA checks that a certificate is that of the authority which the token pins.
func (t *Token) CheckCA(caPEM []byte) error {
	for rest := caPEM; ; {
		block, more := pem.Decode(rest)
		if block == nil {
			return fmt.Errorf("%w: the CA certificate is not the one that the token is for", ErrForeign)
		}
		if sha256.Sum256(block.Bytes) == t.CA {
			return nil
		}
		rest = more
	}
}

// CertificateTimes reads when the first certificate in PEM was issued and when it
// expires.
func CertificateTimes(certPEM []byte) (issued, expires time.Time, err error) {
	b, err := readBlocks(certPEM)
	if err != nil || len(b.certs) == 0 {
		return issued, expires, fmt.Errorf("%w: want a certificate in PEM", hsm.ErrInvalid)
	}
	return IssuedAt(b.certs[0]), b.certs[0].NotAfter, nil
}
