package clone

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Report is what a drill found. Its JSON is that of CLI.md.
type Report struct {
	OK         bool           `json:"ok"`
	Time       time.Time      `json:"time"`
	Version    string         `json:"version"`
	Lineage    hsm.Lineage    `json:"lineage"`
	Source     RegionReport   `json:"source"`
	Clone      RegionReport   `json:"clone"`
	Snapshot   SnapshotReport `json:"snapshot"`
	Restore    RestoreReport  `json:"restore"`
	Synckey    SynckeyReport  `json:"synckey"`
	Proof      ProofReport    `json:"proof"`
	RPOSeconds float64        `json:"rpo_seconds"` // from the snapshot's moment to the loss
	RTOSeconds float64        `json:"rto_seconds"` // from the loss to the first answer of a key in the clone
	Signature  *Signature     `json:"signature,omitempty"`
}

// RegionReport describes one cluster at the end.
type RegionReport struct {
	Cluster string `json:"cluster"`
	Region  string `json:"region"`
	HSMs    int    `json:"hsms"`
	Keys    uint64 `json:"keys"`
	Root    string `json:"root"`
}

// SnapshotReport describes the snapshot.
type SnapshotReport struct {
	ID          string  `json:"id"`
	Objects     int     `json:"objects"`
	BytesRead   int64   `json:"bytes_read"`
	BytesStored int64   `json:"bytes_stored"`
	Seconds     float64 `json:"seconds"`
}

// RestoreReport tells how long the restore took, without starting the HSMs.
type RestoreReport struct {
	Seconds float64 `json:"seconds"`
}

// SynckeyReport describes the reconciliation.
type SynckeyReport struct {
	Missing     int     `json:"missing"`
	Changed     int     `json:"changed"`
	Destroyed   int     `json:"destroyed"`
	Applied     int     `json:"applied"`
	Seconds     float64 `json:"seconds"`
	SketchBytes int64   `json:"sketch_bytes"`
	ObjectBytes int64   `json:"object_bytes"`
	RoundTrips  int     `json:"round_trips"`
}

// ProofReport is what was compared and used.
type ProofReport struct {
	RootsEqual bool     `json:"roots_equal"`
	KCVChecked int      `json:"kcv_checked"`
	KeysUsed   int      `json:"keys_used"`
	Failures   []string `json:"failures"`
}

// Signature is the lineage's Ed25519 signature over the report's JSON without
// this field.
type Signature struct {
	Public    string `json:"public_key"` // base64
	Signature string `json:"signature"`  // base64
}

// doubt notes something that is not as it should be.
func (r *Report) doubt(format string, args ...any) {
	r.Proof.Failures = append(r.Proof.Failures, fmt.Sprintf(format, args...))
}

func newReport(version string) *Report {
	return &Report{Time: time.Now().UTC(), Version: version, Proof: ProofReport{Failures: []string{}}}
}

// signed returns the bytes that the signature covers.
func (r *Report) signed() ([]byte, error) {
	c := *r
	c.Signature = nil
	return json.Marshal(c)
}

// ReadReport reads the JSON of a report. hsm.ErrInvalid if it is none, or holds
// anything that a signature over the report would not cover.
func ReadReport(b []byte) (*Report, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var r Report
	if err := d.Decode(&r); err != nil {
		return nil, fmt.Errorf("%w: not a drill's report: %w", hsm.ErrInvalid, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("%w: more than a drill's report", hsm.ErrInvalid)
	}
	return &r, nil
}

// Verify checks that an HSM of the lineage trust signed the report as it is.
// hsm.ErrSignature if it is not signed, or was changed since; hsm.ErrLineage if
// the report is another lineage's, or was signed by another.
func (r *Report) Verify(trust hsm.Lineage) error {
	if r.Signature == nil {
		return fmt.Errorf("%w: the report is not signed", hsm.ErrSignature)
	}
	if r.Lineage != trust {
		return fmt.Errorf("%w: the report is of %s, want %s", hsm.ErrLineage, r.Lineage, trust)
	}
	message, err := r.signed()
	if err != nil {
		return err
	}
	public, err1 := base64.StdEncoding.DecodeString(r.Signature.Public)
	signature, err2 := base64.StdEncoding.DecodeString(r.Signature.Signature)
	if err1 != nil || err2 != nil {
		return fmt.Errorf("%w: not base64", hsm.ErrSignature)
	}
	return hsm.LineageSignature{Public: public, Signature: signature}.Verify(trust, hsm.PurposeReport, message)
}

// Print writes the report for people.
func (r *Report) Print(w io.Writer) {
	verdict := "PASSED: every key was restored, compared and used"
	if !r.OK {
		verdict = fmt.Sprintf("FAILED: %d doubts", len(r.Proof.Failures))
	}
	fmt.Fprintf(w, "drill %s\n\n", verdict)
	fmt.Fprintf(w, "lineage    %s\n", r.Lineage)
	for _, side := range []struct {
		name string
		RegionReport
	}{{"source", r.Source}, {"clone", r.Clone}} {
		fmt.Fprintf(w, "%-10s %s, %d HSM processes, %d keys\n           root %s\n", side.name, side.Cluster, side.HSMs, side.Keys, side.Root)
	}
	fmt.Fprintf(w, "snapshot   %s: %d objects, %d bytes stored, %.2f s\n", r.Snapshot.ID, r.Snapshot.Objects, r.Snapshot.BytesStored, r.Snapshot.Seconds)
	fmt.Fprintf(w, "restore    %.2f s\n", r.Restore.Seconds)
	fmt.Fprintf(w, "synckey    %d new, %d changed, %d destroyed: %d applied in %.2f s; difference learned in %d round trip, %d bytes of sketch, %d bytes of objects\n",
		r.Synckey.Missing, r.Synckey.Changed, r.Synckey.Destroyed, r.Synckey.Applied, r.Synckey.Seconds, r.Synckey.RoundTrips, r.Synckey.SketchBytes, r.Synckey.ObjectBytes)
	fmt.Fprintf(w, "proof      roots equal: %s; %d check values compared; %d keys used in the clone\n", yes(r.Proof.RootsEqual), r.Proof.KCVChecked, r.Proof.KeysUsed)
	fmt.Fprintf(w, "RPO        %.2f s from the snapshot's moment to the loss of region one\n", r.RPOSeconds)
	fmt.Fprintf(w, "RTO        %.2f s from the loss to the first answer of a key in region two\n", r.RTOSeconds)
	for _, f := range r.Proof.Failures {
		fmt.Fprintf(w, "DOUBT      %s\n", f)
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "NO"
}
