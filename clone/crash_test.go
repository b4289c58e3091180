package clone

import (
	"errors"
	"fmt"
	"testing"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster/server"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/storagetest"
)

// TestRestoreUnderStorageFaults fails every storage call of a restore in turn,
// not made at all or broken off halfway: nothing is left of the new cluster, and
// the same call succeeds afterwards.
func TestRestoreUnderStorageFaults(t *testing.T) {
	t.Parallel()
	v := newVault(t)
	m := newMemory(t, v, 1)
	m.everyKey(t)
	v.take(t, m)
	m.hsms[0].NewKey("later")
	id := v.take(t, m).ID()
	inner := v.store
	for _, mode := range []storagetest.Mode{storagetest.NotApplied, storagetest.Applied} {
		for n := 1; ; n++ {
			faulty := storagetest.NewFaulty(inner)
			faulty.Set(storagetest.Fault{N: n, Mode: mode})
			spec := v.spec(t, fmt.Sprintf("west-%d-%d", mode, n), 1)
			restore := func() (*Restored, error) { return restoreFrom(t, faulty, v, id, spec) }
			r, err := restore()
			if !faulty.Fired() {
				if err != nil || !r.RootEqual || n < 7 {
					t.Errorf("%v: without a fault at %d: %+v, %v", mode, n, r, err)
				}
				break
			}
			if err == nil || !errors.Is(err, storagetest.ErrInjected) {
				t.Errorf("%v at %d: %v", mode, n, err)
			}
			mustBeEmpty(t, spec)
			if r, err := restore(); err != nil || !r.RootEqual {
				t.Errorf("%v at %d, again: %+v, %v", mode, n, r, err)
			}
		}
	}
}

func restoreFrom(t *testing.T, store storage.Store, v *vault, id string, spec server.Spec) (*Restored, error) {
	t.Helper()
	s, err := backup.Open(t.Context(), store, id, backup.OpenOptions{Identities: []backup.Identity{v.identity}, Workers: 1})
	if err != nil {
		return nil, err
	}
	return Restore(t.Context(), s, spec, nil)
}
