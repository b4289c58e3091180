package backup

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// A snapshot merges what several HSMs hold, and the host that takes it cannot
// merge: that takes the masking key. It need not, because of two facts. An HSM
// only ever learns, so what it holds of an object today includes what it held
// yesterday. And the manifest says which HSMs held all that the snapshot holds
// (covers). So the state that such an HSM shows replaces the snapshot's.
//
// Of any other HSM only the objects that the snapshot lacks are taken at once.
// Where it holds another state of an object, all HSMs are asked for theirs until
// they agree, as server-side sync makes them; the state they agree on includes
// all that any of them held. What does not settle in time is kept in every
// state there is: restoring merges them.

// gather brings contents up to every HSM that answers.
func (t *take) gather(ctx context.Context) error {
	lead, err := t.lead(ctx)
	if err != nil {
		return err
	}
	if err := t.merge(ctx, t.source(lead)); err != nil {
		return err
	}
	conflicts := map[hsm.KeyRef]bool{}
	for _, h := range t.hsms {
		if h.ID == lead {
			continue
		}
		d, err := reconcile.Diff(ctx, h, t.contents, reconcile.RootsFirst())
		if err != nil {
			return at(h, err)
		}
		for _, e := range d.Changed {
			conflicts[e.Ref] = true
		}
		from := len(t.contents.added)
		if err := t.absorb(ctx, h, d.Missing, nil, len(d.Extra) == 0); err != nil {
			return err
		}
		t.contents.fromOthers(t.contents.added[from:])
	}
	if err := t.settle(ctx, conflicts, lead); err != nil {
		return err
	}
	return t.cover(ctx, lead)
}

// source returns the HSM of an id that answers.
func (t *take) source(id hsm.HSMID) NamedSource {
	return t.hsms[slices.IndexFunc(t.hsms, func(h NamedSource) bool { return h.ID == id })]
}

// maxForeign bounds how many objects the lead is waited for.
const maxForeign = 4096

// cover sees to it that some HSM is known to hold all that contents holds, since
// the next take would be full otherwise. While keys are being made every HSM
// may lack what another has just got. The lead holds all but what came from
// others, and is given the time to show that too.
func (t *take) cover(ctx context.Context, lead hsm.HSMID) error {
	c := t.contents
	if len(c.covers) > 0 || len(c.foreign) > maxForeign {
		return nil
	}
	for _, v := range c.open { // which covers leaves aside
		delete(c.foreign, v.Ref)
	}
	h := t.source(lead)
	for deadline := time.Now().Add(t.options.Settle); ; {
		for m, err := range h.Extract(ctx, slices.Values(slices.Sorted(maps.Keys(c.foreign)))) {
			if err != nil {
				return at(h, fmt.Errorf("extract: %w", err))
			}
			if c.foreign[m.Ref] == m.Digest {
				delete(c.foreign, m.Ref)
			}
		}
		if len(c.foreign) == 0 {
			c.covers[lead] = true
			return nil
		}
		if !time.Now().Before(deadline) {
			return nil
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// pause waits a little between two looks at the HSMs.
func pause(ctx context.Context) error {
	select {
	case <-time.After(settlePause):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// lead picks an HSM that holds all that contents holds, and absorbs what it
// holds beyond that. errAgain, with a reason to take a full snapshot, if there
// is none.
func (t *take) lead(ctx context.Context) (hsm.HSMID, error) {
	unsettled := map[hsm.KeyRef]bool{}
	for _, v := range t.contents.open {
		unsettled[v.Ref] = true
	}
	clear(t.contents.foreign)
	for _, h := range t.hsms {
		if !t.contents.covers[h.ID] {
			continue
		}
		if t.contents.root.Count == 0 {
			return h.ID, t.everything(ctx, h)
		}
		d, err := reconcile.Diff(ctx, h, t.contents, reconcile.RootsFirst())
		if err != nil {
			return 0, at(h, err)
		}
		if len(d.Extra) > 0 { // it lost something: not to be followed
			t.note("%s does not hold %d objects any more that the snapshot before holds, %s for one", h.ID, len(d.Extra), d.Extra[0].Ref)
			continue
		}
		changed := slices.DeleteFunc(d.Changed, func(e reconcile.Entry) bool { return unsettled[e.Ref] })
		return h.ID, t.absorb(ctx, h, d.Missing, changed, true)
	}
	if t.parent == nil { // read a moment ago, and not to be followed any more
		t.contents = nil
		return 0, errAgain
	}
	t.fullReason = fmt.Sprintf("no HSM answers that is known to hold all of snapshot %s", summarize(t.parent).ID)
	return 0, errAgain
}

// everything takes all objects of h into empty contents, as they are listed.
func (t *take) everything(ctx context.Context, h NamedSource) error {
	root, err := h.Root(ctx)
	if err != nil {
		return at(h, err)
	}
	expected := int(min(root.Count, 1<<40))
	t.expect(expected)
	packs, err := t.packer.run(ctx, h, refsOf(h.Objects(ctx)), expected, false)
	if err != nil {
		return err
	}
	if err := t.contents.add(ctx, packs, nil); err != nil {
		return err
	}
	t.contents.covers = map[hsm.HSMID]bool{h.ID: true}
	return nil
}

func refsOf(objects iter.Seq2[hsm.Object, error]) iter.Seq2[hsm.KeyRef, error] {
	return func(yield func(hsm.KeyRef, error) bool) {
		for o, err := range objects {
			if !yield(o.Ref, err) {
				return
			}
		}
	}
}

// absorb takes objects of h into contents: new ones, and ones whose state
// includes what contents holds. holdsAll tells whether h lacks nothing that
// contents holds.
func (t *take) absorb(ctx context.Context, h NamedSource, added, changed []reconcile.Entry, holdsAll bool) error {
	replaced := make(map[hsm.KeyRef]hsm.Digest, len(changed))
	for _, e := range changed {
		replaced[e.Ref] = e.To
	}
	refs := make([]hsm.KeyRef, 0, len(added)+len(changed))
	for _, list := range [][]reconcile.Entry{added, changed} {
		for _, e := range list {
			refs = append(refs, e.Ref)
		}
	}
	packs, err := t.pack(ctx, h, refs, false)
	if err != nil {
		return err
	}
	if err := t.contents.add(ctx, packs, replaced); err != nil {
		return err
	}
	if len(packs) > 0 {
		clear(t.contents.covers)
	}
	if holdsAll {
		t.contents.covers[h.ID] = true
	}
	return nil
}

// pack stores objects of one HSM.
func (t *take) pack(ctx context.Context, h NamedSource, refs []hsm.KeyRef, alternate bool) ([]packed, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	slices.Sort(refs)
	t.expect(len(refs))
	return t.packer.run(ctx, h, withoutError(refs), len(refs), alternate)
}

func withoutError(refs []hsm.KeyRef) iter.Seq2[hsm.KeyRef, error] {
	return func(yield func(hsm.KeyRef, error) bool) {
		for _, r := range refs {
			if !yield(r, nil) {
				return
			}
		}
	}
}
