package synckey

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

// difference is what two clusters differ in, as found at one moment.
type difference struct {
	refs        []hsm.KeyRef // ascending
	src, dst    *look
	equal       bool // all HSMs of both clusters hold the same
	sketchBytes int64
	roundTrips  int
}

// look is one cluster as it was found.
type look struct {
	side *side
	hsms []cluster.Source // those that answered
	away []hsm.HSMID
	// views are HSMs such that each of hsms holds what one of them holds: one in
	// the common case, more while the cluster's HSMs differ among themselves.
	views []hsm.Source
	root  *hsm.Root         // of the first HSM; nil: the login is not shown one
	roots map[hsm.Root]bool // of all that answered
}

// attempts bounds how often a comparison is begun anew, because an HSM died on
// the way or the clusters moved while they were looked at.
const attempts = 4

// compare learns the difference. In the common case, all HSMs of a cluster
// holding the same, it takes one round trip: one HSM of each cluster is compared
// with one of the other, while all are asked for their roots. HSMs that turn
// out to hold something else are compared in a second one, so that a key which
// was acknowledged before the call, on whatever HSMs, is not missed.
func compare(ctx context.Context, src, dst *side) (d *difference, err error) {
	clear(src.silent)
	clear(dst.silent)
	for range attempts {
		d, err = compareOnce(ctx, src, dst)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err == nil && d.steady() {
			return d, nil
		}
		if err != nil && !away(err) {
			return nil, err
		}
	}
	return d, err
}

// steady tells whether what was seen fits together: clusters that moved
// meanwhile may have had different roots and then no difference.
func (d *difference) steady() bool {
	return d.equal || len(d.refs) > 0
}

func compareOnce(ctx context.Context, src, dst *side) (*difference, error) {
	d := &difference{src: &look{side: src}, dst: &look{side: dst}}
	if err := d.both(func(l *look) error { return l.find(ctx) }); err != nil {
		return nil, err
	}
	first, err := d.first(ctx)
	if err != nil {
		return nil, err
	}
	d.add(first)
	rest, err := d.rest(ctx)
	if err != nil {
		return nil, err
	}
	d.add(rest...)
	d.finish()
	return d, nil
}

// both does something on both sides at the same time.
func (d *difference) both(f func(*look) error) error {
	var a, b error
	var wg sync.WaitGroup
	wg.Go(func() { a = f(d.src) })
	wg.Go(func() { b = f(d.dst) })
	wg.Wait()
	return cmp.Or(a, b)
}

func (l *look) find(ctx context.Context) (err error) {
	l.hsms, l.away, err = l.side.sources(ctx)
	return err
}

// first compares the first HSM of each side while it asks all for their roots,
// and groups them by these. The comparison is given up as soon as it is known
// that one of the two is away.
func (d *difference) first(ctx context.Context) (*reconcile.Difference, error) {
	limited, cancel := context.WithCancel(ctx)
	defer cancel()
	var diff *reconcile.Difference
	var failure error
	done := make(chan struct{})
	a, b := d.src.view(0), d.dst.view(0)
	go func() {
		defer close(done)
		diff, failure = reconcile.Diff(limited, a, b)
	}()
	err := d.both(func(l *look) error { return l.group(ctx) })
	if err != nil {
		cancel()
	}
	<-done
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return nil, err
	}
	if failure != nil {
		return nil, fmt.Errorf("compare source and destination: %w", failure)
	}
	return diff, nil
}

// view returns an HSM as it is compared.
func (l *look) view(i int) hsm.Source {
	if l.side.owner != "" {
		return owned{Source: l.hsms[i], owner: l.side.owner}
	}
	return l.hsms[i]
}

// group asks all HSMs for their roots, and picks one HSM for each root there
// is. Where the login is not shown roots, each HSM stands for itself.
func (l *look) group(ctx context.Context) error {
	known := map[hsm.Root]bool{}
	l.roots = known
	answered := l.hsms[:0:0]
	for i, a := range ask(ctx, l.side, l.hsms, func(ctx context.Context, h cluster.Source) (hsm.Root, error) { return h.Root(ctx) }) {
		switch {
		case away(a.err):
			if l.side.silent[a.from.ID] = true; i == 0 {
				return l.side.wrap(fmt.Errorf("%s: %w", a.from.ID, a.err)) // the next attempt is without it
			}
			l.away = append(l.away, a.from.ID)
			continue
		case errors.Is(a.err, hsm.ErrDenied) && l.side.cryptoUser() != "":
			l.views = append(l.views, l.view(i))
		case a.err != nil:
			return l.side.wrap(fmt.Errorf("root of %s: %w", a.from.ID, a.err))
		case !known[a.value]:
			known[a.value] = true
			l.views = append(l.views, l.view(i))
		}
		if a.err == nil && i == 0 {
			l.root = &a.value
		}
		answered = append(answered, a.from)
	}
	l.hsms = answered
	return nil
}

// rest compares the HSMs that hold something else than their cluster's first
// one with the source's first one. What all agree on with that one is no
// difference; what any does not, is.
func (d *difference) rest(ctx context.Context) ([]*reconcile.Difference, error) {
	others := slices.Concat(d.src.views[1:], d.dst.views[1:])
	if len(others) == 0 {
		return nil, nil
	}
	diffs, errs := make([]*reconcile.Difference, len(others)), make([]error, len(others))
	var wg sync.WaitGroup
	for i, v := range others {
		wg.Go(func() { diffs[i], errs[i] = reconcile.Diff(ctx, d.src.views[0], v) })
	}
	wg.Wait()
	if err := cmp.Or(errs...); err != nil {
		return nil, fmt.Errorf("compare HSMs that differ in one cluster: %w", err)
	}
	return diffs, nil
}

// add takes over comparisons that were made at the same time.
func (d *difference) add(diffs ...*reconcile.Difference) {
	trips := 0
	for _, diff := range diffs {
		trips = max(trips, diff.RoundTrips)
		d.sketchBytes += diff.SketchBytes
		for _, list := range [][]reconcile.Entry{diff.Missing, diff.Changed, diff.Extra} {
			for _, e := range list {
				d.refs = append(d.refs, e.Ref)
			}
		}
	}
	d.roundTrips += trips
}

// finish sorts the references and decides whether all HSMs hold the same: by
// their roots, and where none are shown, by their lists.
func (d *difference) finish() {
	slices.Sort(d.refs)
	d.refs = slices.Compact(d.refs)
	a, b := d.src.comparable(), d.dst.comparable()
	rooted := a != nil && b != nil
	d.equal = len(d.refs) == 0 && (!rooted || *a == *b && len(d.src.views) == 1 && len(d.dst.views) == 1)
}

// comparable returns the root, if it is of what is compared.
func (l *look) comparable() *hsm.Root {
	if l.side.owner != "" {
		return nil
	}
	return l.root
}

// describe notes in a result how the side was found.
func (l *look) describe(c *Cluster) {
	c.HSMs, c.Away, c.Root = len(l.hsms), l.away, ""
	slices.Sort(c.Away)
	if root := l.comparable(); root != nil {
		c.Root = hex.EncodeToString(root.Sum[:])
	}
}
