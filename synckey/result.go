package synckey

import (
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Result is a plan and what became of it. Its JSON is that of CLI.md.
//
// The counts from Missing to Settling are of the objects that differed when the
// plan was made; Outside are those of them that the filter leaves out, and they
// are in none of the other counts.
type Result struct {
	Lineage        hsm.Lineage  `json:"lineage"`
	Src            Cluster      `json:"src"`
	Dst            Cluster      `json:"dst"`
	Missing        int          `json:"missing"`              // keys only at the source
	Changed        int          `json:"changed"`              // live on both sides, the source has news
	DestroyedAtSrc int          `json:"destroyed_at_src"`     // live at the destination
	DestroyedAtDst int          `json:"destroyed_at_dst"`     // live at the source; a destroyed key stays destroyed
	OnlyAtDst      int          `json:"only_at_dst"`          // keys, or changes to keys, that only the destination has
	Superseded     int          `json:"superseded,omitempty"` // keys live on one side that another birth stands above on the other
	Tombstones     int          `json:"tombstones"`           // keys destroyed on one side that the other never heard of
	Settling       int          `json:"settling"`             // equal but for HSMs of one cluster that lag behind their peers
	Outside        int          `json:"outside"`              // not selected by the filter
	Users          int          `json:"users"`                // users and policies that differ
	Conflicts      []hsm.KeyRef `json:"conflicts"`            // two births under one reference; ascending
	Blocked        []Blocked    `json:"blocked"`
	// Applied counts objects that changed a side, durably.
	Applied int `json:"applied"`
	// Refused tells why the plan is more than its options allow; empty: it is not.
	Refused string `json:"refused,omitempty"`
	// Remaining counts all objects that still differ, those outside the filter
	// included, and Left tells why each does. In a plan that has not been applied
	// Remaining is all that differs, and Left what the plan will leave. Left ends
	// after 10,000 objects.
	Remaining   int    `json:"remaining"`
	Left        []Left `json:"left,omitempty"`
	SketchBytes int64  `json:"sketch_bytes"`
	ObjectBytes int64  `json:"object_bytes"`
	RoundTrips  int    `json:"round_trips"`   // to learn the difference
	Rate        Rate   `json:"rate,omitzero"` // that bounded the insertions
	// RootsEqual tells whether all HSMs that answered, of both clusters, had one
	// root when last looked at. A crypto user's root is of the keys it owns.
	RootsEqual bool     `json:"roots_equal"`
	Seconds    float64  `json:"seconds"`
	Details    []Detail `json:"details,omitempty"`
	Use        *Used    `json:"use_check,omitempty"`
	// Asked are the options of the run, in words. Version is that of the program
	// that ran, Time when the result was signed, Nonce fresh for it.
	Asked      []string    `json:"asked,omitempty"`
	Version    string      `json:"version,omitempty"`
	Time       time.Time   `json:"time,omitzero"`
	Nonce      string      `json:"nonce,omitempty"`
	Unsigned   string      `json:"unsigned,omitempty"` // why there are no signatures, if they were asked for
	Signatures []Signature `json:"signatures,omitempty"`
}

// Cluster names one side in a result.
type Cluster struct {
	ID     hsm.ClusterID `json:"id"`
	Name   string        `json:"name"`
	Region string        `json:"region"`
	// Version is that of the HSM that signed.
	Version string `json:"version,omitempty"`
	// Root is that of the first HSM; empty where the login is not shown one.
	Root string `json:"root,omitempty"`
	// HSMs counts those that answered, Away lists the others.
	HSMs int         `json:"hsms"`
	Away []hsm.HSMID `json:"away,omitempty"`
}

// Blocked is a key or user that cannot be applied, and why.
type Blocked struct {
	Ref    hsm.KeyRef `json:"key_reference"`
	Reason string     `json:"reason"`
}

// Bounds of Details and Left, for the sake of memory and of readers; the counts
// are always complete.
const (
	maxDetails = 1_000
	maxLeft    = 10_000
)

// Detail is one line of the plan.
type Detail struct {
	Ref   hsm.KeyRef `json:"key_reference"`
	Kind  string     `json:"kind"`
	Class string     `json:"class"` // new, changed, destroyed at source, …
	Label string     `json:"label,omitempty"`
	What  []string   `json:"what,omitempty"` // attributes that differ
}

// Left is an object that differs, and why it stays so.
type Left struct {
	Ref    hsm.KeyRef `json:"key_reference"`
	Kind   string     `json:"kind"`
	Class  string     `json:"class"`
	Reason string     `json:"reason"`
}

// count counts one object that the filter selects.
func (r *Result) count(o *object) {
	switch {
	case o.class == classConflict:
		r.conflict(o.ref)
	case o.kind != hsm.KindKey:
		r.Users++
	case o.class == classNew:
		r.Missing++
	case o.class == classChanged:
		r.Changed++
	case o.class == classDestroyed:
		r.DestroyedAtSrc++
	case o.class == classDestroyedDst:
		r.DestroyedAtDst++
	case o.class == classOnlyDst:
		r.OnlyAtDst++
	case o.class == classSuperseded || o.class == classSupersededDst:
		r.Superseded++
	case o.class == classSettling:
		r.Settling++
	default:
		r.Tombstones++
	}
	if len(r.Details) < maxDetails {
		r.Details = append(r.Details, Detail{Ref: o.ref, Kind: o.kind.String(), Class: o.class.String(), Label: o.label(), What: o.what()})
	}
}

// conflict lists a conflict once.
func (r *Result) conflict(refs ...hsm.KeyRef) {
	r.Conflicts = append(r.Conflicts, refs...)
	slices.Sort(r.Conflicts)
	r.Conflicts = slices.Compact(r.Conflicts)
}

func (r *Result) leave(o *object, reason string) {
	if len(r.Left) < maxLeft {
		r.Left = append(r.Left, Left{Ref: o.ref, Kind: o.kind.String(), Class: o.class.String(), Reason: reason})
	}
}

func (r *Result) block(ref hsm.KeyRef, reason string) {
	r.Blocked = append(r.Blocked, Blocked{Ref: ref, Reason: reason})
}
