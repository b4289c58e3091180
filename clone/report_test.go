package clone

import (
	"bytes"
	"encoding/json"
	"errors"
	"html"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func signedReport(t *testing.T, k *hsm.Keyring) *Report {
	t.Helper()
	r := newReport("v1.2.3")
	r.OK, r.Lineage = true, k.Lineage()
	r.Time = time.Date(2026, 3, 4, 5, 6, 7, 89, time.UTC)
	r.Source = RegionReport{Cluster: "cluster-one", Region: "east", HSMs: 3, Keys: 7, Root: "aa"}
	r.Clone, r.Snapshot = r.Source, SnapshotReport{ID: "0000000001", Objects: 9, BytesStored: 4096, Seconds: 0.25}
	r.RPOSeconds, r.RTOSeconds = 0.1, 2.0/3
	r.Proof.RootsEqual, r.Proof.KCVChecked, r.Proof.KeysUsed = true, 6, 7
	message, err := r.signed()
	if err != nil {
		t.Fatal(err)
	}
	r.setSignature(k.Sign(hsm.PurposeReport, message))
	return r
}

// TestAReportVerifiesAsItWasSigned, and any change of it shows.
func TestAReportVerifiesAsItWasSigned(t *testing.T) {
	k, other := hsm.NewKeyring(), hsm.NewKeyring()
	r := signedReport(t, k)
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	read, err := ReadReport(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, read); diff != "" {
		t.Errorf("read back:\n%s", diff)
	}
	if err := read.Verify(k.Lineage()); err != nil {
		t.Errorf("the report as it was signed: %v", err)
	}
	if err := read.Verify(other.Lineage()); !errors.Is(err, hsm.ErrLineage) {
		t.Errorf("trusting another lineage: %v, want ErrLineage", err)
	}
	for name, tamper := range map[string]func(*Report){
		"verdict":   func(r *Report) { r.OK = false },
		"time":      func(r *Report) { r.Time = r.Time.Add(time.Hour) },
		"keys":      func(r *Report) { r.Clone.Keys++ },
		"root":      func(r *Report) { r.Source.Root = "ab" },
		"seconds":   func(r *Report) { r.RTOSeconds /= 2 },
		"doubts":    func(r *Report) { r.doubt("all is lost") },
		"signature": func(r *Report) { r.Signature.Signature = "AAAA" },
		"no base64": func(r *Report) { r.Signature.Public = "?" },
		"unsigned":  func(r *Report) { r.Signature = nil },
	} {
		bad, err := ReadReport(b)
		if err != nil {
			t.Fatal(err)
		}
		tamper(bad)
		if err := bad.Verify(k.Lineage()); !errors.Is(err, hsm.ErrSignature) {
			t.Errorf("%s: %v, want ErrSignature", name, err)
		}
	}
	forged := signedReport(t, other)
	forged.Lineage = k.Lineage()
	if err := forged.Verify(k.Lineage()); !errors.Is(err, hsm.ErrLineage) {
		t.Errorf("signed by another lineage: %v, want ErrLineage", err)
	}
}

func TestWhatIsNoReportIsRefused(t *testing.T) {
	b, err := json.Marshal(signedReport(t, hsm.NewKeyring()))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty": "", "no JSON": "drill PASSED", "an array": "[]", "two reports": string(b) + string(b),
		"more than a report": strings.Replace(string(b), "{", `{"certified_by":"nobody",`, 1),
	} {
		if _, err := ReadReport([]byte(text)); !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

func TestThePageShowsTheReportAndEscapes(t *testing.T) {
	r := signedReport(t, hsm.NewKeyring())
	var page bytes.Buffer
	if err := r.Page(&page); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"passed", r.Lineage.String(), "cluster-one", "0000000001", "7 keys used", r.Signature.Public[:20]} {
		if !strings.Contains(html.UnescapeString(page.String()), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	r.OK, r.Proof.RootsEqual, r.Source.Region = false, false, `<script>alert("east")</script>`
	r.doubt(`key <b onclick="x">bold</b> is missing`)
	page.Reset()
	if err := r.Page(&page); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"<script", "<b onclick", "passed"} {
		if strings.Contains(page.String(), bad) {
			t.Errorf("the page contains %q", bad)
		}
	}
	for _, want := range []string{"failed", "Doubts", "&lt;script&gt;", "is missing"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

func TestThePrintedReportTellsDoubts(t *testing.T) {
	r := signedReport(t, hsm.NewKeyring())
	var out bytes.Buffer
	r.Print(&out)
	if !strings.Contains(out.String(), "drill PASSED") || strings.Contains(out.String(), "DOUBT") {
		t.Errorf("printed:\n%s", out.String())
	}
	r.OK = false
	r.doubt("key 0x01 is missing")
	out.Reset()
	r.Print(&out)
	if !strings.Contains(out.String(), "FAILED: 1 doubts") || !strings.Contains(out.String(), "DOUBT      key 0x01 is missing") {
		t.Errorf("printed:\n%s", out.String())
	}
}

// FuzzReadReport: anything but a report is refused, and nothing verifies that no
// HSM has signed.
func FuzzReadReport(f *testing.F) {
	r := newReport("test")
	whole, err := json.Marshal(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(`{"signature":{"public":"","signature":""}}`))
	f.Add([]byte("{}{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ReadReport(b)
		if err != nil {
			if !errors.Is(err, hsm.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			return
		}
		if r.Verify(r.Lineage) == nil {
			t.Error("a signature that nobody made verifies")
		}
		r.Print(io.Discard)
	})
}
