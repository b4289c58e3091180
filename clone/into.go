package clone

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/synckey"
)

// IntoOptions say what of a snapshot a running cluster takes.
type IntoOptions struct {
	// Filter selects keys by their state in the snapshot; the zero filter selects
	// all. A crypto user restores the keys it owns.
	Filter hsm.Filter
	// Users takes along the users that the keys belong to or are shared with, and
	// that the cluster does not have. Without it such keys are blocked. A user that
	// was deleted in the cluster stays deleted, and its keys blocked.
	Users bool
	// Revive brings keys back that were destroyed in the cluster. It goes with a
	// Filter that names them by reference.
	Revive bool
	// Progress is told how many of the objects to be inserted have been read.
	Progress func(done, total, bytes int64)
}

// IntoResult is a plan and what became of it. The counts are of the snapshot's
// live keys that the filter selects. Its tombstones are not applied: a restore
// brings keys back and destroys none; synckey propagates destruction.
type IntoResult struct {
	Snapshot  string            `json:"snapshot"`
	Plan      bool              `json:"plan"` // nothing was done
	Added     int               `json:"added"`
	Changed   int               `json:"changed"`   // the snapshot has news, such as a later label
	Unchanged int               `json:"unchanged"` // the cluster holds the same, or a later state
	Destroyed int               `json:"destroyed"` // in the cluster; they stay so
	Revived   int               `json:"revived"`   // destroyed in the cluster, and to be brought back
	Users     int               `json:"users"`     // taken along
	Conflicts []hsm.KeyRef      `json:"conflicts"` // another key has the reference
	Blocked   []synckey.Blocked `json:"blocked"`
	// Missing are references that the filter names and of which the snapshot holds
	// no live key that the rest of the filter selects.
	Missing []hsm.KeyRef `json:"missing"`
	// Applied counts keys and users that changed the cluster, durably on as many
	// HSMs as its policy wants.
	Applied int              `json:"applied"`
	Details []synckey.Detail `json:"details,omitempty"`
}

// Selected counts the live keys of the snapshot that the filter selects.
func (r *IntoResult) Selected() int {
	return r.Added + r.Changed + r.Unchanged + r.Destroyed + r.Revived + len(r.Conflicts) + len(r.Blocked)
}

// maxDetails bounds IntoResult.Details; counts are always complete.
const maxDetails = 1000

// IntoPlan is what a restore into a running cluster will do.
type IntoPlan struct {
	Result   IntoResult
	options  IntoOptions
	snapshot *backup.Snapshot
	live     *cluster.Cluster
	keys     map[hsm.KeyRef]class  // selected, and differing
	open     map[hsm.KeyRef]bool   // what the snapshot holds in several states: whether the filter selects one of them
	needs    map[hsm.KeyRef][]need // users that keys need and the cluster lacks
	users    map[string]bool       // of the cluster
	found    map[string]*item      // users of the snapshot that differ
	take     map[hsm.KeyRef]bool   // users taken along
	insert   []hsm.KeyRef          // keys to insert, ascending
	revive   []hsm.KeyRef          // keys to revive, ascending
	details  map[hsm.KeyRef]synckey.Detail
}

// need is a user that a key cannot do without, and why.
type need struct{ user, why string }

// RestoreInto brings keys of a snapshot into a running cluster of its lineage: it
// plans and applies. The rest is as with PlanInto and Apply.
func RestoreInto(ctx context.Context, s *backup.Snapshot, live *cluster.Cluster, o IntoOptions) (*IntoResult, error) {
	p, err := PlanInto(ctx, s, live, o)
	if err != nil {
		return nil, err
	}
	err = p.Apply(ctx)
	return &p.Result, err
}

// PlanInto compares a snapshot that was opened with the identity of a recipient
// with a running cluster, and decides what the cluster is to take. It changes
// nothing. hsm.ErrLineage if the cluster is of another lineage; hsm.ErrDenied if
// the login may not; backup.ErrIdentity.
func PlanInto(ctx context.Context, s *backup.Snapshot, live *cluster.Cluster, o IntoOptions) (*IntoPlan, error) {
	if s.Lineage() != live.Lineage() {
		return nil, fmt.Errorf("%w: snapshot %s is of %s, the cluster of %s", hsm.ErrLineage, s.ID(), s.Lineage(), live.Lineage())
	}
	if err := o.limit(live.Principal()); err != nil {
		return nil, err
	}
	if o.Revive && len(o.Filter.Refs) == 0 {
		return nil, fmt.Errorf("%w: destroyed keys are revived one by one; name them by their references", hsm.ErrInvalid)
	}
	p := &IntoPlan{
		options: o, snapshot: s, live: live, keys: map[hsm.KeyRef]class{}, needs: map[hsm.KeyRef][]need{}, users: map[string]bool{},
		found: map[string]*item{}, open: map[hsm.KeyRef]bool{}, take: map[hsm.KeyRef]bool{}, details: map[hsm.KeyRef]synckey.Detail{},
		Result: IntoResult{Snapshot: s.ID(), Plan: true, Conflicts: []hsm.KeyRef{}, Blocked: []synckey.Blocked{}, Missing: []hsm.KeyRef{}},
	}
	users, err := live.Users(ctx)
	if err != nil {
		return nil, fmt.Errorf("users of the cluster: %w", err)
	}
	for _, u := range users {
		p.users[u.Name] = true
	}
	for _, ref := range s.Unsettled() {
		p.open[ref] = false
	}
	c, err := compare(ctx, s, live, p.see)
	if err != nil {
		return nil, err
	}
	p.leaveUnselected()
	p.decide()
	return p, p.countUnchanged(ctx, c)
}

// limit restricts a crypto user to the keys it owns.
func (o *IntoOptions) limit(who hsm.Principal) error {
	if who.Role != hsm.RoleCryptoUser {
		return nil
	}
	switch name, err := hsm.CanonicalUserName(who.Name); {
	case err != nil:
		return err
	case o.Users:
		return fmt.Errorf("%w: crypto user %s cannot take users along; log in as an admin or with the appliance's certificate", hsm.ErrDenied, name)
	case o.Filter.Owner != "" && o.Filter.Owner != name:
		return fmt.Errorf("%w: crypto user %s restores the keys it owns, not those of %s", hsm.ErrDenied, name, o.Filter.Owner)
	default:
		o.Filter.Owner = name
	}
	return nil
}

// see takes note of one differing object.
func (p *IntoPlan) see(i *item) {
	switch {
	case i.kind == hsm.KindUser:
		if old := p.found[i.from.Core.Owner]; old == nil || old.class < i.class {
			p.found[i.from.Core.Owner] = i
		}
	case i.kind == hsm.KindKey:
		p.seeKey(i)
	}
}

// seeKey takes note of a key that the filter selects, and of every state of an
// unsettled one: all of them are inserted if one is selected, so the highest class of
// all counts, that of a tombstone too, of which no filter knows the label.
func (p *IntoPlan) seeKey(i *item) {
	selected := p.options.Filter.Match(i.from.Info(hsm.Digest{}))
	before, open := p.open[i.ref]
	switch {
	case open:
		p.open[i.ref] = before || selected
	case !selected:
		return
	}
	if old, seen := p.keys[i.ref]; seen && old >= i.class {
		return
	}
	p.keys[i.ref] = i.class
	p.note(i)
}

// leaveUnselected forgets the unsettled keys of which the filter selects no state.
func (p *IntoPlan) leaveUnselected() {
	for ref, selected := range p.open {
		if !selected {
			delete(p.keys, ref)
			delete(p.needs, ref)
			delete(p.details, ref)
		}
	}
}

// note keeps what decide has to know of a key.
func (p *IntoPlan) note(i *item) {
	delete(p.needs, i.ref)
	delete(p.details, i.ref)
	if i.class == classKnown || i.class == classTombstone {
		return
	}
	if needs := p.missing(i.from); len(needs) > 0 {
		p.needs[i.ref] = needs
	}
	if len(p.details) < maxDetails {
		p.details[i.ref] = synckey.Detail{Ref: i.ref, Kind: i.kind.String(), Class: i.class.String(), Label: i.label()}
	}
}

// missing lists the users that a key needs and the cluster does not have.
func (p *IntoPlan) missing(r *hsm.Record) (out []need) {
	if r.Destroyed {
		return nil
	}
	if !p.users[r.Core.Owner] {
		out = append(out, need{r.Core.Owner, "its owner is"})
	}
	for _, user := range r.Shares() {
		if !p.users[user] {
			out = append(out, need{user, "it is shared with"})
		}
	}
	return out
}

// decide sorts what differs into the result.
func (p *IntoPlan) decide() {
	r := &p.Result
	for _, ref := range slices.Sorted(maps.Keys(p.keys)) {
		switch class := p.keys[ref]; class {
		case classKnown:
			r.Unchanged++
		case classGone:
			p.admitGone(ref)
		case classConflict:
			r.Conflicts = append(r.Conflicts, ref)
		case classAdded, classChanged:
			p.admit(ref, class)
		}
		if d, ok := p.details[ref]; ok {
			r.Details = append(r.Details, d)
		}
	}
	r.Users = len(p.take)
}

// admitGone plans what becomes of a key that the cluster destroyed: nothing,
// unless it is to be revived, and then as for any other.
func (p *IntoPlan) admitGone(ref hsm.KeyRef) {
	if !p.options.Revive {
		p.Result.Destroyed++
		return
	}
	if p.block(ref) {
		return
	}
	p.revive = append(p.revive, ref)
	p.Result.Revived++
}

// admit plans a key, and the users it takes along, or blocks it.
func (p *IntoPlan) admit(ref hsm.KeyRef, c class) {
	if p.block(ref) {
		return
	}
	p.insert = append(p.insert, ref)
	if c == classAdded {
		p.Result.Added++
		return
	}
	p.Result.Changed++
}

// block blocks a key that lacks a user, or takes along the users that it lacks.
func (p *IntoPlan) block(ref hsm.KeyRef) bool {
	for _, n := range p.needs[ref] {
		if reason := p.refusal(n); reason != "" {
			p.Result.Blocked = append(p.Result.Blocked, synckey.Blocked{Ref: ref, Reason: reason})
			return true
		}
	}
	for _, n := range p.needs[ref] {
		p.take[p.found[n.user].ref] = true
	}
	return false
}

// refusal says why a user cannot be had; empty if it can be taken along.
func (p *IntoPlan) refusal(n need) string {
	u := p.found[n.user]
	switch {
	case u == nil || u.class == classTombstone:
		return fmt.Sprintf("%s %s, who exists neither in the cluster nor in the snapshot; create the user first", n.why, n.user)
	case u.class == classGone:
		return fmt.Sprintf("%s %s, who was deleted in the cluster; create the user again first", n.why, n.user)
	case u.class == classConflict:
		return fmt.Sprintf("%s %s, who is somebody else in the cluster", n.why, n.user)
	case !p.options.Users:
		return fmt.Sprintf("%s %s, who does not exist in the cluster; create the user there, or run with --users", n.why, n.user)
	}
	return ""
}

// countUnchanged counts the selected keys that are the same on both sides. What
// is the same matches the filter on either side, and the cluster finds keys by
// attribute without decrypting a snapshot.
func (p *IntoPlan) countUnchanged(ctx context.Context, c *comparison) error {
	selected := func(hsm.KeyRef) bool { return true }
	if f := p.options.Filter; len(f.Attrs) > 0 || f.Owner != "" {
		matching := map[hsm.KeyRef]bool{}
		for k, err := range p.live.Keys(ctx, f) {
			if err != nil {
				return fmt.Errorf("keys of the cluster: %w", err)
			}
			matching[k.Ref] = true
		}
		selected = func(ref hsm.KeyRef) bool { return matching[ref] }
	} else if len(f.Refs) > 0 {
		selected = func(ref hsm.KeyRef) bool { return slices.Contains(f.Refs, ref) }
	}
	same := map[hsm.KeyRef]bool{} // of those named
	for o, err := range p.snapshot.Objects(ctx) {
		if err != nil {
			return err
		}
		if o.Kind == hsm.KindKey && !o.Tombstone && !c.differs(o.Ref) && selected(o.Ref) {
			p.Result.Unchanged++
			if len(p.options.Filter.Refs) > 0 {
				same[o.Ref] = true
			}
		}
	}
	p.nameMissing(same)
	return nil
}

// nameMissing lists the references that were named and that nothing came of.
func (p *IntoPlan) nameMissing(same map[hsm.KeyRef]bool) {
	for _, ref := range p.options.Filter.Refs {
		class, differs := p.keys[ref]
		if !same[ref] && (!differs || class == classTombstone) {
			p.Result.Missing = append(p.Result.Missing, ref)
		}
	}
	slices.Sort(p.Result.Missing)
	p.Result.Missing = slices.Compact(p.Result.Missing)
}

// Apply inserts what the plan holds: users first, so that no key comes without
// its owner. Each insertion is a merge on every HSM; a key that was destroyed
// meanwhile stays destroyed. If we die half way, some keys are there and some are
// not, none is half there, and the same command does the rest.
//
// cluster.ErrMinCopies if too few HSMs answer; what is in Result.Applied is
// durable then, too.
func (p *IntoPlan) Apply(ctx context.Context) error {
	p.Result.Plan = false
	users := slices.Sorted(maps.Keys(p.take))
	count := p.counter(int64(len(users) + len(p.insert) + len(p.revive)))
	for _, refs := range [][]hsm.KeyRef{users, p.insert} {
		if len(refs) == 0 {
			continue
		}
		n, err := p.live.Insert(ctx, count(p.snapshot.Extract(ctx, slices.Values(refs))))
		p.Result.Applied += n.Added + n.Changed
		p.Result.Conflicts = append(p.Result.Conflicts, n.Conflicts...)
		if err != nil {
			return fmt.Errorf("restore snapshot %s into the cluster: %w", p.Result.Snapshot, err)
		}
	}
	slices.Sort(p.Result.Conflicts)
	p.Result.Conflicts = slices.Compact(p.Result.Conflicts)
	return p.reviveAll(ctx, count)
}

// reviveAll raises destroyed keys to their next incarnation, one by one. If we
// die half way, the same command does the rest: those revived are unchanged then.
func (p *IntoPlan) reviveAll(ctx context.Context, count func(iter.Seq2[hsm.MaskedObject, error]) iter.Seq2[hsm.MaskedObject, error]) error {
	if len(p.revive) == 0 {
		return nil
	}
	revived := map[hsm.KeyRef]bool{}
	for m, err := range count(p.snapshot.Extract(ctx, slices.Values(p.revive))) {
		if err == nil && !m.Tombstone {
			_, err = p.live.Change(ctx, hsm.Change{Kind: hsm.ChangeRevive, Ref: m.Ref, Masked: &m})
		}
		if err != nil {
			return fmt.Errorf("revive keys of snapshot %s: %w", p.Result.Snapshot, err)
		}
		if !m.Tombstone && !revived[m.Ref] { // an unsettled key is there in several states
			revived[m.Ref] = true
			p.Result.Applied++
		}
	}
	return nil
}

// counter reports progress on the sequences it is given, one after the other.
func (p *IntoPlan) counter(total int64) func(iter.Seq2[hsm.MaskedObject, error]) iter.Seq2[hsm.MaskedObject, error] {
	var done, bytes int64
	return func(in iter.Seq2[hsm.MaskedObject, error]) iter.Seq2[hsm.MaskedObject, error] {
		return func(yield func(hsm.MaskedObject, error) bool) {
			for m, err := range in {
				done, bytes = done+1, bytes+int64(len(m.Bytes))
				if p.options.Progress != nil && err == nil {
					p.options.Progress(done, total, bytes)
				}
				if !yield(m, err) {
					return
				}
			}
		}
	}
}
