package reconcile

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Applied counts what was brought over.
type Applied struct {
	Objects int   // handed to the destination
	Bytes   int64 // of them
	Gone    int   // asked for, and not held by the source any more
	hsm.Inserted
}

// Apply brings the missing and changed objects of a difference from one side to
// the other. It is idempotent: merging decides, not the order of arrival, and an
// object that changed since the difference was computed arrives in its newer
// state. Extra objects are left alone.
//
// Objects are extracted and inserted in batches, a few at a time; the sources
// see concurrent calls. What Applied counts is durable, also if there is an
// error. ErrPeer if the source answers with objects it was not asked for, so
// that what Entries leaves out stays out.
func Apply(ctx context.Context, d *Difference, from hsm.Source, to hsm.Replica, opts ...Option) (Applied, error) {
	if err := sameLineage(from, to); err != nil {
		return Applied{}, err
	}
	t := &transfer{from: from, to: to, options: newOptions(opts)}
	wanted := d.wanted(t.keep)
	for _, list := range wanted {
		t.total += len(list)
	}
	if t.total == 0 {
		return Applied{}, nil
	}
	t.keep = nil // asked already
	return t.run(ctx, func(yield func(Entry, error) bool) {
		for _, list := range wanted {
			for _, e := range list {
				if !yield(e, nil) {
					return
				}
			}
		}
	})
}

// wanted returns the lists to bring over, less what keep leaves out.
func (d *Difference) wanted(keep func(Entry) bool) [][]Entry {
	all := [][]Entry{d.Missing, d.Changed}
	if keep == nil {
		return all
	}
	drop := func(e Entry) bool { return !keep(e) }
	return [][]Entry{slices.DeleteFunc(slices.Concat(all...), drop)}
}

// Copy brings over whatever the destination lacks or holds in another state,
// without comparing first: both sides are listed in order, and what differs is
// on its way while the lists are still read. It is for a destination that is
// empty or nearly so, and holds a few batches in memory however much there is
// to move. A source must allow itself to be written to while it is listed.
//
// The rest is as with Apply; ErrPeer also if a list is out of order.
func Copy(ctx context.Context, from hsm.Source, to hsm.Replica, opts ...Option) (Applied, error) {
	if err := sameLineage(from, to); err != nil {
		return Applied{}, err
	}
	t := &transfer{from: from, to: to, options: newOptions(opts)}
	return t.run(ctx, differing(ctx, from, to))
}

// Synced is what Sync found and did.
type Synced struct {
	Stats
	Missing, Changed, Extra int // before
	Applied
}

// Sync is Diff and Apply: it brings to up to from. Where lists are compared it
// streams like Copy, so that a first transfer holds a few batches in memory.
// It makes to no younger than from was when it was read; equal roots take a
// Sync in each direction.
func Sync(ctx context.Context, from hsm.Source, to hsm.Replica, opts ...Option) (Synced, error) {
	if err := sameLineage(from, to); err != nil {
		return Synced{}, err
	}
	d, o := &Difference{}, newOptions(opts)
	found, err := sketchDiff(ctx, from, to, o, d)
	if err != nil {
		return Synced{Stats: d.Stats}, fmt.Errorf("compare: %w", err)
	}
	if found {
		d.report(o.entry)
		applied, err := Apply(ctx, d, from, to, opts...)
		return Synced{Stats: d.Stats, Missing: len(d.Missing), Changed: len(d.Changed), Extra: len(d.Extra), Applied: applied}, err
	}
	d.listed()
	s := Synced{Stats: d.Stats}
	t := &transfer{from: from, to: to, options: o}
	s.Applied, err = t.run(ctx, s.counted(o.entry, differing(ctx, from, to)))
	return s, err
}

// report reports all entries of a difference, if anybody wants to know.
func (d *Difference) report(to func(Entry)) {
	if to == nil {
		return
	}
	for _, list := range [][]Entry{d.Missing, d.Changed, d.Extra} {
		for _, e := range list {
			to(e)
		}
	}
}

func (s *Synced) counted(report func(Entry), entries iter.Seq2[Entry, error]) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for e, err := range entries {
			if err == nil && report != nil {
				report(e)
			}
			switch {
			case err != nil:
			case e.Missing():
				s.Missing++
			case e.Extra():
				s.Extra++
			default:
				s.Changed++
			}
			if !yield(e, err) {
				return
			}
		}
	}
}
