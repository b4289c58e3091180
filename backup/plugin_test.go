package backup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/plugin"
	"filippo.io/age/tag"
)

// testPlugin is the name of a plugin that this test binary is when it is called
// age-plugin-hsmtest: its data is the text of an X25519 recipient or identity.
const testPlugin = "hsmtest"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "age-plugin-"+testPlugin {
		os.Exit(runTestPlugin())
	}
	os.Exit(m.Run())
}

func runTestPlugin() int {
	p, err := plugin.New(testPlugin)
	if err != nil {
		return 1
	}
	p.HandleRecipient(func(data []byte) (age.Recipient, error) { return age.ParseX25519Recipient(string(data)) })
	p.HandleIdentity(func(data []byte) (age.Identity, error) { return age.ParseX25519Identity(string(data)) })
	return p.Main()
}

// installPlugin puts this binary into the PATH as an age plugin.
func installPlugin(t *testing.T) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if err := os.Symlink(exe, filepath.Join(folder, "age-plugin-"+testPlugin)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", folder+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// TestPluginCustodian: a custodian whose identity a plugin keeps opens the
// envelope alone, and as one of several of all kinds.
func TestPluginCustodian(t *testing.T) {
	inner, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	recipient := plugin.EncodeRecipient(testPlugin, []byte(inner.Recipient().String()))
	ids, err := ParseIdentityFile([]byte("# a card\n" + plugin.EncodeIdentity(testPlugin, []byte(inner.String())) + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	secret := testRecovery()
	_, err = SealEnvelope(t.Context(), secret, []string{recipient}, 1)
	if err == nil || !strings.Contains(Hint(err), "age-plugin-"+testPlugin) {
		t.Fatalf("without the plugin: %v; %s", err, Hint(err))
	}
	installPlugin(t)
	other := newIdentity(t)
	for _, c := range []struct {
		custodians []string
		threshold  int
		ids        []Identity
	}{
		{[]string{recipient}, 1, ids},
		{[]string{recipient, other.recipient}, 2, append(ids, other.Identity)},
	} {
		b, err := SealEnvelope(t.Context(), secret, c.custodians, c.threshold)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OpenEnvelope(b, c.ids); err != nil || !got.Equal(secret) {
			t.Fatalf("%d of %d: %v", c.threshold, len(c.custodians), err)
		}
	}
}

// TestPluginSnapshot: packs and envelope of a snapshot are encrypted to a plugin's
// recipient alone, and restored with its identity.
func TestPluginSnapshot(t *testing.T) {
	installPlugin(t)
	inner, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	recipient := plugin.EncodeRecipient(testPlugin, []byte(inner.Recipient().String()))
	ids, err := ParseIdentityFile([]byte(plugin.EncodeIdentity(testPlugin, []byte(inner.String()))))
	if err != nil {
		t.Fatal(err)
	}
	c, store := newTestCluster(t, 1), newStore(t)
	c.custodians = []string{recipient}
	keys(c.hsm(0), 3)
	mustTake(t, c, store, TakeOptions{Recipients: []string{recipient}})
	s, err := Open(t.Context(), store, "", OpenOptions{Identities: ids})
	if err != nil {
		t.Fatal(err)
	}
	if got := restore(t, s); rootOf(t, got) != rootOf(t, c.hsm(0)) {
		t.Error("it restores to another root")
	}
	if k, _, err := s.Recovery(t.Context()); err != nil || k.Lineage() != c.keyring.Lineage() {
		t.Errorf("recovery: %v", err)
	}
}

// TestTaggedRecipients: recipients of hardware keys need no plugin to encrypt to.
func TestTaggedRecipients(t *testing.T) {
	classic := "age1tag1qt8lw0ual6avlwmwatk888yqnmdamm7xfd0wak53ut6elz5c4swx2yqdj4e"
	r, err := ParseRecipient(classic)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := r.(*tag.Recipient); !ok || postQuantum(r) {
		t.Fatalf("%T", r)
	}
	if _, err := SealEnvelope(t.Context(), testRecovery(), []string{classic}, 1); err != nil {
		t.Fatal(err)
	}
}

func TestPluginTextsAreChecked(t *testing.T) {
	for _, s := range []string{"age1yubikey1", "age1../../bin/sh1qqqq", "age1tag1zzzz", "age1x1" + strings.Repeat("q", 9000)} {
		if _, err := ParseRecipient(s); !errors.Is(err, ErrRecipient) {
			t.Errorf("%.40q: %v", s, err)
		}
	}
	for _, s := range []string{"AGE-PLUGIN-", "AGE-PLUGIN-../X-1QQQ", "AGE-PLUGIN-YUBIKEY-1SECRET"} {
		_, err := ParseIdentityFile([]byte(s))
		if !errors.Is(err, ErrRecipient) || strings.Contains(err.Error(), "SECRET") && !strings.Contains(err.Error(), "AGE-SECRET-KEY") {
			t.Errorf("%q: %v", s, err)
		}
	}
}
