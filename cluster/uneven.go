package cluster

import (
	"context"
	"iter"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Uneven is an object that the HSMs do not all hold in the same state.
type Uneven struct {
	Ref  hsm.KeyRef `json:"key_reference"`
	Kind hsm.Kind   `json:"-"`
	// Destroyed: some HSM holds its tombstone already.
	Destroyed bool `json:"destroyed"`
	// Coverage are the HSMs that hold the object, Missing those that answered and
	// do not; Stale is true if those that hold it hold different states.
	Coverage []hsm.HSMID `json:"coverage"`
	Missing  []hsm.HSMID `json:"missing"`
	Stale    bool        `json:"stale"`
	// Since is when the newest state was made; zero if only a tombstone is known,
	// which keeps no time.
	Since time.Time `json:"since"`
}

// Unevenness is what is not everywhere yet.
type Unevenness struct {
	Objects []Uneven // the first of them, by reference
	Total   uint64
	// Unasked are the members that did not answer: what they lack is not known.
	Unasked []hsm.HSMID
}

// Uneven lists the objects that are not in the same state on all HSMs that answer,
// at most most of them, and counts all. For admins and appliances it is of every
// object, for a crypto user of its own keys. Equal roots cost one message per HSM.
//
// It is a look at one moment: what is being created at that moment may be on it.
func (c *Cluster) Uneven(ctx context.Context, most int) (Unevenness, error) {
	out := Unevenness{Objects: []Uneven{}}
	c.muster(ctx)
	_, differ := c.rootNow(ctx)
	up := c.up() // without those that have just failed to answer
	if len(up) == 0 {
		return out, c.noHSM()
	}
	ids := make([]hsm.HSMID, len(up))
	for i, r := range up {
		ids[i] = r.id()
	}
	out.Unasked = c.without(ids)
	if differ == nil || len(up) == 1 {
		return out, ctx.Err()
	}
	lists := make([]iter.Seq2[hsm.Object, error], len(up))
	for i, r := range up {
		lists[i] = listOn(ctx, r, func(s hsm.Session) iter.Seq2[hsm.Object, error] { return s.Objects(ctx) })
	}
	m := newMerger(lists, func(o hsm.Object) hsm.KeyRef { return o.Ref })
	defer m.stop()
	for m.next() {
		if m.failure() != nil {
			break
		}
		if u, uneven := unevenOf(m.items, m.from, ids); uneven {
			if out.Total++; len(out.Objects) < most {
				out.Objects = append(out.Objects, u)
			}
		}
	}
	if err := m.failure(); err != nil {
		return out, err
	}
	return out, c.addTimes(ctx, out.Objects)
}

func unevenOf(items []hsm.Object, from []int, ids []hsm.HSMID) (Uneven, bool) {
	u := Uneven{Ref: items[0].Ref, Kind: items[0].Kind, Coverage: []hsm.HSMID{}, Missing: []hsm.HSMID{}}
	for i, o := range items {
		u.Coverage = append(u.Coverage, ids[from[i]])
		u.Stale = u.Stale || o.Digest != items[0].Digest
		u.Destroyed = u.Destroyed || o.Tombstone
	}
	for _, id := range ids {
		if !slices.Contains(u.Coverage, id) {
			u.Missing = append(u.Missing, id)
		}
	}
	return u, u.Stale || len(u.Missing) > 0
}

// addTimes looks up when the newest states were made: in the clear part of the
// masked objects of each HSM in use.
func (c *Cluster) addTimes(ctx context.Context, list []Uneven) error {
	if len(list) == 0 {
		return nil
	}
	at := map[hsm.KeyRef]int{}
	refs := make([]hsm.KeyRef, len(list))
	for i, u := range list {
		at[u.Ref], refs[i] = i, u.Ref
	}
	answers := gatherFor(ctx, c, batchTime, c.up(), nil, nil, func(ctx context.Context, s hsm.Session) (map[hsm.KeyRef]time.Time, error) {
		return newest(ctx, s, refs)
	})
	for _, a := range answers {
		if a.err != nil && !away(a.err) {
			return a.err
		}
		for ref, since := range a.value {
			if i, asked := at[ref]; asked && since.After(list[i].Since) {
				list[i].Since = since.UTC()
			}
		}
	}
	return ctx.Err()
}

// newest returns when the states of objects that one HSM holds were made.
func newest(ctx context.Context, s hsm.Source, refs []hsm.KeyRef) (map[hsm.KeyRef]time.Time, error) {
	times := map[hsm.KeyRef]time.Time{}
	for m, err := range s.Extract(ctx, slices.Values(refs)) {
		if err != nil {
			return nil, err
		}
		_, r, err := hsm.ParseMasked(m.Bytes)
		if err != nil {
			return nil, err
		}
		if latest := r.Latest(); latest.Time != 0 {
			times[m.Ref] = latest.Wall()
		}
	}
	return times, nil
}
