package synckey

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// sight is what all HSMs say of themselves.
type sight struct {
	equal bool
	// text names the roots of both clusters; empty if a login is not shown one, so
	// that nothing can be concluded.
	text string
}

// roots asks all HSMs of both clusters for their roots.
func (w *Watch) roots(ctx context.Context) (sight, error) {
	var wg sync.WaitGroup
	var seen [2][]string
	var gone [2][]hsm.HSMID
	var errs [2]error
	for i, s := range []*side{w.a, w.b} {
		wg.Go(func() { seen[i], gone[i], errs[i] = s.roots(ctx) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return sight{}, err
		}
	}
	w.away(gone[0], gone[1])
	if seen[0] == nil || seen[1] == nil {
		return sight{}, nil
	}
	return sight{
		equal: w.a.owner == "" && w.b.owner == "" && len(seen[0]) == 1 && slices.Equal(seen[0], seen[1]),
		text:  strings.Join(seen[0], " ") + " / " + strings.Join(seen[1], " "),
	}, nil
}

// roots asks the HSMs of one side. It returns each root once, in order; nil if
// the login is not shown them. An HSM that does not answer is challenged when it
// is back.
func (s *side) roots(ctx context.Context) (roots []string, gone []hsm.HSMID, err error) {
	clear(s.silent)
	hsms, gone, err := s.sources(ctx)
	if err != nil {
		return nil, nil, err
	}
	heard, denied := 0, false
	for _, a := range ask(ctx, s, hsms, func(ctx context.Context, h cluster.Source) (hsm.Root, error) { return h.Root(ctx) }) {
		switch {
		case away(a.err):
			gone, err = append(gone, a.from.ID), a.err
			continue
		case errors.Is(a.err, hsm.ErrDenied) && s.cryptoUser() != "":
			denied = true
		case a.err != nil:
			return nil, nil, s.wrap(fmt.Errorf("root of %s: %w", a.from.ID, a.err))
		default:
			roots = append(roots, fmt.Sprintf("%x,%d", a.value.Sum, a.value.Count))
		}
		heard++
	}
	for _, id := range gone {
		delete(s.proven, id)
	}
	if heard == 0 {
		return nil, nil, s.wrap(err)
	}
	if denied {
		return nil, gone, nil
	}
	slices.Sort(roots)
	slices.Sort(gone)
	return slices.Compact(roots), gone, nil
}
