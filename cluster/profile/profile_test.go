package profile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func testCA(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour), IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func testProfile(t testing.TB) *Profile {
	return &Profile{
		Name: "payments", ID: hsm.NewClusterID(), Lineage: hsm.NewKeyring().Lineage(), Region: "eu-central-1", CA: testCA(t),
		MinCopies: 2, MinZones: 2, CheckOnUse: true, Client: "client.pem", Appliance: "/etc/appliance.pem",
		HSMs: []HSM{
			{ID: hsm.NewHSMID(), Name: "hsm-1", Address: "127.0.0.1:2223", Zone: "a", Dir: "hsm-1"},
			{ID: hsm.NewHSMID(), Name: "hsm-2", Address: "[::1]:2224", Zone: "b"},
		},
	}
}

var ignorePath = cmpopts.IgnoreUnexported(Profile{})

func TestSaveLoad(t *testing.T) {
	p := testProfile(t)
	dir := t.TempDir()
	file := filepath.Join(dir, FileName)
	for range 2 { // the second time it replaces the first
		if err := p.Save(file); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{dir, file} {
		got, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, got, ignorePath); diff != "" {
			t.Errorf("Load(%s): (-want +got)\n%s", path, diff)
		}
		if got.ClientPath() != filepath.Join(dir, "client.pem") || got.AppliancePath() != "/etc/appliance.pem" || got.Folder() != dir {
			t.Errorf("paths: %q, %q, %q", got.ClientPath(), got.AppliancePath(), got.Folder())
		}
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v; want 0644", st.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("%d files in the folder; want the profile alone", len(entries))
	}
}

func TestSaveKeepsTheOldFileOnFailure(t *testing.T) {
	p := testProfile(t)
	file := filepath.Join(t.TempDir(), FileName)
	if err := p.Save(file); err != nil {
		t.Fatal(err)
	}
	bad := *p
	bad.HSMs = nil
	if err := bad.Save(file); !errors.Is(err, ErrInvalid) {
		t.Errorf("Save of an invalid profile: %v; want ErrInvalid", err)
	}
	if got, err := Load(file); err != nil || len(got.HSMs) != 2 {
		t.Errorf("after a failed save: %v, %v", got, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	edit := func(old, new string) func(string) string {
		return func(s string) string { return strings.Replace(s, old, new, 1) }
	}
	tests := map[string]func(string) string{
		"unknown key":         func(s string) string { return s + "\nmin_copy: 3\n" },
		"unknown key in hsms": edit("- id:", "- colour: red\n  id:"),
		"no id":               edit("\nid: cluster-", "\nx: cluster-"),
		"bad id":              edit("\nid: cluster-", "\nid: klaster-"),
		"bad lineage":         edit("lineage: lineage-", "lineage: lineage-zz"),
		"negative copies":     edit("min_copies: 2", "min_copies: -2"),
		"negative zones":      edit("min_zones: 2", "min_zones: -1"),
		"more zones":          edit("min_zones: 2", "min_zones: 3"),
		"no port":             edit("127.0.0.1:2223", "127.0.0.1"),
		"address twice":       edit("[::1]:2224", "127.0.0.1:2223"),
		"no certificate":      edit("BEGIN CERTIFICATE", "BEGIN SERTIFICATE"),
		"garbled certificate": edit("MII", "AAA"),
		"not yaml":            func(string) string { return "\t{" },
		"empty":               func(string) string { return "" },
	}
	file := filepath.Join(t.TempDir(), FileName)
	if err := testProfile(t).Save(file); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			bad := change(string(good))
			if bad == string(good) {
				t.Fatal("the test changes nothing")
			}
			path := filepath.Join(t.TempDir(), FileName)
			if err := os.WriteFile(path, []byte(bad), 0o644); err != nil {
				t.Fatal(err)
			}
			if p, err := Load(path); !errors.Is(err, ErrInvalid) || !errors.Is(err, hsm.ErrInvalid) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Load: %v, %q; want ErrInvalid on one line", p, err)
			}
		})
	}
	if _, err := Load(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of an empty folder: %v; want fs.ErrNotExist", err)
	}
}

func TestFind(t *testing.T) {
	p := testProfile(t)
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "one"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := p.Save(filepath.Join(home, "one", FileName)); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(home, "config.yaml")
	t.Setenv(EnvConfig, config)
	if _, err := Find("payments"); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "none") {
		t.Errorf("Find without a configuration: %v", err)
	}
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("clusters:\n  payments: one\n  same: " + filepath.Join(home, "one", FileName) + "\n  gone: two\n")
	for _, name := range []string{"payments", "same", filepath.Join(home, "one"), filepath.Join(home, "one", FileName)} {
		if got, err := Find(name); err != nil || got.ID != p.ID {
			t.Errorf("Find(%q): %v, %v", name, got, err)
		}
	}
	if _, err := Find("billing"); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "gone, payments, same") {
		t.Errorf("Find of an unknown name: %v; want the names there are", err)
	}
	if _, err := Find("gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Find of a name that points nowhere: %v; want fs.ErrNotExist", err)
	}
	if _, err := Find(""); !errors.Is(err, ErrUnknown) {
		t.Errorf("Find of nothing: %v", err)
	}
	write("clusters:\n  payments: one\nclutter: 1\n")
	if _, err := Find("payments"); !errors.Is(err, ErrInvalid) {
		t.Errorf("Find with an unknown key in the configuration: %v; want ErrInvalid", err)
	}
}

func TestConfigPath(t *testing.T) {
	t.Setenv(EnvConfig, "")
	t.Setenv("XDG_CONFIG_HOME", "/home/x/.config")
	if got, err := ConfigPath(); err != nil || got != "/home/x/.config/hsmbackup/config.yaml" {
		t.Errorf("ConfigPath: %q, %v", got, err)
	}
}
