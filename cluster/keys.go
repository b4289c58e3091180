package cluster

import (
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Key is a key with its coverage.
type Key struct {
	hsm.KeyInfo
	// Coverage are the HSMs that hold the key; Missing the other members, those
	// that are away included. Both ascend.
	Coverage, Missing []hsm.HSMID
}

// User is a user with its coverage.
type User struct {
	hsm.UserInfo
	Coverage, Missing []hsm.HSMID
	// Consistent is false if the HSMs that answered do not agree on the user.
	Consistent bool
}

// Key returns one key and asks every HSM for it. hsm.ErrNotFound, which matches
// hsm.ErrUnavailable too if HSMs are away that may hold it; or hsm.ErrDestroyed if
// any HSM knows it destroyed.
func (c *Cluster) Key(ctx context.Context, ref hsm.KeyRef) (Key, error) {
	return c.discover(ctx, ref, 0)
}

// Where tells which members hold a key and which do not, or are away. It works
// for users and policies too where the principal may extract them.
func (c *Cluster) Where(ctx context.Context, ref hsm.KeyRef) (have, missing []hsm.HSMID, err error) {
	answers := gather(ctx, c, c.ready(ctx, 1), nil, nil, func(ctx context.Context, s hsm.Session) (hsm.KeyInfo, error) {
		return hasObject(ctx, s, ref)
	})
	key, err := c.combine(ref, answers)
	return key.Coverage, key.Missing, err
}

// hasObject looks for a key, or where the principal may not see keys, for the
// masked object.
func hasObject(ctx context.Context, s hsm.Session, ref hsm.KeyRef) (hsm.KeyInfo, error) {
	k, err := s.Key(ctx, ref)
	if err == nil || !errors.Is(err, hsm.ErrDenied) && !errors.Is(err, hsm.ErrNotFound) {
		return k, err
	}
	for o, xerr := range s.Extract(ctx, slices.Values([]hsm.KeyRef{ref})) {
		switch {
		case errors.Is(xerr, hsm.ErrDenied):
			return k, err
		case xerr != nil:
			return k, xerr
		case o.Tombstone:
			return k, hsm.ErrDestroyed
		}
		return hsm.KeyInfo{Ref: ref, Token: true, Digest: o.Digest}, nil
	}
	return k, err
}

// Keys yields the keys that the filter selects and the principal may see, of all
// HSMs in use, ascending by reference, each with its coverage. An HSM that fails
// on the way is left out from there on; the error comes when none is left.
func (c *Cluster) Keys(ctx context.Context, f hsm.Filter) iter.Seq2[Key, error] {
	return func(yield func(Key, error) bool) {
		rs := c.ready(ctx, 1)
		if len(rs) == 0 {
			yield(Key{}, c.noHSM())
			return
		}
		lists := make([]iter.Seq2[hsm.KeyInfo, error], len(rs))
		for i, r := range rs {
			lists[i] = listOn(ctx, r, func(s hsm.Session) iter.Seq2[hsm.KeyInfo, error] { return s.Keys(ctx, f) })
		}
		m := newMerger(lists, func(k hsm.KeyInfo) hsm.KeyRef { return k.Ref })
		defer m.stop()
		for m.next() {
			key := Key{KeyInfo: m.items[0]}
			for _, i := range m.from {
				key.Coverage = append(key.Coverage, rs[i].id())
			}
			slices.Sort(key.Coverage)
			key.Missing = c.without(key.Coverage)
			if !yield(key, nil) {
				return
			}
		}
		if err := m.failure(); err != nil && (m.live() == 0 || !away(err)) {
			yield(Key{}, err)
		}
	}
}

// Users lists the users of all HSMs in use, by name. Anyone logged in may ask.
func (c *Cluster) Users(ctx context.Context) ([]User, error) {
	answers := gather(ctx, c, c.ready(ctx, 1), nil, nil, func(ctx context.Context, s hsm.Session) ([]hsm.UserInfo, error) {
		return s.Users(ctx)
	})
	byName := map[string]*User{}
	asked := 0
	var failure error
	for _, a := range answers {
		if a.err != nil {
			failure = a.err
			continue
		}
		asked++
		for _, u := range a.value {
			noteUser(byName, u, a.from.id())
		}
	}
	if asked == 0 {
		if failure == nil || away(failure) {
			failure = c.noHSM()
		}
		return nil, failure
	}
	return c.sortedUsers(byName, asked), nil
}

func noteUser(byName map[string]*User, u hsm.UserInfo, on hsm.HSMID) {
	known, ok := byName[u.Name]
	if !ok {
		known = &User{UserInfo: u, Consistent: true}
		byName[u.Name] = known
	}
	known.Consistent = known.Consistent && known.Digest == u.Digest && known.Locked == u.Locked
	known.Locked = known.Locked || u.Locked
	known.Coverage = append(known.Coverage, on)
}

func (c *Cluster) sortedUsers(byName map[string]*User, asked int) []User {
	users := make([]User, 0, len(byName))
	for _, u := range byName {
		slices.Sort(u.Coverage)
		u.Missing = c.without(u.Coverage)
		u.Consistent = u.Consistent && len(u.Coverage) == asked
		users = append(users, *u)
	}
	slices.SortFunc(users, func(a, b User) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return users
}
