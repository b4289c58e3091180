package cluster

import (
	"context"
	"errors"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// KeyInfo returns one key as an HSM that holds it knows it: one round trip, where
// Key asks every HSM. The errors are those of Key.
func (c *Cluster) KeyInfo(ctx context.Context, ref hsm.KeyRef) (hsm.KeyInfo, error) {
	var last error
	for range len(c.all()) + 1 {
		where, err := c.locate(ctx, ref, 1)
		if err != nil {
			return hsm.KeyInfo{}, err
		}
		r := c.pick(nil, []covered{where})
		if r == nil {
			break
		}
		k, err := call(ctx, r, c.timing.call, func(ctx context.Context, s hsm.Session) (hsm.KeyInfo, error) { return s.Key(ctx, ref) })
		switch {
		case errors.Is(err, hsm.ErrNotFound):
			c.coverage.remove(ref, r.id())
		case errors.Is(err, hsm.ErrDestroyed):
			c.coverage.forget(ref)
			return k, err
		case !away(err):
			return k, err
		}
		last = err
	}
	k, err := c.Key(ctx, ref) // whoever holds it is away, or only seemed to
	if err != nil && last != nil {
		err = errors.Join(err, last)
	}
	return k.KeyInfo, err
}
