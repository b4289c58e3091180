package backup

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/storage"
)

// DefaultGrace is how long objects that no manifest needs are left alone. It
// must be longer than any snapshot or copy takes.
const DefaultGrace = 24 * time.Hour

// PruneOptions says what to keep.
type PruneOptions struct {
	Policy Policy
	// Grace is the age below which no object is removed, and how long after the
	// removal of a manifest its packs stay.
	Grace time.Duration
	// Now removes what is pending deletion at once, without the seven days in
	// which it can be had back.
	Now bool
	// Software is named in marks.
	Software string
	// At is the time to plan for; zero is the present.
	At time.Time
	// Progress is called now and then, never twice at a time: objects that were
	// dealt with of all, and their bytes.
	Progress func(Progress)

	perTurn int // of tests: how many objects a turn of the sweep deletes
}

// PruneAction is what a plan does with a snapshot.
type PruneAction string

// The actions.
const (
	PruneKeep   PruneAction = "keep"
	PruneDelete PruneAction = "delete" // mark it as pending deletion
	PruneWait   PruneAction = "wait"   // it is pending and not due
	PruneRemove PruneAction = "remove" // remove it for ever
)

// PlannedSnapshot is a snapshot in a plan.
type PlannedSnapshot struct {
	ID      string      `json:"id"`
	Cluster string      `json:"cluster"`
	Begun   time.Time   `json:"begun"`
	State   State       `json:"state"`
	Action  PruneAction `json:"action"`
	Reasons []string    `json:"reasons,omitempty"`
	Due     time.Time   `json:"due,omitzero"` // of a pending one

	id format.Marked
}

// PlannedObject is an object that no manifest will need.
type PlannedObject struct {
	Name string `json:"name"`
	Size int64  `json:"size"`

	stored time.Time
	named  bool // by a manifest that this prune removes, or perhaps
}

// PrunePlan is what a prune would do. Execute does exactly that, and less where
// the repository has changed since.
type PrunePlan struct {
	At        time.Time         `json:"at"`
	Snapshots []PlannedSnapshot `json:"snapshots"`
	Objects   []PlannedObject   `json:"objects"`       // to be removed now
	Bytes     int64             `json:"bytes"`         // of Objects
	Later     int               `json:"later"`         // objects to be removed after the grace period
	LaterSize int64             `json:"later_bytes"`   // of these
	Held      string            `json:"held,omitzero"` // why no object is removed now
	Notes     []string          `json:"notes,omitempty"`

	options PruneOptions
	older   time.Time // what the store took before may be needed by a manifest that cannot be read
}

// Count tells how many snapshots have an action.
func (p *PrunePlan) Count(a PruneAction) (n int) {
	for _, s := range p.Snapshots {
		if s.Action == a {
			n++
		}
	}
	return n
}

// Nothing tells whether there is nothing to do.
func (p *PrunePlan) Nothing() bool {
	return p.Count(PruneDelete) == 0 && p.Count(PruneRemove) == 0 && len(p.Objects) == 0
}

// PlanPrune decides what to remove. It writes nothing.
//
// Of each cluster, what the policy keeps of the READY snapshots stays. The others
// become pending deletion, and are removed by a later prune, seven days after.
// Kept whatever the policy says: the last snapshot of a cluster, the last that
// was verified as a whole, also the last with a signed record, those marked
// keep, those from the future, and those that cannot be read. A snapshot needs
// no parent: its manifest names all its packs, and a pack stays as long as one
// manifest names it.
//
// hsm.ErrInvalid if the policy is out of bounds or keeps nothing.
func PlanPrune(ctx context.Context, store storage.Store, o PruneOptions) (*PrunePlan, error) {
	if err := o.Policy.Check(); err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	if o.At.IsZero() {
		o.At = time.Now()
	}
	inv, err := TakeInventory(ctx, store)
	if err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	p := &PrunePlan{At: o.At, Notes: inv.Notes, options: o}
	if inv.log.bad != nil {
		p.Held = "the log of retention cannot be read"
	}
	p.snapshots(inv)
	if err := p.objects(ctx, store, inv); err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	return p, nil
}

// snapshots decides about each snapshot.
func (p *PrunePlan) snapshots(inv *Inventory) {
	rules := inv.rules(p.options.Policy, p.At)
	protected := inv.protected()
	// Each removal begins the grace period anew, and no object goes within it: so what is
	// due waits for its end, or a prune every hour would free nothing for ever.
	running := inv.log.lastRemove().Add(p.options.Grace)
	for i, s := range inv.Snapshots {
		if !s.there() {
			continue
		}
		v := PlannedSnapshot{ID: s.ID, Cluster: s.ClusterName, Begun: s.Started, State: s.State, Due: s.DeleteAt, id: s.id, Action: PruneKeep, Reasons: rules[i]}
		if protected[i] != "" {
			v.Reasons = append([]string{protected[i]}, v.Reasons...)
		}
		switch {
		case protected[i] != "": // whatever marks say, which whoever may write them can forge
		case s.Removing && !p.options.Now && s.DeleteAt.After(p.At):
			v.Action, v.Reasons = PruneWait, []string{"a mark says that it is being removed, and it was not due"}
		case s.Removing && !p.options.Now && running.After(p.At): // of its own mark, perhaps
			v.Action, v.Reasons = PruneWait, []string{"its removal was interrupted, or a lock refused it, and goes on after the grace period, at " + running.UTC().Format(time.RFC3339)}
		case s.Removing: // its mark stands: nothing takes that back
			v.Action, v.Reasons = PruneRemove, []string{"an earlier prune was interrupted, or a lock refused it"}
		case s.Err != nil && s.State == StateReady:
			v.Reasons = append(v.Reasons, "it cannot be read; give access to it, or delete it by name if it is damaged")
		case s.State == StatePending && !p.options.Now && !s.DeleteAt.After(p.At) && running.After(p.At):
			v.Action, v.Reasons = PruneWait, []string{"it is due, and goes after the grace period of what went before, at " + running.UTC().Format(time.RFC3339)}
		case s.State == StatePending && (p.options.Now || !s.DeleteAt.After(p.At)):
			v.Action, v.Reasons = PruneRemove, nil
		case s.State == StatePending:
			v.Action, v.Reasons = PruneWait, nil
		case len(v.Reasons) == 0 && p.options.Now:
			v.Action = PruneRemove
		case len(v.Reasons) == 0:
			v.Action = PruneDelete
			v.Due = p.At.Add(UndeleteWindow)
		}
		p.Snapshots = append(p.Snapshots, v)
	}
}

// rules applies a policy to the READY snapshots of each cluster.
func (inv *Inventory) rules(policy Policy, now time.Time) [][]string {
	out := make([][]string, len(inv.Snapshots))
	members := map[originKey][]int{}
	for i, s := range inv.Snapshots {
		if s.State == StateReady && s.Err == nil {
			members[s.origin()] = append(members[s.origin()], i)
		}
	}
	for _, of := range members {
		newestFirst(of, func(i int) time.Time { return inv.Snapshots[i].Started })
		all := make([]candidate, len(of))
		for k, i := range of {
			all[k] = candidate{at: inv.Snapshots[i].Started, tags: inv.Snapshots[i].Tags}
		}
		for k, reasons := range policy.apply(all, now) {
			out[of[k]] = reasons
		}
	}
	return out
}

// objects finds what no manifest will need.
func (p *PrunePlan) objects(ctx context.Context, store storage.Store, inv *Inventory) error {
	removes := map[format.Marked]bool{}
	for _, id := range p.with(PruneRemove) {
		removes[id] = true
	}
	going := make([]bool, len(inv.Snapshots))
	for i := range inv.Snapshots {
		going[i] = removes[inv.Snapshots[i].id]
	}
	p.hold(inv, going)
	limit := p.At.Add(-p.options.Grace)
	// What earlier prunes left goes before this one removes anything, which begins the
	// grace period anew: whoever removes some every day would never come to it.
	orphans := !inv.log.lastRemove().After(limit)
	unread := slices.ContainsFunc(inv.unknown, func(i int) bool { return going[i] }) // what that named is not known
	named := orphans && (p.Count(PruneRemove) == 0 || !p.At.After(limit))
	for _, prefix := range objectPrefixes {
		for info, err := range store.List(ctx, prefix) {
			if err != nil {
				return err
			}
			if !ours(info.Name) || inv.needs(info.Name, going) {
				continue
			}
			o := PlannedObject{Name: info.Name, Size: info.Size, stored: info.Modified, named: unread || len(inv.needed[info.Name]) > 0}
			if p.Held == "" && (orphans && !o.named || named) && p.spare(info.Modified, limit) {
				p.Objects = append(p.Objects, o)
				p.Bytes += info.Size
				continue
			}
			p.Later++
			p.LaterSize += info.Size
		}
	}
	return nil
}

// needs tells whether a manifest names the object that does not go.
func (inv *Inventory) needs(name string, going []bool) bool {
	for _, i := range inv.needed[name] {
		if !going[i] {
			return true
		}
	}
	return false
}

// ours tells whether the name is that of a pack, an index or an envelope: others
// are not ours to remove.
func ours(name string) bool {
	return format.IsPackPath(name) || format.IsIndexPath(name) || format.IsEnvelopePath(name)
}

// spare tells whether an object that no manifest names, and that the store took at
// a time, is old enough to go and too young to be needed by what cannot be read.
func (p *PrunePlan) spare(stored, limit time.Time) bool {
	return !stored.IsZero() && !stored.After(limit) && stored.After(p.older)
}

// hold sets why no object may be removed, or none that is older than a manifest
// which cannot be read. What that needs is not known, but a manifest is written
// after all it names: so whatever the store took later, the grace period allowed
// for, it does not need. Anybody who may create objects can put such a manifest, and
// nobody else can have the store not give one out: beside that none is removed.
func (p *PrunePlan) hold(inv *Inventory, going []bool) {
	var unknown []string
	for _, i := range inv.unknown {
		if going[i] {
			continue
		}
		s := inv.Snapshots[i]
		switch unknown = append(unknown, s.ID); {
		case Unreadable(s.Err): // and whole, it may be; a copy that was mended has packs later than its manifest
			p.Held = fmt.Sprintf("what %s needs is not known, since the store does not give its manifest out; give access to it, or delete that in the store", s.ID)
			continue
		case s.stored.IsZero():
			p.Held = fmt.Sprintf("what %s needs is not known, since it cannot be read; upgrade, or delete it by name", s.ID)
			continue
		}
		p.older = later(p.older, s.stored.Add(max(p.options.Grace, DefaultGrace)))
	}
	if len(unknown) > 0 && p.Held == "" {
		p.Notes = append(p.Notes, fmt.Sprintf("what %s needs is not known, since it cannot be read: objects from before %s stay; upgrade, or delete it by name",
			strings.Join(unknown, ", "), p.older.UTC().Format(time.RFC3339)))
	}
	for n, info := range inv.copies {
		if p.Held == "" && info.Modified.After(p.At.Add(-UndeleteWindow)) {
			p.Held = fmt.Sprintf("a copy to %s is in progress since %s", format.ID(n), info.Modified.UTC().Format(time.RFC3339))
		}
	}
}
