package cluster

import (
	"context"
	"fmt"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// The HSM that deletes a user refuses if the user owns a key, as far as it has heard; and
// the tombstone then comes to the others, whatever they know.

// ownsNothing refuses to delete a user who owns a key on any HSM that answers, or if so
// many do not answer that an acknowledged key may be on those alone. Who may not delete
// users is told so by the HSM.
func (c *Cluster) ownsNothing(ctx context.Context, ch hsm.Change, need int) error {
	if ch.Kind != hsm.ChangeUserDelete || c.Principal().Role != hsm.RoleAdmin {
		return nil
	}
	name, err := hsm.CanonicalUserName(ch.User)
	if err != nil {
		return err
	}
	members := len(c.all())
	want := max(need, c.hearingOf(members))
	asked := 0
	rs := c.readyWithin(ctx, want, c.timing.connect) // who has just begun has hardly met all
	for _, a := range gather(ctx, c, rs, nil, nil, func(ctx context.Context, s hsm.Session) (hsm.KeyRef, error) { return ownedOn(ctx, s, name) }) {
		switch {
		case a.err == nil && a.value != 0:
			return fmt.Errorf("%w: user %q owns keys, %s among them on %s; destroy them first", hsm.ErrDenied, name, a.value, a.from.name())
		case a.err == nil:
			asked++
		case !away(a.err):
			return a.err
		}
	}
	if asked < want {
		return fmt.Errorf("%w: %d of %d HSMs say that user %q owns no key, and it takes %d to know; start the others, or remove those that are gone, and nothing was done", hsm.ErrUnavailable, asked, members, name, want)
	}
	return nil
}

// ownedOn returns a key that a user owns on an HSM; 0: none.
func ownedOn(ctx context.Context, s hsm.Session, name string) (hsm.KeyRef, error) {
	u, err := recordOn(ctx, s, hsm.UserRef(name))
	if err != nil || u == nil || u.Destroyed {
		return 0, err
	}
	var refs []hsm.KeyRef // of users of that name
	for k, err := range s.Keys(ctx, hsm.Filter{Owner: name}) {
		if err != nil {
			return 0, err
		}
		if u.Incarnation == 0 { // there was none before
			return k.Ref, nil
		}
		refs = append(refs, k.Ref)
	}
	for m, err := range s.Extract(ctx, slices.Values(refs)) {
		if err != nil {
			return 0, err
		}
		_, r, err := hsm.ParseMasked(m.Bytes)
		if err != nil {
			return 0, err
		}
		if !r.Destroyed && r.OwnedSince(u.Registers[hsm.RegisterCreated].Stamp) {
			return r.Ref, nil
		}
	}
	return 0, nil
}

// recordOn reads the clear part of an object on an HSM; nil: it has none.
func recordOn(ctx context.Context, s hsm.Source, ref hsm.KeyRef) (*hsm.Record, error) {
	for m, err := range s.Extract(ctx, slices.Values([]hsm.KeyRef{ref})) {
		if err != nil {
			return nil, err
		}
		_, r, err := hsm.ParseMasked(m.Bytes)
		return r, err
	}
	return nil, nil
}
