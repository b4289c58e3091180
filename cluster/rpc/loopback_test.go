package rpc

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// site is a software HSM behind a server on the loopback interface.
type site struct {
	t         testing.TB
	authority *pki.Authority
	cluster   hsm.ClusterID
	id        hsm.HSMID
	keyring   *hsm.Keyring
	hsm       *soft.HSM
	server    *Server
	older     bool // it speaks gRPC only
	address   string
}

// quiet keeps refused connections, which tests provoke, out of their output.
var quiet = slog.New(slog.DiscardHandler)

func newSoftOf(t testing.TB, id hsm.HSMID, c hsm.ClusterID, k *hsm.Keyring) *soft.HSM {
	t.Helper()
	h, err := soft.Open(soft.Options{Dir: "hsm", FS: vfs.NewMem(), ID: id, Cluster: c, ClusterName: "test", Keyring: k, Iterations: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func newSite(t testing.TB, opts ...ServerOption) *site {
	t.Helper()
	s := &site{t: t, cluster: hsm.NewClusterID(), id: hsm.NewHSMID(), keyring: hsm.NewKeyring()}
	s.hsm = newSoftOf(t, s.id, s.cluster, s.keyring)
	s.serve(s.module, opts...)
	return s
}

// serve starts the server, with an authority of its own if there is none yet.
func (s *site) serve(modules func(pki.Identity) hsm.Module, opts ...ServerOption) {
	s.t.Helper()
	var err error
	if s.authority == nil {
		if s.authority, err = pki.NewAuthority(hsm.Lineage{1}); err != nil {
			s.t.Fatal(err)
		}
	}
	cert, key, err := s.authority.Issue(pki.HSMIdentity(s.cluster, s.id), time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	cfg, err := pki.ServerConfig(cert, key, s.authority.CertPEM(), s.cluster)
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	if s.older {
		cfg.NextProtos = []string{"h2"}
	}
	s.server, s.address = NewServer(modules, cfg, append([]ServerOption{WithLogger(quiet)}, opts...)...), l.Addr().String()
	go s.server.Serve(l)
	s.t.Cleanup(s.server.Stop)
}

// module gives each kind of certificate its role.
func (s *site) module(id pki.Identity) hsm.Module {
	roles := map[pki.Kind]hsm.Role{pki.KindHSM: hsm.RoleHSM, pki.KindAppliance: hsm.RoleAppliance}
	return s.hsm.Module(hsm.Principal{Role: roles[id.Kind], Name: id.Name})
}

// config is the TLS configuration of a caller with this identity.
func (s *site) config(kind pki.Kind, name string) *tls.Config {
	s.t.Helper()
	cert, key, err := s.authority.Issue(pki.Identity{Cluster: s.cluster, Kind: kind, Name: name}, time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	cfg, err := pki.ClientConfig(cert, key, s.authority.CertPEM(), s.cluster)
	if err != nil {
		s.t.Fatal(err)
	}
	return cfg
}

func (s *site) dial(kind pki.Kind, name string) hsm.Module { return s.dialAt(s.address, kind, name) }

func (s *site) dialAt(address string, kind pki.Kind, name string) hsm.Module {
	s.t.Helper()
	m, err := Dial(s.t.Context(), address, s.config(kind, name))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { m.Close() })
	return m
}

func open(t testing.TB, m hsm.Module) hsm.Session {
	t.Helper()
	s, err := m.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

var password = []byte("correct horse")

func secretPassword() hsm.Secret { return hsm.NewSecret(append([]byte(nil), password...)) }

// users makes an admin and the crypto users named.
func (s *site) users(names ...string) {
	s.t.Helper()
	peer := open(s.t, s.hsm.Module(hsm.Principal{Role: hsm.RoleHSM, Name: s.id.String()}))
	change := func(by hsm.Session, role hsm.Role, name string) {
		c := hsm.Change{Kind: hsm.ChangeUserCreate, User: name, Role: role, Password: secretPassword()}
		if _, err := by.Change(s.t.Context(), c); err != nil {
			s.t.Fatal(err)
		}
	}
	change(peer, hsm.RoleAdmin, "admin")
	admin := loginAs(s.t, s.hsm.Module(hsm.Principal{}), hsm.RoleAdmin, "admin")
	for _, name := range names {
		change(admin, hsm.RoleCryptoUser, name)
	}
}

func loginAs(t testing.TB, m hsm.Module, role hsm.Role, name string) hsm.Session {
	t.Helper()
	s, _, err := m.Login(t.Context(), role, name, secretPassword())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newOp() (op hsm.OpID) {
	rand.Read(op[:])
	return op
}

// create makes a key and commits it if it is a token key.
func create(t testing.TB, s hsm.Session, r hsm.CreateRequest) hsm.Created {
	t.Helper()
	op := newOp()
	created, err := s.Create(t.Context(), op, r)
	if err != nil {
		t.Fatal(err)
	}
	if r.Token {
		if err := s.Commit(t.Context(), op); err != nil {
			t.Fatal(err)
		}
	}
	return created
}

// proxy forwards TCP connections until it is told to swallow everything, as a
// cut network or a stopped process does, or to cut the connections.
type proxy struct {
	net.Listener
	target    string
	swallowed atomic.Bool
	mu        sync.Mutex
	conns     []net.Conn
}

func newProxy(t testing.TB, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l, target: target}
	t.Cleanup(func() { l.Close(); p.cut() })
	go p.run()
	return p
}

func (p *proxy) address() string { return p.Addr().String() }

func (p *proxy) run() {
	for {
		in, err := p.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		target := p.target
		p.mu.Unlock()
		out, err := net.Dial("tcp", target)
		if err != nil {
			in.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, in, out)
		p.mu.Unlock()
		go p.copy(in, out)
		go p.copy(out, in)
	}
}

func (p *proxy) copy(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if p.swallowed.Load() {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// eventually waits for what must happen; the test fails by its own deadline.
func eventually(ctx context.Context, t testing.TB, what string, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("never happened: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
