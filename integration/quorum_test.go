package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// opensslKey makes a private key and the public half in PEM.
func opensslKey(t *testing.T, m *machine, name string, pkey ...string) (private, public string) {
	t.Helper()
	private, public = m.path(name+".pem"), m.path(name+".pub")
	for _, args := range [][]string{append([]string{"genpkey", "-out", private}, pkey...), {"pkey", "-in", private, "-pubout", "-out", public}} {
		if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %s: %v\n%s", args, err, out)
		}
	}
	return private, public
}

// TestQuorum: three HSM processes; users that two admins approve, a key that two users
// approve, wrap and unwrap templates, and a user who logs in with a second factor, with tokens in files; a token is good on the HSM that issued it,
// once, and not after that HSM was killed.
func TestQuorum(t *testing.T) {
	t.Parallel()
	c := newCluster(t, newMachine(t), "east", 3)
	root := c.admin()
	root.with("HSMBACKUP_NEW_PASSWORD=second-admin-1").ok(t, "user", "create", "second", "--role", "admin")
	second := c.as("admin", "second:second-admin-1").with("HSMBACKUP_CLUSTER=" + c.dir)
	ec := []string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"}
	rootKey, _ := opensslKey(t, c.machine, "root", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
	secondKey, secondPublic := opensslKey(t, c.machine, "second", ec...)
	root.ok(t, "user", "change-quorum", "token-sign", "register", "--key", rootKey)
	file := c.path("registration")
	second.ok(t, "user", "change-quorum", "token-sign", "register", "--public-key", secondPublic, "--token", file)
	second.refused(t, 2, "usage", "user", "change-quorum", "token-sign", "register", "--public-key", secondPublic, "--signed-token", file)
	c.machine.ok(t, "quorum", "token-sign", "sign", "--token", file, "--key", secondKey)
	second.ok(t, "user", "change-quorum", "token-sign", "register", "--public-key", secondPublic, "--signed-token", file)
	root.refused(t, 4, "denied", "quorum", "token-sign", "set-quorum-value", "--service", "user", "--value", "3")
	root.ok(t, "quorum", "token-sign", "set-quorum-value", "--service", "user", "--value", "2")
	var values struct{ User, Quorum, Cluster int }
	root.json(t, &values, "quorum", "token-sign", "list-quorum-values")
	if values.User != 2 || values.Quorum != 1 || values.Cluster != 1 {
		t.Errorf("values %+v", values)
	}

	tokenTimeouts(t, c, root)
	create := []string{"user", "create", "carol", "--approval"}
	root = root.with("HSMBACKUP_NEW_PASSWORD=carol-is-here-1")
	root.refused(t, 4, "quorum", "user", "create", "carol")
	token := c.path("token")
	generate := func() { root.ok(t, "quorum", "token-sign", "generate", "--service", "user", "--token", token) }
	sign := func(user, key string) {
		c.machine.ok(t, "quorum", "token-sign", "sign", "--token", token, "--key", key, "--username", user)
	}
	generate()
	sign("root", rootKey)
	root.refused(t, 4, "quorum", append(create, token)...)
	sign("second", secondKey)
	if shown := c.machine.ok(t, "quorum", "token-sign", "show", "--token", token); !strings.Contains(shown, `signed by  2 ["root" "second"]`) {
		t.Errorf("the token is shown as:\n%s", shown)
	}
	c.machine.refused(t, 2, "usage", "quorum", "token-sign", "sign", "--token", token, "--key", rootKey, "--username", "root")
	tokenList(t, c, root, second, token)
	root.ok(t, append(create, token)...)
	root.refused(t, 4, "quorum", "user", "delete", "carol", "--approval", token)
	approve := func(service string) {
		root.ok(t, "quorum", "token-sign", "generate", "--service", service, "--token", token)
		sign("root", rootKey)
		sign("second", secondKey)
	}
	raise := []string{"quorum", "token-sign", "set-quorum-value", "--service", "cluster", "--value", "2"}
	root.refused(t, 4, "quorum", raise...)
	approve("quorum")
	root.ok(t, append(raise, "--approval", token)...)
	for _, alone := range [][]string{{"cluster", "set", "--min-copies", "2"}, {"hsm", "invite"}, {"credential", "revoke", "--kind", "appliance", "--name", "other"}} {
		root.refused(t, 4, "quorum", alone...)
		approve("cluster")
		root.ok(t, append(alone, "--approval", token)...)
	}
	quorumKey(t, c, ec)
	keyTemplates(t, c)
	secondFactor(t, c, ec)

	generate()
	sign("root", rootKey)
	sign("second", secondKey)
	c.killAll()
	c.startAll(t)
	if line := root.refused(t, 4, "quorum", "user", "delete", "carol", "--approval", token); !strings.Contains(line, "has started again since") {
		t.Errorf("after a kill: %s", line)
	}
	generate()
	sign("root", rootKey)
	sign("second", secondKey)
	root.ok(t, "user", "delete", "carol", "--approval", token)
	generate()
	sign("root", rootKey)
	sign("second", secondKey)
	second.ok(t, "quorum", "token-sign", "delete", "--scope", "all")
	root.refused(t, 4, "quorum", "user", "delete", "second", "--approval", token)
	c.wait(t)
}

// quorumKey has a key used with the approval of its owner and a user it is shared with.
func quorumKey(t *testing.T, c *testCluster, ec []string) {
	t.Helper()
	aliceKey, _ := opensslKey(t, c.machine, "alice", ec...)
	bobKey, _ := opensslKey(t, c.machine, "bob", ec...)
	c.alice().ok(t, "user", "change-quorum", "token-sign", "register", "--key", aliceKey)
	c.bob().ok(t, "user", "change-quorum", "token-sign", "register", "--key", bobKey)
	c.alice().refused(t, 2, "invalid", "key", "generate", "ec", "--curve", "secp256r1", "--use-key-quorum-value", "2")
	c.alice().ok(t, "key", "generate", "ec", "--curve", "secp256r1", "--label", "pay", "--attribute", "sign=true", "--share", "bob",
		"--use-key-quorum-value", "2", "--manage-key-quorum-value", "1")
	data, token := c.path("order"), c.path("sign.token")
	if err := os.WriteFile(data, []byte("pay 10"), 0o600); err != nil {
		t.Fatal(err)
	}
	sign := []string{"crypto", "sign", "attr.label=pay", "--in", data}
	c.alice().refused(t, 4, "quorum", sign...)
	c.bob().refused(t, 4, "quorum", sign...)
	c.bob().ok(t, "quorum", "token-sign", "generate", "--service", "key-usage", "--token", token, "attr.label=pay")
	c.machine.ok(t, "quorum", "token-sign", "sign", "--token", token, "--key", aliceKey, "--username", "alice")
	c.machine.ok(t, "quorum", "token-sign", "sign", "--token", token, "--key", bobKey, "--username", "bob")
	c.alice().refused(t, 4, "quorum", append(sign, "--approval", token)...)
	c.bob().ok(t, append(sign, "--approval", token)...)
	c.bob().refused(t, 4, "quorum", append(sign, "--approval", token)...)
	change := []string{"key", "set", "attr.label=pay", "attr.class=private-key", "--attribute", "label=paid"}
	c.alice().refused(t, 4, "quorum", change...)
	c.alice().ok(t, "quorum", "token-sign", "generate", "--service", "key-management", "--token", token, "attr.label=pay")
	c.machine.ok(t, "quorum", "token-sign", "sign", "--token", token, "--key", bobKey, "--username", "bob")
	c.alice().ok(t, append(change, "--approval", token)...)
}

// keyTemplates wraps and unwraps with a key that has templates.
func keyTemplates(t *testing.T, c *testCluster) {
	t.Helper()
	alice := c.alice()
	alice.ok(t, "key", "generate", "aes", "--label", "kek", "--attribute", "wrap=true", "unwrap=true", "wrap-template=encrypt=true,label=good", "unwrap-template=extractable=false")
	for _, label := range []string{"good", "bad"} {
		alice.ok(t, "key", "generate", "aes", "--label", label, "--attribute", "encrypt=true")
	}
	file := c.path("wrapped")
	alice.refused(t, 4, "template", "key", "wrap", "attr.label=bad", "--wrapping-key", "attr.label=kek", "--out", file)
	alice.ok(t, "key", "wrap", "attr.label=good", "--wrapping-key", "attr.label=kek", "--out", file)
	unwrap := []string{"key", "unwrap", "aes", "--unwrapping-key", "attr.label=kek", "--in", file, "--label", "back"}
	alice.refused(t, 4, "template", append(unwrap, "--attribute", "extractable=true")...)
	var k struct{ Attributes map[string]any }
	alice.json(t, &k, unwrap...)
	if k.Attributes["extractable"] != false {
		t.Errorf("unwrapped as %v", k.Attributes)
	}
}

// secondFactor has bob log in with a key beside the password: from a file, and by
// answering a challenge.
func secondFactor(t *testing.T, c *testCluster, ec []string) {
	t.Helper()
	key, _ := opensslKey(t, c.machine, "bob-mfa", ec...)
	other, _ := opensslKey(t, c.machine, "other-mfa", ec...)
	c.bob().ok(t, "user", "change-mfa", "token-sign", "register", "--key", key)
	c.bob().refused(t, 1, "mfa", "key", "list")
	c.bob().refused(t, 1, "login", "key", "list", "--mfa", other)
	c.bob().refused(t, 2, "usage", "key", "list", "--mfa", c.path("bob-mfa.pub"))
	c.bob().ok(t, "key", "list", "--mfa", key)
	c.bob().with("HSMBACKUP_MFA="+key).ok(t, "key", "list")

	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	cmd := c.bob().command(ctx, t, "key", "list", "--mfa", "-")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	lines.Scan() // what to do
	lines.Scan()
	challenge, err := base64.StdEncoding.DecodeString(lines.Text())
	if err != nil {
		t.Fatalf("%q: %v", lines.Text(), err)
	}
	sign := exec.Command("openssl", "dgst", "-sha256", "-sign", key)
	sign.Stdin = bytes.NewReader(challenge)
	signature, err := sign.Output()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(stdin, base64.StdEncoding.EncodeToString(signature))
	rest, _ := io.ReadAll(stderr)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, rest)
	}
}

// tokenTimeouts sets how long tokens are good; everybody may read it.
func tokenTimeouts(t *testing.T, c *testCluster, root *machine) {
	t.Helper()
	expect := func(generated, approved int) {
		t.Helper()
		var timeouts struct{ Generated, Approved int }
		c.alice().json(t, &timeouts, "quorum", "token-sign", "list-timeouts")
		if timeouts.Generated != generated || timeouts.Approved != approved {
			t.Errorf("timeouts %+v, want %d and %d", timeouts, generated, approved)
		}
	}
	set := func(args ...string) []string { return append([]string{"quorum", "token-sign", "set-timeout"}, args...) }
	expect(600, 600)
	c.alice().refused(t, 4, "denied", set("--generated", "900")...)
	root.refused(t, 2, "usage", set()...)
	root.refused(t, 2, "usage", set("--generated", "900", "--approved", "900")...)
	for _, bad := range []string{"0", "-1", "86401", "soon", "", "15m"} {
		root.refused(t, 2, "invalid", set("--approved="+bad)...)
	}
	if out := root.ok(t, set("--generated", "900")...); !strings.Contains(out, "Set token timeout successful") {
		t.Error(out)
	}
	root.ok(t, set("--approved", "300")...)
	c.wait(t)
	expect(900, 300)
}

// tokenList lists the token of a file, which one of two has been seen to approve, beside
// another admin's; and deletes that one.
func tokenList(t *testing.T, c *testCluster, root, second *machine, file string) {
	t.Helper()
	type list struct {
		Tokens []struct {
			Username, Service, HSM, Token string
			Required                      int `json:"approvals_required"`
			Approvals                     int `json:"number_of_approvals"`
			Left                          int `json:"token_timeout_seconds"`
		}
		Missing []string
	}
	listed := func(by *machine) (l list) {
		t.Helper()
		by.json(t, &l, "quorum", "token-sign", "list")
		return l
	}
	remove := []string{"quorum", "token-sign", "delete", "--scope"}
	second.ok(t, "quorum", "token-sign", "generate", "--service", "quorum", "--token", c.path("second.token"))
	if l := listed(c.alice()); len(l.Tokens) != 2 || len(l.Missing) != 0 {
		t.Errorf("two tokens are listed as %+v", l)
	}
	c.alice().refused(t, 4, "denied", append(remove, "user")...)
	second.refused(t, 2, "usage", append(remove, "mine")...)
	if out := second.ok(t, append(remove, "user")...); !strings.Contains(out, "Deletion of quorum token(s) successful") {
		t.Error(out)
	}
	var shown struct{ HSM string }
	c.machine.json(t, &shown, "quorum", "token-sign", "show", "--token", file)
	var written struct{ Token string }
	b, err := os.ReadFile(file)
	if err != nil || json.Unmarshal(b, &written) != nil {
		t.Fatal(err)
	}
	l := listed(root)
	if len(l.Tokens) != 1 {
		t.Fatalf("one token is listed as %+v", l)
	}
	if k := l.Tokens[0]; k.Username != "root" || k.Service != "user" || k.HSM != shown.HSM || k.Token != written.Token || k.Required != 2 || k.Approvals != 1 || k.Left < 600 || k.Left > 900 {
		t.Errorf("the token is listed as %+v, it is of %s", k, shown.HSM)
	}
}
