package synckey

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/keytest"
)

// UseCheck says which of the applied keys are used on both sides afterwards.
type UseCheck struct {
	All bool
	N   int // a sample of so many; 0 and not All: none
	// Src and Dst are logged in as somebody who may use the keys; nil: as the run is.
	Src, Dst *cluster.Cluster
}

// Used tells what became of a check on use.
type Used struct {
	Keys   int `json:"keys"`   // that were to be used
	Agreed int `json:"agreed"` // each side's key stood by what the other's made
	// Unusable are keys that their attributes allow nothing that could be checked,
	// and those that were destroyed meanwhile.
	Unusable int       `json:"unusable"`
	Failures []Blocked `json:"failures"` // by reference, ascending
}

func (u UseCheck) wanted() bool { return u.All || u.N > 0 }

// useCheckers bounds the keys that are used at a time.
const useCheckers = 8

// use uses a sample of refs, or all, on both sides against each other. A key that
// does not agree, or that the login may not use, is a failure in the result and
// no error.
func (p *Plan) use(ctx context.Context, refs []hsm.KeyRef) error {
	want := p.options.UseCheck
	if !want.All && len(refs) > want.N {
		refs = slices.Clone(refs)
		rand.Shuffle(len(refs), func(i, j int) { refs[i], refs[j] = refs[j], refs[i] })
		refs = refs[:want.N]
	}
	one, two := cmp.Or(want.Src, p.src.Cluster), cmp.Or(want.Dst, p.dst.Cluster)
	u := &Used{Keys: len(refs), Failures: []Blocked{}}
	p.Result.Use = u
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, useCheckers)
	for _, ref := range refs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			usable, err := useBoth(ctx, one, two, ref)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				u.Failures = append(u.Failures, Blocked{Ref: ref, Reason: err.Error()})
			case usable:
				u.Agreed++
			default:
				u.Unusable++
			}
		})
	}
	wg.Wait()
	slices.SortFunc(u.Failures, func(a, b Blocked) int { return cmp.Compare(a.Ref, b.Ref) })
	return ctx.Err()
}

// useBoth has each side stand by what the other makes with the key.
func useBoth(ctx context.Context, one, two *cluster.Cluster, ref hsm.KeyRef) (usable bool, err error) {
	a, err := one.Key(ctx, ref)
	if err != nil {
		return false, fmt.Errorf("source: %w", err)
	}
	b, err := two.Key(ctx, ref)
	if err != nil {
		return false, fmt.Errorf("destination: %w", err)
	}
	if a.CheckValue != b.CheckValue {
		return false, fmt.Errorf("check value %s at the source, %s at the destination", a.CheckValue, b.CheckValue)
	}
	how, ok := keytest.For(a.KeyInfo)
	if !ok {
		return false, nil
	}
	for _, way := range []struct {
		asks, checks *cluster.Cluster
		at           string
	}{{one, two, "destination"}, {two, one, "source"}} {
		given, err := how.Ask(ctx, way.asks, a.KeyInfo)
		if err == nil {
			err = how.Check(ctx, way.asks, way.checks, a.KeyInfo, given)
		}
		if err != nil {
			return false, fmt.Errorf("used at the %s: %w", way.at, err)
		}
	}
	return true, nil
}

// applying lists the keys that the plan inserts live, in either direction.
func (p *Plan) applying() []hsm.KeyRef {
	refs := slices.Concat(p.forth.steps.refs[phaseKeys], p.back.steps.refs[phaseKeys])
	slices.Sort(refs)
	return slices.Compact(refs)
}
