package cluster

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// wire puts a world's HSMs behind TLS on loopback ports.
type wire struct {
	*world
	ca      *pki.Authority
	dir     string
	servers []*rpc.Server
	serving sync.WaitGroup
}

func newWire(t *testing.T) *wire {
	t.Helper()
	w := newWorld(t, 3, 2, true)
	ca, err := pki.NewAuthority(w.keyring.Lineage())
	if err != nil {
		t.Fatal(err)
	}
	x := &wire{world: w, ca: ca, dir: t.TempDir(), servers: make([]*rpc.Server, 3)}
	for i, b := range w.boxes {
		x.serve(i, "127.0.0.1:0")
		w.change(w.boxes[0].peer(), hsm.Change{Kind: hsm.ChangeMember, Member: &b.member})
	}
	w.sync()
	p := w.profile()
	p.CA, p.Client, p.Appliance = string(ca.CertPEM()), "client.pem", "appliance.pem"
	if err := p.Save(filepath.Join(x.dir, profile.FileName)); err != nil {
		t.Fatal(err)
	}
	x.identity(ca, pki.KindClient, "client.pem")
	x.identity(ca, pki.KindAppliance, "appliance.pem")
	t.Cleanup(func() {
		for i := range x.servers {
			x.stopServing(i)
		}
		x.serving.Wait()
	})
	return x
}

func (x *wire) identity(ca *pki.Authority, kind pki.Kind, file string) {
	x.t.Helper()
	cert, key, err := ca.Issue(pki.Identity{Cluster: x.cluster, Kind: kind, Name: string(kind)}, time.Hour)
	if err == nil {
		err = pki.WriteIdentityFile(filepath.Join(x.dir, file), cert, key, ca.CertPEM())
	}
	if err != nil {
		x.t.Fatal(err)
	}
}

func (x *wire) serve(i int, address string) {
	x.t.Helper()
	b := x.boxes[i]
	cert, key, err := x.ca.Issue(pki.HSMIdentity(x.cluster, b.member.ID), time.Hour)
	if err != nil {
		x.t.Fatal(err)
	}
	cfg, err := pki.ServerConfig(cert, key, x.ca.CertPEM(), x.cluster)
	if err != nil {
		x.t.Fatal(err)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		x.t.Fatal(err)
	}
	b.member.Address = l.Addr().String()
	x.servers[i] = rpc.NewServer(func(id pki.Identity) hsm.Module {
		h, _ := b.running()
		role := hsm.RoleNone
		if id.Kind == pki.KindAppliance {
			role = hsm.RoleAppliance
		}
		return h.Module(hsm.Principal{Role: role, Name: id.Name})
	}, cfg, rpc.WithLogger(slog.New(slog.DiscardHandler)))
	x.serving.Go(func() { x.servers[i].Serve(l) })
}

func (x *wire) stopServing(i int) { x.servers[i].Stop() }

func TestOverTheWire(t *testing.T) {
	checkGoroutines(t)
	x := newWire(t)
	p, err := profile.Load(x.dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(t.Context(), p, asUser)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	x.awaitUp(c)
	ref := mustCreate(t, c, aes())
	mustWait(t, c, ref)
	want, err := c.Use(t.Context(), mac(ref))
	if err != nil {
		t.Fatal(err)
	}
	address := x.boxes[0].member.Address
	x.stopServing(0)
	for range 6 {
		if got, err := c.Use(t.Context(), mac(ref)); err != nil || string(got) != string(want) {
			t.Fatalf("use with one HSM gone: %v", err)
		}
	}
	if _, err := c.Create(t.Context(), ec(), Policy{}); err != nil {
		t.Errorf("create with one HSM gone: %v", err)
	}
	x.serve(0, address)
	x.awaitUp(c)
	appliance, err := Open(t.Context(), p, Credential{Identity: p.AppliancePath()})
	if err != nil {
		t.Fatal(err)
	}
	defer appliance.Close()
	x.awaitUp(appliance)
	x.sync()
	if root, err := appliance.Root(t.Context()); err != nil || root.Count == 0 {
		t.Errorf("Root: %v, %v", root, err)
	}
	if _, err := appliance.Use(t.Context(), mac(ref)); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("an appliance uses a key: %v; want ErrDenied", err)
	}
}

func TestWireRefuses(t *testing.T) {
	x := newWire(t)
	p, err := profile.Load(x.dir)
	if err != nil {
		t.Fatal(err)
	}
	open := func(p *profile.Profile, cred Credential) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c, err := Open(ctx, p, cred)
		if err == nil {
			c.Close()
		}
		return err
	}
	wrong := asUser
	wrong.Password = secret("not-the-password")
	if err := open(p, wrong); !errors.Is(err, hsm.ErrLogin) {
		t.Errorf("wrong password: %v; want ErrLogin", err)
	}
	missing := asUser
	missing.Identity = filepath.Join(x.dir, "nobody.pem")
	if err := open(p, missing); err == nil || !strings.Contains(err.Error(), "nobody.pem") {
		t.Errorf("missing identity: %v", err)
	}
	foreign, err := pki.NewAuthority(x.keyring.Lineage())
	if err != nil {
		t.Fatal(err)
	}
	x.identity(foreign, pki.KindClient, "foreign.pem")
	stranger := asUser
	stranger.Identity = filepath.Join(x.dir, "foreign.pem")
	if err := open(p, stranger); err == nil {
		t.Error("a certificate of another authority was accepted")
	}
	q := *p
	q.HSMs = []profile.HSM{{ID: p.HSMs[0].ID, Address: p.HSMs[1].Address}}
	if err := open(&q, asUser); !errors.Is(err, ErrNoHSM) {
		t.Errorf("another HSM at the address: %v; want ErrNoHSM", err)
	}
}
