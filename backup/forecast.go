package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
)

// ForecastOptions says what to foresee.
type ForecastOptions struct {
	Policy Policy
	Grace  time.Duration
	// Pace is how often a snapshot will be taken; 0 is as often as lately.
	Pace time.Duration
	// Key asks which snapshots hold the material of one key; nil: none.
	Key *hsm.KeyRef
	// At is the time to start from; zero is the present.
	At time.Time
}

// ForecastEntry is what will become of a snapshot.
type ForecastEntry struct {
	ID      string    `json:"id"`
	Cluster string    `json:"cluster"`
	State   State     `json:"state"`
	Pending time.Time `json:"pending,omitzero"` // when it will be pending deletion
	Gone    time.Time `json:"gone,omitzero"`    // when it can be had back no more; zero: not before Until
	Never   bool      `json:"never"`            // it is marked keep
	Reasons []string  `json:"reasons,omitempty"`
}

// KeyHolder is a snapshot that holds the material of a key.
type KeyHolder struct {
	ID         string    `json:"id"`
	Restorable bool      `json:"restorable"`            // a restore brings the key; otherwise an older pack holds it still
	Gone       time.Time `json:"gone,omitzero"`         // when its packs may be gone; zero: not before Until
	Locked     time.Time `json:"locked_until,omitzero"` // a lock keeps its manifest until then
}

// KeyForecast tells until when a key is in the repository.
type KeyForecast struct {
	Ref     hsm.KeyRef  `json:"key_reference"`
	Holders []KeyHolder `json:"holders"`
	Unnamed int         `json:"unnamed_packs"` // packs that hold it and that no manifest names
	// RestorableUntil is when the last snapshot goes from which a restore brings
	// the key, and ErasedAfter when nothing holds its material any more; zero: not
	// before Until, or never.
	RestorableUntil time.Time `json:"restorable_until,omitzero"`
	ErasedAfter     time.Time `json:"erased_after,omitzero"`
}

// Forecast is what will go, and when.
type Forecast struct {
	At        time.Time       `json:"at"`
	Until     time.Time       `json:"until"` // how far it looks
	Snapshots []ForecastEntry `json:"snapshots"`
	Key       *KeyForecast    `json:"key,omitempty"`
}

// Bounds of a forecast: it takes so many steps of a day, or of the pace where
// that is shorter.
const (
	forecastSteps = 1500
	longestStep   = 24 * time.Hour
	shortestPace  = time.Minute
)

// MakeForecast foresees what a policy will do if snapshots go on at a pace and a
// prune follows each of them: what goes next, and until when a key can be
// restored. It supposes that marks and verifications stay as they are.
func MakeForecast(ctx context.Context, store storage.Store, o ForecastOptions) (*Forecast, error) {
	if err := o.Policy.Check(); err != nil {
		return nil, fmt.Errorf("forecast: %w", err)
	}
	if o.At.IsZero() {
		o.At = time.Now()
	}
	inv, err := TakeInventory(ctx, store)
	if err != nil {
		return nil, fmt.Errorf("forecast: %w", err)
	}
	f := &Forecast{At: o.At, Until: o.At.Add(forecastSteps * longestStep)}
	pending := f.simulate(inv, o)
	protected := inv.protected()
	for i, e := range inv.Snapshots {
		if !e.there() {
			continue
		}
		v := ForecastEntry{ID: e.ID, Cluster: e.ClusterName, State: e.State, Never: e.Keep, Pending: pending[i]}
		switch {
		case e.State == StatePending && protected[i] == "":
			v.Pending, v.Gone = e.Pending, e.DeleteAt
		case !v.Pending.IsZero():
			v.Gone = v.Pending.Add(UndeleteWindow)
		case protected[i] != "":
			v.Reasons = []string{protected[i]}
		}
		f.Snapshots = append(f.Snapshots, v)
	}
	if o.Key != nil {
		if f.Key, err = f.key(ctx, store, inv, *o.Key, o.Grace); err != nil {
			return nil, fmt.Errorf("forecast: key %s: %w", *o.Key, err)
		}
	}
	return f, nil
}

// future is a snapshot in a simulation: position -1 is one that is not there yet.
type future struct {
	candidate
	position int
	stays    bool // whatever the policy says
}

// simulate returns when each READY snapshot will be pending deletion.
func (f *Forecast) simulate(inv *Inventory, o ForecastOptions) []time.Time {
	out := make([]time.Time, len(inv.Snapshots))
	members := map[originKey][]int{}
	for i, e := range inv.Snapshots {
		if e.State == StateReady && e.Err == nil {
			members[e.origin()] = append(members[e.origin()], i)
		}
	}
	protected := inv.protected()
	for _, of := range members {
		newestFirst(of, func(i int) time.Time { return inv.Snapshots[i].Started })
		var all []future
		for _, i := range of {
			e := inv.Snapshots[i]
			all = append(all, future{candidate{e.Started, e.Tags}, i, protected[i] != "" && protected[i] != protectedLast})
		}
		pace := o.Pace
		if pace == 0 {
			pace = paceOf(all)
		}
		end := simulate(all, o.Policy, o.At, max(pace, shortestPace), func(position int, at time.Time) { out[position] = at })
		if end.Before(f.Until) {
			f.Until = end
		}
	}
	return out
}

// simulate takes snapshots and prunes, and tells what goes when.
func simulate(all []future, policy Policy, now time.Time, pace time.Duration, goes func(int, time.Time)) (end time.Time) {
	step := min(pace, longestStep)
	next := all[0].at.Add(pace)
	if next.Before(now) {
		next = now.Add(pace)
	}
	for range forecastSteps {
		candidates := make([]candidate, len(all))
		for i, s := range all {
			candidates[i] = s.candidate
		}
		reasons := policy.apply(candidates, now)
		left := all[:0:0]
		for i, s := range all {
			if i == 0 || s.stays || len(reasons[i]) > 0 {
				left = append(left, s)
			} else if s.position >= 0 {
				goes(s.position, now)
			}
		}
		all = left
		now = now.Add(step)
		for ; !next.After(now); next = next.Add(pace) {
			all = slices.Insert(all, 0, future{candidate{at: next}, -1, false})
		}
	}
	return now
}

// paceOf is the median pause between the newest snapshots, a day if there is one
// only.
func paceOf(all []future) time.Duration {
	var pauses []time.Duration
	for i := 1; i < min(len(all), 30); i++ {
		pauses = append(pauses, all[i-1].at.Sub(all[i].at))
	}
	if len(pauses) == 0 {
		return longestStep
	}
	slices.Sort(pauses)
	return pauses[len(pauses)/2]
}

// key finds what holds the material of a key, and until when.
func (f *Forecast) key(ctx context.Context, store storage.Store, inv *Inventory, ref hsm.KeyRef, grace time.Duration) (*KeyForecast, error) {
	out := &KeyForecast{Ref: ref, Holders: []KeyHolder{}}
	holders := map[int]bool{}
	for info, err := range store.List(ctx, format.IndexPrefix) {
		if err != nil {
			return nil, err
		}
		if !format.IsIndexPath(info.Name) {
			continue
		}
		live, err := holdsLive(ctx, store, info.Name, ref)
		if err != nil {
			return nil, err
		}
		if by := inv.needed[info.Name]; live && len(by) == 0 {
			out.Unnamed++
		} else if live {
			for _, i := range by {
				holders[i] = true
			}
		}
	}
	gone := map[string]time.Time{}
	for _, e := range f.Snapshots {
		gone[e.ID] = e.Gone
	}
	forever, restorableForever := false, false
	for i, e := range inv.Snapshots {
		if !holders[i] {
			continue
		}
		h, err := f.holder(ctx, store, e, ref, gone[e.ID], grace)
		if err != nil {
			return nil, err
		}
		out.Holders = append(out.Holders, h)
		forever = forever || h.Gone.IsZero()
		out.ErasedAfter = later(out.ErasedAfter, h.Gone)
		if h.Restorable {
			restorableForever = restorableForever || gone[e.ID].IsZero()
			out.RestorableUntil = later(out.RestorableUntil, later(gone[e.ID], h.Locked))
		}
	}
	if len(out.Holders) > 0 { // a removal may wait for the grace period of one before it
		out.ErasedAfter = out.ErasedAfter.Add(grace)
	}
	if out.Unnamed > 0 {
		out.ErasedAfter = later(out.ErasedAfter, f.At.Add(grace))
	}
	if forever {
		out.ErasedAfter = time.Time{}
	}
	if restorableForever {
		out.RestorableUntil = time.Time{}
	}
	return out, nil
}

// holdsLive tells whether an index lists a state of the key that is no tombstone.
func holdsLive(ctx context.Context, store storage.Store, path string, ref hsm.KeyRef) (bool, error) {
	hash, limit := nameIn(path)
	stored, err := fetch(ctx, store, path, hash, limit)
	if errors.Is(err, storage.ErrNotExist) {
		return false, nil // pruned meanwhile
	}
	if err != nil {
		return false, err
	}
	x, err := format.DecodeIndex(stored)
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	i, ok := layer{items: x.Items}.find(ref)
	return ok && !x.Items[i].Tombstone, nil
}

func (f *Forecast) holder(ctx context.Context, store storage.Store, e Entry, ref hsm.KeyRef, gone time.Time, grace time.Duration) (KeyHolder, error) {
	h := KeyHolder{ID: e.ID, Gone: gone}
	s, err := Open(ctx, store, e.ID, OpenOptions{})
	if err != nil {
		return h, err
	}
	layers, err := s.catalog.layers(ctx)
	if err != nil {
		return h, err
	}
	o, ok := lookup(layers, ref)
	h.Restorable = ok && !o.Tombstone
	if h.Locked, err = lockedUntil(ctx, store, format.ManifestPath(e.id.Sequence)); err != nil {
		return h, err
	}
	if h.Locked.Before(f.At) {
		h.Locked = time.Time{}
	}
	if !gone.IsZero() {
		h.Gone = later(gone, h.Locked).Add(grace)
	}
	return h, nil
}
