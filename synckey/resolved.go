package synckey

import (
	"encoding/hex"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Resolved is a decision between births, and what became of it.
type Resolved struct {
	Lineage hsm.Lineage `json:"lineage"`
	Src     Cluster     `json:"src"`
	Dst     *Cluster    `json:"dst,omitempty"`
	Ref     hsm.KeyRef  `json:"key_reference"`
	Births  []Birth     `json:"births"`
	// Stands is the birth that is to stand, KeepBoth whether the others are kept.
	Stands   string `json:"stands"`
	KeepBoth bool   `json:"keep_both"`
	// Plan fingerprints what was found and decided: the same plan has the same one.
	Plan string `json:"plan"`
	// Kept are the references under which keys that gave way are kept.
	Kept []hsm.KeyRef `json:"kept"`
	// Resolved: all HSMs that answered hold one state under the reference, in which
	// Stands stands. RootsEqual and Remaining are of the clusters as a whole, and
	// unknown (false, and 0) until the plan is applied.
	Resolved   bool     `json:"resolved"`
	RootsEqual bool     `json:"roots_equal"`
	Remaining  int      `json:"remaining"`
	Version    string   `json:"version,omitempty"`
	Asked      []string `json:"asked,omitempty"`
	Seconds    float64  `json:"seconds"`
}

// The fates of a birth.
const (
	FateStands = "stands"
	FateLost   = "lost"
	FateKept   = "kept under another reference"
	FateGone   = "destroyed already"
)

// Birth is one key of several under a reference, as its clear part tells.
type Birth struct {
	Birth       string    `json:"birth"`
	At          []string  `json:"at"` // source, destination
	Fate        string    `json:"fate"`
	Destroyed   bool      `json:"destroyed"`
	Owner       string    `json:"owner"`
	Label       string    `json:"label"`
	Class       hsm.Class `json:"class,omitempty"`
	KeyType     string    `json:"key_type,omitempty"`
	Size        int       `json:"size,omitempty"`
	CheckValue  string    `json:"check_value"`
	Created     time.Time `json:"created,omitzero"`
	Shares      []string  `json:"shares"`
	Destroyable bool      `json:"destroyable"`
	// Standing is how high it stands by decisions made before, Above whom it does.
	Standing uint64   `json:"standing,omitempty"`
	Above    []string `json:"above,omitempty"`
}

// describe fills in what is known before the plan is applied.
func (r *Resolution) describe() {
	at := map[[16]byte]int{}
	for _, st := range r.states {
		i, known := at[st.record.Birth]
		if !known {
			i = len(r.Result.Births)
			at[st.record.Birth] = i
			r.Result.Births = append(r.Result.Births, r.birth(r.births[st.record.Birth]))
		}
		b := &r.Result.Births[i]
		if !slices.Contains(b.At, st.side.name) {
			b.At = append(b.At, st.side.name)
		}
	}
	r.Result.Stands, r.Result.Plan, r.Result.Kept = hex.EncodeToString(r.stands[:]), r.planID(), []hsm.KeyRef{}
}

func (r *Resolution) birth(rec *hsm.Record) Birth {
	b := Birth{
		Birth: hex.EncodeToString(rec.Birth[:]), Destroyed: rec.Destroyed, Owner: rec.Core.Owner, Label: rec.Text("label"), Class: rec.Core.Class, KeyType: rec.Core.Type,
		Size: rec.Core.Size, CheckValue: hex.EncodeToString(rec.Core.Check), Created: rec.Core.CreatedAt(), Shares: rec.Shares(),
		Destroyable: rec.Flag("destroyable"), Standing: rec.Standing, Fate: FateLost,
	}
	for id := range rec.Rivals {
		b.Above = append(b.Above, hex.EncodeToString(id[:]))
	}
	slices.Sort(b.Above)
	switch {
	case rec.Birth == r.stands:
		b.Fate = FateStands
	case rec.Destroyed:
		b.Fate = FateGone
	case r.options.KeepBoth:
		b.Fate = FateKept
	}
	return b
}
