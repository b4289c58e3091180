package soft_test

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/hsmtest"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
)

func TestConformance(t *testing.T) {
	hsmtest.Run(t, func(t *testing.T, c hsmtest.Config) hsmtest.Modules {
		h, err := soft.Open(options(c, vfs.NewMem()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
		return func(p hsm.Principal) hsm.Module { return h.Module(p) }
	})
}

func options(c hsmtest.Config, fs vfs.FS) soft.Options {
	return soft.Options{
		Dir: "store", FS: fs, ID: c.ID, Cluster: c.Cluster, Keyring: c.Keyring, CA: c.CA, Seal: c.Seal, Now: c.Now, Iterations: c.Iterations,
	}
}
