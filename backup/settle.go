package backup

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// settleBatch bounds how many objects are asked for at a time while settling.
const settleBatch = 512

// settlePause is the time between two looks: a fraction of the interval of
// server-side sync.
const settlePause = 200 * time.Millisecond

// views is what each HSM shows of one object.
type views map[hsm.HSMID]hsm.Digest

// agreed returns the state that all show, if they show one and the same.
func (v views) agreed() (d hsm.Digest, ok bool) {
	for _, seen := range v {
		if d != (hsm.Digest{}) && seen != d {
			return d, false
		}
		d = seen
	}
	return d, len(v) > 0
}

// settle brings contents up to the state that all HSMs agree on, for the objects
// in conflict and for those that the parent left unsettled. What does not settle
// in time is kept in every state.
func (t *take) settle(ctx context.Context, conflicts map[hsm.KeyRef]bool, lead hsm.HSMID) error {
	witnesses := map[hsm.KeyRef][]format.Version{}
	for _, v := range t.contents.open {
		witnesses[v.Ref] = append(witnesses[v.Ref], v)
	}
	for ref := range witnesses { // looked at once: waiting did not help before
		conflicts[ref] = false
	}
	if len(conflicts) == 0 {
		return nil
	}
	seen, err := t.watch(ctx, conflicts)
	if err != nil {
		return err
	}
	agreed, open := map[hsm.KeyRef]hsm.Digest{}, []hsm.KeyRef{}
	for ref, v := range seen {
		if d, ok := v.agreed(); ok && t.allAnswer(witnesses[ref]) {
			agreed[ref] = d
		} else {
			open = append(open, ref)
		}
	}
	if err := t.storeAgreed(ctx, agreed, seen, lead); err != nil {
		return err
	}
	slices.Sort(open)
	return t.storeOpen(ctx, open, seen, witnesses)
}

// allAnswer tells whether every HSM that showed a state of the object answers
// now: only then does what they agree on include all of those states.
func (t *take) allAnswer(witnesses []format.Version) bool {
	for _, v := range witnesses {
		if !slices.ContainsFunc(t.hsms, func(h NamedSource) bool { return h.ID == v.HSM }) {
			return false
		}
	}
	return true
}

// watch asks all HSMs for the objects until they agree or the time is over.
// Objects whose value is false are not waited for.
func (t *take) watch(ctx context.Context, refs map[hsm.KeyRef]bool) (map[hsm.KeyRef]views, error) {
	seen := map[hsm.KeyRef]views{}
	ask := slices.Sorted(maps.Keys(refs))
	for deadline := time.Now().Add(t.options.Settle); ; {
		if err := t.look(ctx, ask, seen); err != nil {
			return nil, err
		}
		ask = slices.DeleteFunc(ask, func(r hsm.KeyRef) bool {
			_, ok := seen[r].agreed()
			return ok || !refs[r]
		})
		if len(ask) == 0 || !time.Now().Before(deadline) {
			return seen, nil
		}
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
}

// look notes what each HSM shows now.
func (t *take) look(ctx context.Context, refs []hsm.KeyRef, seen map[hsm.KeyRef]views) error {
	for _, ref := range refs {
		seen[ref] = views{}
	}
	for _, h := range t.hsms {
		for batch := range slices.Chunk(refs, settleBatch) {
			for m, err := range h.Extract(ctx, slices.Values(batch)) {
				if err != nil {
					return at(h, fmt.Errorf("extract: %w", err))
				}
				if err := checkObject(m, t.desc.Lineage); err != nil {
					return at(h, err)
				}
				if v, asked := seen[m.Ref]; asked {
					v[h.ID] = m.Digest
				}
			}
		}
	}
	return nil
}

// storeAgreed replaces the snapshot's states by those agreed on. An HSM that
// showed the agreed state and has a newer one by now will do as well.
func (t *take) storeAgreed(ctx context.Context, agreed map[hsm.KeyRef]hsm.Digest, seen map[hsm.KeyRef]views, lead hsm.HSMID) error {
	layers, err := t.contents.layers(ctx)
	if err != nil {
		return err
	}
	from := map[hsm.HSMID][]hsm.KeyRef{}
	replaced := map[hsm.KeyRef]hsm.Digest{}
	for ref, d := range agreed {
		if current, held := lookup(layers, ref); held && current.Digest == d {
			continue
		} else if held {
			replaced[ref] = current.Digest
		}
		from[holder(seen[ref], lead)] = append(from[holder(seen[ref], lead)], ref)
	}
	for _, h := range t.hsms {
		packs, err := t.pack(ctx, h, from[h.ID], false)
		if err != nil {
			return err
		}
		if err := t.contents.add(ctx, packs, replaced); err != nil {
			return err
		}
		if t.onlyIfNewer(h.ID, packs, agreed); h.ID != lead {
			t.contents.fromOthers(packs)
		}
	}
	before := len(t.contents.open)
	t.contents.open = slices.DeleteFunc(t.contents.open, func(v format.Version) bool { _, ok := agreed[v.Ref]; return ok })
	t.contents.anything = t.contents.anything || len(t.contents.open) != before
	return nil
}

// onlyIfNewer takes the other HSMs out of covers if h has moved on since all
// agreed: what is stored then includes what only h is known to hold.
func (t *take) onlyIfNewer(h hsm.HSMID, packs []packed, agreed map[hsm.KeyRef]hsm.Digest) {
	for _, p := range packs {
		for _, o := range p.items {
			if o.Digest != agreed[o.Ref] {
				maps.DeleteFunc(t.contents.covers, func(id hsm.HSMID, _ bool) bool { return id != h })
				return
			}
		}
	}
}

// holder picks the lead if it holds the object, otherwise the least that does.
func holder(v views, lead hsm.HSMID) hsm.HSMID {
	if _, ok := v[lead]; ok {
		return lead
	}
	return slices.Min(slices.Collect(maps.Keys(v)))
}

// storeOpen keeps every state that is shown of the objects in refs, and lists
// them as unsettled. The root goes on counting the state it counted.
func (t *take) storeOpen(ctx context.Context, refs []hsm.KeyRef, seen map[hsm.KeyRef]views, witnesses map[hsm.KeyRef][]format.Version) error {
	if len(refs) == 0 {
		return nil
	}
	layers, err := t.contents.layers(ctx)
	if err != nil {
		return err
	}
	var open []format.Version
	stored := map[hsm.Object]bool{} // references and digests only
	for _, ref := range refs {
		if o, ok := lookup(layers, ref); ok {
			stored[hsm.Object{Ref: ref, Digest: o.Digest}] = true
		}
		for _, v := range witnesses[ref] {
			stored[hsm.Object{Ref: ref, Digest: v.Digest}] = true
			if _, answers := seen[ref][v.HSM]; !answers {
				open = append(open, v)
			}
		}
	}
	for _, h := range t.hsms {
		shown, err := t.storeShown(ctx, h, refs, seen, stored)
		if err != nil {
			return err
		}
		open = append(open, shown...)
	}
	if len(open) > format.MaxUnsettled {
		return fmt.Errorf("%w: %d objects are in different states on different HSMs, %s for one", ErrUnsettled, len(refs), refs[0])
	}
	slices.SortFunc(open, format.Version.Compare)
	t.contents.open = open
	return nil
}

// storeShown stores those states of h that are not stored yet, and returns all
// that h shows.
func (t *take) storeShown(ctx context.Context, h NamedSource, refs []hsm.KeyRef, seen map[hsm.KeyRef]views, stored map[hsm.Object]bool) (shown []format.Version, err error) {
	var fresh []hsm.KeyRef
	for _, ref := range refs {
		d, shows := seen[ref][h.ID]
		switch {
		case !shows:
		case stored[hsm.Object{Ref: ref, Digest: d}]:
			shown = append(shown, format.Version{Ref: ref, Digest: d, HSM: h.ID})
		default:
			fresh = append(fresh, ref)
		}
	}
	packs, err := t.pack(ctx, h, fresh, true)
	if err != nil {
		return nil, err
	}
	t.contents.addAlternates(packs)
	for _, p := range packs {
		for _, o := range p.items { // what it shows by now
			stored[hsm.Object{Ref: o.Ref, Digest: o.Digest}] = true
			shown = append(shown, format.Version{Ref: o.Ref, Digest: o.Digest, HSM: h.ID})
		}
	}
	return shown, nil
}
