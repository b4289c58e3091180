package integration

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestUsersAreRefusedWhatIsNotTheirs: wrong logins, and each role doing the
// other's work.
func TestUsersAreRefusedWhatIsNotTheirs(t *testing.T) {
	t.Parallel()
	c := newCluster(t, newMachine(t), "east", 1)
	ref := c.generate(t, "hers")

	t.Run("wrong password", func(t *testing.T) {
		c.nobody().as("crypto-user", "bob:not-bobs-password").refused(t, 1, "login", "key", "list")
	})
	t.Run("unknown user", func(t *testing.T) {
		c.nobody().as("crypto-user", "mallory:some-password-1").refused(t, 1, "login", "key", "list")
	})
	t.Run("another role", func(t *testing.T) {
		c.nobody().as("admin", bobPIN).refused(t, 1, "login", "user", "list")
	})
	t.Run("no login", func(t *testing.T) {
		c.nobody().refused(t, 2, "usage", "key", "list")
	})
	t.Run("malformed login", func(t *testing.T) {
		line := c.nobody().with("HSMBACKUP_PIN=sesame").refused(t, 2, "usage", "key", "list")
		if strings.Contains(line, "sesame") {
			t.Errorf("the error shows the login: %s", line)
		}
	})
	t.Run("locked user", func(t *testing.T) {
		c.createUser(t, "dave:dave-is-here-1")
		dave := c.nobody().as("crypto-user", "dave:not-daves-password")
		for range 6 {
			if r := dave.run(t, "key", "list"); r.code != 1 {
				t.Fatalf("a wrong password: %v", r)
			}
		}
		dave = c.nobody().as("crypto-user", "dave:dave-is-here-1")
		dave.refused(t, 4, "locked", "key", "list")
		c.admin().ok(t, "user", "unlock", "dave")
		dave.ok(t, "key", "list")
	})
	t.Run("a crypto user doing an admin's work", func(t *testing.T) {
		c.alice().with("HSMBACKUP_NEW_PASSWORD=some-password-1").refused(t, 4, "denied", "user", "create", "eve")
		c.alice().refused(t, 4, "denied", "user", "delete", "bob")
	})
	t.Run("an admin doing a crypto user's work", func(t *testing.T) {
		c.admin().refused(t, 4, "denied", "key", "generate", "aes", "--label", "admins-own")
		c.admin().refusedWith(t, "data", 4, "denied", "crypto", "encrypt", "--key", ref)
		c.admin().refused(t, 4, "denied", "key", "destroy", "--key", ref)
	})
	t.Run("a key of somebody else", func(t *testing.T) {
		c.bob().refused(t, 1, "not_found", "key", "show", "--key", ref)
		c.bob().refused(t, 1, "not_found", "key", "destroy", "--key", ref)
	})
	t.Run("a user who owns keys is not deleted", func(t *testing.T) {
		r := c.admin().run(t, "user", "delete", "alice")
		if r.code != 4 && r.code != 1 {
			t.Errorf("exit code %d: %v", r.code, r)
		}
		c.alice().ok(t, "key", "show", "--key", ref)
	})
	t.Run("names and passwords that are none", func(t *testing.T) {
		c.admin().with("HSMBACKUP_NEW_PASSWORD=short").refused(t, 2, "invalid", "user", "create", "frank")
		c.admin().with("HSMBACKUP_NEW_PASSWORD=long-enough-1").refused(t, 2, "invalid", "user", "create", "no spaces")
		c.admin().with("HSMBACKUP_NEW_PASSWORD=long-enough-1").refused(t, 2, "invalid", "user", "create", "frank", "--role", "king")
		c.admin().with("HSMBACKUP_NEW_PASSWORD=long-enough-1").refused(t, 4, "exists", "user", "create", "alice")
	})
	t.Run("the audit log knows", func(t *testing.T) {
		c.nobody().ok(t, "audit", "verify", c.hsmDir(0))
		log := c.nobody().ok(t, "audit", "show", c.hsmDir(0))
		for _, want := range []string{"login", "dave", "permission denied"} {
			if !strings.Contains(log, want) {
				t.Errorf("the audit log does not show %q:\n%s", want, log)
			}
		}
		for _, secret := range []string{"alice-is-here", "correct-horse", "not-daves", "short"} {
			if strings.Contains(log, secret) {
				t.Errorf("the audit log shows a password")
			}
		}
	})
}

// TestKeysAreRefusedWhatTheyCannot: types, sizes and attributes that do not
// exist, keys that must not leave, and wrapped keys that are none.
func TestKeysAreRefusedWhatTheyCannot(t *testing.T) {
	t.Parallel()
	c := newCluster(t, newMachine(t), "east", 1)
	alice := c.alice()
	before := c.generate(t, "plain")

	invalid := map[string][]string{
		"type":             {"key", "generate", "des"},
		"no type":          {"key", "generate"},
		"AES size":         {"key", "generate", "aes", "--size", "17"},
		"RSA size":         {"key", "generate", "rsa", "--size", "1024"},
		"curve":            {"key", "generate", "ec", "--curve", "secp192r1"},
		"attribute":        {"key", "generate", "aes", "--attribute", "magic=true"},
		"attribute value":  {"key", "generate", "aes", "--attribute", "encrypt=perhaps"},
		"attribute form":   {"key", "generate", "aes", "--attribute", "encrypt"},
		"derived":          {"key", "generate", "aes", "--attribute", "check-value=123456"},
		"id":               {"key", "generate", "aes", "--id", "xyz"},
		"label":            {"key", "generate", "aes", "--label", strings.Repeat("x", 128)},
		"reference":        {"key", "show", "key-reference=0xzz"},
		"filter":           {"key", "list", "attr.magic=true"},
		"flag":             {"key", "list", "--magic"},
		"too many words":   {"user", "list", "everybody"},
		"ambiguous filter": {"key", "show", "attr.class=secret-key"},
	}
	alice.ok(t, "key", "generate", "aes", "--label", "another")
	for name, args := range invalid {
		t.Run("no such "+name, func(t *testing.T) {
			alice.refused(t, 2, "usage invalid", args...)
		})
	}
	t.Run("no such verb", func(t *testing.T) {
		alice.refused(t, 2, "usage", "key", "melt")
		alice.refused(t, 2, "usage", "melt")
	})
	t.Run("unknown key", func(t *testing.T) {
		alice.refused(t, 1, "not_found", "key", "show", "--key", "0x0000000000000001")
		alice.refused(t, 1, "not_found", "key", "show", "attr.label=nothing-of-that-name")
	})
	t.Run("an attribute that forbids", func(t *testing.T) {
		alice.ok(t, "key", "generate", "aes", "--label", "idle")
		alice.refusedWith(t, "data", 4, "attribute", "crypto", "encrypt", "attr.label=idle")
		alice.ok(t, "key", "generate", "aes", "--label", "fixed", "--attribute", "modifiable=false")
		alice.refused(t, 4, "attribute", "key", "set", "attr.label=fixed", "--attribute", "encrypt=true")
		alice.ok(t, "key", "generate", "aes", "--label", "stuck", "--attribute", "destroyable=false")
		alice.refused(t, 4, "attribute", "key", "destroy", "attr.label=stuck")
	})
	t.Run("wrap of a non-extractable key", func(t *testing.T) {
		alice.ok(t, "key", "generate", "aes", "--label", "kek", "--attribute", "wrap=true", "unwrap=true")
		alice.ok(t, "key", "generate", "aes", "--label", "stays", "--attribute", "extractable=false")
		alice.refused(t, 4, "attribute", "key", "wrap", "attr.label=stays", "--wrapping-key", "attr.label=kek")
	})
	t.Run("unwrap of garbage", func(t *testing.T) {
		for _, garbage := range []string{strings.Repeat("\x00", 40), strings.Repeat("\xa6", 24), "short", ""} {
			r := alice.run(t, "key", "unwrap", "aes", "--unwrapping-key", "attr.label=kek", "--label", "garbage", "--data", base64.StdEncoding.EncodeToString([]byte(garbage)))
			if r.code != 1 && r.code != 2 {
				t.Errorf("%q: exit code %d: %v", garbage, r.code, r)
			}
		}
		alice.refused(t, 1, "crypto", "key", "unwrap", "aes", "--unwrapping-key", "attr.label=kek", "--label", "garbage", "--data", base64.StdEncoding.EncodeToString(make([]byte, 40)))
		alice.refused(t, 1, "not_found", "key", "show", "attr.label=garbage")
	})
	t.Run("import of garbage", func(t *testing.T) {
		alice.refusedWith(t, "not a key", 2, "invalid", "key", "import", "rsa", "--label", "garbage")
		alice.refusedWith(t, "seventeen bytes!!", 2, "invalid", "key", "import", "aes", "--label", "garbage")
		alice.refused(t, 1, "not_found", "key", "show", "attr.label=garbage")
	})
	t.Run("decryption of garbage", func(t *testing.T) {
		alice.refusedWith(t, strings.Repeat("x", 64), 1, "crypto", "crypto", "decrypt", "--key", before)
	})
	t.Run("a signature that does not verify", func(t *testing.T) {
		alice.ok(t, "key", "generate", "ed25519", "--label", "signer", "--attribute", "sign=true", "--public-attribute", "verify=true")
		sig := strings.TrimSpace(okWith(t, alice, "these words", "crypto", "sign", "attr.label=signer"))
		okWith(t, alice, "these words", "crypto", "verify", "attr.label=signer", "--signature", sig)
		alice.refusedWith(t, "other words", 3, "signature", "crypto", "verify", "attr.label=signer", "--signature", sig)
	})
	t.Run("a post-quantum signature that does not verify", func(t *testing.T) {
		alice.ok(t, "key", "generate", "ml-dsa", "--size", "65", "--label", "ml", "--attribute", "sign=true", "--public-attribute", "verify=true")
		sig := strings.TrimSpace(okWith(t, alice, "these words", "crypto", "sign", "attr.label=ml"))
		okWith(t, alice, "these words", "crypto", "verify", "attr.label=ml", "--signature", sig)
		alice.refusedWith(t, "other words", 3, "signature", "crypto", "verify", "attr.label=ml", "--signature", sig)
		alice.refused(t, 2, "invalid", "key", "generate", "ml-dsa", "--size", "768", "--label", "never")
		alice.refused(t, 2, "invalid", "key", "generate", "ml-kem", "--size", "512", "--label", "never")
		alice.ok(t, "key", "generate", "ml-kem", "--size", "1024", "--label", "kem", "--attribute", "derive=true")
		path := filepath.Join(t.TempDir(), "ciphertext")
		if err := os.WriteFile(path, make([]byte, 1568), 0o600); err != nil {
			t.Fatal(err)
		}
		alice.ok(t, "key", "derive", "aes", "--size", "32", "--mechanism", "ml-kem", "--peer", path, "--base-key", "attr.label=kem", "--label", "agreed")
		if err := os.WriteFile(path, make([]byte, 1567), 0o600); err != nil {
			t.Fatal(err)
		}
		alice.refused(t, 2, "invalid", "key", "derive", "aes", "--size", "32", "--mechanism", "ml-kem", "--peer", path, "--base-key", "attr.label=kem", "--label", "never")
	})
	t.Run("a destroyed key", func(t *testing.T) {
		gone := c.generate(t, "gone")
		alice.ok(t, "key", "destroy", "--key", gone)
		r := alice.run(t, "key", "show", "--key", gone)
		if r.code != 1 {
			t.Errorf("exit code %d: %v", r.code, r)
		}
	})
	t.Run("nothing half-made is left", func(t *testing.T) {
		if i := c.info(t); i.InDoubt != 0 || i.UnderReplicated != 0 || !i.InSync {
			t.Errorf("after all refusals: %+v", i)
		}
	})
}

func okWith(t testing.TB, m *machine, stdin string, args ...string) string {
	t.Helper()
	r := m.runWith(t, stdin, args...)
	if r.code != 0 {
		t.Fatalf("exit code %d: %v", r.code, r)
	}
	return r.stdout
}

// TestClustersThatAreNotThere: unknown, stopped, foreign, half there, in use.
func TestClustersThatAreNotThere(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	_, recipient := custodian(t, m, "custodian.txt")
	c := newCluster(t, m, "east", 3, "--custodian", recipient)
	alice := c.alice()

	t.Run("unknown cluster", func(t *testing.T) {
		alice.refused(t, 1, "unknown_cluster", "key", "list", "--cluster", "atlantis")
		alice.refused(t, 1, "not_found", "cluster", "start", m.path("atlantis"))
	})
	t.Run("a cluster by its name", func(t *testing.T) {
		config := m.path("config.yaml")
		write(t, config, "clusters:\n  payments: "+c.dir+"\n")
		alice.with("HSMBACKUP_CONFIG="+config).ok(t, "key", "list", "--cluster", "payments")
		write(t, config, "clusters:\n  payments: "+c.dir+"\ncolour: red\n")
		alice.with("HSMBACKUP_CONFIG="+config).refused(t, 1, "profile", "key", "list", "--cluster", "payments")
	})
	t.Run("no HSM answers", func(t *testing.T) {
		stopped := createCluster(t, m, "stopped", 2)
		line := alice.refused(t, 1, "unreachable", "key", "list", "--cluster", stopped.dir)
		if !strings.Contains(line, "127.0.0.1:") {
			t.Errorf("the error does not name the addresses: %s", line)
		}
		stopped.nobody().refused(t, 1, "unreachable", "cluster", "info")
	})
	t.Run("foreign certificates", func(t *testing.T) {
		other := createCluster(t, m, "other", 1)
		c.nobody().refused(t, 4, "denied", "cluster", "info", "--credential", filepath.Join(other.dir, "appliance.pem"))
		foreign := m.path("foreign")
		must(t, os.Mkdir(foreign, 0o700))
		for _, file := range []string{"client.pem", "appliance.pem"} {
			write(t, filepath.Join(foreign, file), read(t, filepath.Join(other.dir, file)))
		}
		write(t, filepath.Join(foreign, "cluster.yaml"), read(t, filepath.Join(c.dir, "cluster.yaml")))
		alice.refused(t, 4, "denied", "key", "list", "--cluster", foreign)
		// The other cluster's profile, at the addresses of this one: whoever
		// answers there is not who it should be.
		address := regexp.MustCompile(`127\.0\.0\.1:\d+`)
		here := address.FindString(read(t, filepath.Join(c.dir, "cluster.yaml")))
		write(t, filepath.Join(foreign, "cluster.yaml"), address.ReplaceAllString(read(t, filepath.Join(other.dir, "cluster.yaml")), here))
		if line := alice.refused(t, 1, "unreachable", "key", "list", "--cluster", foreign); !strings.Contains(line, "foreign certificate") {
			t.Errorf("the error does not say why: %s", line)
		}
	})
	t.Run("a profile that is none", func(t *testing.T) {
		path := m.path("broken.yaml")
		write(t, path, "name: [\n")
		alice.refused(t, 1, "profile", "key", "list", "--cluster", path)
	})
	t.Run("a folder that is in use, or no HSM's", func(t *testing.T) {
		c.nobody().refused(t, 4, "folder", "hsm", "serve", c.hsmDir(0))
		c.nobody().refused(t, 4, "folder", "hsm", "serve", m.path())
		m.as("admin", rootPIN).refused(t, 4, "folder", "cluster", "create", "payments", "--region", "east", "--dir", c.dir)
	})
	t.Run("one HSM of three is killed", func(t *testing.T) {
		c.hsms[2].kill()
		ref := c.generate(t, "on-two")
		okWith(t, alice, "data", "crypto", "encrypt", "--key", ref)
		refusedKey(t, c, "--min-copies", "3")
		durabilityOfThree(t, c)
		if i := c.info(t); i.InSync || len(i.HSMs) != 3 {
			t.Errorf("cluster info with an HSM down: %+v", i)
		}
		var s struct {
			Coverage struct{ Answered, Missing []string }
		}
		c.nobody().json(t, &s, "snapshot", "--to", m.path("store"))
		if len(s.Coverage.Answered) != 2 || len(s.Coverage.Missing) != 1 {
			t.Errorf("coverage of a snapshot with an HSM down: %+v", s)
		}
		c.nobody().refused(t, 4, "coverage", "snapshot", "--to", m.path("store"), "--require-all", "--full")
	})
	t.Run("two HSMs of three are killed", func(t *testing.T) {
		c.hsms[1].kill()
		refusedKey(t, c)
		alice.ok(t, "key", "list")
	})
	t.Run("and nothing of what failed is left when they are back", func(t *testing.T) {
		c.startAll(t)
		c.root(t)
		if i := c.info(t); i.InDoubt != 0 || i.UnderReplicated != 0 || !i.InSync || i.Keys != 1 {
			t.Errorf("cluster info with all HSMs back: %+v", i)
		}
	})
}

// refusedKey asks for a key that too few HSMs can hold.
func refusedKey(t *testing.T, c *testCluster, more ...string) {
	t.Helper()
	r := c.alice().run(t, append([]string{"key", "generate", "aes", "--label", "too-few", "--json"}, more...)...)
	var doc struct {
		Error struct{ Code, Message, Hint string }
	}
	decode(t, r.stdout, &doc)
	if r.code != 4 || doc.Error.Code != "min_copies" && doc.Error.Code != "availability" {
		t.Errorf("a key on too few HSMs: %v", r)
	}
	c.alice().refused(t, 1, "not_found", "key", "show", "attr.label=too-few")
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
