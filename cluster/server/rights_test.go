package server

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// requests are one of each kind, as somebody with the session makes them. An
// error other than ErrDenied means that it was let through.
func requests(ctx context.Context, s hsm.Session) map[string]func() error {
	var op = newOp()
	settings := hsm.Settings{MinCopies: 1}
	member := hsm.Member{ID: hsm.NewHSMID(), Name: "x", Address: "127.0.0.1:1"}
	first := func(r hsm.Source) error {
		for _, err := range r.Objects(ctx) {
			return err
		}
		return nil
	}
	change := func(c hsm.Change) func() error {
		return func() error { _, err := s.Change(ctx, c); return err }
	}
	return map[string]func() error{
		"info":            func() error { _, err := s.Info(ctx); return err },
		"members":         func() error { _, err := s.Members(ctx); return err },
		"users":           func() error { _, err := s.Users(ctx); return err },
		"root":            func() error { _, err := s.Root(ctx); return err },
		"fingerprint":     func() error { _, err := s.FingerprintKeys(ctx); return err },
		"objects":         func() error { return first(s) },
		"cluster objects": func() error { return first(s.Scoped(hsm.ScopeCluster)) },
		"cells": func() error {
			for _, err := range s.Cells(ctx, 0) {
				return err
			}
			return nil
		},
		"extract": func() error {
			for _, err := range s.Extract(ctx, slices.Values([]hsm.KeyRef{hsm.UserRef("root")})) {
				return err
			}
			return nil
		},
		"insert": func() error {
			_, err := s.Insert(ctx, func(func(hsm.MaskedObject, error) bool) {})
			return err
		},
		"create":  func() error { _, err := s.Create(ctx, op, aesRequest("x")); return err },
		"prepare": func() error { return s.Prepare(ctx, op, 0, nil) },
		"commit":  func() error { return s.Commit(ctx, newOp()) },
		"abort":   func() error { return s.Abort(ctx, newOp()) },
		"resolve": func() error { _, err := s.Resolve(ctx, newOp()); return err },
		"use":     func() error { _, err := s.Use(ctx, hsm.Use{Kind: hsm.UseRandom, Length: 8}); return err },
		"keys": func() error {
			for _, err := range s.Keys(ctx, hsm.Filter{}) {
				return err
			}
			return nil
		},
		"key":            func() error { _, err := s.Key(ctx, hsm.NewKeyRef()); return err },
		"user-create":    change(hsm.Change{Kind: hsm.ChangeUserCreate, User: "eve", Role: hsm.RoleAdmin, Password: secret("eve-was-here")}),
		"settings":       change(hsm.Change{Kind: hsm.ChangeSettings, Settings: &settings}),
		"member":         change(hsm.Change{Kind: hsm.ChangeMember, Member: &member}),
		"destroy":        change(hsm.Change{Kind: hsm.ChangeDestroy, Ref: hsm.NewKeyRef()}),
		"envelope":       func() error { _, err := s.Envelope(ctx, nil, 0); return err },
		"sign challenge": func() error { _, err := s.Sign(ctx, hsm.PurposeChallenge, nil); return err },
		"sign manifest":  func() error { _, err := s.Sign(ctx, hsm.PurposeManifest, nil); return err },
		"sign anything":  func() error { _, err := s.Sign(ctx, "anything", nil); return err },
	}
}

// denied returns the requests that are, sorted.
func denied(t *testing.T, s hsm.Session) (names []string) {
	t.Helper()
	for name, request := range requests(t.Context(), s) {
		if err := request(); errors.Is(err, hsm.ErrDenied) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func without(all []string, some ...string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(n string) bool { return slices.Contains(some, n) })
}

// TestCertificatesGiveTheirRightsAndNoMore: whoever has not logged in may look at
// the HSM and its members; an appliance may fingerprint, extract and insert.
func TestCertificatesGiveTheirRightsAndNoMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	b := w.boxes[0]
	nobody, err := b.client().Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := slices.Sorted(maps.Keys(requests(t.Context(), nobody)))
	if got, want := denied(t, nobody), without(all, "info", "members"); !slices.Equal(got, want) {
		t.Errorf("without a login these are denied:\n%v\nwant all but info and members:\n%v", got, want)
	}
	if p := nobody.Principal(); p.Role != hsm.RoleNone {
		t.Errorf("a client's certificate makes %v", p)
	}
	appliance := b.appliance()
	want := []string{"create", "destroy", "member", "settings", "use", "user-create"}
	if got := denied(t, appliance); !slices.Equal(got, want) {
		t.Errorf("an appliance is denied\n%v\nwant\n%v", got, want)
	}
	for i, s := range []hsm.Session{nobody, appliance} {
		if users, err := b.root().Users(t.Context()); err != nil || len(users) != 1 {
			t.Errorf("session %d (%v) made users: %v, %v", i, s.Principal(), users, err)
		}
	}
}

// TestAnHSMOfACloneIsRefused: its certificate is of the same authority.
func TestAnHSMOfACloneIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	one := w.boxes[0].server
	spec := newSpec(filepath.Join(t.TempDir(), "west"), 1)
	spec.Keyring, spec.CA = one.secrets.keyring, hsm.NewSecret(slices.Clone(one.secrets.ca.Reveal()))
	spec.Fill = func(ctx context.Context, into hsm.Session) error {
		_, err := reconcile.Copy(ctx, one.device.self, into)
		return err
	}
	clone := startWorld(t, spec)
	if a, b := one.config, clone.boxes[0].server.config; a.Lineage != b.Lineage || a.Cluster == b.Cluster {
		t.Fatalf("no clone: %+v and %+v", a, b)
	}
	clone.boxes[0].root() // its users are there

	two := clone.boxes[0].server
	cert, err := readCert(clone.boxes[0].folder)
	if err != nil {
		t.Fatal(err)
	}
	// The clone's HSM tries to pass for a client of the other cluster.
	cfg, err := pki.ClientConfig(cert, two.secrets.tlsKey, []byte(w.profile.CA), two.config.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	cfg.VerifyConnection = nil
	if _, err := rpc.Dial(t.Context(), one.Address(), cfg); !errors.Is(err, pki.ErrRefused) {
		t.Errorf("an HSM of the clone: %v, want ErrRefused", err)
	}
	for name, path := range map[string]string{"appliance": clone.profile.AppliancePath(), "client": clone.profile.ClientPath()} {
		cred, err := pki.LoadIdentityFile(path)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := cred.ClientConfig()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := rpc.Dial(t.Context(), one.Address(), cfg); !errors.Is(err, pki.ErrCluster) {
			t.Errorf("the clone's %s takes this HSM for its own: %v, want ErrCluster", name, err)
		}
		cfg.VerifyConnection = nil
		if _, err := rpc.Dial(t.Context(), one.Address(), cfg); !errors.Is(err, pki.ErrRefused) {
			t.Errorf("the clone's %s: %v, want ErrRefused", name, err)
		}
	}
	if _, err := one.sync.dial(t.Context(), hsm.Member{ID: two.config.ID, Address: two.Address()}); !errors.Is(err, pki.ErrCluster) {
		t.Errorf("server-side sync with an HSM of the clone: %v, want ErrCluster", err)
	}
}

// TestMembershipDecidesAnHSMsRights: with a certificate that stays valid, and at
// once.
func TestMembershipDecidesAnHSMsRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	one, two := w.boxes[0], w.boxes[1]
	asTwo := func() hsm.Principal {
		module, err := two.server.sync.dial(t.Context(), hsm.Member{ID: one.id(), Address: one.server.Address()})
		if err != nil {
			t.Fatal(err)
		}
		defer module.Close()
		s, err := module.Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.Principal()
	}
	if p := asTwo(); p.Role != hsm.RoleHSM {
		t.Errorf("a member is %v", p)
	}
	m := hsm.Member{ID: two.id(), Name: two.server.config.Name, Address: two.server.Address(), Zone: two.server.config.Zone, Removed: true}
	w.change(one.root(), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
	if p := asTwo(); p.Role != hsm.RoleNone {
		t.Errorf("a removed member is %v", p)
	}
	if one.server.isMember(pki.Identity{Kind: pki.KindHSM, Name: hsm.NewHSMID().String()}) || one.server.isMember(pki.Identity{Kind: pki.KindHSM, Name: "hsm-1"}) {
		t.Error("a stranger is a member")
	}
}
