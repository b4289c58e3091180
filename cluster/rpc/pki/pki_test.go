package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func newAuthority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority(hsm.NewKeyring().Lineage())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t *testing.T, a *Authority, id Identity) ([]byte, hsm.Secret) {
	t.Helper()
	cert, key, err := a.Issue(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func parse(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestIdentityRoundTrip(t *testing.T) {
	c := hsm.NewClusterID()
	for _, id := range []Identity{HSMIdentity(c, hsm.NewHSMID()), {c, KindAppliance, "backup-1"}, {c, KindClient, "web.example_org"}} {
		got, err := ParseIdentity(id.String())
		if err != nil || got != id {
			t.Errorf("ParseIdentity(%q) = %v, %v", id, got, err)
		}
	}
}

func TestIdentityRefused(t *testing.T) {
	c := hsm.NewClusterID().String()
	h := hsm.NewHSMID().String()
	for _, s := range []string{
		"", "hsmbackup://", "hsmbackup://" + c, "hsmbackup://" + c + "/client", "hsmbackup://" + c + "/client/",
		"hsmbackup://" + c + "/client/a/b", "hsmbackup://" + c + "/client/a/", "hsmbackup://" + c + "/client/..",
		"hsmbackup://" + c + "/root/a", "hsmbackup://" + c + "/hsm/a", "hsmbackup://x@" + c + "/client/a", "HSMBACKUP://" + c + "/client/a",
		"hsmbackup://" + c + "/client/a%62", "hsmbackup://" + c + "/client/a?b", "hsmbackup://" + c + "/client/a#b",
		"hsmbackup://" + strings.ToUpper(c) + "/client/a", "https://" + c + "/hsm/" + h, "hsmbackup://" + h + "/hsm/" + h,
		"hsmbackup://" + c + "/client/" + strings.Repeat("a", MaxName+1), "hsmbackup://" + c + "/client/ä",
		"hsmbackup://" + hsm.ClusterID(0).String() + "/client/a",
	} {
		if id, err := ParseIdentity(s); !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("ParseIdentity(%q) = %v, %v; want ErrInvalid", s, id, err)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add(HSMIdentity(1, 1).String())
	f.Add("hsmbackup://cluster-aaaaaaaaaaaac/client/a")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseIdentity(s); err == nil && id.String() != s {
			t.Errorf("%q parses as %q", s, id)
		}
	})
}

func FuzzReadBlocks(f *testing.F) {
	a, err := NewAuthority(hsm.Lineage{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(a.PEM().Reveal())
	f.Add(a.CertPEM())
	f.Fuzz(func(t *testing.T, b []byte) {
		readBlocks(b)
		parseCredential(b)
	})
}

func TestAuthorityRoundTrip(t *testing.T) {
	a := newAuthority(t)
	b, err := ParseAuthority(a.PEM())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.CertPEM(), b.CertPEM()) || !a.key.Equal(b.key) {
		t.Error("the authority changed on its way through PEM")
	}
	if years := time.Until(a.cert.NotAfter).Hours() / 24 / 365; years < 9.9 {
		t.Errorf("the authority lives %.1f years", years)
	}
}

func TestAuthorityRefused(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	leaf, key := issue(t, a, Identity{1, KindClient, "x"})
	for name, b := range map[string][]byte{
		"empty": {}, "no key": a.CertPEM(), "garbage after": append(a.PEM().Reveal(), 'x'),
		"other key": append(a.CertPEM(), encodeKey(other.key).Reveal()...), "a leaf": append(bytes.Clone(leaf), key.Reveal()...),
		"two certificates": append(other.CertPEM(), a.PEM().Reveal()...), "truncated": a.PEM().Reveal()[:200],
	} {
		if _, err := ParseAuthority(hsm.NewSecret(b)); !errors.Is(err, hsm.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
}

func TestAuthorityIsNotPrinted(t *testing.T) {
	a := newAuthority(t)
	//lint:ignore SA1019 the number as fmt would print it
	secret := a.key.D.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		if out := fmt.Sprintf(verb+verb, a, *a); strings.Contains(out, secret) || !strings.Contains(out, "redacted") {
			t.Errorf("%s prints %q", verb, out)
		}
	}
	if _, err := json.Marshal(a); err == nil {
		t.Error("json marshals an authority")
	}
}

func TestIssueForKeepsTheKeyWithItsOwner(t *testing.T) {
	a, cluster := newAuthority(t), hsm.NewClusterID()
	request, key, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	id := HSMIdentity(cluster, hsm.NewHSMID())
	cert, err := a.IssueFor(request, id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ServerConfig(cert, key, a.CertPEM(), cluster); err != nil {
		t.Fatal(err)
	}
	if got, err := IdentityOf(parse(t, cert)); err != nil || got != id {
		t.Errorf("identity %v, %v; want %v", got, err, id)
	}
}

func TestIssueForRefused(t *testing.T) {
	a, id := newAuthority(t), Identity{1, KindClient, "x"}
	request, _, _ := NewRequest()
	block, _ := pem.Decode(request)
	block.Bytes[len(block.Bytes)-1] ^= 1 // in the signature
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	other, _ := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, p384)
	for name, b := range map[string][]byte{
		"empty": nil, "a certificate": a.CertPEM(), "two": append(bytes.Clone(request), request...),
		"forged": pem.EncodeToMemory(block), "P-384": pem.EncodeToMemory(&pem.Block{Type: blockRequest, Bytes: other}),
	} {
		if _, err := a.IssueFor(b, id, time.Hour); !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := a.IssueFor(request, id, 0); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("no validity: %v, want ErrInvalid", err)
	}
	if _, err := a.IssueFor(request, Identity{1, KindHSM, "x"}, time.Hour); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("bad identity: %v, want ErrInvalid", err)
	}
}

func TestIssueNeverOutlivesTheAuthority(t *testing.T) {
	a := newAuthority(t)
	cert, _, err := a.Issue(Identity{1, KindClient, "x"}, 100*365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if leaf := parse(t, cert); leaf.NotAfter.After(a.cert.NotAfter) {
		t.Errorf("valid until %s, the authority until %s", leaf.NotAfter, a.cert.NotAfter)
	}
}

func TestVerify(t *testing.T) {
	a, foreign := newAuthority(t), newAuthority(t)
	here, clone := hsm.NewClusterID(), hsm.NewClusterID()
	one, two := hsm.NewHSMID(), hsm.NewHSMID()
	now := time.Now()
	v := func(usage x509.ExtKeyUsage, ids ...hsm.HSMID) *verifier {
		return &verifier{cas: []*x509.Certificate{a.cert}, cluster: here, usage: usage, hsms: ids, now: func() time.Time { return now }}
	}
	server, client := x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth
	made := func(a *Authority, id Identity, from time.Time) *x509.Certificate {
		key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		b, err := a.issue(&key.PublicKey, id, from, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return parse(t, b)
	}
	app := Identity{here, KindAppliance, "app"}
	for _, tt := range []struct {
		name string
		v    *verifier
		cert *x509.Certificate
		want error
	}{
		{"an HSM as server", v(server), made(a, HSMIdentity(here, one), now), nil},
		{"an HSM as client", v(client), made(a, HSMIdentity(here, one), now), nil},
		{"an appliance as client", v(client), made(a, app, now), nil},
		{"the HSM asked for", v(server, two, one), made(a, HSMIdentity(here, one), now), nil},
		{"another HSM than asked for", v(server, two), made(a, HSMIdentity(here, one), now), ErrKind},
		{"an appliance as server", v(server), made(a, app, now), ErrKind},
		{"a client as server", v(server), made(a, Identity{here, KindClient, "c"}, now), ErrKind},
		{"another CA", v(client), made(foreign, app, now), ErrForeign},
		{"another CA and expired", v(client), made(foreign, app, now.Add(-2*time.Hour)), ErrForeign},
		{"a clone's", v(client), made(a, Identity{clone, KindAppliance, "app"}, now), ErrCluster},
		{"expired", v(client), made(a, app, now.Add(-2*time.Hour)), ErrExpired},
		{"of tomorrow", v(client), made(a, app, now.Add(24*time.Hour)), ErrExpired},
		{"the CA itself", v(client), a.cert, ErrKind},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := tt.v.leaf(tt.cert); !errors.Is(err, tt.want) || (tt.want == nil) != (err == nil) {
				t.Errorf("got %v, want %v", err, tt.want)
			} else if err != nil {
				t.Log(err)
			}
		})
	}
}

func TestOldAndNewAuthority(t *testing.T) {
	older, newer, c := newAuthority(t), newAuthority(t), hsm.NewClusterID()
	both := append(older.CertPEM(), newer.CertPEM()...)
	for _, a := range []*Authority{older, newer} {
		cert, key := issue(t, a, Identity{c, KindClient, "x"})
		if _, err := ClientConfig(cert, key, both, c); err != nil {
			t.Error(err)
		}
	}
}

func TestConfigRefusesItsOwnCertificate(t *testing.T) {
	a, foreign, c := newAuthority(t), newAuthority(t), hsm.NewClusterID()
	cert, key := issue(t, a, Identity{c, KindClient, "x"})
	if _, err := ClientConfig(cert, key, foreign.CertPEM(), c); !errors.Is(err, ErrForeign) {
		t.Errorf("foreign CA: %v", err)
	}
	if _, err := ClientConfig(cert, key, a.CertPEM(), hsm.NewClusterID()); !errors.Is(err, ErrCluster) {
		t.Errorf("other cluster: %v", err)
	}
	if _, err := ServerConfig(cert, key, a.CertPEM(), c); !errors.Is(err, ErrKind) {
		t.Errorf("client's certificate for a server: %v", err)
	}
	if _, err := ClientConfig(cert, key, cert, c); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("leaf as CA: %v", err)
	}
	_, otherKey := issue(t, a, Identity{c, KindClient, "y"})
	if _, err := ClientConfig(cert, otherKey, a.CertPEM(), c); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("key of another certificate: %v", err)
	}
}

// handshake connects the two and returns what each side says.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			defer conn.Close()
			s := tls.Server(conn, server)
			if err = s.Handshake(); err == nil {
				_, err = s.Write([]byte{1})
			}
		}
		done <- err
	}()
	conn, clientErr := tls.Dial("tcp", l.Addr().String(), client)
	if clientErr == nil {
		_, clientErr = conn.Read(make([]byte, 1))
		conn.Close()
	}
	return <-done, clientErr
}

func TestHandshake(t *testing.T) {
	a, c := newAuthority(t), hsm.NewClusterID()
	hsmCert, hsmKey := issue(t, a, HSMIdentity(c, hsm.NewHSMID()))
	cert, key := issue(t, a, Identity{c, KindClient, "x"})
	server, err := ServerConfig(hsmCert, hsmKey, a.CertPEM(), c)
	if err != nil {
		t.Fatal(err)
	}
	client, err := ClientConfig(cert, key, a.CertPEM(), c)
	if err != nil {
		t.Fatal(err)
	}
	if s, cl := handshake(t, server, client); s != nil || cl != nil {
		t.Fatalf("server %v, client %v", s, cl)
	}
	none := client.Clone()
	none.Certificates = nil
	if s, cl := handshake(t, server, none); s == nil || cl == nil {
		t.Errorf("no client certificate: server %v, client %v", s, cl)
	}
	old := client.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if s, cl := handshake(t, server, old); s == nil || cl == nil {
		t.Errorf("TLS 1.2 client: server %v, client %v", s, cl)
	}
	old = server.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if s, cl := handshake(t, old, client); s == nil || cl == nil {
		t.Errorf("TLS 1.2 server: server %v, client %v", s, cl)
	}
}

func TestIdentityFile(t *testing.T) {
	a, c := newAuthority(t), hsm.NewClusterID()
	id := Identity{c, KindAppliance, "backup"}
	cert, key := issue(t, a, id)
	path := filepath.Join(t.TempDir(), "appliance.pem")
	if err := WriteIdentityFile(path, cert, key, a.CertPEM()); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %s", info.Mode())
	}
	got, err := LoadIdentityFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := &Credential{Identity: id, Cert: cert, CA: a.CertPEM(), Key: key}
	if diff := cmp.Diff(want, got, cmp.Comparer(hsm.Secret.Equal)); diff != "" {
		t.Error(diff)
	}
	if _, err := got.ClientConfig(); err != nil {
		t.Error(err)
	}
	if err := WriteIdentityFile(path, cert, key, a.CertPEM()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second write: %v, want ErrExist", err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("%d files left, want 1", len(left))
	}
}

func TestIdentityFileRefused(t *testing.T) {
	a, c := newAuthority(t), hsm.NewClusterID()
	cert, key := issue(t, a, Identity{c, KindAppliance, "backup"})
	other, otherKey := issue(t, a, Identity{c, KindAppliance, "other"})
	path := filepath.Join(t.TempDir(), "f.pem")
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, content := range map[string][]byte{
		"empty": {}, "no CA": join(cert, key.Reveal()), "no key": join(cert, a.CertPEM()), "no certificate": join(key.Reveal(), a.CertPEM()),
		"two certificates": join(cert, other, key.Reveal(), a.CertPEM()), "another's key": join(cert, otherKey.Reveal(), a.CertPEM()),
		"two keys": join(cert, key.Reveal(), otherKey.Reveal(), a.CertPEM()), "garbage": []byte("hello\n"),
	} {
		os.WriteFile(path, content, 0o600)
		if _, err := LoadIdentityFile(path); !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
		if err := WriteIdentityFile(path+".new", content, hsm.Secret{}, nil); !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("write %s: %v, want ErrInvalid", name, err)
		}
	}
	os.WriteFile(path, join(cert, key.Reveal(), a.CertPEM()), 0o600)
	os.Chmod(path, 0o640)
	if _, err := LoadIdentityFile(path); !errors.Is(err, hsm.ErrDenied) || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable by the group: %v, want ErrDenied with a hint", err)
	}
	if _, err := LoadIdentityFile(path + ".none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v, want ErrNotExist", err)
	}
}

// FuzzRequest: who sends anything as a signing request gets a certificate for the
// identity that the authority decides on, or none.
func FuzzRequest(f *testing.F) {
	a, err := NewAuthority(hsm.Lineage{})
	if err != nil {
		f.Fatal(err)
	}
	request, _, err := NewRequest()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(request)
	f.Add(a.CertPEM())
	id := HSMIdentity(1, 1)
	f.Fuzz(func(t *testing.T, b []byte) {
		cert, err := a.IssueFor(b, id, time.Hour)
		if err != nil {
			if !errors.Is(err, hsm.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			return
		}
		got, err := readBlocks(cert)
		if err != nil || len(got.certs) != 1 {
			t.Fatalf("issued %q: %v", cert, err)
		}
		if who, err := IdentityOf(got.certs[0]); err != nil || who != id {
			t.Errorf("issued for %v, %v", who, err)
		}
	})
}
