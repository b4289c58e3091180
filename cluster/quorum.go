package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// WithApprovals sends approvals with every operation that may take some: each is good
// for one. Such operations are done on the HSM that issued the tokens, and nowhere else.
func WithApprovals(as ...hsm.Approval) Option {
	return func(c *Cluster) { c.approvals = append(c.approvals, as...) }
}

// QuorumToken has an HSM issue a token for one operation of this user: see
// hsm.Session.Token. It is the first HSM in order of id that is in use and holds the
// key, so that the two tokens that a wrap may take are of one.
func (c *Cluster) QuorumToken(ctx context.Context, service hsm.Service, key hsm.KeyRef) ([]byte, error) {
	rs := c.ready(ctx, 1)
	if key != 0 {
		k, err := c.locate(ctx, key, 1)
		if err != nil {
			return nil, err
		}
		rs = slices.DeleteFunc(slices.Clone(rs), func(r *remote) bool { return !k.on(r.id()) })
	}
	slices.SortFunc(rs, func(a, b *remote) int { return cmp.Compare(a.id(), b.id()) })
	last := c.noHSM()
	for _, r := range rs {
		token, err := call(ctx, r, c.timing.call, func(ctx context.Context, s hsm.Session) ([]byte, error) { return s.Token(ctx, service, key) })
		if !away(err) && !errors.Is(err, hsm.ErrNotFound) {
			return token, err
		}
		last = err
	}
	return nil, last
}

// QuorumValues are how many approvals the services of the cluster take, as one HSM
// knows them.
func (c *Cluster) QuorumValues(ctx context.Context) (hsm.QuorumValues, error) {
	info, err := c.anyInfo(ctx)
	return info.Quorum, err
}

// issuer is the HSM that issued the tokens of an operation; nil if it has none.
func (c *Cluster) issuer(as []hsm.Approval) (*remote, error) {
	var id hsm.HSMID
	for _, a := range as {
		t, err := hsm.ParseQuorumToken(a.Token)
		switch {
		case err != nil:
			return nil, err
		case id != 0 && t.HSM != id:
			return nil, fmt.Errorf("%w: the tokens are of two HSMs, %s and %s; generate both again", hsm.ErrQuorum, id, t.HSM)
		}
		id = t.HSM
	}
	if id == 0 {
		return nil, nil
	}
	for _, r := range c.all() {
		if r.id() != id {
			continue
		}
		if r.current() == nil {
			return nil, fmt.Errorf("%w: %s, which issued the token, is away; generate another one", hsm.ErrUnavailable, id)
		}
		return r, nil
	}
	return nil, fmt.Errorf("%w: the token is of %s, which is not of this cluster", hsm.ErrQuorum, id)
}

// onlyOn picks one HSM or none.
func onlyOn(r *remote) picker {
	return func(passed map[*remote]bool, where []covered) *remote {
		if r.current() == nil || passed[r] || !holdsAll(r, where) {
			return nil
		}
		return r
	}
}

// useApproved uses keys on the HSM that issued the tokens, once.
func (c *Cluster) useApproved(ctx context.Context, on *remote, refs []hsm.KeyRef, u hsm.Use) ([]byte, error) {
	for _, ref := range refs {
		if _, err := c.available(ctx, ref); err != nil {
			return nil, err
		}
	}
	return call(ctx, on, c.timing.call, func(ctx context.Context, s hsm.Session) ([]byte, error) { return s.Use(ctx, u) })
}
