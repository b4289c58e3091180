package clone

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// fault notes something that is not as it should be.
func (d *drill) fault(format string, args ...any) { d.report.doubt(format, args...) }

// prove compares the two regions as they are now and uses every key.
func (d *drill) prove(ctx context.Context) error {
	if err := d.two.login(ctx, d.people.carol); err != nil {
		d.fault("carol, made after the snapshot, cannot log in in region two: %v", err)
	}
	if err := d.compareRoots(ctx, "after synckey"); err != nil {
		return err
	}
	for name := range d.two.users {
		if err := d.compareKeys(ctx, name); err != nil {
			return err
		}
	}
	if err := d.useEveryKey(ctx); err != nil {
		return err
	}
	return d.absent(ctx)
}

// agreement is how long the HSMs of a region may take to agree among themselves:
// many rounds of server-side sync.
const agreement = 30 * time.Second

// compareRoots demands one root on every HSM of both regions.
func (d *drill) compareRoots(ctx context.Context, when string) error {
	roots := map[hsm.Root]bool{}
	for name, r := range map[string]*region{"one": d.one, "two": d.two} {
		if err := r.agree(ctx); err != nil {
			d.fault("%s: the HSMs of region %s do not agree: %v", when, name, err)
		}
		sources, missing, err := r.auto.Sources(ctx)
		if err != nil {
			return err
		}
		for _, id := range missing {
			d.fault("%s: %s of region %s does not answer", when, id, name)
		}
		for _, s := range sources {
			root, err := s.Root(ctx)
			if err != nil {
				return err
			}
			roots[root] = true
		}
	}
	d.report.Proof.RootsEqual = len(roots) == 1
	if len(roots) != 1 {
		d.fault("%s: the HSMs of both regions have %d different roots", when, len(roots))
	}
	return ctx.Err()
}

// agree waits until every HSM of the region answers and all hold the same.
func (r *region) agree(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, agreement)
	defer cancel()
	return r.auto.Wait(ctx, 0)
}

// compareKeys compares everything that may be shown of a user's keys, the check
// values first.
func (d *drill) compareKeys(ctx context.Context, user string) error {
	one, err := keysOf(ctx, d.one.users[user])
	if err != nil {
		return err
	}
	two, err := keysOf(ctx, d.two.users[user])
	if err != nil {
		return err
	}
	for ref, a := range one {
		b, ok := two[ref]
		switch {
		case !ok:
			d.fault("key %s %s of %s is not in region two", ref, a.Label, user)
		case a.CheckValue != b.CheckValue:
			d.fault("key %s %s: check value %s in region one, %s in region two", ref, a.Label, a.CheckValue, b.CheckValue)
		case !maps.Equal(a.Attributes, b.Attributes) || a.Owner != b.Owner:
			d.fault("key %s %s has other attributes in region two", ref, a.Label)
		case a.CheckValue != "":
			d.report.Proof.KCVChecked++
		}
	}
	for ref, b := range two {
		if _, ok := one[ref]; !ok {
			d.fault("key %s %s of %s is in region two only", ref, b.Label, user)
		}
	}
	return nil
}

// keysOf lists the token keys a user owns.
func keysOf(ctx context.Context, c *cluster.Cluster) (map[hsm.KeyRef]hsm.KeyInfo, error) {
	out := map[hsm.KeyRef]hsm.KeyInfo{}
	for k, err := range c.Keys(ctx, hsm.Filter{Owner: c.Principal().Name}) {
		if err != nil {
			return nil, err
		}
		if k.Token {
			out[k.Ref] = k.KeyInfo
		}
	}
	return out, nil
}

// useEveryKey holds every key of region two against its answer in region one.
func (d *drill) useEveryKey(ctx context.Context) error {
	var g errgroup.Group
	g.SetLimit(writers)
	var mu sync.Mutex
	used := d.tally(len(d.answers))
	for _, a := range d.answers {
		g.Go(func() error {
			err := a.check(ctx, d.one, d.two)
			used()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				d.fault("%v", err)
				return nil
			}
			d.report.Proof.KeysUsed++
			return nil
		})
	}
	_ = g.Wait() // faults are in the report
	return ctx.Err()
}

// absent demands that what must not be in region two is not: destroyed keys and
// session keys.
func (d *drill) absent(ctx context.Context) error {
	alice := d.two.users["alice"]
	for _, ref := range d.gone {
		if _, err := alice.Key(ctx, ref); !errors.Is(err, hsm.ErrDestroyed) && !errors.Is(err, hsm.ErrNotFound) {
			d.fault("key %s was destroyed in region one and answers in region two (%v)", ref, err)
		}
	}
	if _, err := alice.Key(ctx, d.session); !errors.Is(err, hsm.ErrNotFound) {
		d.fault("session key %s of region one is known in region two (%v)", d.session, err)
	}
	return ctx.Err()
}

// finish describes both regions and has the report signed by the clone.
func (d *drill) finish(ctx context.Context) error {
	for r, into := range map[*region]*RegionReport{d.one: &d.report.Source, d.two: &d.report.Clone} {
		info, err := r.auto.Info(ctx)
		if err != nil {
			return err
		}
		*into = RegionReport{Cluster: info.ID.String(), Region: r.profile.Region, HSMs: len(info.HSMs), Keys: info.Keys}
		sources, _, err := r.auto.Sources(ctx)
		if err != nil {
			return err
		}
		root, err := sources[0].Root(ctx)
		if err != nil {
			return err
		}
		into.Root = hex.EncodeToString(root.Sum[:])
	}
	d.report.Lineage = d.one.profile.Lineage
	d.report.OK = len(d.report.Proof.Failures) == 0 && d.report.Proof.RootsEqual && d.report.Proof.KeysUsed == len(d.answers)
	return d.report.sign(ctx, d.two.auto)
}

func (r *Report) sign(ctx context.Context, c *cluster.Cluster) error {
	message, err := r.signed()
	if err != nil {
		return err
	}
	s, err := c.Sign(ctx, hsm.PurposeReport, message)
	if err != nil {
		return err
	}
	r.setSignature(s)
	return nil
}

func (r *Report) setSignature(s hsm.LineageSignature) {
	r.Signature = &Signature{Public: base64.StdEncoding.EncodeToString(s.Public), Signature: base64.StdEncoding.EncodeToString(s.Signature)}
}
