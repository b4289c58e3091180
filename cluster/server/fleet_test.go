package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// newFleet lays out a cluster and starts its HSMs as processes.
func newFleet(t *testing.T, hsms int, log *logged) (*Fleet, *profile.Profile) {
	t.Helper()
	p, err := Create(t.Context(), newSpec(filepath.Join(t.TempDir(), "east"), hsms))
	if err != nil {
		t.Fatal(err)
	}
	f, err := StartFleet(t.Context(), executable(t), p, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Stop)
	return f, p
}

func executable(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// login logs root in on one HSM of the profile.
func login(ctx context.Context, p *profile.Profile, i int) (hsm.Session, error) {
	cred, err := pki.LoadIdentityFile(p.ClientPath())
	if err != nil {
		return nil, err
	}
	cfg, err := cred.ClientConfig()
	if err != nil {
		return nil, err
	}
	m, err := rpc.Dial(ctx, p.HSMs[i].Address, cfg)
	if err != nil {
		return nil, err
	}
	s, _, err := m.Login(ctx, hsm.RoleAdmin, "root", secret(rootPassword))
	return s, err
}

func TestAFleetRunsAndStops(t *testing.T) {
	t.Parallel()
	var log logged
	f, p := newFleet(t, 2, &log)
	if pids := f.PIDs(); len(pids) != 2 || pids[0] == pids[1] {
		t.Errorf("process ids %v", pids)
	}
	for i := range p.HSMs {
		if _, err := login(t.Context(), p, i); err != nil {
			t.Errorf("HSM %d: %v", i+1, err)
		}
	}
	f.Stop()
	f.Stop()
	if err := f.Wait(); err != nil {
		t.Errorf("a fleet that was stopped: %v", err)
	}
	for _, want := range []string{"hsm-1: serving hsm-1\n", "hsm-2: serving hsm-2\n"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log.String())
		}
	}
	for _, pid := range f.PIDs() {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is still there: %v", pid, err)
		}
	}
}

// TestAKilledHSMIsReportedAndTheOthersGoOn, and it can be started again without
// repair.
func TestAKilledHSMIsReportedAndTheOthersGoOn(t *testing.T) {
	t.Parallel()
	var log logged
	f, p := newFleet(t, 2, &log)
	s, err := login(t.Context(), p, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserCreate, User: "bob", Role: hsm.RoleCryptoUser, Password: secret("bob-was-here")}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(f.PIDs()[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	(&world{t: t}).eventually("the end of an HSM is not logged", func() bool { return strings.Contains(log.String(), "hsm-1: ended: signal: killed") })
	if _, err := login(t.Context(), p, 1); err != nil {
		t.Errorf("the other one: %v", err)
	}
	f.Stop()
	if err := f.Wait(); err == nil || !strings.Contains(err.Error(), "hsm-1") || strings.Contains(err.Error(), "hsm-2") {
		t.Errorf("Wait: %v, want hsm-1's end alone", err)
	}
	again, err := Open(t.Context(), p.Resolve("hsm-1"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if users, err := again.device.self.Users(t.Context()); err != nil || len(users) != 2 {
		t.Errorf("users after kill -9: %v, %v", users, err)
	}
}

func TestAnHSMThatCannotStartStopsAll(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		damage func(t *testing.T, folder string)
		says   string
	}{
		"damaged seal": {func(t *testing.T, f string) { flip(t, filepath.Join(f, sealedFile)) }, "seal does not open"},
		"nonsense": {func(t *testing.T, f string) {
			if err := os.WriteFile(filepath.Join(f, "talks-nonsense"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "did not start"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Create(t.Context(), newSpec(filepath.Join(t.TempDir(), "east"), 2))
			if err != nil {
				t.Fatal(err)
			}
			c.damage(t, p.Resolve("hsm-2"))
			f, err := StartFleet(t.Context(), executable(t), p, nil)
			if f != nil || !errors.Is(err, ErrFolder) || !strings.Contains(err.Error(), "hsm-2") || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hsm-1") {
				t.Errorf("got %v, want ErrFolder with hsm-2's last words %q", err, c.says)
			}
			s, err := Open(t.Context(), p.Resolve("hsm-1"), Options{})
			if err != nil {
				t.Fatalf("hsm-1 was not stopped: %v", err)
			}
			s.Close()
		})
	}
	t.Run("no program", func(t *testing.T) {
		p, err := Create(t.Context(), newSpec(filepath.Join(t.TempDir(), "east"), 1))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := StartFleet(t.Context(), filepath.Join(t.TempDir(), "nothing"), p, nil); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v, want ErrNotExist", err)
		}
	})
	t.Run("context", func(t *testing.T) {
		p, err := Create(t.Context(), newSpec(filepath.Join(t.TempDir(), "east"), 1))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := StartFleet(ctx, executable(t), p, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want Canceled", err)
		}
	})
}

// TestAFleetEndsWithItsParent: kill -9 of the process that started it, also when
// the goroutine that did has long ended.
func TestAFleetEndsWithItsParent(t *testing.T) {
	t.Parallel()
	p, err := Create(t.Context(), newSpec(filepath.Join(t.TempDir(), "east"), 2))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(executable(t))
	cmd.Env = append(os.Environ(), fleetDir+"="+p.Folder())
	var log logged
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t}
	w.eventually("the fleet does not start", func() bool { return strings.Contains(log.String(), "fleet ready") })
	if _, err := login(t.Context(), p, 1); err != nil {
		t.Errorf("its HSMs do not serve: %v\n%s", err, log.String())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	w.eventually("HSMs outlive their parent", func() bool {
		for _, h := range p.HSMs {
			s, err := Open(t.Context(), p.Resolve(h.Dir), Options{})
			if err != nil {
				return false
			}
			s.Close()
		}
		return true
	})
	_ = cmd.Wait() // it was killed
}

// TestHSMsDoNotInheritLogins: who starts a cluster may have a login and a store's
// secret in the environment, which an HSM would show for as long as it runs.
func TestHSMsDoNotInheritLogins(t *testing.T) {
	dropped := []string{"HSMBACKUP_PIN", "HSMBACKUP_SRC_PIN", "HSMBACKUP_NEW_PASSWORD", "HSMBACKUP_MFA", "HSMBACKUP_JOIN_TOKEN",
		"HSMBACKUP_DST_SECRET_KEY", "MINIO_SECRET_KEY", "MINIO_ROOT_PASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
	kept := []string{"HSMBACKUP_SEAL_PASSPHRASE", "HSMBACKUP_SEAL_IDENTITY", "HSMBACKUP_CONFIG", "AWS_REGION", "PIN"}
	for _, name := range append(dropped, kept...) {
		t.Setenv(name, "value-of-"+name)
	}
	env := withoutLogins(os.Environ())
	if runtime.GOOS == "linux" { // what the process really has
		f, _ := newFleet(t, 1, &logged{})
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", f.PIDs()[0]))
		if err != nil {
			t.Fatal(err)
		}
		env = strings.Split(string(b), "\x00")
	}
	for _, name := range dropped {
		if slices.Contains(env, name+"=value-of-"+name) {
			t.Errorf("an HSM inherits %s", name)
		}
	}
	for _, name := range kept {
		if !slices.Contains(env, name+"=value-of-"+name) {
			t.Errorf("an HSM does not inherit %s", name)
		}
	}
}

func TestLogLinesStayWhole(t *testing.T) {
	t.Parallel()
	var log logged
	lines := &lineWriter{w: &log}
	a, b := &prefixWriter{prefix: "a: ", lines: lines}, &prefixWriter{prefix: "b: ", lines: lines}
	for _, w := range []struct {
		to   *prefixWriter
		text string
	}{{a, "one "}, {b, "x\ny"}, {a, "line\nnext\n"}, {b, "z\n"}, {a, "begun"}} {
		if n, err := w.to.Write([]byte(w.text)); n != len(w.text) || err != nil {
			t.Fatal(n, err)
		}
	}
	a.flush()
	b.flush()
	if want := "b: x\na: one line\na: next\nb: yz\na: begun\n"; log.String() != want {
		t.Errorf("got %q, want %q", log.String(), want)
	}
}

func TestFleetMetricsAddresses(t *testing.T) {
	for _, c := range []struct {
		address string
		i       int
		want    string
	}{{":9100", 0, ":9100"}, {":9100", 2, ":9102"}, {"127.0.0.1:0", 2, "127.0.0.1:0"}, {"[::1]:9100", 1, "[::1]:9101"}, {":65535", 1, ""}, {"9100", 0, ""}} {
		got, err := nthAddress(c.address, c.i)
		if (err != nil) != (c.want == "") || err == nil && got != c.want {
			t.Errorf("%s, process %d: %q, %v; want %q", c.address, c.i, got, err, c.want)
		}
	}
}
