package cloudhsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster"
)

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func yes() *bool { b := true; return &b }

func no() *bool { b := false; return &b }

// TestPolicies: what each vocabulary asks for.
func TestPolicies(t *testing.T) {
	quorum, off := cluster.DefaultPolicy, cluster.Policy{MinCopies: 1}
	sdk3 := func(n int) cluster.Policy {
		return cluster.Policy{MinCopies: n, Setting: "create_object_minimum_nodes"}
	}
	tests := map[string]struct {
		name, text string
		want       cluster.Policy
	}{
		"SDK 3 as shipped":      {"x", string(testdata(t, "cloudhsm_client.cfg")), sdk3(2)},
		"SDK 3 says nothing":    {"x", `{"client": {}, "server": {"hostname": "h"}}`, sdk3(1)},
		"SDK 3 by name":         {"cloudhsm_client.cfg", `{"server": {}}`, sdk3(1)},
		"SDK 3 most":            {"x", `{"client": {"create_object_minimum_nodes": 28}}`, sdk3(28)},
		"SDK 5 as shipped":      {"x", string(testdata(t, "cloudhsm-pkcs11.cfg")), quorum},
		"SDK 5 disabled":        {"x", `{"clusters": [{"cluster": {"options": {"disable_key_availability_check": true}}}]}`, off},
		"SDK 5 enabled":         {"x", `{"clusters": [{"cluster": {"options": {"disable_key_availability_check": false}}}]}`, quorum},
		"SDK 5 no options":      {"x", `{"clusters": [{"cluster": {}}]}`, quorum},
		"SDK 5 says nothing":    {"cloudhsm-cli.cfg", `{}`, quorum},
		"SDK 5 second cluster":  {"x", `{"clusters": [{"cluster": {"cluster_id": "one"}}, {"cluster": {"cluster_id": "mine", "options": {"disable_key_availability_check": true}}}]}`, off},
		"SDK 5 of another name": {"x", `{"clusters": [{"cluster": {"cluster_id": "one", "options": {"disable_key_availability_check": true}}}]}`, off},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := PolicyOf([]byte(tt.text), tt.name, "mine")
			if err != nil || got != tt.want {
				t.Errorf("%+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
}

// TestBadFilesAreRefusedByName: the setting is named, and nothing of the file is
// taken as something else.
func TestBadFilesAreRefusedByName(t *testing.T) {
	const nodes = "client.create_object_minimum_nodes is "
	tests := map[string][2]string{
		"empty":           {"", "empty"},
		"only space":      {" \n\t", "empty"},
		"not JSON":        {"[client]\nx = 1", "not JSON: line 1"},
		"half a file":     {"{\n\"client\": {\"create_object_minimum_nodes\": 2}", "not JSON: line 2"},
		"two values":      {`{"client": {}} {}`, "not JSON"},
		"not UTF-8":       {"{\"client\": \"\xff\"}", "UTF-8"},
		"an array":        {`[]`, "want an object"},
		"a key twice":     {`{"client": {"create_object_minimum_nodes": 1, "create_object_minimum_nodes": 3}}`, `"create_object_minimum_nodes" is there twice`},
		"0":               {`{"client": {"create_object_minimum_nodes": 0}}`, nodes + "the number 0"},
		"negative":        {`{"client": {"create_object_minimum_nodes": -1}}`, nodes + "the number -1"},
		"more than 28":    {`{"client": {"create_object_minimum_nodes": 29}}`, nodes + "the number 29"},
		"a fraction":      {`{"client": {"create_object_minimum_nodes": 1.5}}`, nodes + "the number 1.5"},
		"enormous":        {`{"client": {"create_object_minimum_nodes": 1` + strings.Repeat("0", 400) + `}}`, nodes + "the number 1000"},
		"a string":        {`{"client": {"create_object_minimum_nodes": "2"}}`, nodes + "a string"},
		"a bool":          {`{"client": {"create_object_minimum_nodes": true}}`, nodes + "true"},
		"null":            {`{"client": {"create_object_minimum_nodes": null}}`, nodes + "null"},
		"client a list":   {`{"client": []}`, "client is an array"},
		"clusters object": {`{"clusters": {}}`, "clusters is an object"},
		"cluster missing": {`{"clusters": [{"type": "hsm1"}]}`, "clusters[0].cluster is missing"},
		"option a string": {`{"clusters": [{"cluster": {"options": {"disable_key_availability_check": "true"}}}]}`, "clusters[0].cluster.options.disable_key_availability_check is a string"},
		"option a number": {`{"clusters": [{"cluster": {"options": {"disable_key_availability_check": 1}}}]}`, "disable_key_availability_check is the number 1"},
		"options a list":  {`{"clusters": [{"cluster": {"options": []}}]}`, "options is an array"},
		"port a string":   {`{"clusters": [{"cluster": {"servers": [{"hostname": "h", "port": "2223"}]}}]}`, "servers[0].port is a string"},
		"which of two":    {`{"clusters": [{"cluster": {"cluster_id": "a"}}, {"cluster": {"cluster_id": "b"}}]}`, `none with cluster_id "mine"`},
		"too deep":        {`{"client": ` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, "nested"},
		"too large":       {`{"client": "` + strings.Repeat("x", MaxBytes) + `"}`, "at most"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := PolicyOf([]byte(tt[0]), SDK3FileName, "mine")
			if !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), tt[1]) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 300 {
				t.Errorf("%v; want ErrFile with %q on one line", err, tt[1])
			}
		})
	}
}

func TestLoadPolicyNamesTheFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadPolicy(filepath.Join(dir, "none.cfg"), ""); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "none.cfg") {
		t.Errorf("no file: %v", err)
	}
	if _, err := LoadPolicy(dir, ""); !errors.Is(err, ErrFile) {
		t.Errorf("a folder: %v", err)
	}
	large := filepath.Join(dir, "large.cfg")
	if err := os.WriteFile(large, bytes.Repeat([]byte(" "), MaxBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadPolicy(large, ""); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), "large.cfg") {
		t.Errorf("a large file: %v", err)
	}
	p, err := LoadPolicy(filepath.Join("testdata", SDK3FileName), "")
	if err != nil || p.MinCopies != 2 || p.CheckOnUse || p.Setting != "create_object_minimum_nodes in "+filepath.Join("testdata", SDK3FileName) {
		t.Errorf("SDK 3: %+v, %v", p, err)
	}
}

// apply loads a copy of the file, changes it and saves it.
func apply(t *testing.T, path string, s Settings) bool {
	t.Helper()
	f, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Apply(s); err != nil {
		t.Fatal(err)
	}
	changed, err := f.Save(path)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

// TestEditKeepsTheRest: one setting changes, and nothing else: not unknown keys,
// not their order, not how numbers and strings are written, not the mode.
func TestEditKeepsTheRest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cloudhsm-pkcs11.cfg")
	if err := os.WriteFile(path, testdata(t, "cloudhsm-pkcs11.cfg"), 0o640); err != nil {
		t.Fatal(err)
	}
	if !apply(t, path, Settings{AvailabilityCheck: no()}) {
		t.Error("nothing was changed")
	}
	once, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(compact(t, testdata(t, "cloudhsm-pkcs11.cfg")), `"disable_key_availability_check":false`, `"disable_key_availability_check":true`, 1)
	if diff := cmp.Diff(want, compact(t, once)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if apply(t, path, Settings{AvailabilityCheck: no()}) {
		t.Error("the second run says that it changed something")
	}
	if twice, _ := os.ReadFile(path); !bytes.Equal(once, twice) {
		t.Error("the second run changed the file")
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	apply(t, path, Settings{AvailabilityCheck: yes()})
	if back, _ := os.ReadFile(path); compact(t, back) != compact(t, testdata(t, "cloudhsm-pkcs11.cfg")) {
		t.Error("--enable after --disable does not give the file back")
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("%d files in the folder", len(entries))
	}
}

func compact(t *testing.T, b []byte) string {
	t.Helper()
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestUnchangedFileIsNotRewritten, whatever its formatting.
func TestUnchangedFileIsNotRewritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cloudhsm-cli.cfg")
	if err := os.WriteFile(path, testdata(t, "cloudhsm-pkcs11.cfg"), 0o400); err != nil {
		t.Fatal(err)
	}
	if apply(t, path, Settings{AvailabilityCheck: yes(), Addresses: []string{"10.0.2.9"}, LogLevel: "info", CA: "/opt/cloudhsm/etc/customerCA.crt"}) {
		t.Error("settings that hold already changed the file")
	}
	if b, _ := os.ReadFile(path); !bytes.Equal(b, testdata(t, "cloudhsm-pkcs11.cfg")) {
		t.Error("the file was rewritten")
	}
}

func TestNewFileHasEverySetting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cloudhsm-dyn.cfg")
	s := Settings{
		ClusterID: "cluster-a", Addresses: []string{"10.0.0.1", "hsm.example:2300"}, CA: "/ca.crt", ClientCert: "/c.crt", ClientKey: "/c.key",
		AvailabilityCheck: no(), ValidateAtInit: no(), Certificates: yes(), SDK3Compatible: yes(), WeakECDSA: yes(),
		RetryMode: "off", LogType: "file", LogFile: "/x.log", LogLevel: "warn", LogRotation: "weekly",
	}
	apply(t, path, s)
	want := `{"clusters":[{"type":"hsm1","cluster":{"hsm_ca_file":"/ca.crt","cluster_id":"cluster-a","client_cert_path":"/c.crt","client_key_path":"/c.key",` +
		`"servers":[{"hostname":"10.0.0.1","port":2223,"enable":true},{"hostname":"hsm.example","port":2300,"enable":true}],` +
		`"options":{"disable_key_availability_check":true,"disable_validate_key_at_init":true,"enable_certificate_storage":true,` +
		`"enable_sdk3_compatibility_mode":true,"enable_ecdsa_with_weak_hash_function":true,"default_retry_mode":"off"}}}],` +
		`"logging":{"log_type":"file","log_file":"/x.log","log_level":"warn","log_interval":"weekly"}}`
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, compact(t, got)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if apply(t, path, s) {
		t.Error("the second run changed the file")
	}
}

func TestSeveralClusters(t *testing.T) {
	f := New()
	if err := f.AddCluster(Settings{}); !errors.Is(err, ErrFile) {
		t.Errorf("add without an id: %v", err)
	}
	for _, id := range []string{"a", "b", "a"} {
		if err := f.AddCluster(Settings{ClusterID: id, Addresses: []string{"h-" + id}}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(f.entries()); n != 2 {
		t.Errorf("%d entries; want 2", n)
	}
	if err := f.Apply(Settings{AvailabilityCheck: no()}); !errors.Is(err, ErrFile) {
		t.Errorf("which cluster? %v", err)
	}
	if err := f.Apply(Settings{LogLevel: "debug"}); err != nil {
		t.Errorf("logging is of all clusters: %v", err)
	}
	if err := f.Apply(Settings{ClusterID: "b", AvailabilityCheck: no()}); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]int{"a": 2, "b": 1} {
		if p, err := f.Policy(id); err != nil || p.MinCopies != want {
			t.Errorf("policy of %s: %+v, %v", id, p, err)
		}
	}
	if !f.RemoveCluster("b") || f.RemoveCluster("b") || f.RemoveCluster("") {
		t.Error("remove-cluster removes once")
	}
	if p, err := f.Policy("a"); err != nil || p.MinCopies != 2 {
		t.Errorf("after remove-cluster: %+v, %v", p, err)
	}
}

func TestSettingsThatMakeNoSense(t *testing.T) {
	for _, s := range []Settings{
		{RetryMode: "always"}, {LogType: "syslog"}, {LogLevel: "loud"}, {LogRotation: "yearly"},
		{Addresses: []string{""}}, {Addresses: []string{"h:0"}}, {Addresses: []string{"h:99999"}}, {Addresses: []string{"h:x"}}, {Addresses: []string{"not..an..address"}}, {Addresses: []string{"10.0.0.300"}}, {Addresses: []string{"fe80::g"}}, {Addresses: []string{"a b"}},
	} {
		f := New()
		if err := f.Apply(s); !errors.Is(err, ErrFile) || string(f.Bytes()) != "{}\n" {
			t.Errorf("%+v: %v, %s", s, err, f.Bytes())
		}
	}
}

// TestSaveLeavesTheOldFile when it fails, and no other one; and follows a link.
func TestSaveLeavesTheOldFile(t *testing.T) {
	dir := t.TempDir()
	f := New()
	if _, err := f.Save(filepath.Join(dir, "no", "such", "folder.cfg")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	target, link := filepath.Join(dir, "target.cfg"), filepath.Join(dir, "link.cfg")
	if err := os.WriteFile(target, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	apply(t, link, Settings{LogLevel: "info"})
	if st, err := os.Lstat(link); err != nil || st.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v", err)
	}
	if b, _ := os.ReadFile(target); !strings.Contains(string(b), "info") {
		t.Errorf("the target says %s", b)
	}
	occupied := filepath.Join(dir, "occupied.cfg")
	if err := os.MkdirAll(filepath.Join(occupied, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Save(occupied); err == nil {
		t.Error("a folder was replaced by a file")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 3 {
		t.Errorf("%d files are left", len(entries))
	}
}

func TestPathsAndNames(t *testing.T) {
	for got, want := range map[string]string{
		PKCS11.Path("linux"): "/opt/cloudhsm/etc/cloudhsm-pkcs11.cfg", Dyn.Path("linux"): "/opt/cloudhsm/etc/cloudhsm-dyn.cfg",
		JCE.Path("windows"): `C:\ProgramData\Amazon\CloudHSM\cloudhsm-jce.cfg`, SDK3Path("linux"): "/opt/cloudhsm/etc/cloudhsm_client.cfg",
		SDK3Path("windows"): `C:\ProgramData\Amazon\CloudHSM\data\cloudhsm_client.cfg`,
	} {
		if got != want {
			t.Errorf("path %s; want %s", got, want)
		}
	}
	for name, want := range map[string]Component{
		"configure-pkcs11": PKCS11, "/opt/cloudhsm/bin/configure-dyn": Dyn, `C:\Program Files\Amazon\CloudHSM\bin\configure-jce.exe`: JCE,
		"configure-CLI": "", "configure-cli.EXE": CLI, "configure-openssl-provider": OpenSSLProvider, "configure-ksp": KSP, "configure": "", "hsmbackup": "", "configure-": "",
	} {
		if got, ok := Called(name); got != want && ok || ok != (want != "") {
			t.Errorf("Called(%q) = %q, %t; want %q", name, got, ok, want)
		}
	}
	for name, want := range map[string]bool{"configure": true, "/opt/cloudhsm/bin/configure": true, `C:\x\configure.exe`: true, "configure-cli": false, "hsmbackup": false} {
		if got := CalledSDK3(name); got != want {
			t.Errorf("CalledSDK3(%q) = %t", name, got)
		}
	}
	if got := ComponentsOn("windows"); !cmp.Equal(got, []Component{PKCS11, JCE, CLI, KSP}) {
		t.Errorf("on Windows: %v", got)
	}
}

// TestCMUFileIsEdited: servers that are listed stay as they are, new ones are like the
// first, everything else is kept.
func TestCMUFileIsEdited(t *testing.T) {
	path := filepath.Join(t.TempDir(), CMUFileName)
	const before = `{"scard":{"enable":"no"},"servers":[{"name":"a","hostname":"10.0.2.9","port":2225,"certificate":"/c.crt","e2e_encryption":{"enable":"yes"},"x":1.50}],"y":null}`
	if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	edit := func(addresses ...string) bool {
		t.Helper()
		f, err := LoadCMU(path)
		if err == nil {
			err = f.ApplyCMU(addresses)
		}
		if err != nil {
			t.Fatal(err)
		}
		changed, err := f.Save(path)
		if err != nil {
			t.Fatal(err)
		}
		return changed
	}
	if edit("10.0.2.9") {
		t.Error("what holds already changed the file")
	}
	if !edit("10.0.2.9", "10.0.2.10:7") || edit("10.0.2.9:2225", "10.0.2.10:7") {
		t.Error("want one change")
	}
	want := strings.Replace(before, `"x":1.50}]`, `"x":1.50},{"name":"10.0.2.10","hostname":"10.0.2.10","port":7,"enable":"yes","certificate":"/c.crt","e2e_encryption":{"enable":"yes"},"x":1.50}]`, 1)
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, compact(t, got)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if CMUPath("linux") != "/opt/cloudhsm/etc/cloudhsm_mgmt_util.cfg" || CMUPath("windows") != `C:\ProgramData\Amazon\CloudHSM\data\cloudhsm_mgmt_util.cfg` {
		t.Error(CMUPath("linux"), CMUPath("windows"))
	}
	for _, addresses := range [][]string{nil, {"a:b"}, make([]string, MaxHSMs+1)} {
		if err := New().ApplyCMU(addresses); !errors.Is(err, ErrFile) {
			t.Errorf("%q: %v", addresses, err)
		}
	}
	bad := filepath.Join(t.TempDir(), CMUFileName)
	for _, text := range []string{`[]`, ``, `{"servers": {}}`, `{"servers": [1]}`, `{"servers": [{"hostname": 1}]}`} {
		if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadCMU(bad); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestSDK3FileIsEdited: the number and the address change, and nothing else.
func TestSDK3FileIsEdited(t *testing.T) {
	path := filepath.Join(t.TempDir(), SDK3FileName)
	if err := os.WriteFile(path, testdata(t, SDK3FileName), 0o600); err != nil {
		t.Fatal(err)
	}
	edit := func(address string, n int) bool {
		t.Helper()
		f, err := LoadSDK3(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.ApplySDK3(address, n); err != nil {
			t.Fatal(err)
		}
		changed, err := f.Save(path)
		if err != nil {
			t.Fatal(err)
		}
		return changed
	}
	if edit("10.0.2.9", 2) || edit("", 0) {
		t.Error("what holds already changed the file")
	}
	if !edit("10.0.2.10", 3) || edit("10.0.2.10", 3) {
		t.Error("want one change")
	}
	want := strings.NewReplacer(`"create_object_minimum_nodes":2`, `"create_object_minimum_nodes":3`, "10.0.2.9", "10.0.2.10").Replace(compact(t, testdata(t, SDK3FileName)))
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, compact(t, got)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, n := range []int{-1, 29} {
		if err := New().ApplySDK3("", n); !errors.Is(err, ErrFile) {
			t.Errorf("%d: %v", n, err)
		}
	}
	bad := filepath.Join(t.TempDir(), SDK3FileName)
	for _, text := range []string{`{"client": 1}`, `{"server": []}`, `{"server": {"hostname": 1}}`, `[]`, ``} {
		if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadSDK3(bad); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// FuzzFile: what parses can be changed, is the same after a second change, and
// keeps what is not known.
func FuzzFile(f *testing.F) {
	for _, name := range []string{"cloudhsm-pkcs11.cfg", "cloudhsm_client.cfg"} {
		f.Add(testdata(f, name))
	}
	f.Add([]byte(`{"clusters":[{"cluster":{"options":{"x":"\ud800"}}}],"a":[{},[],null,true,-0.0]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := PolicyOf(b, "x", "mine")
		if err != nil && !errors.Is(err, ErrFile) {
			t.Fatalf("%v; want ErrFile", err)
		}
		if err == nil && (p.MinCopies < 1 || p.MinCopies > MaxHSMs) {
			t.Fatalf("policy %+v", p)
		}
		file, err := Parse(b)
		if err != nil {
			return
		}
		if !bytes.Equal(file.Bytes(), b) {
			t.Fatalf("unchanged, and %q became %q", b, file.Bytes())
		}
		if err := file.Apply(Settings{AvailabilityCheck: no(), LogLevel: "warn"}); err != nil {
			return // several clusters
		}
		once := file.Bytes()
		again, err := Parse(once)
		if err != nil {
			t.Fatalf("what was written does not parse: %v\n%s", err, once)
		}
		if err := again.Apply(Settings{AvailabilityCheck: no(), LogLevel: "warn"}); err != nil || !bytes.Equal(again.Bytes(), once) {
			t.Fatalf("the second change: %v\n%s\n%s", err, once, again.Bytes())
		}
		if p, err := again.Policy("mine"); err != nil || p.MinCopies != 1 {
			t.Fatalf("policy %+v, %v of\n%s", p, err, once)
		}
	})
}
