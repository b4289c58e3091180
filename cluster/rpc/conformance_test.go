package rpc

import (
	"fmt"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/hsmtest"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// TestConformance runs the contract's suite on a software HSM behind the wire:
// every caller with a certificate of its own.
func TestConformance(t *testing.T) {
	hsmtest.Run(t, func(t *testing.T, c hsmtest.Config) hsmtest.Modules {
		h, err := soft.Open(soft.Options{
			Dir: "hsm", FS: vfs.NewMem(), ID: c.ID, Cluster: c.Cluster, ClusterName: "test",
			Keyring: c.Keyring, CA: c.CA, Now: c.Now, Iterations: c.Iterations, Seal: c.Seal,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		d := &directory{site: &site{t: t, cluster: c.Cluster, id: c.ID}, names: map[string]hsm.Principal{}}
		d.site.serve(func(id pki.Identity) hsm.Module { return h.Module(d.principal(id)) })
		return d.dial
	})
}

// directory knows which principal each certificate was issued to.
type directory struct {
	site  *site
	mu    sync.Mutex
	names map[string]hsm.Principal
}

func (d *directory) principal(id pki.Identity) hsm.Principal {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.names[id.Name]
}

func (d *directory) dial(p hsm.Principal) hsm.Module {
	kinds := map[hsm.Role]pki.Kind{hsm.RoleNone: pki.KindClient, hsm.RoleAppliance: pki.KindAppliance, hsm.RoleHSM: pki.KindHSM}
	d.mu.Lock()
	name := fmt.Sprintf("caller-%d", len(d.names))
	if p.Role == hsm.RoleHSM {
		name = hsm.NewHSMID().String()
	}
	d.names[name] = p
	d.mu.Unlock()
	return d.site.dial(kinds[p.Role], name)
}
