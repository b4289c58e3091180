package pinned

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority is a private certificate authority as a company runs one, made for
// one test.
type Authority struct {
	t       testing.TB
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	bundle  string // PEM file with the authority's certificate
	serials int64
}

// NewAuthority makes an authority.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t, bundle: filepath.Join(t.TempDir(), "ca.pem")}
	template := a.template("test authority")
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	a.key = a.newKey()
	der := a.must(x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key))
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a.cert = cert
	a.write(a.bundle, "CERTIFICATE", der)
	return a
}

// File returns the PEM file that whoever trusts the authority is given.
func (a *Authority) File() string { return a.bundle }

// Pool returns the authority for a client made by hand.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// Transport returns an HTTP transport that trusts the authority alone.
func (a *Authority) Transport() *http.Transport {
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.Pool()}}
}

// Issue writes certificate and key of a server of these names and addresses, which
// may act as a client too, good until notAfter, and returns the two files.
func (a *Authority) Issue(folder string, notAfter time.Time, names ...string) (certFile, keyFile string) {
	a.t.Helper()
	template := a.template(names[0])
	template.NotAfter = notAfter
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	key := a.newKey()
	certFile, keyFile = filepath.Join(folder, "public.crt"), filepath.Join(folder, "private.key")
	a.write(certFile, "CERTIFICATE", a.must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)))
	a.write(keyFile, "PRIVATE KEY", a.must(x509.MarshalPKCS8PrivateKey(key)))
	return certFile, keyFile
}

func (a *Authority) template(name string) *x509.Certificate {
	a.serials++
	now := time.Now()
	return &x509.Certificate{SerialNumber: big.NewInt(a.serials), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-48 * time.Hour), NotAfter: now.Add(48 * time.Hour)}
}

func (a *Authority) newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

func (a *Authority) write(path, kind string, der []byte) {
	a.t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *Authority) must(der []byte, err error) []byte {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}
