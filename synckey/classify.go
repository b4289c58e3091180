package synckey

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// class is what a difference means.
type class uint8

const (
	classNew           class = iota // the destination never heard of it
	classChanged                    // live on both sides, the source has news
	classDestroyed                  // the source has destroyed what is live at the destination
	classDestroyedDst               // the destination has destroyed what is live at the source
	classOnlyDst                    // only at the destination, or only the destination has news
	classTombstone                  // destroyed at the source, of no life at the destination
	classTombstoneDst               // destroyed at the destination, of no life at the source
	classSuperseded                 // live at the destination, and at the source another birth stands above it
	classSupersededDst              // live at the source, and at the destination another birth stands above it
	classConflict                   // two births that nobody has decided on
	classSettling                   // equal, but for HSMs of one cluster that lag behind their peers
)

var classNames = [...]string{"new", "changed", "destroyed at source", "destroyed at destination", "only at destination",
	"tombstone of the source", "tombstone of the destination", "superseded at source", "superseded at destination", "conflict", "settling"}

func (c class) String() string { return classNames[c] }

// object is one differing object as the plan sees it: clear parts only.
type object struct {
	ref      hsm.KeyRef
	kind     hsm.Kind
	src, dst *held
	class    class
	merged   *hsm.Record // what both sides know; nil in a conflict
	// srcGains and dstGains tell which side the merger would change. Both may
	// be set where what differs is sealed and only an HSM can tell.
	srcGains, dstGains bool
}

// newObject classifies one reference from the clear parts of what both sides
// hold; no key is needed. Nil if they turn out to hold the same after all.
func newObject(ref hsm.KeyRef, src, dst *held) *object {
	o := &object{ref: ref, src: orNothing(src), dst: orNothing(dst)}
	if o.shown() == nil || o.src.same(o.dst) {
		return nil
	}
	o.kind = o.shown().Kind
	switch {
	case o.src.torn || o.dst.torn:
		o.settleTorn()
	case o.src.record == nil:
		o.oneSided(o.dst, classOnlyDst, classTombstoneDst)
		o.srcGains = true
	case o.dst.record == nil:
		o.oneSided(o.src, classNew, classTombstone)
		o.dstGains = true
	default:
		o.compare()
	}
	return o
}

func orNothing(h *held) *held {
	if h == nil {
		return &held{}
	}
	return h
}

// shown returns the state to show: the source's, else the destination's.
func (o *object) shown() *hsm.Record {
	if o.src.record != nil {
		return o.src.record
	}
	return o.dst.record
}

func (o *object) oneSided(h *held, live, destroyed class) {
	o.merged, o.class = h.record, live
	if h.record.Destroyed {
		o.class = destroyed
	}
}

// settleTorn classifies what the HSMs of one side hold different births of: a conflict,
// unless the other side's record says which one stands. The side that is torn then
// counts as holding what is to give way, if that is live on any of its HSMs.
func (o *object) settleTorn() {
	all := mergeAll(slices.Concat(o.src.states, o.dst.states))
	if len(all) > 1 {
		o.class = classConflict
		return
	}
	for _, h := range []*held{o.src, o.dst} {
		if !h.torn {
			continue
		}
		gives := func(r *hsm.Record) bool { return r.Birth != all[0].Birth && !r.Destroyed }
		if i := slices.IndexFunc(h.states, gives); i >= 0 {
			h.record = h.states[i]
		}
	}
	o.classify(all[0])
}

// compare classifies what both sides hold.
func (o *object) compare() {
	merged, err := hsm.Merge(o.src.record, o.dst.record)
	if err != nil {
		o.class = classConflict
		return
	}
	o.classify(merged)
}

// classify compares each side with what both merge to. The merger decides who has
// news; what of it is sealed cannot be told from outside, so where the sealed
// part may differ, as a user's password, either side may have.
func (o *object) classify(merged *hsm.Record) {
	from, to := o.src.record, o.dst.record
	o.merged = merged
	srcBehind, dstBehind := !sameClear(merged, from), !sameClear(merged, to)
	hidden := o.hidden(srcBehind || dstBehind)
	o.srcGains, o.dstGains = srcBehind || hidden, dstBehind || hidden
	switch {
	case merged.Birth != to.Birth && !to.Destroyed:
		o.class = classSuperseded
	case merged.Birth != from.Birth && !from.Destroyed:
		o.class = classSupersededDst
	case merged.Destroyed && !to.Destroyed:
		o.class = classDestroyed
	case merged.Destroyed && !from.Destroyed:
		o.class = classDestroyedDst
	case merged.Destroyed && dstBehind:
		o.class = classTombstone
	case merged.Destroyed && srcBehind:
		o.class = classTombstoneDst
	case dstBehind:
		o.class = classChanged
	case srcBehind:
		o.class = classOnlyDst
	case hidden:
		o.class = classChanged
	default:
		o.class = classSettling
	}
}

// hidden tells whether what is sealed may differ: of a user live on both sides,
// and of anything whose clear parts do not explain that the digests differ.
func (o *object) hidden(clearDiffers bool) bool {
	from, to := o.src.record, o.dst.record
	if from.Destroyed || to.Destroyed || from.Incarnation != to.Incarnation || from.Birth != to.Birth {
		return false
	}
	return o.kind == hsm.KindUser || !clearDiffers && !o.uneven()
}

// uneven tells whether the HSMs of one cluster do not agree on the object, and
// will.
func (o *object) uneven() bool { return (o.src.uneven || o.dst.uneven) && o.class != classConflict }

// sameClear compares what of two records is visible without keys.
func sameClear(a, b *hsm.Record) bool {
	return a.Birth == b.Birth && a.Standing == b.Standing && maps.EqualFunc(a.Rivals, b.Rivals, (*hsm.Rival).Equal) &&
		a.Incarnation == b.Incarnation && a.Destroyed == b.Destroyed && maps.EqualFunc(a.Registers, b.Registers, sameRegister)
}

func sameRegister(a, b hsm.Register) bool {
	return a.Stamp == b.Stamp && bytes.Equal(a.Value, b.Value)
}

// destroys tells whether the merger ends the life of what a side holds: it is
// destroyed, or gives way to another birth.
func (o *object) destroys(side *held) bool {
	return o.merged != nil && side.record != nil && !side.record.Destroyed && (o.merged.Destroyed || o.merged.Birth != side.record.Birth)
}

// what lists, in words, what differs of an object that is live on both sides:
// the registers; "credential", or "sealed part", for what cannot be seen;
// "revived" where one side has destroyed an earlier life; "birth" where one side
// has decided for another key, and "rivals" where they decided on others.
func (o *object) what() []string {
	from, to := o.src.record, o.dst.record
	switch {
	case from == nil || to == nil || o.merged == nil || o.merged.Destroyed || o.class == classSettling:
		return nil
	case from.Birth != to.Birth:
		return []string{"birth"}
	case from.Incarnation != to.Incarnation:
		return []string{"revived"}
	}
	names := map[string]bool{}
	if from.Standing != to.Standing || !maps.EqualFunc(from.Rivals, to.Rivals, (*hsm.Rival).Equal) {
		names["rivals"] = true
	}
	for _, m := range []map[string]hsm.Register{from.Registers, to.Registers} {
		for name := range m {
			if !sameRegister(from.Registers[name], to.Registers[name]) {
				names[strings.TrimPrefix(name, "attr/")] = true
			}
		}
	}
	if len(names) == 0 {
		return []string{map[bool]string{true: "credential", false: "sealed part"}[o.kind == hsm.KindUser]}
	}
	return slices.Sorted(maps.Keys(names))
}

// label names the object for people: a key by its label, others by name.
func (o *object) label() string {
	if o.kind == hsm.KindKey {
		return o.shown().Text("label")
	}
	return o.shown().Core.Owner
}

// owner is the crypto user that owns a key, or the name of a user or policy.
func (o *object) owner() string { return o.shown().Core.Owner }

// matches applies the filter: a key is selected if either side's state of it
// is. Of a tombstone only reference and owner are left to match.
func (o *object) matches(f hsm.Filter, t Times) bool {
	if o.kind != hsm.KindKey || f.Empty() && t.Empty() {
		return true
	}
	for _, r := range []*hsm.Record{o.src.record, o.dst.record} {
		if r != nil && t.match(r) && f.Match(r.Info(hsm.Digest{})) {
			return true
		}
	}
	return false
}
