package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

const (
	blockCertificate = "CERTIFICATE"
	blockKey         = "PRIVATE KEY"
	blockRequest     = "CERTIFICATE REQUEST"
)

const (
	authorityValidity = 10 * 365 * 24 * time.Hour
	// backdate lets a certificate work on hosts whose clock is a little behind.
	backdate = 5 * time.Minute
)

// Authority is the certificate authority of a lineage: an ECDSA P-256 key and
// its certificate. It is immutable, safe for concurrent use, and prints as
// [redacted].
type Authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// NewAuthority draws a new authority, good for ten years.
func NewAuthority(l hsm.Lineage) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: "hsmbackup CA " + l.String()},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(authorityValidity),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return &Authority{key: key, cert: cert}, nil
}

func newSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] = b[0]&0x7f | 0x40 // positive, and always 16 bytes
	return new(big.Int).SetBytes(b)
}

// ParseAuthority reads what PEM wrote. ErrCorrupt if it is anything else, or
// if key and certificate are not a pair.
func ParseAuthority(s hsm.Secret) (*Authority, error) {
	blocks, err := readBlocks(s.Reveal())
	if err != nil || len(blocks.certs) != 1 || blocks.key == nil {
		return nil, fmt.Errorf("%w: certificate authority: want one certificate and one private key in PEM", hsm.ErrCorrupt)
	}
	key, cert := blocks.key, blocks.certs[0]
	if !cert.IsCA || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%w: certificate authority: key and certificate do not fit", hsm.ErrCorrupt)
	}
	return &Authority{key: key, cert: cert}, nil
}

// PEM returns the certificate and the PKCS #8 key, for the recovery envelope
// and an HSM's seal.
func (a *Authority) PEM() hsm.Secret {
	return hsm.NewSecret(append(a.CertPEM(), encodeKey(a.key).Reveal()...))
}

// CertPEM returns the certificate, which is public.
func (a *Authority) CertPEM() []byte { return encodeCert(a.cert.Raw) }

// Issue makes a key pair and a certificate for id, valid from now (give or take
// a few minutes of clock difference) and never longer than the authority.
func (a *Authority) Issue(id Identity, validity time.Duration) (certPEM []byte, keyPEM hsm.Secret, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, hsm.Secret{}, fmt.Errorf("certificate for %s: %w", id, err)
	}
	certPEM, err = a.issue(&key.PublicKey, id, time.Now(), validity)
	if err != nil {
		return nil, hsm.Secret{}, err
	}
	return certPEM, encodeKey(key), nil
}

// IssueFor makes a certificate for whoever made the signing request: the key
// never leaves its owner. The request proves possession of the key; every name
// in it is ignored, id decides. ErrInvalid if the request does not verify or
// its key is not ECDSA P-256.
func (a *Authority) IssueFor(requestPEM []byte, id Identity, validity time.Duration) (certPEM []byte, err error) {
	public, err := RequestKey(requestPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate request for %s: %w", id, err)
	}
	return a.issue(public, id, time.Now(), validity)
}

// RequestKey returns the public key of a signing request that is signed with it.
// ErrInvalid.
func RequestKey(requestPEM []byte) (crypto.PublicKey, error) {
	block, rest := pem.Decode(requestPEM)
	if block == nil || block.Type != blockRequest || len(bytes.TrimSpace(rest)) != 0 {
		return nil, fmt.Errorf("%w: want one PEM block %q", hsm.ErrInvalid, blockRequest)
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: it does not decode", hsm.ErrInvalid)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: it is not signed with its own key", hsm.ErrInvalid)
	}
	return request.PublicKey, nil
}

// Renew makes a certificate for a key pair that stays.
func (a *Authority) Renew(keyPEM hsm.Secret, id Identity, validity time.Duration) (certPEM []byte, err error) {
	b, err := readBlocks(keyPEM.Reveal())
	if err != nil || b.key == nil || len(b.certs) > 0 {
		return nil, fmt.Errorf("%w: certificate for %s: want one private key in PEM", hsm.ErrInvalid, id)
	}
	return a.issue(&b.key.PublicKey, id, time.Now(), validity)
}

// Expires returns when the authority's own certificate does, and with it all that
// it has issued.
func (a *Authority) Expires() time.Time { return a.cert.NotAfter }

// NewRequest makes a key pair and a signing request for it (IssueFor).
func NewRequest() (requestPEM []byte, keyPEM hsm.Secret, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, hsm.Secret{}, fmt.Errorf("certificate request: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, hsm.Secret{}, fmt.Errorf("certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockRequest, Bytes: der}), encodeKey(key), nil
}

func (a *Authority) issue(public crypto.PublicKey, id Identity, from time.Time, validity time.Duration) ([]byte, error) {
	if err := id.Check(); err != nil {
		return nil, err
	}
	if id.Kind == KindJoiner {
		return nil, fmt.Errorf("%w: the authority issues no certificates for joiners", hsm.ErrInvalid)
	}
	if p, ok := public.(*ecdsa.PublicKey); !ok || p.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: certificate for %s: want an ECDSA P-256 key", hsm.ErrInvalid, id)
	}
	if validity <= 0 {
		return nil, fmt.Errorf("%w: certificate for %s: validity of %s", hsm.ErrInvalid, id, validity)
	}
	until := from.Add(validity)
	if until.After(a.cert.NotAfter) {
		until = a.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: id.Name}, URIs: []*url.URL{id.uri()},
		NotBefore: from.Add(-backdate), NotAfter: until, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usages(id.Kind),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", id, err)
	}
	return encodeCert(der), nil
}

func usages(k Kind) []x509.ExtKeyUsage {
	if k == KindHSM {
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockCertificate, Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) hsm.Secret {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err) // P-256 keys always encode
	}
	defer clear(der)
	return hsm.NewSecret(pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: der}))
}

// blocks is what a PEM file of this package holds.
type blocks struct {
	certs []*x509.Certificate
	key   *ecdsa.PrivateKey
}

var errPEM = errors.New("PEM does not decode")

// readBlocks decodes certificates and at most one key, and refuses everything
// else. Its errors never quote the input.
func readBlocks(b []byte) (*blocks, error) {
	var out blocks
	for {
		b = bytes.TrimSpace(b)
		if len(b) == 0 {
			return &out, nil
		}
		block, rest := pem.Decode(b)
		if block == nil || !bytes.HasPrefix(b, []byte("-----BEGIN ")) {
			return nil, errPEM
		}
		if err := out.add(block); err != nil {
			return nil, err
		}
		b = rest
	}
}

func (out *blocks) add(block *pem.Block) error {
	switch block.Type {
	case blockCertificate:
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return errPEM
		}
		out.certs = append(out.certs, cert)
		return nil
	case blockKey:
		defer clear(block.Bytes)
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		ec, ok := key.(*ecdsa.PrivateKey)
		if err != nil || !ok || out.key != nil {
			return errPEM
		}
		out.key = ec
		return nil
	}
	return errPEM
}

// NotAfter returns until when the certificates in a PEM file are valid: the
// first of them to expire.
func NotAfter(certPEM []byte) (time.Time, error) {
	b, err := readBlocks(certPEM)
	if err != nil {
		return time.Time{}, err
	}
	if len(b.certs) == 0 {
		return time.Time{}, fmt.Errorf("%w: it holds no certificate", errPEM)
	}
	first := b.certs[0].NotAfter
	for _, c := range b.certs[1:] {
		if c.NotAfter.Before(first) {
			first = c.NotAfter
		}
	}
	return first, nil
}

// Format keeps the authority's key out of every output of fmt.
func (a Authority) Format(f fmt.State, _ rune) { fmt.Fprint(f, "[redacted certificate authority]") }

// MarshalText refuses, and with it encoding/json.
func (a Authority) MarshalText() ([]byte, error) {
	return nil, errors.New("pki: an authority is not to be marshalled")
}
