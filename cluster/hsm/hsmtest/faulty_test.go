package hsmtest_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/hsmtest"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// site is two HSMs of one cluster with the user alice.
type site struct{ from, to *soft.HSM }

func newSite(t *testing.T) site {
	t.Helper()
	k, c := hsm.NewKeyring(), hsm.NewClusterID()
	open := func() *soft.HSM {
		h, err := soft.Open(soft.Options{Dir: "store", FS: vfs.NewMem(), ID: hsm.NewHSMID(), Cluster: c, Keyring: k, Iterations: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		return h
	}
	s := site{open(), open()}
	for _, change := range []hsm.Change{
		{Kind: hsm.ChangeUserCreate, User: "admin", Role: hsm.RoleAdmin, Password: hsm.NewSecret([]byte("password"))},
	} {
		if _, err := peer(t, s.from).Change(t.Context(), change); err != nil {
			t.Fatal(err)
		}
	}
	admin, _, err := s.from.Module(hsm.Principal{}).Login(t.Context(), hsm.RoleAdmin, "admin", hsm.NewSecret([]byte("password")))
	if err != nil {
		t.Fatal(err)
	}
	_, err = admin.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserCreate, User: "alice", Role: hsm.RoleCryptoUser, Password: hsm.NewSecret([]byte("password"))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reconcile.Sync(t.Context(), peer(t, s.from), peer(t, s.to)); err != nil {
		t.Fatal(err)
	}
	return s
}

func peer(t *testing.T, h *soft.HSM) hsm.Session {
	t.Helper()
	s, err := h.Module(hsm.Principal{Role: hsm.RoleHSM, Name: "peer"}).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func alice(t *testing.T, h *soft.HSM) hsm.Session {
	t.Helper()
	s, _, err := h.Module(hsm.Principal{}).Login(t.Context(), hsm.RoleCryptoUser, "alice", hsm.NewSecret([]byte("password")))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// create is client-side sync in small: prepare on both, commit on both, abort
// on both if anything fails before the first commit.
func create(ctx context.Context, op hsm.OpID, a, b hsm.Session) error {
	made, err := a.Create(ctx, op, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32})
	if err == nil {
		err = b.Prepare(ctx, op, time.Minute, made.Objects)
	}
	if err != nil {
		return errors.Join(err, a.Abort(ctx, op), b.Abort(ctx, op))
	}
	return errors.Join(a.Commit(ctx, op), b.Commit(ctx, op))
}

// TestFaultyCreate walks a fault over every call of a creation. Whatever
// failed and how: repeating what may be repeated settles both HSMs on one
// outcome, and the key is on both or on neither.
func TestFaultyCreate(t *testing.T) {
	ctx := t.Context()
	for _, mode := range []hsmtest.Mode{hsmtest.NotApplied, hsmtest.Applied} {
		for n := 1; ; n++ {
			s := newSite(t)
			plan := hsmtest.FailAt(n, mode)
			op := hsm.OpID{1}
			err := create(ctx, op, hsmtest.Faulty(alice(t, s.from), plan), hsmtest.Faulty(alice(t, s.to), plan))
			if plan.Failed() == "" {
				if err != nil || plan.Calls() != n-1 {
					t.Fatalf("without a fault: %v after %d calls", err, plan.Calls())
				}
				break
			}
			if !errors.Is(err, hsm.ErrUnavailable) {
				t.Errorf("%s at call %d, %s: %v", mode, n, plan.Failed(), err)
			}
			settle := hsm.Session.Abort
			if plan.Failed() == "Commit" {
				settle = hsm.Session.Commit
			}
			for _, h := range []*soft.HSM{s.from, s.to} {
				if err := settle(alice(t, h), ctx, op); err != nil {
					t.Errorf("%s at call %d, %s: settle: %v", mode, n, plan.Failed(), err)
				}
			}
			a, b := keys(t, s.from), keys(t, s.to)
			want := 0
			if plan.Failed() == "Commit" {
				want = 1
			}
			if len(a) != want || !slices.Equal(a, b) {
				t.Errorf("%s at call %d, %s: %d and %d keys, want %d on both", mode, n, plan.Failed(), len(a), len(b), want)
			}
		}
	}
}

func keys(t *testing.T, h *soft.HSM) (refs []hsm.KeyRef) {
	t.Helper()
	for k, err := range alice(t, h).Keys(t.Context(), hsm.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, k.Ref)
	}
	return refs
}

// TestFaultySync walks a fault over every call of a reconciliation; the next
// one brings both HSMs together.
func TestFaultySync(t *testing.T) {
	for _, mode := range []hsmtest.Mode{hsmtest.NotApplied, hsmtest.Applied} {
		for n := 1; ; n++ {
			s := newSite(t)
			for i := range 3 {
				if err := createAt(t.Context(), hsm.OpID{byte(i + 1)}, alice(t, s.from)); err != nil {
					t.Fatal(err)
				}
			}
			plan := hsmtest.FailAt(n, mode)
			_, err := reconcile.Sync(t.Context(), hsmtest.Faulty(peer(t, s.from), plan), hsmtest.Faulty(peer(t, s.to), plan))
			if plan.Failed() == "" {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			if _, err := reconcile.Sync(t.Context(), peer(t, s.from), peer(t, s.to)); err != nil {
				t.Errorf("%s at call %d, %s: again: %v", mode, n, plan.Failed(), err)
			}
			a, errA := peer(t, s.from).Root(t.Context())
			b, errB := peer(t, s.to).Root(t.Context())
			if a != b || errA != nil || errB != nil {
				t.Errorf("%s at call %d, %s: roots differ", mode, n, plan.Failed())
			}
		}
	}
}

func createAt(ctx context.Context, op hsm.OpID, s hsm.Session) error {
	_, err := s.Create(ctx, op, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32})
	if err != nil {
		return err
	}
	return s.Commit(ctx, op)
}
