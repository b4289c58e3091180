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

// QuorumTimeouts are how long tokens are good, as one HSM knows it.
func (c *Cluster) QuorumTimeouts(ctx context.Context) (hsm.QuorumTimeouts, error) {
	info, err := c.anyInfo(ctx)
	t := info.Timeouts
	return hsm.QuorumTimeouts{Generated: cmp.Or(t.Generated, hsm.TokenLife), Approved: cmp.Or(t.Approved, hsm.TokenLife)}, err
}

// IssuedToken is a token that waits, with the HSM that issued it, where alone it is good.
type IssuedToken struct {
	hsm.TokenInfo
	HSM hsm.HSMID
}

// QuorumTokens lists the tokens that wait on all HSMs, the oldest of each first. Those
// of missing HSMs, which did not answer, are not among them.
func (c *Cluster) QuorumTokens(ctx context.Context) (tokens []IssuedToken, missing []hsm.HSMID, err error) {
	lists, missing, err := everyHSM(ctx, c, func(ctx context.Context, s hsm.Session) ([]hsm.TokenInfo, error) { return s.Tokens(ctx) })
	for _, l := range lists {
		for _, t := range l.value {
			tokens = append(tokens, IssuedToken{t, l.from.id()})
		}
	}
	return tokens, missing, err
}

// DeleteQuorumTokens withdraws the tokens of all users, or of this one, on all HSMs, and
// says how many waited. It is idempotent. ErrUnavailable if HSMs did not answer, on which
// tokens may wait still; on the others it is done.
func (c *Cluster) DeleteQuorumTokens(ctx context.Context, all bool) (n int, err error) {
	counts, missing, err := everyHSM(ctx, c, func(ctx context.Context, s hsm.Session) (int, error) { return s.DeleteTokens(ctx, all) })
	for _, a := range counts {
		n += a.value
	}
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("%w: %d quorum tokens were deleted, and those that %v issued were not: it did not answer", hsm.ErrUnavailable, n, missing)
	}
	return n, err
}

// everyHSM asks all HSMs and returns what those said that answered, by id, and which
// did not. A refusal is an error.
func everyHSM[T any](ctx context.Context, c *Cluster, ask func(context.Context, hsm.Session) (T, error)) (said []answer[T], missing []hsm.HSMID, err error) {
	var from []hsm.HSMID
	for _, a := range gather(ctx, c, c.muster(ctx), nil, nil, ask) {
		switch {
		case a.err == nil:
			said, from = append(said, a), append(from, a.from.id())
		case ctx.Err() != nil || !away(a.err):
			return nil, nil, a.err
		}
	}
	if len(said) == 0 {
		return nil, nil, c.noHSM()
	}
	slices.SortFunc(said, func(a, b answer[T]) int { return cmp.Compare(a.from.id(), b.from.id()) })
	return said, c.without(from), nil
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
