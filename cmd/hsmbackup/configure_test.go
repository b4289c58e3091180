package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/cloudhsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
)

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestConfigureWritesOneComponent: the file says what was asked, a second run
// changes nothing, and --enable takes it back.
func TestConfigureWritesOneComponent(t *testing.T) {
	for _, c := range cloudhsm.Components() {
		file := filepath.Join(t.TempDir(), c.FileName())
		for i, wantChanged := range []bool{true, false} {
			code, out, errOut := invoke(t, "configure", string(c), "--disable-key-availability-check", "-a", "10.0.0.1", "10.0.0.2", "--file", file, "--json")
			var got configured
			if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitDone || got.Changed != wantChanged || got.File != file {
				t.Fatalf("%s, run %d: exit %d, %s%s", c, i+1, code, out, errOut)
			}
			if p, err := cloudhsm.LoadPolicy(file, ""); err != nil || p.MinCopies != 1 || p.CheckOnUse {
				t.Errorf("%s: policy %+v, %v", c, p, err)
			}
		}
		if text := read(t, file); strings.Count(text, `"hostname"`) != 2 {
			t.Errorf("%s: want both addresses:\n%s", c, text)
		}
		invoke(t, "configure", string(c), "--enable-key-availability-check", "--file", file)
		if p, err := cloudhsm.LoadPolicy(file, ""); err != nil || p.MinCopies != 2 || !p.CheckOnUse {
			t.Errorf("%s enabled again: policy %+v, %v", c, p, err)
		}
	}
}

// TestConfigureUnderOtherNames: the program is called configure-pkcs11, ….
func TestConfigureUnderOtherNames(t *testing.T) {
	for _, name := range []string{"configure-pkcs11", "/opt/cloudhsm/bin/configure-pkcs11", `C:\Program Files\Amazon\CloudHSM\bin\configure-pkcs11.exe`} {
		file := filepath.Join(t.TempDir(), "x.cfg")
		var out, errOut bytes.Buffer
		code := run(t.Context(), []string{name, "--disable-key-availability-check", "--file", file}, strings.NewReader(""), &out, &errOut)
		if p, err := cloudhsm.LoadPolicy(file, ""); code != exitDone || err != nil || p.MinCopies != 1 {
			t.Errorf("%s: exit %d, %s; policy %+v, %v", name, code, errOut.String(), p, err)
		}
	}
	file := filepath.Join(t.TempDir(), cloudhsm.SDK3FileName)
	if code, _, errOut := invokeAs(t, "/opt/cloudhsm/bin/configure", "-a", "10.0.2.9", "--create-object-minimum-nodes", "2", "--file", file); code != exitDone {
		t.Errorf("configure: %s", errOut)
	}
	if p, err := cloudhsm.LoadPolicy(file, ""); err != nil || p.MinCopies != 2 || p.CheckOnUse || !strings.Contains(read(t, file), "10.0.2.9") {
		t.Errorf("configure: policy %+v, %v", p, err)
	}
	code, out, _ := invokeAs(t, "configure-dyn", "--help")
	if code != exitDone || !strings.Contains(out, "--disable-key-availability-check") || !strings.Contains(out, "cloudhsm-dyn.cfg") {
		t.Errorf("configure-dyn --help: exit %d\n%s", code, out)
	}
}

func invokeAs(t *testing.T, args ...string) (int, string, string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code := run(t.Context(), args, strings.NewReader(""), &out, &errOut)
	return code, out.String(), errOut.String()
}

// TestConfigureAll does every component, or none if one file cannot be edited.
func TestConfigureAll(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, cloudhsm.CLI.FileName())
	if err := os.WriteFile(bad, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errOut := invoke(t, "configure", "--all", "--dir", dir, "--disable-key-availability-check")
	if entries, _ := os.ReadDir(dir); code != exitFailed || len(entries) != 1 || !strings.Contains(errOut, bad) || read(t, bad) != "{" {
		t.Errorf("with a broken file: exit %d, %d files, %s", code, len(entries), errOut)
	}
	if err := os.Remove(bad); err != nil {
		t.Fatal(err)
	}
	if code, _, errOut := invoke(t, "configure", "--all", "--dir", dir, "--disable-key-availability-check"); code != exitDone {
		t.Fatalf("exit %d, %s", code, errOut)
	}
	for _, c := range cloudhsm.ComponentsOn(cloudhsm.Here) {
		if p, err := cloudhsm.LoadPolicy(filepath.Join(dir, c.FileName()), ""); err != nil || p.MinCopies != 1 {
			t.Errorf("%s: %+v, %v", c, p, err)
		}
	}
	if _, out, _ := invoke(t, "configure", "--all", "--dir", dir, "--disable-key-availability-check"); strings.Count(out, "as it was") != len(cloudhsm.ComponentsOn(cloudhsm.Here)) {
		t.Errorf("the second run: %s", out)
	}
}

// TestConfigureManagementUtility: Client SDK 3's configure lists the servers of the
// management utility, those given or all of a cluster, and leaves the client's file
// alone unless that is asked for too.
func TestConfigureManagementUtility(t *testing.T) {
	dir := t.TempDir()
	client, cmu := filepath.Join(dir, cloudhsm.SDK3FileName), filepath.Join(dir, cloudhsm.CMUFileName)
	configure := func(args ...string) string {
		t.Helper()
		code, out, errOut := invokeAs(t, append([]string{"configure", "--file", client, "--cmu-file", cmu}, args...)...)
		if code != exitDone {
			t.Fatalf("%q: exit %d: %s", args, code, errOut)
		}
		return out
	}
	configure("--cmu", "10.0.2.9")
	if _, err := os.Stat(client); err == nil || !strings.Contains(read(t, cmu), `"hostname": "10.0.2.9"`) || !strings.Contains(read(t, cmu), "2225") {
		t.Errorf("--cmu: the client's file: %v; %s", err, read(t, cmu))
	}
	if out := configure("--cmu", "10.0.2.9"); !strings.Contains(out, "as it was") {
		t.Errorf("again: %s", out)
	}
	configure("-a", "10.0.2.9", "--ssl", "--pkey", "/etc/own.key", "--cert", "/etc/own.crt", "--cmu", "10.0.2.10")
	if text := read(t, client); !strings.Contains(text, "/etc/own.key") || !strings.Contains(text, "/etc/own.crt") || strings.Contains(read(t, cmu), "10.0.2.9") {
		t.Errorf("both: %s%s", text, read(t, cmu))
	}
	at := filepath.Join(dir, "east")
	t.Setenv("HSMBACKUP_ROLE", "admin")
	t.Setenv("HSMBACKUP_PIN", "root:root-password")
	if code, _, errOut := invokeAs(t, "hsmbackup", "cluster", "create", "east", "--region", "east", "--hsms", "2", "--dir", at); code != exitDone {
		t.Fatal(errOut)
	}
	pr, err := profile.Load(at)
	if err != nil {
		t.Fatal(err)
	}
	configure("-m", "-i", "1", "--cluster-id", at)
	for _, h := range pr.HSMs {
		host, port, _ := net.SplitHostPort(h.Address)
		if text := read(t, cmu); !strings.Contains(text, host) || !strings.Contains(text, port) {
			t.Errorf("-m: %s is missing: %s", h.Address, text)
		}
	}
}

func TestConfigureRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "x.cfg")
	for line, want := range map[string]int{
		"configure nonsense": exitUsage,
		"configure pkcs11 --enable-key-availability-check --disable-key-availability-check --file " + file: exitUsage,
		"configure client --create-object-minimum-nodes 0 --file " + file:                                  exitUsage,
		"configure client --create-object-minimum-nodes 29 --file " + file:                                 exitFailed,
		"configure client -m --cmu-file " + file:                                                           exitUsage,
		"configure client --cluster-id x --cmu-file " + file:                                               exitUsage,
		"configure client -m --cluster-id nowhere --cmu-file " + file:                                      exitFailed,
		"configure client --cmu host:port --cmu-file " + file:                                              exitFailed,
		"configure client --ssl --pkey x --file " + file:                                                   exitUsage,
		"configure client --pkey x --cert x --file " + file:                                                exitUsage,
		"configure pkcs11 --region here --file " + file:                                                    exitUsage,
		"configure pkcs11 --cluster-id nowhere --file " + file:                                             exitFailed,
		"configure pkcs11 --log-level loud --file " + file:                                                 exitFailed,
		"configure pkcs11 -a host:port --file " + file:                                                     exitFailed,
		"configure pkcs11 -a bad!host --file " + file:                                                      exitFailed,
		"configure --all -a 10.0.0.1 --dir " + filepath.Join(dir, "no"):                                    exitFailed,
		"configure pkcs11 remove-cluster --file " + file:                                                   exitUsage,
		"configure pkcs11 --log-level info --file " + filepath.Join(dir, "no", "folder.cfg"):               exitFailed,
		"key list --cluster ./x --component nonsense":                                                      exitFailed,
	} {
		code, out, errOut := invoke(t, strings.Fields(line)...)
		if code != want || out != "" || len(strings.Split(strings.TrimSpace(errOut), "\n")) != 2 {
			t.Errorf("%q: exit %d, want %d; %s%s", line, code, want, out, errOut)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("%d files were written", len(entries))
	}
}

// TestConfigureNotesWhatIsMissing: a configuration may name files that come later, and
// says so of each that is not there or is none.
func TestConfigureNotesWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	ca, text := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "text")
	for path, content := range map[string]string{ca: "-----BEGIN CERTIFICATE-----\n", text: "hello"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range []string{"configure pkcs11 --file " + filepath.Join(dir, "x.cfg"), "configure --all --dir " + dir} {
		code, _, errOut := invoke(t, append(strings.Fields(command), "--hsm-ca-cert", ca, "--client-cert-hsm-tls-file", text, "--client-key-hsm-tls-file", filepath.Join(dir, "none"))...)
		notes := strings.Split(strings.TrimSpace(errOut), "\n")
		if code != exitDone || len(notes) != 2 || !strings.Contains(notes[0], text+": no PEM file") || !strings.Contains(notes[1], "no such file") {
			t.Errorf("%s: exit %d, %s", command, code, errOut)
		}
	}
}

func TestConfigureSeveralClusters(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.cfg")
	for _, id := range []string{"cluster-one", "cluster-two"} {
		if code, _, errOut := invoke(t, "configure", "cli", "add-cluster", "--cluster-id", id, "-a", id+".example", "--file", file); code != exitDone {
			t.Fatal(errOut)
		}
	}
	two := read(t, file)
	if code, _, errOut := invoke(t, "configure", "cli", "--disable-key-availability-check", "--file", file); code != exitFailed || !strings.Contains(errOut, "cluster-two") {
		t.Errorf("which of two? exit %d, %s", code, errOut)
	}
	if code, _, errOut := invoke(t, "configure", "cli", "remove-cluster", "--cluster-id", "cluster-two", "--file", file); code != exitDone {
		t.Error(errOut)
	}
	if one := read(t, file); !strings.Contains(two, "cluster-two.example") || strings.Contains(one, "cluster-two") || !strings.Contains(one, "cluster-one") {
		t.Errorf("before %s\nafter %s", two, one)
	}
}

func TestCreationPolicyFlags(t *testing.T) {
	for _, line := range []string{
		"key generate aes --min-srv 0", "key generate aes -min_srv -1", "key generate aes --timeout soon", "key generate aes --timeout -5", "key generate aes --timeout 2h",
	} {
		if code, _, errOut := invoke(t, append(strings.Fields(line), "--cluster", "./x")...); code != exitUsage || !strings.Contains(errOut, "want") {
			t.Errorf("%s: exit %d, %s", line, code, errOut)
		}
	}
	for _, line := range []string{"key generate aes -min_srv 2 -timeout 5", "key generate aes --min-copies 2 --timeout 5s"} {
		if code, _, errOut := invoke(t, append(strings.Fields(line), "--cluster", "./nowhere")...); code != exitFailed || !strings.Contains(errOut, "unknown cluster") {
			t.Errorf("%s: exit %d, %s", line, code, errOut)
		}
	}
}
