package rpc

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// pair is a certificate as TLS wants it, without the checks of ClientConfig.
func pair(t *testing.T, a *pki.Authority, id pki.Identity) tls.Certificate {
	t.Helper()
	cert, key, err := a.Issue(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.X509KeyPair(cert, key.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// expired makes a certificate that was valid until a second ago, with the
// authority's own key.
func expired(t *testing.T, a *pki.Authority, id pki.Identity) tls.Certificate {
	t.Helper()
	c := pair(t, a, id)
	ca, err := tls.X509KeyPair(a.CertPEM(), keyOf(a))
	if err != nil {
		t.Fatal(err)
	}
	template := c.Leaf
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Second)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Leaf, c.Leaf.PublicKey, ca.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	c.Certificate, c.Leaf = [][]byte{der}, nil
	return c
}

func keyOf(a *pki.Authority) []byte {
	_, rest := pem.Decode(a.PEM().Reveal())
	return rest
}

func TestDialTellsWhyAnHSMIsNotTrusted(t *testing.T) {
	s := newSite(t)
	here := pki.Identity{Cluster: s.cluster, Kind: pki.KindClient, Name: "c"}
	foreign := newSite(t)
	clone := &site{t: t, cluster: hsm.NewClusterID(), id: hsm.NewHSMID(), authority: s.authority}
	clone.serve(s.module)
	cfg := s.config(here.Kind, here.Name)
	for _, tt := range []struct {
		name, address string
		want          error
		text          string
	}{
		{"foreign CA", foreign.address, pki.ErrForeign, "foreign certificate"},
		{"clone", clone.address, pki.ErrCluster, "another cluster"},
	} {
		_, err := Dial(t.Context(), tt.address, cfg)
		if !errors.Is(err, tt.want) || !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		t.Log(err)
	}
	cert, key, err := s.authority.Issue(here, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.ClientConfig(cert, key, s.authority.CertPEM(), s.cluster, hsm.NewHSMID())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), s.address, other); !errors.Is(err, pki.ErrKind) {
		t.Errorf("another HSM: %v", err)
	}
}

func TestServerRefuses(t *testing.T) {
	s, foreign := newSite(t), newSite(t)
	id := pki.Identity{Cluster: s.cluster, Kind: pki.KindClient, Name: "c"}
	clone := id
	clone.Cluster = hsm.NewClusterID()
	for name, certs := range map[string][]tls.Certificate{
		"no certificate":  nil,
		"foreign CA":      {pair(t, foreign.authority, id)},
		"another cluster": {pair(t, s.authority, clone)},
		"expired":         {expired(t, s.authority, id)},
	} {
		cfg := s.config(id.Kind, id.Name)
		cfg.Certificates = certs
		_, err := Dial(t.Context(), s.address, cfg)
		if !errors.Is(err, pki.ErrRefused) || !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("%s: %v, want ErrRefused", name, err)
		}
		t.Log(err)
	}
	cfg := s.config(id.Kind, id.Name)
	cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err := Dial(t.Context(), s.address, cfg); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("TLS 1.2: %v", err)
	}
}

func TestExpiredHSM(t *testing.T) {
	s := newSite(t)
	cfg, err := serverConfigWith(s, expired(t, s.authority, pki.HSMIdentity(s.cluster, s.id)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(s.module, cfg, WithLogger(quiet))
	go server.Serve(l)
	defer server.Stop()
	_, err = Dial(t.Context(), l.Addr().String(), s.config(pki.KindClient, "c"))
	if !errors.Is(err, pki.ErrExpired) {
		t.Errorf("%v, want ErrExpired", err)
	}
	t.Log(err)
}

func serverConfigWith(s *site, c tls.Certificate) (*tls.Config, error) {
	cert, key, err := s.authority.Issue(pki.HSMIdentity(s.cluster, s.id), time.Hour)
	if err != nil {
		return nil, err
	}
	cfg, err := pki.ServerConfig(cert, key, s.authority.CertPEM(), s.cluster)
	if err == nil {
		cfg.Certificates = []tls.Certificate{c}
	}
	return cfg, err
}

func TestDialUnreachable(t *testing.T) {
	s := newSite(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	_, err = Dial(t.Context(), address, s.config(pki.KindClient, "c"))
	if !errors.Is(err, hsm.ErrUnavailable) || errors.Is(err, ErrSlow) || !strings.HasPrefix(err.Error(), "HSM at "+address+" cannot be reached: ") {
		t.Errorf("nobody listens: %v", err)
	}
	t.Log(err)

	silent := newProxy(t, s.address) // accepts, and says nothing
	silent.swallowed.Store(true)
	_, err = Dial(t.Context(), silent.address(), s.config(pki.KindClient, "c"), WithTimeout(3*time.Second)) // time enough to connect
	if !errors.Is(err, hsm.ErrUnavailable) || !errors.Is(err, ErrSlow) || !strings.HasPrefix(err.Error(), "HSM at "+silent.address()+" cannot be reached: ") {
		t.Errorf("silence: %v", err)
	}
	t.Log(err)
}
