package main

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile/reconciletest"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/file"
)

// source is a cluster of one replica, to take snapshots from.
type source struct {
	keyring   *hsm.Keyring
	replica   *reconciletest.Replica
	recipient string
}

func (s source) Describe(context.Context) (backup.Description, error) {
	return backup.Description{Cluster: 1, Name: "east", Lineage: s.keyring.Lineage()}, nil
}

func (s source) Sources(context.Context) ([]backup.NamedSource, []hsm.HSMID, error) {
	return []backup.NamedSource{{ID: 1, Sketcher: s.replica}}, nil, nil
}

func (s source) Settings(context.Context) (hsm.Settings, error) {
	return hsm.Settings{Custodians: []string{s.recipient}, Threshold: 1}, nil
}

func (s source) Envelope(ctx context.Context, custodians []string, threshold int) ([]byte, error) {
	return backup.SealEnvelope(ctx, hsm.EncodeRecovery(s.keyring, hsm.NewSecret([]byte("ca"))), custodians, threshold)
}

func (s source) Sign(_ context.Context, p hsm.Purpose, message []byte) (hsm.LineageSignature, error) {
	return s.keyring.Sign(p, message), nil
}

// take puts a snapshot of a fresh lineage into the store.
func take(t *testing.T, store storage.Store, recipient string) hsm.Lineage {
	t.Helper()
	k := hsm.NewKeyring()
	s := source{keyring: k, replica: reconciletest.NewReplica(k), recipient: recipient}
	s.replica.NewKey("web")
	if _, err := backup.Take(t.Context(), s, store, backup.TakeOptions{Recipients: []string{recipient}}); err != nil {
		t.Fatal(err)
	}
	return k.Lineage()
}

// TestAStoreOfSeveralLineagesIsNotTrustedByItself: whoever may add objects to a
// store cannot have their own lineage restored in place of ours.
func TestAStoreOfSeveralLineagesIsNotTrustedByItself(t *testing.T) {
	store, err := file.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	_, recipient, err := backup.NewIdentity(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ours := take(t, store, recipient)
	if err := trustStore(t.Context(), store, backup.OpenOptions{}); err != nil {
		t.Errorf("one lineage: %v", err)
	}
	take(t, store, recipient)
	err = trustStore(t.Context(), store, backup.OpenOptions{})
	if !errors.Is(err, hsm.ErrLineage) || judge(err).exit != exitRefused {
		t.Errorf("two lineages: %v, want ErrLineage and exit %d", err, exitRefused)
	}
	if err := trustStore(t.Context(), store, backup.OpenOptions{Trust: &ours}); err != nil {
		t.Errorf("one of them named: %v", err)
	}
}

// TestTooManyHSMsAwayIsADoubt: with as many HSMs away as a key needs copies, a
// snapshot may miss an acknowledged key, and says so.
func TestTooManyHSMsAwayIsADoubt(t *testing.T) {
	for _, c := range []struct{ away, minCopies int }{{0, 2}, {1, 2}, {2, 2}, {1, 1}, {0, 1}} {
		p := testProgram()
		p.out = io.Discard
		r := &backup.Report{ID: "0000000001", Coverage: backup.Coverage{Missing: make([]hsm.HSMID, c.away)}}
		err := p.taken(r, c.minCopies)
		if want := c.away >= c.minCopies; errors.Is(err, errPrinted) != want || len(r.Notes) > 0 != want {
			t.Errorf("%d away, min-copies %d: %v, notes %q", c.away, c.minCopies, err, r.Notes)
		}
	}
}
