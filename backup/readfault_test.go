package backup

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile/reconciletest"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/storagetest"
)

// eachFault runs f with every storage call in turn failing, in every way, until
// the fault comes too late to hit anything.
func eachFault(t *testing.T, atLeast int, store storage.Store, f func(t *testing.T, faulty *storagetest.Faulty)) {
	for _, fault := range []storagetest.Fault{
		{Mode: storagetest.NotApplied}, {Mode: storagetest.Applied}, {Mode: storagetest.NotApplied, Dead: true}, {Mode: storagetest.Applied, Dead: true},
	} {
		t.Run(fmt.Sprintf("%s, dead %t", fault.Mode, fault.Dead), func(t *testing.T) {
			for fault.N = 1; ; fault.N++ {
				faulty := storagetest.NewFaulty(store)
				faulty.Set(fault)
				f(t, faulty)
				if faulty.Calls() < fault.N {
					break
				}
			}
			if fault.N <= atLeast {
				t.Fatalf("only %d storage calls", fault.N-1)
			}
		})
	}
}

// twoSnapshots is a repository of a full snapshot and an increment.
func twoSnapshots(t *testing.T) (*testCluster, storage.Store) {
	c, store := newTestCluster(t, 1), newStore(t)
	c.cheap(t)
	refs := keys(c.hsm(0), 5)
	mustTake(t, c, store, c.options())
	c.hsm(0).SetLabel(refs[0], "changed")
	keys(c.hsm(0), 2)
	mustTake(t, c, store, c.options())
	return c, store
}

// TestVerifyUnderFaults: a store that fails is never taken for a damaged
// snapshot, nor for a whole one, and the same verify succeeds afterwards.
func TestVerifyUnderFaults(t *testing.T) {
	c, store := twoSnapshots(t)
	for _, level := range []Level{LevelHashes, LevelRoot} {
		t.Run(string(level), func(t *testing.T) {
			eachFault(t, 6, store, func(t *testing.T, faulty *storagetest.Faulty) {
				r, err := Verify(t.Context(), faulty, "2", level, OpenOptions{Identities: c.identities()})
				switch {
				case err != nil && !errors.Is(err, storagetest.ErrInjected):
					t.Errorf("%v", err)
				case err == nil && (!r.OK() || faulty.Fired()):
					t.Errorf("a report of a store that failed: %+v, fired %t", r, faulty.Fired())
				}
			})
		})
	}
	mustVerify(t, c, store, "2")
}

// TestRestoreUnderFaults: a restore whose store fails says so, has inserted
// nothing wrong, and goes on where it is when it is run again, also with the
// snapshot that was open before.
func TestRestoreUnderFaults(t *testing.T) {
	c, store := twoSnapshots(t)
	want := rootOf(t, c.hsm(0))
	eachFault(t, 6, store, func(t *testing.T, faulty *storagetest.Faulty) {
		into := reconciletest.NewReplica(c.keyring)
		s, err := Open(t.Context(), faulty, "2", OpenOptions{Identities: c.identities()})
		if err == nil {
			_, _, err = s.Recovery(t.Context())
		}
		if err == nil {
			var n int
			n, err = restoreSome(t, s, into)
			if err == nil && (n != 7 || faulty.Fired()) {
				t.Errorf("restored %d of 7 objects without an error, fired %t", n, faulty.Fired())
			}
		}
		if err != nil && !errors.Is(err, storagetest.ErrInjected) {
			t.Errorf("%v", err)
		}
		faulty.Set(storagetest.Fault{})
		if s == nil {
			s, err = Open(t.Context(), faulty, "2", OpenOptions{Identities: c.identities()})
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := s.Recovery(t.Context()); err != nil {
			t.Errorf("recovery again: %v", err)
		}
		if _, err := restoreSome(t, s, into); err != nil || rootOf(t, into) != want {
			t.Errorf("again: %v, root equal %t", err, rootOf(t, into) == want)
		}
	})
}

// restoreSome inserts what is extracted before an error, if any.
func restoreSome(t *testing.T, s *Snapshot, into *reconciletest.Replica) (n int, failure error) {
	t.Helper()
	var refs []hsm.KeyRef
	for o, err := range s.Objects(t.Context()) {
		if err != nil {
			return 0, err
		}
		refs = append(refs, o.Ref)
	}
	_, err := into.Insert(t.Context(), func(yield func(hsm.MaskedObject, error) bool) {
		for m, err := range s.Extract(t.Context(), slices.Values(refs)) {
			if err != nil {
				failure = err
				return
			}
			n++
			if !yield(m, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return n, failure
}

// TestRecoveryUnderFaults: while other envelopes are tried for an old snapshot,
// a store that fails is not taken for identities that do not fit.
func TestRecoveryUnderFaults(t *testing.T) {
	c, store := newTestCluster(t, 1), newStore(t)
	c.cheap(t)
	keys(c.hsm(0), 3)
	mustTake(t, c, store, c.options())
	former := c.custodian
	c.cheap(t)
	keys(c.hsm(0), 1)
	mustTake(t, c, store, c.options())
	eachFault(t, 4, store, func(t *testing.T, faulty *storagetest.Faulty) {
		s, err := Open(t.Context(), faulty, "1", OpenOptions{Identities: c.identities()})
		if err == nil {
			_, _, err = s.Recovery(t.Context())
		}
		if fired := faulty.Fired(); fired != errors.Is(err, storagetest.ErrInjected) || fired != (err != nil) {
			t.Errorf("fired %t: %v", fired, err)
		}
		if faulty.Set(storagetest.Fault{}); s == nil {
			return
		}
		if k, _, err := s.Recovery(t.Context()); err != nil || k.Lineage() != c.keyring.Lineage() {
			t.Errorf("again: %v", err)
		}
	})
	s, err := Open(t.Context(), store, "2", OpenOptions{Identities: []Identity{former.Identity}})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = s.Recovery(t.Context())
	wantErr(t, err, ErrIdentity)
}
