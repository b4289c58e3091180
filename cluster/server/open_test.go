package server

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server/audit"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
)

// newFolder lays out a cluster of one HSM and returns the HSM's folder.
func newFolder(t *testing.T) string {
	t.Helper()
	p, err := Create(t.Context(), newSpec(filepath.Join(t.TempDir(), "east"), 1))
	if err != nil {
		t.Fatal(err)
	}
	return p.Resolve("hsm-1")
}

// edit replaces text in a file.
func edit(t *testing.T, path, old, new string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), old) {
		t.Fatalf("%s does not contain %q", path, old)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), old, new, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// line returns the first line of a file that begins so.
func line(t *testing.T, path, prefix string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if strings.HasPrefix(l, prefix) {
			return l
		}
	}
	t.Fatalf("%s has no line %s…", path, prefix)
	return ""
}

func TestOpenRefusesWhatIsNotWhole(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		damage func(t *testing.T, folder string)
		want   error
		says   string
	}{
		"no folder":           {func(t *testing.T, f string) { os.RemoveAll(f) }, ErrFolder, "holds no HSM"},
		"no configuration":    {func(t *testing.T, f string) { os.Remove(filepath.Join(f, configFile)) }, ErrFolder, "holds no HSM"},
		"empty configuration": {func(t *testing.T, f string) { os.Truncate(filepath.Join(f, configFile), 0) }, ErrFolder, configFile},
		"not YAML":            {func(t *testing.T, f string) { edit(t, filepath.Join(f, configFile), "name:", "name: [") }, ErrFolder, "does not decode"},
		"unknown key":         {func(t *testing.T, f string) { edit(t, filepath.Join(f, configFile), "zone:", "zome:") }, ErrFolder, "zome"},
		"wrong type":          {func(t *testing.T, f string) { edit(t, filepath.Join(f, configFile), "id: hsm-", "id: hms-") }, ErrFolder, "hms-"},
		"no address": {func(t *testing.T, f string) {
			p := filepath.Join(f, configFile)
			edit(t, p, line(t, p, "address:"), "")
		}, ErrFolder, "host:port"},
		"address of nobody": {func(t *testing.T, f string) { edit(t, filepath.Join(f, configFile), "127.0.0.1", "0.0.0.0") }, ErrFolder, "listen"},
		"no seal":           {func(t *testing.T, f string) { edit(t, filepath.Join(f, configFile), "seal: file", "") }, ErrFolder, "seal"},
		"another seal":      {func(t *testing.T, f string) { edit(t, filepath.Join(f, configFile), "seal: file", "seal: wax") }, hsm.ErrInvalid, "wax"},
		"another lineage": {func(t *testing.T, f string) {
			p := filepath.Join(f, configFile)
			edit(t, p, line(t, p, "lineage:"), "lineage: "+hsm.NewKeyring().Lineage().String()+"\n")
		}, hsm.ErrLineage, "names lineage-"},
		"no sealed keys":      {func(t *testing.T, f string) { os.Remove(filepath.Join(f, sealedFile)) }, ErrFolder, sealedFile},
		"no seal's key":       {func(t *testing.T, f string) { os.Remove(filepath.Join(f, seal.FileName)) }, seal.ErrSeal, seal.FileName},
		"damaged sealed keys": {func(t *testing.T, f string) { flip(t, filepath.Join(f, sealedFile)) }, seal.ErrSeal, sealedFile},
		"no certificate":      {func(t *testing.T, f string) { os.Remove(filepath.Join(f, certFile)) }, ErrFolder, certFile},
		"no CA":               {func(t *testing.T, f string) { os.Remove(filepath.Join(f, caFile)) }, ErrFolder, caFile},
		"a foreign CA":        {foreignCA, pki.ErrForeign, ""},
		"another cluster": {func(t *testing.T, f string) {
			p := filepath.Join(f, configFile)
			edit(t, p, line(t, p, "cluster:"), "cluster: "+hsm.NewClusterID().String()+"\n")
		}, pki.ErrCluster, ""},
		"audit log changed": {func(t *testing.T, f string) { edit(t, filepath.Join(f, AuditFile), "user-create", "user-delete") }, audit.ErrBroken, AuditFile},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := newFolder(t)
			c.damage(t, folder)
			s, err := Open(t.Context(), folder, Options{})
			if s != nil || !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want %v that says %q", err, c.want, c.says)
			}
		})
	}
}

func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func foreignCA(t *testing.T, folder string) {
	t.Helper()
	_, ca := testLineage()
	a, err := pki.ParseAuthority(ca)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, caFile), a.CertPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAFolderIsServedOnce(t *testing.T) {
	t.Parallel()
	folder := newFolder(t)
	first, err := Open(t.Context(), folder, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), folder, Options{}); !errors.Is(err, ErrFolder) || !strings.Contains(err.Error(), folder) {
		t.Errorf("a second time: %v, want ErrFolder that names the folder", err)
	}
	if err := errors.Join(first.Close(), first.Close()); err != nil {
		t.Errorf("close, twice: %v", err)
	}
	second, err := Open(t.Context(), folder, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

func TestAnAddressInUseIsSaidAndLeavesNoTrace(t *testing.T) {
	t.Parallel()
	folder := newFolder(t)
	c, err := LoadConfig(folder)
	if err != nil {
		t.Fatal(err)
	}
	other, err := listenFree("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	edit(t, filepath.Join(folder, configFile), c.Address, other.Addr().String())
	if _, err := Open(t.Context(), folder, Options{}); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), other.Addr().String()) {
		t.Errorf("got %v, want ErrUnavailable that names the address", err)
	}
	edit(t, filepath.Join(folder, configFile), other.Addr().String(), c.Address)
	s, err := Open(t.Context(), folder, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if members, err := s.device.self.Members(t.Context()); err != nil || members[0].Address != c.Address {
		t.Errorf("it is announced at %v, %v", members, err)
	}
}

func TestAFreePortIsAnnouncedAsItIs(t *testing.T) {
	t.Parallel()
	folder := newFolder(t)
	c, err := LoadConfig(folder)
	if err != nil {
		t.Fatal(err)
	}
	edit(t, filepath.Join(folder, configFile), c.Address, "localhost:0\nlisten: 127.0.0.1:0")
	s, err := Open(t.Context(), folder, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	host, port, err := net.SplitHostPort(s.Address())
	if err != nil || host != "localhost" || port == "0" {
		t.Errorf("address %s", s.Address())
	}
	if members, err := s.device.self.Members(t.Context()); err != nil || members[0].Address != s.Address() {
		t.Errorf("members %v, %v", members, err)
	}
}

func TestARemovedHSMDoesNotOpen(t *testing.T) {
	t.Parallel()
	folder := newFolder(t)
	s, err := Open(t.Context(), folder, Options{})
	if err != nil {
		t.Fatal(err)
	}
	members, err := s.device.self.Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	members[0].Removed = true
	if _, err := s.device.self.Change(t.Context(), hsm.Change{Kind: hsm.ChangeMember, Member: &members[0]}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), folder, Options{}); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("got %v, want ErrDenied", err)
	}
}

func TestOneHSMAloneIsInSync(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.eventually("an HSM without peers is never in sync", func() bool { return time.Since(w.boxes[0].info().LastSync) < time.Hour })
	if info := w.boxes[0].info(); info.State != "ACTIVE" || info.Version != "" || info.Region != "region-one" {
		t.Errorf("info %+v", info)
	}
}

func TestServeEndsWithItsListener(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), newFolder(t), Options{SyncInterval: testInterval})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.lis.Close()
	if err := s.Serve(t.Context()); err == nil {
		t.Error("a server without a listener serves")
	}
}

// TestStopFinishesCalls: what has begun when an HSM is stopped is answered.
func TestStopFinishesCalls(t *testing.T) {
	t.Parallel()
	w := &world{t: t}
	p, err := Create(t.Context(), newSpec(filepath.Join(t.TempDir(), "east"), 1))
	if err != nil {
		t.Fatal(err)
	}
	w.profile = p
	b := &box{w: w, folder: p.Resolve("hsm-1")}
	begun, finish := make(chan struct{}), make(chan struct{})
	o := Options{SyncInterval: testInterval, SealEnvelope: func(context.Context, hsm.Secret, []string, int) ([]byte, error) {
		close(begun)
		<-finish
		return []byte("envelope"), nil
	}}
	s, err := Open(t.Context(), b.folder, o)
	if err != nil {
		t.Fatal(err)
	}
	b.serve(s)
	root := b.root()
	answered := make(chan error, 1)
	go func() {
		_, err := root.Envelope(t.Context(), []string{"age1somebody"}, 1)
		answered <- err
	}()
	<-begun
	b.cancel()
	close(finish)
	if err := <-answered; err != nil {
		t.Errorf("a call under way: %v", err)
	}
	if err := b.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestLoadConfigKeepsWhatSaveWrote(t *testing.T) {
	t.Parallel()
	c := Config{ID: hsm.NewHSMID(), Name: "hsm-1", Cluster: hsm.NewClusterID(), ClusterName: "east", Lineage: hsm.NewKeyring().Lineage(), Region: "r", Zone: "z", Address: "host:1", Listen: ":1", Seal: "file"}
	dir := t.TempDir()
	if err := c.save(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadConfig(dir); err != nil || *got != c {
		t.Errorf("got %+v, %v, want %+v", got, err, c)
	}
	if _, err := profile.Load(dir); err == nil {
		t.Error("an HSM's folder was taken for a cluster's")
	}
}
