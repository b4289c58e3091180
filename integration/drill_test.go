package integration

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/clone"
	"github.com/hsmbackup/hsmbackup/integration/miniotest"
)

// drillFields are the fields of a drill's report as CLI.md promises them to
// scripts.
const drillFields = `{
  "ok": true,
  "source": {"cluster": "", "region": "", "hsms": 0, "keys": 0, "root": ""},
  "clone": {"cluster": "", "region": "", "hsms": 0, "keys": 0, "root": ""},
  "snapshot": {"id": "", "objects": 0, "bytes_read": 0, "bytes_stored": 0, "seconds": 0},
  "restore": {"seconds": 0},
  "synckey": {"missing": 0, "changed": 0, "applied": 0, "seconds": 0, "sketch_bytes": 0, "object_bytes": 0, "round_trips": 0},
  "proof": {"roots_equal": true, "kcv_checked": 0, "keys_used": 0, "failures": []},
  "rpo_seconds": 0, "rto_seconds": 0
}`

// checkFields demands that got has every field of want, of the same type.
func checkFields(t *testing.T, at string, want, got any) {
	t.Helper()
	if reflect.TypeOf(want) != reflect.TypeOf(got) {
		t.Errorf("%s is %T, want %T", at, got, want)
		return
	}
	fields, ok := want.(map[string]any)
	if !ok {
		return
	}
	for name, w := range fields {
		g, ok := got.(map[string]any)[name]
		if !ok {
			t.Errorf("%s has no %q", at, name)
			continue
		}
		checkFields(t, at+"."+name, w, g)
	}
}

func TestDrill(t *testing.T) {
	t.Parallel()
	m := newRaceMachine(t)
	r := m.run(t, "drill", "--json", "--keys", "20", "--report", m.path("report.json"), "--html", m.path("report.html"))
	if r.code != 0 {
		t.Fatalf("exit code %d: %v", r.code, r)
	}
	report := checkDrill(t, r.stdout)
	var again clone.Report
	decode(t, read(t, m.path("report.json")), &again)
	if !reflect.DeepEqual(report, again) {
		t.Errorf("--report wrote another report than --json printed:\n%+v\n%+v", report, again)
	}
	if page := read(t, m.path("report.html")); !strings.Contains(page, report.Snapshot.ID) || !strings.Contains(page, report.Source.Root) {
		t.Errorf("the page shows neither the snapshot nor the root")
	}
	forged := report
	forged.Proof.KeysUsed++
	if forged.Verify(forged.Lineage) == nil {
		t.Error("a changed report verifies")
	}
	if left, _ := os.ReadDir(m.path("..", "tmp")); len(left) != 0 {
		t.Errorf("the drill left %v", left)
	}
}

// checkDrill demands that a report is complete, signed, and finds nothing wrong.
func checkDrill(t *testing.T, text string) clone.Report {
	t.Helper()
	var want, got any
	decode(t, drillFields, &want)
	decode(t, text, &got)
	checkFields(t, "report", want, got)
	var r clone.Report
	decode(t, text, &r)
	if err := r.Verify(r.Lineage); err != nil {
		t.Error(err)
	}
	p := r.Proof
	if !r.OK || !p.RootsEqual || len(p.Failures) != 0 || p.KeysUsed < 20 || p.KCVChecked < 20 || r.Source.Root != r.Clone.Root || r.Source.Keys != r.Clone.Keys || r.Source.Cluster == r.Clone.Cluster {
		t.Errorf("the drill found something: %s", text)
	}
	if r.Snapshot.Objects == 0 || r.Snapshot.BytesStored == 0 || r.Snapshot.BytesRead == 0 || r.Synckey.Missing == 0 || r.Synckey.Changed == 0 || r.Synckey.Applied == 0 || r.Synckey.RoundTrips != 1 || r.RTOSeconds <= 0 || r.RPOSeconds <= 0 {
		t.Errorf("the drill did not do everything: %s", text)
	}
	return r
}

func TestDrillOnMinIO(t *testing.T) {
	t.Parallel()
	minio := miniotest.Start(t)
	minio.CreateBucket("drill")
	m := newMachine(t).with(minio.Env()...)
	checkDrill(t, m.ok(t, "drill", "--json", "--quiet", "--keys", "20", "--store", minio.MinioLocation("drill/here")))
	// The drill's store keeps the snapshot, which nobody can open any more.
	if list := m.ok(t, "snapshots", minio.MinioLocation("drill/here")); !strings.Contains(list, "region-one") {
		t.Errorf("the snapshot is not in the bucket:\n%s", list)
	}
}

func TestDrillOnASnapshot(t *testing.T) {
	t.Parallel()
	b := newBackedUp(t, newMachine(t))
	args := []string{"drill", "--json", "--from", b.store, "--identity", b.identity, "--hsms", "1"}
	var r clone.Report
	decode(t, b.ok(t, args...), &r)
	if err := r.Verify(r.Lineage); err != nil || !r.OK || r.Proof.KeysUsed != 2 {
		t.Errorf("%+v: %v", r, err)
	}
	decode(t, b.ok(t, append(args, "--cluster", b.dir)...), &r)
	if !r.OK {
		t.Errorf("against the live cluster: %+v", r)
	}
	other, _ := custodian(t, b.machine, "other.txt")
	b.refused(t, 1, "backup", "drill", "--from", b.store, "--identity", other, "--hsms", "1", "--quiet")

	damaged := copyFolder(t, b.store)
	flipBit(t, damaged+"/"+newestFile(t, damaged, "packs"))
	if r := b.run(t, "drill", "--from", damaged, "--identity", b.identity, "--hsms", "1", "--quiet"); r.code == 0 {
		t.Errorf("a drill of a damaged snapshot passes: %v", r)
	}
}
