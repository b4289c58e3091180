package pki

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// CallsProtocol is the ALPN name of connections for the calls of a session. An HSM that
// does not know it speaks gRPC on all.
const CallsProtocol = "hsmbackup-calls/1"

// protocols are those an HSM speaks. Who offers it both wants the first.
func protocols() []string { return []string{CallsProtocol, "h2"} }

// ServerConfig is the TLS configuration of an HSM that serves cluster: TLS 1.3,
// and every caller shows a certificate of the same cluster. caPEM may hold
// several authorities, while one replaces another. The HSM's own certificate
// is checked too, so that a wrong or expired file is found at the start.
func ServerConfig(certPEM []byte, keyPEM hsm.Secret, caPEM []byte, cluster hsm.ClusterID) (*tls.Config, error) {
	cfg, v, err := newConfig(certPEM, keyPEM, caPEM, cluster, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return nil, err
	}
	v.usage = x509.ExtKeyUsageClientAuth
	cfg.ClientAuth = tls.RequireAnyClientCert // VerifyConnection decides
	cfg.NextProtos = protocols()
	return cfg, nil
}

// ClientConfig is the TLS configuration of a caller of cluster's HSMs: TLS 1.3,
// and the server proves that it is an HSM of that cluster; if ids are given,
// one of these. Addresses play no part in it.
func ClientConfig(certPEM []byte, keyPEM hsm.Secret, caPEM []byte, cluster hsm.ClusterID, ids ...hsm.HSMID) (*tls.Config, error) {
	cfg, v, err := newConfig(certPEM, keyPEM, caPEM, cluster, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	v.usage, v.hsms = x509.ExtKeyUsageServerAuth, slices.Clone(ids)
	cfg.InsecureSkipVerify = true // of host names; VerifyConnection verifies the chain and the identity
	return cfg, nil
}

func newConfig(certPEM []byte, keyPEM hsm.Secret, caPEM []byte, cluster hsm.ClusterID, own x509.ExtKeyUsage) (*tls.Config, *verifier, error) {
	cas, err := parseCAs(caPEM)
	if err != nil {
		return nil, nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM.Reveal())
	if err != nil {
		return nil, nil, fmt.Errorf("%w: certificate and key do not decode or do not fit together", hsm.ErrInvalid)
	}
	v := &verifier{cas: cas, cluster: cluster, usage: own, now: time.Now}
	if _, err := v.leaf(pair.Leaf); err != nil {
		return nil, nil, fmt.Errorf("own certificate: %w", err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13,
		SessionTicketsDisabled: true, VerifyConnection: v.connection,
	}, v, nil
}

func parseCAs(caPEM []byte) ([]*x509.Certificate, error) {
	b, err := readBlocks(caPEM)
	if err != nil || len(b.certs) == 0 || b.key != nil {
		return nil, fmt.Errorf("%w: CA certificate: want one certificate or more in PEM", hsm.ErrInvalid)
	}
	if slices.ContainsFunc(b.certs, func(c *x509.Certificate) bool { return !c.IsCA }) {
		return nil, fmt.Errorf("%w: CA certificate: the certificate is not that of a CA", hsm.ErrInvalid)
	}
	return b.certs, nil
}

// PeerIdentity returns the identity of the other side of a connection made
// under ServerConfig or ClientConfig.
func PeerIdentity(state tls.ConnectionState) (Identity, error) {
	if len(state.PeerCertificates) == 0 {
		return Identity{}, fmt.Errorf("%w: the other side showed no certificate", ErrForeign)
	}
	return IdentityOf(state.PeerCertificates[0])
}
