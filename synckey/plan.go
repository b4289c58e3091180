package synckey

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// maxHeld bounds the masked objects a plan keeps in memory, in bytes. What does
// not fit is fetched again when the plan is applied.
const maxHeld = 64 << 20

// Plan is the difference between two clusters and what is to be done about it.
// Result is filled in as it becomes known. A Plan is not safe for concurrent
// use, and lives no longer than its clusters' connections.
type Plan struct {
	Result    *Result
	options   Options
	src, dst  *side
	found     *difference
	forth     *flow // from source to destination
	back      *flow // the other way, with Options.Both
	unsettled int   // objects on which the HSMs of one cluster do not agree yet
	settle    time.Duration
	pacer     *pacer
	settled   func([]hsm.MaskedObject) // told what has become durable; may be nil
	checking  bool                     // made by Check: nothing will be applied
	reasons   map[string]string
	why       map[hsm.KeyRef]string // for renew: why something is not taken
	made      time.Time
	fresh     time.Duration
}

// NewPlan proves the lineage, learns the difference and decides what to do. It
// changes nothing. The errors are those of Run.
func NewPlan(ctx context.Context, src, dst *cluster.Cluster, o Options) (*Plan, error) {
	if err := o.Times.check(); err != nil {
		return nil, err
	}
	a, b, err := newSides(src, dst, o)
	if err != nil {
		return nil, err
	}
	return newPlan(ctx, a, b, o, false)
}

func newPlan(ctx context.Context, src, dst *side, o Options, checking bool) (*Plan, error) {
	p := blankPlan(src, dst, o, checking)
	if err := p.prove(ctx); err != nil {
		return nil, err
	}
	if err := p.learnUsers(ctx); err != nil {
		return nil, err
	}
	var err error
	if p.found, err = compare(ctx, src, dst); err != nil {
		return nil, err
	}
	p.note(p.found)
	p.Result.SketchBytes, p.Result.RoundTrips = p.found.sketchBytes, p.found.roundTrips
	if err := p.classify(ctx); err != nil {
		return nil, err
	}
	if checking {
		return p, nil
	}
	if err := p.within(ctx); err != nil && !errors.Is(err, ErrLimit) { // Apply refuses it
		return nil, err
	}
	return p, nil
}

// blankPlan is a plan before anything was looked at.
func blankPlan(src, dst *side, o Options, checking bool) *Plan {
	room := maxHeld
	if checking {
		room = 0
	}
	return &Plan{options: o, src: src, dst: dst, settle: settle, pacer: newPacer(o.Rate), checking: checking, reasons: map[string]string{}, made: time.Now(), fresh: freshness,
		forth:  &flow{from: src, to: dst, wanted: true, steps: newSteps(&room), destroying: map[string]int{}},
		back:   &flow{from: dst, to: src, wanted: o.Both, steps: newSteps(&room), destroying: map[string]int{}},
		Result: &Result{Lineage: src.Lineage(), Src: describe(src), Dst: describe(dst), Rate: o.Rate, Asked: o.Asked, Version: o.Version, Conflicts: []hsm.KeyRef{}, Blocked: []Blocked{}},
	}
}

// classify decides what becomes of all that was found.
func (p *Plan) classify(ctx context.Context) error {
	if err := p.sort(ctx); err != nil {
		return err
	}
	if err := p.release(ctx, p.forth); err != nil {
		return err
	}
	return p.release(ctx, p.back)
}

// prove challenges all HSMs of both sides.
func (p *Plan) prove(ctx context.Context) error {
	return p.both(func(s *side) error {
		_, _, err := s.sources(ctx)
		return err
	})
}

// both does something on both sides at the same time.
func (p *Plan) both(f func(*side) error) error {
	var a, b error
	var wg sync.WaitGroup
	wg.Go(func() { a = f(p.src) })
	wg.Go(func() { b = f(p.dst) })
	wg.Wait()
	return cmp.Or(a, b)
}

func describe(s *side) Cluster {
	p := s.Profile()
	return Cluster{ID: p.ID, Name: p.Name, Region: p.Region}
}

// note takes over how the clusters were found.
func (p *Plan) note(d *difference) {
	d.src.describe(&p.Result.Src)
	d.dst.describe(&p.Result.Dst)
	p.Result.Remaining, p.Result.RootsEqual = len(d.refs), d.equal
}

// learnUsers lists the users of both sides, before the difference is learned,
// so that all users who are missed later are in it; and with Options.Users,
// tells who will be there once the plan is applied.
func (p *Plan) learnUsers(ctx context.Context) error {
	if err := p.both(func(s *side) error { return s.learnUsers(ctx) }); err != nil {
		return err
	}
	if !p.options.Users {
		return nil
	}
	return p.expect(ctx)
}

// expect tells, of the users that only one side has, which will be there: the
// other side has never heard of them, or has deleted them.
func (p *Plan) expect(ctx context.Context) error {
	names := map[hsm.KeyRef]string{}
	for _, f := range []*flow{p.forth, p.back} {
		for name := range f.from.users {
			if !f.to.users[name] {
				names[hsm.UserRef(name)] = name
			}
		}
	}
	if len(names) == 0 {
		return nil
	}
	refs := slices.Sorted(maps.Keys(names))
	at := map[*side]map[hsm.KeyRef]*held{}
	var mu sync.Mutex
	err := p.both(func(s *side) error {
		found, err := (&look{side: s, views: []hsm.Source{s}}).read(ctx, refs)
		mu.Lock()
		defer mu.Unlock()
		at[s] = found
		return err
	})
	if err != nil {
		return err
	}
	for ref, name := range names {
		if o := newObject(ref, at[p.src][ref], at[p.dst][ref]); o != nil {
			p.expectUser(name, o)
		}
	}
	return nil
}

// expectUser applies to one user what decide will. A user who is to be deleted
// and turns out to own keys will stay after all; see release.
func (p *Plan) expectUser(name string, o *object) {
	for _, f := range []*flow{p.forth, p.back} {
		gains, _, take := f.gains(p, o)
		if f.wanted && gains && o.merged != nil && (!o.destroys(take) || p.options.Destroyed) {
			f.to.after[name] = !o.merged.Destroyed
		}
	}
}

// sort reads the clear parts of what differs and sorts it into the plan.
func (p *Plan) sort(ctx context.Context) error {
	type pair struct{ src, dst map[hsm.KeyRef]*held }
	fetch := func(ctx context.Context, batch []hsm.KeyRef) (out pair, err error) {
		err = p.found.both(func(l *look) (err error) {
			into := &out.src
			if l == p.found.dst {
				into = &out.dst
			}
			*into, err = l.read(ctx, batch)
			return err
		})
		return out, err
	}
	return readAhead(ctx, p.found.refs, fetch, func(batch []hsm.KeyRef, at pair) error {
		for _, ref := range batch {
			if o := newObject(ref, at.src[ref], at.dst[ref]); o != nil {
				p.take(o)
				continue
			}
			p.Result.Remaining-- // the same by now
		}
		return nil
	})
}

// take counts one object and decides what both sides take of it.
func (p *Plan) take(o *object) {
	if !o.matches(p.options.Filter, p.options.Times) {
		p.Result.Outside++
		p.Result.leave(o, "not selected by the filter")
		return
	}
	p.Result.count(o)
	if o.uneven() {
		p.unsettled++
	}
	reason := p.decide(p.forth, o)
	if o.class != classConflict {
		if more := p.decide(p.back, o); reason == "" {
			reason = more
		}
	}
	switch {
	case reason != "":
		p.Result.leave(o, reason)
		if p.why != nil {
			p.why[o.ref] = reason
		}
	case p.checking && !slices.Contains(p.forth.leaving, o) && !slices.Contains(p.back.leaving, o): // see release
		p.open(o)
	}
}

// open lists, for Check, an object that a plan would settle.
func (p *Plan) open(o *object) {
	switch {
	case !p.checking:
	case o.class == classSettling:
		p.Result.leave(o, p.unwanted(p.forth, o))
	default:
		p.Result.leave(o, "came up, or changed, while synckey ran; run it again")
	}
}
