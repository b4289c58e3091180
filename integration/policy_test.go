package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestScenario4OneHSM: a cluster of one HSM under Client SDK 5's quorum refuses to
// create and to use keys in CloudHSM's words; when the check has been disabled by
// configure, it does both. The same with Client SDK 3's number.
func TestScenario4OneHSM(t *testing.T) {
	t.Parallel()
	c := newCluster(t, newMachine(t), "east", 1)
	ref := c.generate(t, "before") // a cluster of one is made for one copy
	file := c.path("cloudhsm-pkcs11.cfg")
	alice := c.alice().with("HSMBACKUP_SDK_CONFIG=" + file)
	const quorum = " does not meet the availability requirements - The key must be available on at least 2 HSMs before being used."

	c.ok(t, "configure", "pkcs11", "--enable-key-availability-check", "--hsm-ca-cert", "/ca.crt", "--file", file)
	if line := alice.refusedWith(t, "data", 4, "availability", "crypto", "encrypt", "--key", ref); !strings.Contains(line, "Key "+ref+quorum) {
		t.Errorf("use: %s", line)
	}
	if line := alice.refused(t, 4, "availability", "key", "generate", "aes", "--label", "too-few"); !strings.Contains(line, "key"+quorum) {
		t.Errorf("create: %s", line)
	}

	c.ok(t, "configure", "pkcs11", "--disable-key-availability-check", "--file", file)
	alice.ok(t, "key", "generate", "aes", "--label", "one-copy")
	if r := alice.runWith(t, "data", "crypto", "encrypt", "--key", ref); r.code != 0 {
		t.Errorf("use with the check disabled: %v", r)
	}
	if keys := alice.ok(t, "key", "list"); !strings.Contains(keys, "one-copy") || strings.Contains(keys, "too-few") {
		t.Errorf("key list:\n%s", keys)
	}

	sdk3 := c.path("cloudhsm_client.cfg")
	alice = c.alice().with("HSMBACKUP_SDK_CONFIG=" + sdk3)
	for text, want := range map[string]string{
		`{"client": {"create_object_minimum_nodes": 2}}`:   "create_object_minimum_nodes",
		`{"client": {"create_object_minimum_nodes": 0}}`:   "create_object_minimum_nodes",
		`{"client": {"create_object_minimum_nodes": "1"}}`: "create_object_minimum_nodes",
		``:        "empty",
		`[client`: "not JSON",
	} {
		if err := os.WriteFile(sdk3, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r := alice.run(t, "key", "generate", "aes")
		if r.code == 0 || !strings.Contains(r.stderr, want) || !strings.Contains(r.stderr, filepath.Base(sdk3)) {
			t.Errorf("with %q: %v", text, r)
		}
	}
	if err := os.WriteFile(sdk3, []byte(`{"client": {"daemon_id": 1}, "a key of tomorrow": 1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	alice.ok(t, "key", "generate", "aes", "--label", "sdk-3-default")
}
