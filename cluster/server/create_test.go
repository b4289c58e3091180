package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/server/audit"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
)

// mustServe is mustHold of a new cluster: an admin and the settings.
func mustServe(t *testing.T, dir string) {
	t.Helper()
	mustHold(t, dir, 2)
}

// mustHold opens every HSM of a cluster and demands that all hold the same, so many objects.
func mustHold(t *testing.T, dir string, objects uint64) {
	t.Helper()
	p, err := profile.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	var roots []hsm.Root
	for _, h := range p.HSMs {
		s, err := Open(t.Context(), p.Resolve(h.Dir), Options{})
		if err != nil {
			t.Fatal(err)
		}
		root, err := s.device.self.Root(t.Context())
		if err != nil {
			t.Error(err)
		}
		roots = append(roots, root)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(slices.Compact(roots)) != 1 || roots[0].Count != objects {
		t.Errorf("roots %v: want one, of %d objects", roots, objects)
	}
}

func TestCreateMakesAWholeCluster(t *testing.T) {
	t.Parallel()
	for _, existing := range []bool{false, true} {
		t.Run(fmt.Sprintf("existing %t", existing), func(t *testing.T) {
			parent := t.TempDir()
			dir := filepath.Join(parent, "a", "east")
			if existing {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			spec := newSpec(dir, 2)
			spec.Zones = []string{"a", "b"}
			p, err := Create(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			if p.Name != "east" || p.Region != "region-one" || len(p.HSMs) != 2 || p.HSMs[1].Zone != "b" || p.HSMs[0].Address == p.HSMs[1].Address {
				t.Errorf("profile %+v", p)
			}
			mustServe(t, dir)
			mustBeAlone(t, dir)
		})
	}
}

// mustBeAlone demands that nothing is left beside dir.
func mustBeAlone(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(dir) {
			t.Errorf("%s is left beside the cluster", e.Name())
		}
	}
}

func TestCreateIsRecordedAndKeepsSecrets(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "east")
	if _, err := Create(t.Context(), newSpec(dir, 2)); err != nil {
		t.Fatal(err)
	}
	var events []string
	err := audit.Read(openFile(t, filepath.Join(dir, "hsm-1", AuditFile)), func(e audit.Entry) error {
		events = append(events, e.Event+" "+e.Detail)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(events, "\n")
	for _, want := range []string{"start", "member", "user-create admin root", "settings", "create-cluster east cluster-"} {
		if !strings.Contains(text, want) {
			t.Errorf("the audit log lacks %q:\n%s", want, text)
		}
	}
	mustNotHold(t, dir, rootPassword)
	for path, mode := range map[string]os.FileMode{"hsm-1": 0o700, "hsm-1/seal.key": 0o600, "hsm-1/sealed.age": 0o600, "hsm-1/audit.log": 0o600, "appliance.pem": 0o600, "client.pem": 0o600} {
		st, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != mode {
			t.Errorf("%s has mode %s, want %s", path, st.Mode().Perm(), mode)
		}
	}
}

// mustNotHold demands that no file below dir contains the text.
func mustNotHold(t *testing.T, dir, text string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), text) {
			t.Errorf("%s holds a secret", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func openFile(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestCreateLeavesWhatIsThereAlone(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	full, file := filepath.Join(parent, "full"), filepath.Join(parent, "file")
	if err := os.Mkdir(full, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(full, "notes"), file} {
		if err := os.WriteFile(path, []byte("mine"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{full, file, filepath.Join(file, "below")} {
		if _, err := Create(t.Context(), newSpec(dir, 1)); !errors.Is(err, ErrFolder) {
			t.Errorf("%s: %v, want ErrFolder", dir, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(full, "notes")); err != nil || string(b) != "mine" {
		t.Errorf("notes: %q, %v", b, err)
	}
	// A cluster called NAME.new is no rubbish of NAME's.
	if _, err := Create(t.Context(), newSpec(filepath.Join(parent, "pay.new"), 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(t.Context(), newSpec(filepath.Join(parent, "pay"), 1)); err != nil {
		t.Fatal(err)
	}
	mustServe(t, filepath.Join(parent, "pay.new"))
}

func TestCreateRefusesTwoAtOnce(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "east")
	spec := newSpec(dir, 1)
	spec.Seal = func(folder string) (seal.Seal, error) {
		if _, err := Create(t.Context(), newSpec(dir, 1)); !errors.Is(err, ErrFolder) {
			t.Errorf("a second creation meanwhile: %v, want ErrFolder", err)
		}
		return seal.NewFile(folder)
	}
	if _, err := Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	mustServe(t, dir)
}

func TestCreateRefusesSpecsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	keyring, _ := testLineage()
	for name, change := range map[string]func(*Spec){
		"no name":             func(s *Spec) { s.Name = "" },
		"name with slash":     func(s *Spec) { s.Name = "a/b" },
		"no folder":           func(s *Spec) { s.Dir = "" },
		"no HSMs":             func(s *Spec) { s.HSMs = 0 },
		"too many HSMs":       func(s *Spec) { s.HSMs = 29 },
		"no copies":           func(s *Spec) { s.MinCopies = 0 },
		"more copies":         func(s *Spec) { s.MinCopies = 4 },
		"more zones":          func(s *Spec) { s.MinCopies, s.MinZones = 2, 3 },
		"zones in one zone":   func(s *Spec) { s.MinCopies, s.MinZones, s.Zones = 2, 2, []string{"a"} },
		"threshold":           func(s *Spec) { s.Threshold = 1 },
		"address":             func(s *Spec) { s.Listen = []string{"localhost"} },
		"address of nobody":   func(s *Spec) { s.Listen = []string{"0.0.0.0:0"} },
		"port":                func(s *Spec) { s.Listen = []string{"127.0.0.1:http-ish"} },
		"foreign address":     func(s *Spec) { s.Listen = []string{"192.0.2.1:0"} },
		"one fixed port":      func(s *Spec) { s.Listen = []string{"127.0.0.1:7000"} },
		"two addresses":       func(s *Spec) { s.Listen = []string{"127.0.0.1:0", "127.0.0.1:0"} },
		"two zones":           func(s *Spec) { s.Zones = []string{"a", "b"} },
		"custodian":           func(s *Spec) { s.Custodians = []string{"two words"} },
		"no admin":            func(s *Spec) { s.Admin = "" },
		"admin's name":        func(s *Spec) { s.Admin = "no spaces" },
		"admin's password":    func(s *Spec) { s.Password = secret("short") },
		"keyring, no objects": func(s *Spec) { s.Keyring = keyring },
		"objects, no keyring": func(s *Spec) { s.Fill = func(context.Context, hsm.Session) error { return nil } },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "east")
			spec := newSpec(dir, 3)
			change(&spec)
			if _, err := Create(t.Context(), spec); !errors.Is(err, hsm.ErrInvalid) || strings.Contains(err.Error(), "short\"") {
				t.Errorf("got %v, want ErrInvalid", err)
			}
			if entries, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(entries) != 0 {
				t.Errorf("it left %v, %v", entries, err)
			}
		})
	}
}

func TestSealsProtectTheFolder(t *testing.T) {
	t.Parallel()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	idFile := filepath.Join(t.TempDir(), "identity")
	if err := os.WriteFile(idFile, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	passphrase := func(p string) func(string) (seal.Seal, error) {
		return func(string) (seal.Seal, error) { return seal.Passphrase(secret(p), 8) }
	}
	for kind, seals := range map[string]struct {
		right, wrong func(string) (seal.Seal, error)
	}{
		"file":       {seal.OpenFile, func(string) (seal.Seal, error) { return seal.NewFile(t.TempDir()) }},
		"identity":   {func(string) (seal.Seal, error) { return seal.OpenIdentity(idFile) }, func(string) (seal.Seal, error) { return seal.NewFile(t.TempDir()) }},
		"passphrase": {passphrase("open sesame"), passphrase("open barley")},
	} {
		t.Run(kind, func(t *testing.T) {
			spec := newSpec(filepath.Join(t.TempDir(), "east"), 1)
			if spec.Seal = seals.right; kind == "file" {
				spec.Seal = nil
			}
			p, err := Create(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			open := func(with func(string) (seal.Seal, error)) error {
				s, err := Open(t.Context(), p.Resolve("hsm-1"), Options{OpenSeal: func(got, folder string) (seal.Seal, error) {
					if got != kind {
						t.Errorf("seal %q, want %q", got, kind)
					}
					return with(folder)
				}})
				if err == nil {
					err = s.Close()
				}
				return err
			}
			if err := open(seals.wrong); !errors.Is(err, seal.ErrSeal) {
				t.Errorf("another seal: %v, want ErrSeal", err)
			}
			if err := open(seals.right); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestACrashOfCreateLeavesAllOrNothing kills creations at chosen and at random
// moments. The same command succeeds afterwards, or finds the cluster whole.
func TestACrashOfCreateLeavesAllOrNothing(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	moments := []string{"seal 0", "seal 2", "fill"}
	for ms := 150; ms <= 900; ms += 250 {
		moments = append(moments, fmt.Sprint(ms))
	}
	for _, moment := range moments {
		t.Run(moment, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "east")
			cmd := exec.CommandContext(t.Context(), exe)
			cmd.Env = append(os.Environ(), createDir+"="+dir, createDies+"="+moment)
			out, err := cmd.CombinedOutput()
			if err == nil && strings.ContainsAny(moment, "sf") {
				t.Fatalf("it was to die: %s", out)
			}
			if _, err := os.Stat(dir); err == nil {
				mustServe(t, dir)
				return
			}
			if _, err := Create(t.Context(), newSpec(dir, 3)); err != nil {
				t.Fatal(err)
			}
			mustServe(t, dir)
			mustBeAlone(t, dir)
		})
	}
}

func TestAFailedFillLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "east")
	spec := newSpec(dir, 2)
	spec.Keyring, spec.CA = testLineage()
	broken := errors.New("the source is broken")
	spec.Fill = func(context.Context, hsm.Session) error { return broken }
	if _, err := Create(t.Context(), spec); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(entries) != 0 {
		t.Errorf("it left %v, %v", entries, err)
	}
	spec.Keyring, spec.CA = hsm.NewKeyring(), secret("no authority")
	if _, err := Create(t.Context(), spec); err == nil {
		t.Error("a CA that is none was taken")
	}
}

// TestWhatIsLeftBesideAWholeCluster: a creation that died after its rename leaves rubbish,
// which the next one removes though it is refused; not while another works with it, nor
// where there is no cluster yet.
func TestWhatIsLeftBesideAWholeCluster(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "east")
	if _, err := Create(t.Context(), newSpec(dir, 1)); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(filepath.Dir(dir), "west")
	if err := os.MkdirAll(filepath.Join(other, "notes"), 0o700); err != nil {
		t.Fatal(err)
	}
	beside := func(dir, end string) string {
		return filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir)+".hsmbackup-"+end)
	}
	again := func(dir string, left int) {
		t.Helper()
		if _, err := Create(t.Context(), newSpec(dir, 1)); !errors.Is(err, ErrFolder) {
			t.Errorf("%s: %v, want ErrFolder", dir, err)
		}
		got := 0
		for _, end := range []string{"load", "copies", "new", "new.lock"} {
			if _, err := os.Lstat(beside(dir, end)); err == nil {
				got++
			}
		}
		if got != left {
			t.Errorf("%s: %d things are left beside it, want %d", dir, got, left)
		}
	}
	for _, d := range []string{dir, other} {
		for _, end := range []string{"load/unit", "copies/hsm-1", "new/hsm-1"} {
			if err := os.MkdirAll(beside(d, end), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	lock, err := lockPath(beside(dir, "new.lock"), dir)
	if err != nil {
		t.Fatal(err)
	}
	again(dir, 4)
	lock.Close()
	again(dir, 0)
	again(dir, 0)
	again(other, 3)
}

// TestAPortIsGivenOnce: of several clusters of one process, an HSM that is down finds its
// port free when it is started.
func TestAPortIsGivenOnce(t *testing.T) {
	given := map[string]bool{}
	for range 500 {
		l, err := listenFree("127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		if given[l.Addr().String()] {
			t.Fatalf("%s was given to two", l.Addr())
		}
		given[l.Addr().String()] = true
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
