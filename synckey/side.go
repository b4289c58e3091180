package synckey

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// defaultPatience is longer than the client takes to find out that an HSM is
// gone.
const defaultPatience = 10 * time.Second

// side is one of the two clusters.
type side struct {
	*cluster.Cluster
	name   string // "source", "destination"
	peer   hsm.ClusterID
	proven map[hsm.HSMID]bool // HSMs that have answered a challenge
	silent map[hsm.HSMID]bool // HSMs that did not answer in this comparison
	// owner limits a login that sees all keys to those of one crypto user; empty:
	// what the login sees is what is compared.
	owner string
	users map[string]bool // there are now
	after map[string]bool // there will be, once the plan is applied
	// patience bounds one short question to one HSM.
	patience time.Duration
}

// newSides pairs the clusters. hsm.ErrInvalid, hsm.ErrLineage or hsm.ErrDenied
// if they cannot be reconciled with each other under these logins.
func newSides(src, dst *cluster.Cluster, o Options) (*side, *side, error) {
	a, b := src.Profile().ID, dst.Profile().ID
	s := &side{Cluster: src, name: "source", peer: b, proven: map[hsm.HSMID]bool{}, silent: map[hsm.HSMID]bool{}, patience: defaultPatience}
	d := &side{Cluster: dst, name: "destination", peer: a, proven: map[hsm.HSMID]bool{}, silent: map[hsm.HSMID]bool{}, patience: defaultPatience}
	if a == b {
		return nil, nil, fmt.Errorf("%w: source and destination are both %s; server-side sync keeps the HSMs of one cluster together", hsm.ErrInvalid, a)
	}
	if a, b := src.Lineage(), dst.Lineage(); a != b {
		return nil, nil, fmt.Errorf("%w: the source is of %s, the destination of %s; a clone is made from a snapshot (restore)", hsm.ErrLineage, a, b)
	}
	return s, d, limit(s, d, o)
}

// limit sees to it that both sides look at the same keys: a crypto user's own,
// if there is one on either side.
func limit(src, dst *side, o Options) error {
	a, b := src.cryptoUser(), dst.cryptoUser()
	switch {
	case a == "" && b == "":
		return nil
	case a != "" && b != "" && a != b:
		return fmt.Errorf("%w: the source is logged in as crypto user %s, the destination as %s; a crypto user reconciles the keys it owns, so log in as the same one, or as an admin", hsm.ErrDenied, a, b)
	case o.Users:
		return fmt.Errorf("%w: crypto user %s cannot take users and policies along; log in on both sides as an admin or with the appliance's certificate", hsm.ErrDenied, cmp.Or(a, b))
	case a == "":
		src.owner = b
	case b == "":
		dst.owner = a
	}
	return nil
}

// cryptoUser returns the name of the crypto user logged in, or nothing.
func (s *side) cryptoUser() string {
	if p := s.Principal(); p.Role == hsm.RoleCryptoUser {
		return strings.ToLower(p.Name)
	}
	return ""
}

// sources returns the HSMs in use, each of which has proven its lineage.
func (s *side) sources(ctx context.Context) (list []cluster.Source, away []hsm.HSMID, err error) {
	list, away, err = s.Sources(ctx)
	if err != nil {
		return nil, nil, s.wrap(err)
	}
	// An HSM that answers some questions and not others would hold up every
	// attempt; it is left out unless there is no other.
	if heard := slices.DeleteFunc(slices.Clone(list), func(h cluster.Source) bool { return s.silent[h.ID] }); len(heard) > 0 {
		list = heard
		for id := range s.silent {
			if !slices.Contains(away, id) {
				away = append(away, id)
			}
		}
	}
	strangers := slices.DeleteFunc(slices.Clone(list), func(h cluster.Source) bool { return s.proven[h.ID] })
	gone, err := s.challenge(ctx, strangers)
	if err != nil {
		return nil, nil, err
	}
	for _, h := range list {
		if !s.proven[h.ID] {
			away = append(away, h.ID)
		}
	}
	list = slices.DeleteFunc(list, func(h cluster.Source) bool { return !s.proven[h.ID] })
	if len(list) == 0 {
		return nil, nil, s.wrap(gone)
	}
	return list, away, nil
}

func (s *side) wrap(err error) error { return fmt.Errorf("%s: %w", s.name, err) }

// learnUsers lists the users there are.
func (s *side) learnUsers(ctx context.Context) error {
	users, err := s.Users(ctx)
	if err != nil {
		return s.wrap(fmt.Errorf("list users: %w", err))
	}
	s.users, s.after = map[string]bool{}, map[string]bool{}
	for _, u := range users {
		s.users[u.Name], s.after[u.Name] = true, true
	}
	return nil
}

// answer is what one HSM said.
type answer[T any] struct {
	from  cluster.Source
	value T
	err   error
}

// ask asks several HSMs of a side at once. One that does not answer in time is
// away: hsm.ErrUnavailable.
func ask[T any](ctx context.Context, s *side, hsms []cluster.Source, f func(context.Context, cluster.Source) (T, error)) []answer[T] {
	answers := make([]answer[T], len(hsms))
	var wg sync.WaitGroup
	for i, h := range hsms {
		wg.Go(func() {
			limited, cancel := context.WithTimeout(ctx, s.patience)
			defer cancel()
			v, err := f(limited, h)
			if err != nil && limited.Err() != nil && ctx.Err() == nil {
				err = fmt.Errorf("%w: %s does not answer", hsm.ErrUnavailable, h.ID)
			}
			answers[i] = answer[T]{h, v, err}
		})
	}
	wg.Wait()
	return answers
}

// away tells that an HSM did not do its part, though another might.
func away(err error) bool {
	return errors.Is(err, hsm.ErrUnavailable) || errors.Is(err, hsm.ErrSession)
}
