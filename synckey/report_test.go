package synckey

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func signedRun(t *testing.T) (*pair, *Result, []byte) {
	t.Helper()
	p := newPair(t)
	p.a.keys(3)
	plan, err := NewPlan(context.Background(), p.src, p.dst, Options{Version: "test", Asked: []string{"--filter attr.label=<a&b>"}})
	if err == nil {
		err = plan.Apply(context.Background())
	}
	if err == nil {
		plan.settle = 0
		err = plan.Check(context.Background())
	}
	if err == nil {
		err = plan.Sign(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.MarshalIndent(plan.Result, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return p, plan.Result, b
}

func readReport(t *testing.T, b []byte) *Result {
	t.Helper()
	r, err := ReadReport(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestReport: both clusters sign, and whoever has the file alone can verify it.
func TestReport(t *testing.T) {
	p, r, b := signedRun(t)
	if err := readReport(t, b).Verify(p.a.keyring.Lineage()); err != nil {
		t.Fatal(err)
	}
	if len(r.Signatures) != 2 || r.Signatures[0].Cluster != p.a.id || r.Signatures[1].Cluster != p.b.id || !r.RootsEqual || r.Src.Version != "test" {
		t.Errorf("%+v", r)
	}
	if err := readReport(t, b).Verify(hsm.NewKeyring().Lineage()); !errors.Is(err, hsm.ErrLineage) {
		t.Errorf("another lineage: %v", err)
	}
}

// TestReportChanged: a report in which anything was changed is refused.
func TestReportChanged(t *testing.T) {
	p, r, b := signedRun(t)
	trust := p.a.keyring.Lineage()
	for name, change := range map[string]func(*Result){
		"applied":             func(r *Result) { r.Applied++ },
		"a root":              func(r *Result) { r.Src.Root, r.Dst.Root = strings.Repeat("00", 32), strings.Repeat("00", 32) },
		"time":                func(r *Result) { r.Time = r.Time.Add(1e9) },
		"nonce":               func(r *Result) { r.Nonce = strings.Repeat("11", 32) },
		"nonce, malformed":    func(r *Result) { r.Nonce = "x" },
		"what was asked":      func(r *Result) { r.Asked = nil },
		"a line of the plan":  func(r *Result) { r.Details[0].Label = "another" },
		"sides":               func(r *Result) { r.Src, r.Dst = r.Dst, r.Src },
		"sides, signatures":   func(r *Result) { r.Src, r.Dst = r.Dst, r.Src; slices.Reverse(r.Signatures) },
		"one cluster":         func(r *Result) { r.Dst, r.Signatures[1] = r.Src, r.Signatures[0] },
		"HSM":                 func(r *Result) { r.Signatures[0].HSM++ },
		"one signature":       func(r *Result) { r.Signatures = r.Signatures[:1] },
		"no signature":        func(r *Result) { r.Signatures = nil },
		"one signature twice": func(r *Result) { r.Signatures[1] = r.Signatures[0] },
		"signature":           func(r *Result) { r.Signatures[1].Signature = r.Signatures[0].Signature },
		"not base64":          func(r *Result) { r.Signatures[0].Public += "\n" },
		"lineage":             func(r *Result) { r.Lineage = hsm.NewKeyring().Lineage() },
	} {
		changed := readReport(t, b)
		change(changed)
		if err := changed.Verify(trust); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := r.Verify(trust); err != nil {
		t.Errorf("unchanged: %v", err)
	}
}

// TestReportContradicts: genuine HSMs sign whatever those with rights at them
// hand over; a claim that its own numbers deny is refused all the same.
func TestReportContradicts(t *testing.T) {
	p := newPair(t)
	p.a.keys(1)
	plan := p.stale(t, Options{})
	plan.Result.RootsEqual = true
	if err := plan.Sign(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := plan.Result.Verify(p.a.keyring.Lineage()); !errors.Is(err, hsm.ErrSignature) {
		t.Errorf("roots said to be equal: %v", err)
	}
}

func TestReadReport(t *testing.T) {
	_, _, b := signedRun(t)
	for name, bad := range map[string][]byte{
		"nothing":          {},
		"another document": []byte(`{"ok":true}`),
		"unknown field":    bytes.Replace(b, []byte("{"), []byte(`{"more":1,`), 1),
		"repeated field":   bytes.Replace(b, []byte("{"), []byte(`{"applied":7,`), 1),
		"other case":       bytes.Replace(b, []byte(`"applied"`), []byte(`"Applied"`), 1),
		"more after it":    append(slices.Clone(b), "{}"...),
		"cut short":        b[:len(b)-2],
		"too long":         bytes.Repeat([]byte(" "), maxReport+1),
	} {
		if _, err := ReadReport(bytes.NewReader(bad)); !errors.Is(err, hsm.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReadReport(f *testing.F) {
	f.Add([]byte(`{"lineage":"lineage-00","src":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := ReadReport(bytes.NewReader(b)); err == nil {
			if err := r.Verify(r.Lineage); err == nil {
				t.Error("a report that no HSM signed is genuine")
			}
		}
	})
}

// TestReportOfACryptoUser: whose login may have nothing signed; it says so.
func TestReportOfACryptoUser(t *testing.T) {
	p := newPair(t)
	r, err := Run(context.Background(), p.a.open("alice"), p.b.open("alice"), Options{Sign: true})
	if err != nil || r.Unsigned == "" || len(r.Signatures) > 0 {
		t.Fatalf("%v: %+v", err, r)
	}
	if err := r.Verify(p.a.keyring.Lineage()); !errors.Is(err, hsm.ErrSignature) {
		t.Errorf("unsigned: %v", err)
	}
}
