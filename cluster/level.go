package cluster

import (
	"context"
	"fmt"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// An HSM whose settings or quorum values are already what a change asks for changes
// nothing, and stamps nothing anew: so changes of different ones at the same time all
// hold. If it has missed a change in between, that one would win silently over what its
// caller asked for last. So the HSMs that answer are brought to one state of the object
// first, which is what they know together, and the change is made to that.

// levelled returns the policy that a change sets parts of. What is set of keys and users
// is stamped anew even if it is there already, and of members each HSM is told by itself
// (apply).
func levelled(ch hsm.Change) (ref hsm.KeyRef, ok bool) {
	switch ch.Kind {
	case hsm.ChangeSettings:
		return hsm.PolicyRef(hsm.PolicySettings), true
	case hsm.ChangeQuorumValue, hsm.ChangeQuorumTimeout:
		return hsm.PolicyRef(hsm.PolicyQuorum), true
	}
	return 0, false
}

// level brings the HSMs that answer to what they know together of the policy that a
// change sets parts of. uneven are those that did not take it: the change must not be
// made there first. If we die on the way, some HSMs have heard of what others had.
func (c *Cluster) level(ctx context.Context, ch hsm.Change) (uneven map[*remote]bool) {
	ref, ok := levelled(ch)
	if !ok || len(c.all()) == 1 {
		return nil
	}
	up := c.up()
	want := min(len(up), c.hearingOf(len(c.all())))
	enough := func(as []answer[hsm.MaskedObject]) bool {
		return len(slices.DeleteFunc(slices.Clone(as), func(a answer[hsm.MaskedObject]) bool { return a.err != nil })) >= want
	}
	answers := gather(ctx, c, up, enough, nil, func(ctx context.Context, s hsm.Session) (hsm.MaskedObject, error) {
		for m, err := range s.Extract(ctx, slices.Values([]hsm.KeyRef{ref})) {
			return m, err
		}
		return hsm.MaskedObject{}, fmt.Errorf("%w: %s", hsm.ErrNotFound, ref)
	})
	states, have := statesOf(answers)
	uneven = map[*remote]bool{}
	if len(states) < 2 {
		return uneven
	}
	var behind []*remote
	for r := range have {
		behind = append(behind, r)
	}
	for _, a := range gather(ctx, c, behind, nil, nil, func(ctx context.Context, s hsm.Session) (struct{}, error) {
		return struct{}{}, insertAll(ctx, s, states)
	}) {
		if a.err != nil {
			uneven[a.from] = true
		}
	}
	return uneven
}

// statesOf returns the different states that HSMs have of an object, and those HSMs.
func statesOf(answers []answer[hsm.MaskedObject]) (states []hsm.MaskedObject, have map[*remote]bool) {
	have = map[*remote]bool{}
	for _, a := range answers {
		if a.err != nil {
			continue
		}
		have[a.from] = true
		if !slices.ContainsFunc(states, func(m hsm.MaskedObject) bool { return m.Digest == a.value.Digest }) {
			states = append(states, a.value)
		}
	}
	return states, have
}

// mustBeLevel refuses to make a change on the one HSM that takes its approvals, if that
// does not know what the others know.
func mustBeLevel(issuer *remote, uneven map[*remote]bool) error {
	if issuer == nil || !uneven[issuer] {
		return nil
	}
	return fmt.Errorf("%w: %s does not take what other HSMs know of that; nothing was done, try again in a moment", hsm.ErrUnavailable, issuer.name())
}
