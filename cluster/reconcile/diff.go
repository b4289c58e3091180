package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// ErrPeer: a source breaks the contract: it lists out of order, or answers
// with an object it was not asked for.
var ErrPeer = errors.New("source breaks the contract")

// ErrTooMany: a difference has more entries than MaxEntries; Sync and Copy
// bring them over without holding them.
var ErrTooMany = errors.New("difference is too large to hold")

// Entry is one object in which two sources differ. A digest is zero where the
// source does not hold the object.
type Entry struct {
	Ref      hsm.KeyRef
	From, To hsm.Digest
}

// Missing tells whether the destination lacks the object.
func (e Entry) Missing() bool { return e.To == hsm.Digest{} }

// Extra tells whether only the destination holds the object.
func (e Entry) Extra() bool { return e.From == hsm.Digest{} }

// Difference is what differs between two sources, each list in ascending order
// of reference. It takes 40 bytes per entry.
type Difference struct {
	Missing []Entry // in from, not in to
	Changed []Entry // in both, in different states
	Extra   []Entry // only in to
	Stats
}

// Empty tells whether nothing differs.
func (d *Difference) Empty() bool { return len(d.Missing)+len(d.Changed)+len(d.Extra) == 0 }

func (d *Difference) add(e Entry) {
	switch {
	case e.Missing():
		d.Missing = append(d.Missing, e)
	case e.Extra():
		d.Extra = append(d.Extra, e)
	default:
		d.Changed = append(d.Changed, e)
	}
}

// Stats tells how a difference was found.
type Stats struct {
	Equal            bool     // the roots are equal
	FromRoot, ToRoot hsm.Root // zero where a source keeps none
	Cells            int      // coded symbols used of each side
	SketchBytes      int64    // what those of one side cost on the wire
	Listed           bool     // the sorted lists were compared
	Abandoned        error    // why there was no sketch, or it was given up
	RoundTrips       int      // one after the other
}

// Diff finds what differs between two sources.
//
// If both are hsm.Sketchers, it asks both at the same time for their keys,
// roots and cells, and is done after one round trip: because the roots are
// equal, or with as many cells as the difference needs. It compares sorted
// lists, one round trip more, if a source keeps no sketch or denies it, if the
// counts or the cells received show that lists cost less, or if the cells do
// not decode; Stats.Abandoned says which. So a sketch never costs more than the
// lists would have, give or take a few kilobytes, and a hostile source can
// make Diff slow, or lie about itself, but not make it decode for ever.
//
// ErrLineage, before anything is asked, if the lineages differ, and if the
// fingerprint keys do. ErrPeer if a list is out of order. ErrTooMany beyond
// MaxEntries. Errors of the sources are returned as they are.
func Diff(ctx context.Context, from, to hsm.Source, opts ...Option) (*Difference, error) {
	if err := sameLineage(from, to); err != nil {
		return nil, err
	}
	d, o := &Difference{}, newOptions(opts)
	found, err := sketchDiff(ctx, from, to, o, d)
	if err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	if found {
		return d, nil
	}
	d.listed()
	entries := 0
	for e, err := range differing(ctx, from, to) {
		if err != nil {
			return nil, fmt.Errorf("compare lists: %w", err)
		}
		if entries++; entries > o.maxEntries {
			return nil, fmt.Errorf("%w: more than %d entries; synchronize or copy instead", ErrTooMany, o.maxEntries)
		}
		d.add(e)
	}
	return d, nil
}

func (s *Stats) listed() {
	s.Listed = true
	s.RoundTrips++
}

func sameLineage(from, to hsm.Source) error {
	if a, b := from.Lineage(), to.Lineage(); a != b {
		return fmt.Errorf("%w: source is of %s, destination of %s", hsm.ErrLineage, a, b)
	}
	return nil
}

// addItems turns decoded items into entries. ErrUndecodable if one side holds
// two states of one object.
func (d *Difference) addItems(fromOnly, toOnly []Item) error {
	slices.SortFunc(fromOnly, compareRefs)
	slices.SortFunc(toOnly, compareRefs)
	if repeats(fromOnly) || repeats(toOnly) {
		return fmt.Errorf("%w: two states of one object", ErrUndecodable)
	}
	for len(fromOnly) > 0 || len(toOnly) > 0 {
		var e Entry
		switch order := compareHeads(fromOnly, toOnly); {
		case order < 0:
			e, fromOnly = Entry{Ref: fromOnly[0].Ref(), From: fromOnly[0].Digest()}, fromOnly[1:]
		case order > 0:
			e, toOnly = Entry{Ref: toOnly[0].Ref(), To: toOnly[0].Digest()}, toOnly[1:]
		default:
			e = Entry{Ref: fromOnly[0].Ref(), From: fromOnly[0].Digest(), To: toOnly[0].Digest()}
			fromOnly, toOnly = fromOnly[1:], toOnly[1:]
		}
		d.add(e)
	}
	return nil
}

// compareHeads orders the first items; an empty list comes last.
func compareHeads(a, b []Item) int {
	switch {
	case len(a) == 0:
		return 1
	case len(b) == 0:
		return -1
	}
	return compareRefs(a[0], b[0])
}

func repeats(sorted []Item) bool {
	for i := 1; i < len(sorted); i++ {
		if sorted[i-1].Ref() == sorted[i].Ref() {
			return true
		}
	}
	return false
}
