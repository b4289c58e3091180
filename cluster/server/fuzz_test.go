package server

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
)

// FuzzConfig: hsm.yaml is refused as ErrFolder, or can be written and read again.
func FuzzConfig(f *testing.F) {
	keyring, _ := testLineage()
	c := &Config{
		ID: hsm.NewHSMID(), Name: "hsm-1", Cluster: hsm.NewClusterID(), ClusterName: "payments", Lineage: keyring.Lineage(),
		Region: "east", Zone: "zone-1", Address: "127.0.0.1:7000", Listen: "0.0.0.0:7000", Seal: "file",
	}
	dir := f.TempDir()
	if err := c.save(dir); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte("id: 7\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseConfig(b, configFile)
		if err != nil {
			if !errors.Is(err, ErrFolder) {
				t.Errorf("%v is not ErrFolder", err)
			}
			return
		}
		dir := t.TempDir()
		if err := c.save(dir); err != nil {
			t.Fatalf("cannot be saved: %v", err)
		}
		if _, err := LoadConfig(dir); err != nil {
			t.Fatalf("saved, and not read again: %v", err)
		}
	})
}

// FuzzSealed: what lies under the seal of an HSM, and of an unfinished join.
func FuzzSealed(f *testing.F) {
	dir := f.TempDir()
	s, err := seal.NewFile(dir)
	if err != nil {
		f.Fatal(err)
	}
	keyring, ca := testLineage()
	sealed, err := closeSecrets(s, keyring, ca, hsm.NewSecret([]byte("a key")))
	if err != nil {
		f.Fatal(err)
	}
	plain, err := s.Open(sealed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain.Reveal())
	request, key, err := pki.NewRequest()
	if err != nil {
		f.Fatal(err)
	}
	join, err := cbor.Marshal(pending{Version: pendingVersion, Invite: make([]byte, 16), Joiner: 1, Request: request, TLSKey: key.Reveal(), Address: "127.0.0.1:1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(join)
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := parseSecrets(hsm.NewSecret(b), "sealed"); err == nil && got.keyring == nil {
			t.Error("secrets without a keyring")
		} else if err != nil && !errors.Is(err, ErrFolder) && !errors.Is(err, hsm.ErrCorrupt) {
			t.Errorf("secrets: %v", err)
		}
		if _, err := parsePending(hsm.NewSecret(b)); err != nil && !errors.Is(err, ErrFolder) {
			t.Errorf("join: %v", err)
		}
	})
}
