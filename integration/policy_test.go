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

// durabilityOfThree is a cluster of three HSMs with one down, of which two copies are
// to be had. TestScenario6 of package cluster has the same with keys made.
func durabilityOfThree(t *testing.T, c *testCluster) {
	t.Helper()
	file := c.path("three", "cloudhsm_client.cfg")
	must(t, os.MkdirAll(filepath.Dir(file), 0o700))
	generate := []string{"key", "generate", "aes", "--label", "too-few"}
	for _, tt := range []struct{ nodes, flag, want string }{
		{"3", "1", "create_object_minimum_nodes in " + file + " is 3"}, {"1", "3", "min-copies is 3"}, {"4", "1", "create_object_minimum_nodes in " + file + " is 4"},
	} {
		write(t, file, `{"client": {"create_object_minimum_nodes": `+tt.nodes+`}}`)
		line := c.alice().refused(t, 4, "min_copies", append(generate, "--sdk-config", file, "-min_srv", tt.flag)...)
		if !strings.Contains(line, tt.want) {
			t.Errorf("file %s, flag %s: %s", tt.nodes, tt.flag, line)
		}
	}
	if line := c.alice().refused(t, 4, "availability", append(generate, "--min-zones", "3")...); !strings.Contains(line, "in 2 zones, min-zones is 3") {
		t.Errorf("three zones of two: %s", line)
	}
	var coverage struct {
		Total    int
		NotAsked []string `json:"not_asked"`
		InSync   bool     `json:"in_sync"`
	}
	c.nobody().json(t, &coverage, "cluster", "coverage")
	if coverage.Total != 0 || len(coverage.NotAsked) != 1 || coverage.InSync {
		t.Errorf("cluster coverage with an HSM down: %+v", coverage)
	}
	var users struct {
		Users []struct {
			Coverage string `json:"cluster_coverage"`
			Missing  []string
		}
	}
	c.admin().json(t, &users, "user", "list")
	for _, u := range users.Users {
		if u.Coverage != "full" || len(u.Missing) != 1 {
			t.Errorf("user list with an HSM down: %+v", u)
		}
	}
}

// maskedFiles carries a key that is not extractable to a clone, as a file.
func maskedFiles(t *testing.T, east, west *testCluster) {
	t.Helper()
	file := east.path("key.masked")
	ref := east.generate(t, "carried", "--attribute", "extractable=false")
	east.alice().ok(t, "key", "extract-masked", "--key", ref, "--out", file)
	east.bob().refused(t, 1, "not_found", "key", "extract-masked", "--key", ref, "--out", file)
	west.bob().refused(t, 4, "denied", "key", "insert-masked", "--in", file)
	var made, was struct {
		Ref        string `json:"key_reference"`
		CheckValue string `json:"check_value"`
		Owner      string
		Attributes map[string]any
	}
	west.alice().json(t, &made, "key", "insert-masked", "--in", file, "--min-copies", "1")
	east.alice().json(t, &was, "key", "show", "--key", ref)
	if made.Ref != ref || made.CheckValue != was.CheckValue || made.Owner != "alice" || made.Attributes["extractable"] != false {
		t.Errorf("inserted: %+v; want %+v", made, was)
	}
	secret := okWith(t, east.alice(), "data", "crypto", "encrypt", "--key", ref, "--out", east.path("carried.enc"))
	if out := west.alice().ok(t, "crypto", "decrypt", "--key", ref, "--in", east.path("carried.enc")); out != "data" {
		t.Errorf("west decrypts %q: %s", out, secret)
	}
	west.alice().refused(t, 4, "exists", "key", "insert-masked", "--in", file)

	east.createUser(t, "fay:fay-is-here-1")
	fay, hers := east.as("crypto-user", "fay:fay-is-here-1"), east.path("fays.masked")
	fay.ok(t, "key", "generate", "aes", "--label", "fays", "--cluster", east.dir)
	fay.ok(t, "key", "extract-masked", "attr.label=fays", "--out", hers, "--cluster", east.dir)
	if line := west.nobody().refused(t, 1, "not_found", "key", "insert-masked", "--in", hers, "--credential", filepath.Join(west.dir, "appliance.pem")); !strings.Contains(line, "fay") {
		t.Errorf("the owner is missing: %s", line)
	}
	for name, text := range map[string]string{"empty": "", "garbage": "garbage", "cut": read(t, file)[:100], "longer": read(t, file) + "\n"} {
		path := east.path(name + ".masked")
		write(t, path, text)
		west.alice().refused(t, 1, "corrupt", "key", "insert-masked", "--in", path)
	}
	// What is only here goes to the other side too, so that the two are equal again.
	east.ok(t, "synckey", "--src", east.dir, "--dst", west.dir, "--users")
}
