package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// MaskingKeys is how far the cluster's HSMs agree on their masking keys.
type MaskingKeys struct {
	// Sealing is the epoch of the key that every HSM which answers seals with; 0 if
	// they differ, for a moment during a rotation.
	Sealing uint64
	// Newest is the newest epoch that any HSM holds.
	Newest uint64
	// Common are the epochs that every HSM that answers holds, ascending.
	Common []uint64
	// Held are the epochs that any HSM holds, ascending.
	Held []uint64
	// Pending are the members that do not answer, or do not seal with Newest.
	Pending []hsm.HSMID
}

// Done tells whether every member seals with the newest key.
func (m MaskingKeys) Done() bool {
	return len(m.Pending) == 0 && m.Sealing == m.Newest && m.Newest != 0
}

// MaskingKeys asks every HSM which masking keys it holds; anyone may. ErrNoHSM.
func (c *Cluster) MaskingKeys(ctx context.Context) (MaskingKeys, error) {
	answers := gather(ctx, c, c.up(), nil, nil, func(ctx context.Context, s hsm.Session) (hsm.Info, error) { return s.Info(ctx) })
	sealing := map[hsm.HSMID]uint64{}
	counts := map[uint64]int{}
	var m MaskingKeys
	for _, a := range answers {
		if a.err != nil {
			continue
		}
		sealing[a.value.ID] = a.value.Sealing
		for _, epoch := range a.value.Epochs {
			counts[epoch]++
			m.Newest = max(m.Newest, epoch)
		}
		if m.Sealing = a.value.Sealing; len(sealing) > 1 && !allEqual(sealing) {
			m.Sealing = 0
		}
	}
	if len(sealing) == 0 {
		return m, errors.Join(c.noHSM(), ctx.Err())
	}
	for epoch, n := range counts {
		m.Held = append(m.Held, epoch)
		if n == len(sealing) {
			m.Common = append(m.Common, epoch)
		}
	}
	for _, r := range c.all() {
		if epoch, ok := sealing[r.id()]; !ok || epoch != m.Newest {
			m.Pending = append(m.Pending, r.id())
		}
	}
	slices.Sort(m.Held)
	slices.Sort(m.Common)
	slices.Sort(m.Pending)
	return m, nil
}

func allEqual(m map[hsm.HSMID]uint64) bool {
	var first uint64
	for _, v := range m {
		if first == 0 {
			first = v
		}
		if v != first {
			return false
		}
	}
	return true
}

// RotateMaskingKey makes a new masking key, as an admin, and waits until every HSM
// seals with it, or the context ends: then MaskingKeys says where it is pending,
// and the HSMs finish it by themselves. Objects keep their digests, and the key
// they are sealed under until they change next; older masking keys stay, so that
// every snapshot from before can be restored.
//
// hsm.ErrUnavailable if a member is away, hsm.ErrExist if a rotation is under way,
// hsm.ErrDenied.
func (c *Cluster) RotateMaskingKey(ctx context.Context) (MaskingKeys, error) {
	if _, err := c.changeOnOne(ctx, hsm.Change{Kind: hsm.ChangeRotate}); err != nil {
		return MaskingKeys{}, fmt.Errorf("rotate the masking key: %w", err)
	}
	return c.awaitMaskingKeys(ctx)
}

// AdoptMaskingKeys brings the cluster the masking keys of another cluster of its
// lineage, as an admin: recovery is the content of a recovery envelope that
// custodians have opened. The newest of them all seals once every HSM holds it.
// hsm.ErrLineage, hsm.ErrConflict, hsm.ErrDenied.
func (c *Cluster) AdoptMaskingKeys(ctx context.Context, recovery hsm.Secret) (MaskingKeys, error) {
	if _, err := c.changeOnOne(ctx, hsm.Change{Kind: hsm.ChangeMaskingKeys, Recovery: recovery}); err != nil {
		return MaskingKeys{}, fmt.Errorf("adopt masking keys: %w", err)
	}
	return c.awaitMaskingKeys(ctx)
}

// changeOnOne makes a change on the first HSM that does not fail on the way.
func (c *Cluster) changeOnOne(ctx context.Context, ch hsm.Change) (*remote, error) {
	last := c.noHSM()
	for _, r := range c.ready(ctx, 1) {
		_, err := call(ctx, r, c.timing.call, func(ctx context.Context, s hsm.Session) (hsm.MaskedObject, error) { return s.Change(ctx, ch) })
		if err == nil || !away(err) {
			return r, err
		}
		last = err
	}
	return nil, last
}

// awaitMaskingKeys waits until the rotation is done, as long as the context does.
func (c *Cluster) awaitMaskingKeys(ctx context.Context) (MaskingKeys, error) {
	for {
		m, err := c.MaskingKeys(ctx)
		if err == nil && m.Done() {
			return m, nil
		}
		select {
		case <-ctx.Done():
			m, askErr := c.MaskingKeys(context.WithoutCancel(ctx))
			return m, errors.Join(askErr, err)
		case <-time.After(c.timing.backoffMin):
		}
	}
}
