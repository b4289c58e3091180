package cluster

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// TestAnIdentityFileIsReadAnew for each connection, and what it held before serves
// while it is not there; one that has expired is refused before any HSM is asked.
func TestAnIdentityFileIsReadAnew(t *testing.T) {
	lineage, id := hsm.NewKeyring().Lineage(), hsm.NewClusterID()
	ca, err := pki.NewAuthority(lineage)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "client.pem")
	save := func(name string, life time.Duration) {
		t.Helper()
		cert, key, err := ca.Issue(pki.Identity{Cluster: id, Kind: pki.KindClient, Name: name}, life)
		if err == nil {
			err = pki.SaveIdentityFile(path, cert, key, ca.CertPEM(), true)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	p := &profile.Profile{ID: id, Lineage: lineage, CA: string(ca.CertPEM()), HSMs: []profile.HSM{{Address: "127.0.0.1:1"}}}
	file := &identityFile{path: path, profile: p}
	if _, err := file.load(); err == nil {
		t.Error("there is no file, and no error")
	}
	for _, name := range []string{"one", "two"} {
		save(name, time.Hour)
		if got, err := file.load(); err != nil || got.Identity.Name != name {
			t.Errorf("%v, %v, want %s", got, err, name)
		}
	}
	file.path = path + ".gone"
	if got, err := file.load(); err != nil || got.Identity.Name != "two" {
		t.Errorf("%v, %v, want the last one", got, err)
	}
	save("three", time.Nanosecond)
	if _, err := Open(t.Context(), p, Credential{Identity: path}); !errors.Is(err, ErrExpired) {
		t.Errorf("%v, want ErrExpired", err)
	}
	p.ID++
	if _, err := Open(t.Context(), p, Credential{Identity: path}); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("of another cluster: %v, want ErrDenied", err)
	}
}
