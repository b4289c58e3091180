package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster/server"
	"github.com/hsmbackup/hsmbackup/cluster/server/audit"
)

// invoke runs a command line in this process.
func invoke(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	for _, v := range []string{"PIN", "ROLE", "CLUSTER", "SRC_PIN", "DST_PIN", "NEW_PASSWORD"} {
		t.Setenv("HSMBACKUP_"+v, "")
	}
	t.Setenv("HSMBACKUP_CONFIG", t.TempDir()+"/none.yaml")
	var stdout, stderr bytes.Buffer
	code = run(t.Context(), append([]string{"hsmbackup"}, args...), strings.NewReader(""), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func leaves(commands []*cli.Command, path string, f func(path string, c *cli.Command)) {
	for _, c := range commands {
		name := strings.TrimSpace(path + " " + c.Name)
		if len(c.Subcommands) == 0 {
			f(name, c)
		}
		leaves(c.Subcommands, name, f)
	}
}

func testProgram() *program {
	return &program{streams: streams{in: strings.NewReader(""), out: io.Discard, err: io.Discard}, log: slog.New(slog.DiscardHandler)}
}

func TestEveryVerbHasHelpWithAnExample(t *testing.T) {
	leaves(testProgram().app().Commands, "", func(path string, c *cli.Command) {
		code, out, _ := invoke(t, append(strings.Fields(path), "--help")...)
		if code != exitDone || !strings.Contains(out, "hsmbackup "+strings.Fields(path)[0]) || !strings.Contains(c.Description, "Example") || c.Usage == "" {
			t.Errorf("%s: exit %d; usage %q, description %q", path, code, c.Usage, c.Description)
		}
	})
}

func TestEveryVerbTakesJSONAndQuiet(t *testing.T) {
	leaves(testProgram().app().Commands, "", func(path string, c *cli.Command) {
		names := map[string]bool{}
		for _, f := range c.Flags {
			for _, n := range f.Names() {
				if names[n] {
					t.Errorf("%s: flag --%s twice", path, n)
				}
				names[n] = true
			}
		}
		if !names["json"] || !names["quiet"] {
			t.Errorf("%s lacks --json or --quiet", path)
		}
	})
}

func TestWrongUsageExitsTwoWithOneLineAndAHint(t *testing.T) {
	for _, line := range []string{
		"nonsense", "key nonsense", "key generate", "key generate aes --no-such-flag", "key generate aes", "cluster create", "cluster create x",
		"snapshot", "snapshot --cluster ./x", "restore", "synckey", "synckey --src a", "snapshots", "snapshots a b c d", "crypto random many --cluster x",
		"key generate aes --attribute sign --cluster ./x", "key generate aes --attribute no-such=true --cluster ./x", "key show --cluster ./x --key 0xzz",
		"key list attr.nothing=1 --cluster ./x", "user create --cluster ./x", "user create bob --role king --cluster ./x", "hsm serve", "audit show",
		"cluster wait ./x --key nonsense", "drill --keys -1", "cluster start a b",
	} {
		code, out, errOut := invoke(t, strings.Fields(line)...)
		lines := strings.Split(strings.TrimSpace(errOut), "\n")
		if code != exitUsage || out != "" || len(lines) != 2 || !strings.HasPrefix(lines[1], "hint: ") {
			t.Errorf("%q: exit %d, stdout %q, stderr %q", line, code, out, errOut)
		}
	}
}

func TestErrorsWithJSONAreOneDocumentOnStdout(t *testing.T) {
	for line, want := range map[string]struct {
		code string
		exit int
	}{
		"cluster info ./nowhere --json":  {"unknown_cluster", exitFailed},
		"snapshots ./nowhere --json":     {"storage", exitFailed},
		"key generate --json":            {"usage", exitUsage},
		"key generate aes --json --oops": {"usage", exitUsage},
		"hsm serve ./nowhere --json":     {"folder", exitRefused},
	} {
		code, out, errOut := invoke(t, strings.Fields(line)...)
		var doc struct {
			Error struct{ Code, Message, Hint string }
		}
		if err := json.Unmarshal([]byte(out), &doc); err != nil || errOut != "" {
			t.Errorf("%q: %v: stdout %q, stderr %q", line, err, out, errOut)
		}
		if code != want.exit || doc.Error.Code != want.code || doc.Error.Message == "" || doc.Error.Hint == "" || strings.Contains(doc.Error.Message, "\n") {
			t.Errorf("%q: exit %d, %+v; want %+v", line, code, doc.Error, want)
		}
	}
}

func TestSnapshotsTakesItsWordsInEitherOrder(t *testing.T) {
	for line, want := range map[string][3]string{
		"./s": {"./s", "list", ""}, "./s show 1": {"./s", "show", "1"}, "show ./s 1": {"./s", "show", "1"},
		"verify ./s": {"./s", "verify", ""}, "./s verify": {"./s", "verify", ""}, "./s verify show": {"./s", "verify", "show"},
	} {
		l, v, id, err := snapshotsWords(strings.Fields(line), []string{"list", "show", "verify"})
		if got := [3]string{l, v, id}; err != nil || got != want {
			t.Errorf("%q: got %v, %v; want %v", line, got, err, want)
		}
	}
}

func TestPINsNeverReachErrors(t *testing.T) {
	t.Setenv("HSMBACKUP_PIN", "swordfish-without-colon")
	var out, errOut bytes.Buffer
	code := run(t.Context(), []string{"hsmbackup", "cluster", "create", "x", "--region", "r", "--dir", t.TempDir()}, strings.NewReader(""), &out, &errOut)
	if code != exitUsage || strings.Contains(out.String()+errOut.String(), "swordfish") {
		t.Errorf("exit %d: %s%s", code, out.String(), errOut.String())
	}
}

// The folder of a cluster stands for the logs of all its HSMs on this machine: one
// that is broken is found, and named.
func TestAuditVerifyOfACluster(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"hsm-1", "hsm-2"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		log, err := audit.Open(filepath.Join(dir, name, server.AuditFile), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(log.Append(audit.Entry{Event: "start"}), log.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if code, out, errOut := invoke(t, "audit", "verify", dir); code != exitDone || !strings.Contains(out, "in the logs of 2 HSMs") {
		t.Errorf("both good: exit %d, stdout %q, stderr %q", code, out, errOut)
	}
	if err := os.WriteFile(filepath.Join(dir, "hsm-2", server.AuditFile), []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errOut := invoke(t, "audit", "verify", dir); code != exitDoubt || out != "" || !strings.Contains(errOut, "hsm-2") {
		t.Errorf("one broken: exit %d, stdout %q, stderr %q", code, out, errOut)
	}
}

func TestAnEmptyAuditLogIsNoGoodOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errOut := invoke(t, "audit", "verify", path); code != exitDoubt || out != "" || !strings.Contains(errOut, "empty") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, out, errOut)
	}
}
