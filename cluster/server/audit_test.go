package server

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/server/audit"
)

// entries reads an HSM's audit log.
func (b *box) entries() (out []audit.Entry) {
	b.w.t.Helper()
	err := audit.Read(openFile(b.w.t, filepath.Join(b.folder, AuditFile)), func(e audit.Entry) error {
		out = append(out, e)
		return nil
	})
	if err != nil {
		b.w.t.Fatal(err)
	}
	return out
}

// TestManagementIsRecordedWithoutSecrets: logins good and bad, users, keys,
// settings, envelopes; who, what and how it ended.
func TestManagementIsRecordedWithoutSecrets(t *testing.T) {
	t.Parallel()
	var log logged
	spec := newSpec(filepath.Join(t.TempDir(), "east"), 1)
	spec.Custodians, spec.Threshold = []string{"age1custodian"}, 1
	w := startWorld(t, spec)
	b := w.boxes[0]
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	w.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	b.start()
	w.createAlice()
	material := "0123456789abcdef0123456789ABCDEF"
	alice, root := b.alice(), b.root()
	ref := w.createKey(alice, "hers")
	r := aesRequest("imported")
	r.Method, r.Size, r.Data = hsm.MethodImport, 0, secret(material)
	if _, err := alice.Create(t.Context(), newOp(), r); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"alice", "mallory"} {
		if _, _, err := b.client().Login(t.Context(), hsm.RoleNone, name, secret("guessed-password")); !errors.Is(err, hsm.ErrLogin) {
			t.Fatal(err)
		}
	}
	if _, err := alice.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserCreate, User: "eve", Role: hsm.RoleCryptoUser, Password: secret("eve-was-here")}); !errors.Is(err, hsm.ErrDenied) {
		t.Fatal(err)
	}
	w.change(alice, hsm.Change{Kind: hsm.ChangeUserPassword, User: "alice", Password: secret("alice-is-new")})
	w.change(alice, hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
	w.change(root, hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 1, Custodians: []string{"age1other"}, Threshold: 1}})
	if _, err := root.Envelope(t.Context(), nil, 0); err != nil {
		t.Fatal(err)
	}

	var text strings.Builder
	for _, e := range b.entries() {
		text.WriteString(strings.Join([]string{e.Event, e.Role, e.Name, e.Key, e.Detail, e.Result}, "|") + "\n")
	}
	for _, want := range []string{
		"login||alice|||ok", "login||alice|||login failed", "login||mallory|||login failed", "user-create|admin|root||crypto-user alice|ok",
		"user-create|crypto-user|alice||crypto-user eve|permission denied", "create|crypto-user|alice|" + ref.String(), "create|crypto-user|alice|",
		"user-password|crypto-user|alice|", "destroy|crypto-user|alice|" + ref.String(), "settings|admin|root|", "envelope|admin|root|",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the audit log lacks %q:\n%s", want, text.String())
		}
	}
	for _, s := range []string{rootPassword, alicePassword, "guessed-password", "eve-was-here", "alice-is-new", material} {
		mustNotHold(t, b.folder, s)
		if strings.Contains(log.String(), s) {
			t.Error("the log of the process holds a secret")
		}
	}
}

// TestWhoHearsOfAKeyFindsItInTheLog: keys that many callers make at once are in the
// audit log, made and committed, when their callers hear of them.
func TestWhoHearsOfAKeyFindsItInTheLog(t *testing.T) {
	t.Parallel()
	w := startWorld(t, newSpec(filepath.Join(t.TempDir(), "east"), 1))
	b := w.boxes[0]
	w.createAlice()
	alice := b.alice()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5 {
				op := newOp()
				if _, err := alice.Create(t.Context(), op, aesRequest("one of many")); err != nil {
					t.Error(err)
				}
				if err := alice.Commit(t.Context(), op); err != nil {
					t.Error(err)
				}
				seen := map[string]bool{}
				for _, e := range b.entries() {
					if strings.Contains(e.Detail, fmt.Sprintf("op %x", op)) && e.Result == "ok" {
						seen[e.Event] = true
					}
				}
				if !seen["create"] || !seen["commit"] {
					t.Errorf("of operation %x the audit log has %v", op, seen)
				}
			}
		})
	}
	all.Wait()
}

// TestWithoutAnAuditLogNothingIsChanged: what cannot be recorded is refused; the
// HSM says that it is degraded, and keeps the keys it has in use and in sync.
func TestWithoutAnAuditLogNothingIsChanged(t *testing.T) {
	t.Parallel()
	var log logged
	w := newWorld(t, 2)
	w.createAlice()
	ref := w.createKey(w.boxes[0].alice(), "hers")
	w.converge()
	b := w.boxes[1]
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	w.log = slog.New(slog.NewTextHandler(&log, nil))
	b.start()
	alice, root := b.alice(), b.root()
	if err := b.server.device.audit.Close(); err != nil {
		t.Fatal(err)
	}
	b.alice() // cannot be recorded, and still works
	if info := b.info(); info.State != "DEGRADED" {
		t.Errorf("state %q, want DEGRADED", info.State)
	}
	if !strings.Contains(log.String(), "audit log cannot be written") {
		t.Error("the log of the process does not say so")
	}
	refused := map[string]func() error{
		"create": func() error { _, err := alice.Create(t.Context(), newOp(), aesRequest("x")); return err },
		"change": func() error {
			_, err := alice.Change(t.Context(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
			return err
		},
		"user": func() error {
			_, err := root.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserDelete, User: "alice"})
			return err
		},
		"envelope": func() error { _, err := root.Envelope(t.Context(), []string{"age1somebody"}, 1); return err },
	}
	for name, request := range refused {
		if err := request(); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), "audit log") {
			t.Errorf("%s: %v, want ErrUnavailable that names the audit log", name, err)
		}
	}
	if k, err := alice.Key(t.Context(), ref); err != nil || k.Label != "hers" {
		t.Errorf("a key: %v", err)
	}
	if _, err := alice.Use(t.Context(), hsm.Use{Kind: hsm.UseRandom, Length: 16}); err != nil {
		t.Errorf("use: %v", err)
	}
	made := w.createKey(w.boxes[0].alice(), "made elsewhere")
	w.eventually("a degraded HSM is not kept in sync", func() bool { _, err := alice.Key(t.Context(), made); return err == nil })
}
