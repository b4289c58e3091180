package server

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
)

func fileSeal(_, folder string) (seal.Seal, error) { return seal.OpenFile(folder) }

// replaceCertificate puts a certificate of another life in an HSM's folder.
func (b *box) replaceCertificate(life time.Duration) {
	b.w.t.Helper()
	f, err := OpenFolder(b.folder, fileSeal)
	if err != nil {
		b.w.t.Fatal(err)
	}
	defer f.Close()
	ca, err := pki.ParseAuthority(f.keys.ca)
	if err != nil {
		b.w.t.Fatal(err)
	}
	cert, err := ca.Renew(f.keys.tlsKey, pki.HSMIdentity(f.config.Cluster, f.config.ID), life)
	if err == nil {
		err = os.WriteFile(filepath.Join(b.folder, certFile), cert, 0o644)
	}
	if err != nil {
		b.w.t.Fatal(err)
	}
}

// TestAnExpiredHSMRenewsItself when it starts, and is a member as before.
func TestAnExpiredHSMRenewsItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	b := w.boxes[1]
	b.stop()
	b.replaceCertificate(time.Nanosecond)
	b.start()
	if left := time.Until(b.server.tls.Expires()); left < CertificateLife/2 {
		t.Errorf("its certificate is good for %s", left)
	}
	w.createAlice()
}

// TestACertificateIsRenewedWhileServing: new connections see the new one, and
// those there are go on.
func TestACertificateIsRenewedWhileServing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	b := w.boxes[0]
	b.stop()
	b.replaceCertificate(10 * time.Second) // not due yet when it starts
	b.start()
	session := b.root()
	first := b.server.tls.Expires()
	w.eventually("it is not renewed", func() bool { return b.server.tls.Expires().After(first.Add(time.Hour)) })
	if _, err := session.Info(t.Context()); err != nil {
		t.Errorf("a session from before: %v", err)
	}
	w.eventually("the first one does not expire", func() bool { return time.Now().After(first) })
	b.root()
	b.stop()
	b.start() // the new one is on disk
	if _, notice := b.server.state(); notice != "" {
		t.Error(notice)
	}
}

// TestCredentialsAreIssuedAndRevoked: by admins; a revoked one is refused at once,
// its connections end, and a new one of its name is good.
func TestCredentialsAreIssuedAndRevoked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.createAlice()
	b := w.boxes[0]
	issue := func() string {
		t.Helper()
		request, key, err := pki.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		cert, err := b.root().(rpc.Issuer).Issue(t.Context(), pki.KindAppliance, "backup-2", request, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "backup-2.pem")
		if err := pki.SaveIdentityFile(path, cert, key, []byte(w.profile.CA), false); err != nil {
			t.Fatal(err)
		}
		return path
	}
	path := issue()
	module := b.dial(path)
	session, err := module.Session(t.Context())
	if err != nil || session.Principal() != (hsm.Principal{Role: hsm.RoleAppliance, Name: "backup-2"}) {
		t.Fatal(session, err)
	}
	w.change(b.root(), hsm.Change{Kind: hsm.ChangeRevoke, Revoked: &hsm.Revocation{Kind: "appliance", Name: "backup-2", Until: time.Now()}})
	w.eventually("its connection goes on", func() bool {
		_, err := session.Info(t.Context())
		return err != nil
	})
	w.converge()
	cred, err := pki.LoadIdentityFile(path)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := cred.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	for range 20 { // where it was revoked it is refused from then on, and told why
		if m, err := rpc.Dial(t.Context(), b.server.Address(), cfg); !errors.Is(err, pki.ErrRefused) {
			if err == nil {
				m.Close()
			}
			t.Fatalf("%v, want ErrRefused", err)
		}
	}
	w.eventually("it is let in elsewhere", func() bool {
		m, err := rpc.Dial(t.Context(), w.boxes[1].server.Address(), cfg)
		if err == nil {
			m.Close()
		}
		return errors.Is(err, pki.ErrRefused)
	})
	if _, err := b.dial(issue()).Session(t.Context()); err != nil {
		t.Errorf("a new one of the name: %v", err)
	}
	for name, refused := range map[string]func() error{
		"a crypto user": func() error { return issueAs(t, b.alice(), pki.KindClient, "x", time.Hour, hsm.ErrDenied) },
		"an appliance":  func() error { return issueAs(t, b.appliance(), pki.KindClient, "x", time.Hour, hsm.ErrDenied) },
		"an HSM's":      func() error { return issueAs(t, b.root(), pki.KindHSM, b.id().String(), time.Hour, hsm.ErrInvalid) },
		"a joiner's":    func() error { return issueAs(t, b.root(), pki.KindJoiner, "x", time.Hour, hsm.ErrInvalid) },
		"for a moment":  func() error { return issueAs(t, b.root(), pki.KindClient, "x", time.Second, hsm.ErrInvalid) },
		"a bad name":    func() error { return issueAs(t, b.root(), pki.KindClient, "a/b", time.Hour, hsm.ErrInvalid) },
	} {
		if err := refused(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func issueAs(t *testing.T, s hsm.Session, kind pki.Kind, name string, validity time.Duration, want error) error {
	t.Helper()
	request, _, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err = s.(rpc.Issuer).Issue(t.Context(), kind, name, request, validity); !errors.Is(err, want) {
		return errors.Join(errors.New("want another error"), want, err)
	}
	return nil
}

// TestAnOperatorIssuesFromAFolder that nobody serves, and it is recorded.
func TestAnOperatorIssuesFromAFolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	b := w.boxes[0]
	if _, err := OpenFolder(b.folder, fileSeal); !errors.Is(err, ErrFolder) {
		t.Errorf("while it is served: %v, want ErrFolder", err)
	}
	b.stop()
	f, err := OpenFolder(b.folder, fileSeal)
	if err != nil {
		t.Fatal(err)
	}
	path := w.profile.ClientPath()
	if _, err := f.Issue("client", "client", time.Hour, path, false); err == nil {
		t.Error("it replaced a file unasked")
	}
	if _, err := f.Issue("client", "client", time.Hour, path, true); err != nil {
		t.Error(err)
	}
	if _, err := f.Renew(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	log, err := os.ReadFile(filepath.Join(b.folder, AuditFile))
	if err != nil || strings.Count(string(log), "issue-certificate") != 2 || !strings.Contains(string(log), "renew-certificate") {
		t.Errorf("the audit log: %s, %v", log, err)
	}
	b.start()
	b.root()
}
