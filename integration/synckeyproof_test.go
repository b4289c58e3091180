package integration

import (
	"os"
	"strings"
	"testing"
)

// TestSynckeyProof: limits stop a run before anything, applied keys are used on
// both sides, and a signed report is verified by whoever has the file alone.
func TestSynckeyProof(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newMachine(t))
	b.ok(t, b.restore(b.store, "west")...)
	west := &testCluster{machine: b.machine, dir: b.path("west")}
	west.startAll(t)
	synckey := []string{"synckey", "--src", b.dir, "--dst", west.dir}
	b.generate(t, "first")
	b.generate(t, "second")

	b.refused(t, 4, "limit", append(synckey, "--max-changes", "1")...)
	west.alice().refused(t, 1, "not_found", "key", "show", "attr.label=first")

	b.refused(t, 1, "not_found", append(synckey, "--report", b.path("nowhere/report.json"))...)
	west.alice().refused(t, 1, "not_found", "key", "show", "attr.label=first") // nothing was done that nobody is told of

	report := b.path("report.json")
	var s struct {
		synced
		Use struct {
			Keys, Agreed int
			Failures     []struct{ Reason string }
		} `json:"use_check"`
	}
	b.with("HSMBACKUP_USE_PIN="+alicePIN).json(t, &s, append(synckey, "--use-check", "all", "--report", report)...)
	if s.Applied != 2 || !s.RootsEqual || s.Use.Keys != 2 || s.Use.Agreed != 2 || len(s.Use.Failures) != 0 {
		t.Errorf("%+v", s)
	}
	b.nobody().ok(t, "synckey", "verify-report", report, "--lineage", s.Lineage)
	b.nobody().refused(t, 4, "lineage", "synckey", "verify-report", report, "--lineage", "lineage-"+strings.Repeat("0", 32))

	written, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	forged := strings.Replace(string(written), `"applied": 2`, `"applied": 3`, 1)
	if err := os.WriteFile(report, []byte(forged), 0o600); err != nil || forged == string(written) {
		t.Fatal(err)
	}
	b.nobody().refused(t, 3, "signature", "synckey", "verify-report", report)

	for side, variable := range map[string]string{"source": "HSMBACKUP_SRC_PIN", "destination": "HSMBACKUP_DST_PIN"} {
		r := b.with("HSMBACKUP_PIN="+alicePIN, variable+"=alice:not-her-password").run(t, synckey...)
		if r.code != 1 || !strings.Contains(r.stderr, side+", with the login of "+variable) || strings.Contains(r.stderr, "not-her-password") {
			t.Errorf("wrong password at the %s: %v", side, r)
		}
	}
}
