package soft

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestExistingStoreIsNotMadeAnew: an HSM whose store is gone, or whose disk is
// not mounted, does not come back empty.
func TestExistingStoreIsNotMadeAnew(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "store"), ID: hsm.NewHSMID(), Cluster: hsm.NewClusterID(), Keyring: hsm.NewKeyring(), Iterations: 1}
	o.Existing = true
	if _, err := Open(o); !errors.Is(err, hsm.ErrCorrupt) {
		t.Errorf("a missing store: %v, want ErrCorrupt", err)
	}
	if _, err := os.Stat(o.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the store was made: %v", err)
	}
	o.Existing = false
	h := must[*HSM](t)(Open(o))
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	o.Existing = true
	h = must[*HSM](t)(Open(o))
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(o.Dir, floorFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(o); !errors.Is(err, hsm.ErrCorrupt) {
		t.Errorf("a store without its floor: %v, want ErrCorrupt", err)
	}
}

// TestStoreDeletedWhileOpenIsNoticed: what is written to a folder that is gone
// is not acknowledged.
func TestStoreDeletedWhileOpenIsNoticed(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "store"), ID: hsm.NewHSMID(), Cluster: hsm.NewClusterID(), Keyring: hsm.NewKeyring(), Iterations: 1}
	h := must[*HSM](t)(Open(o))
	defer h.Close()
	s := must[hsm.Session](t)(h.Module(hsm.Principal{Role: hsm.RoleHSM, Name: o.ID.String()}).Session(t.Context()))
	move := func(address string) error {
		m := hsm.Member{ID: o.ID, Name: "hsm-1", Address: address, Zone: "zone-1"}
		_, err := s.Change(t.Context(), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
		return err
	}
	if err := move("127.0.0.1:1"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(o.Dir); err != nil {
		t.Fatal(err)
	}
	h.store.roomy.Store(0) // the folder is looked at every 10 ms of writing
	if err := move("127.0.0.1:2"); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
}
