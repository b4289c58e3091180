package synckey

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// ErrNoConflict: there is nothing to decide under the reference.
var ErrNoConflict = errors.New("no conflict")

// ErrBlocked: a key cannot go where it has to, for want of its owner or of a user it
// is shared with.
var ErrBlocked = errors.New("blocked by a missing user")

// ResolveOptions are a person's decision on a key reference under which there are
// several births.
type ResolveOptions struct {
	Ref hsm.KeyRef
	// Keep names what is to stand: "src" or "dst", for the key that side holds, or a
	// birth, in 32 hexadecimal digits, where a side's HSMs hold several.
	Keep string
	// KeepBoth keeps live keys that give way, under references of their own.
	KeepBoth bool
	// Plan is the Resolved.Plan that was agreed to; empty: whatever is found.
	Plan string
	// Version and Asked go into the result.
	Version string
	Asked   []string
}

// Resolution is a decision and what is to become of it. It is not safe for
// concurrent use, and lives no longer than its clusters' connections.
type Resolution struct {
	Result  *Resolved
	options ResolveOptions
	sides   []*side // the source, and the destination if there is one
	stands  [16]byte
	states  []state
	births  map[[16]byte]*hsm.Record // what the states of each birth merge to
	done    func(step string) error  // told what is durable; tests die there
}

// state is one state that HSMs of a side are in.
type state struct {
	side   *side
	masked hsm.MaskedObject
	record *hsm.Record // clear part
}

// NewResolution proves the lineage, reads what all HSMs hold under the reference, and
// plans what the decision does. It changes nothing. dst may be nil: then the HSMs of
// src are in conflict with each other.
//
// Beside the errors of NewPlan for clusters and logins: hsm.ErrNotFound if no HSM
// holds a key there, ErrNoConflict if all hold one birth, hsm.ErrInvalid if Keep does
// not name one birth, ErrBlocked, ErrMoved if Plan is another one.
func NewResolution(ctx context.Context, src, dst *cluster.Cluster, o ResolveOptions) (*Resolution, error) {
	sides, err := resolveSides(src, dst)
	if err != nil {
		return nil, err
	}
	r := &Resolution{Result: &Resolved{}, options: o, sides: sides, done: func(string) error { return nil }}
	for _, s := range sides {
		if err := s.mayResolve(ctx); err != nil {
			return nil, err
		}
	}
	if err := r.read(ctx); err != nil {
		return nil, err
	}
	if err := r.choose(); err != nil {
		return nil, err
	}
	r.describe()
	if o.Plan != "" && o.Plan != r.Result.Plan {
		return nil, fmt.Errorf("%w: the plan is %s by now; look at it again", ErrMoved, r.Result.Plan)
	}
	return r, r.blocked()
}

func resolveSides(src, dst *cluster.Cluster) ([]*side, error) {
	if dst != nil {
		a, b, err := newSides(src, dst, Options{})
		return []*side{a, b}, err
	}
	id := src.Profile().ID
	return []*side{{Cluster: src, name: "source", peer: id, proven: map[hsm.HSMID]bool{}, silent: map[hsm.HSMID]bool{}, patience: defaultPatience}}, nil
}

// mayResolve checks what a decision needs on a side: a person's login, and HSMs
// that know how to write it down.
func (s *side) mayResolve(ctx context.Context) error {
	if role := s.Principal().Role; role != hsm.RoleAdmin && role != hsm.RoleCryptoUser {
		return s.wrap(fmt.Errorf("%w: it takes a person to decide between two keys; log in as an admin, or as the crypto user who owns both", hsm.ErrDenied))
	}
	hsms, _, err := s.sources(ctx)
	if err != nil {
		return err
	}
	for _, a := range ask(ctx, s, hsms, func(ctx context.Context, h cluster.Source) (hsm.Info, error) { return h.Info(ctx) }) {
		switch {
		case away(a.err):
		case a.err != nil:
			return s.wrap(a.err)
		case a.value.Format < 2:
			return s.wrap(fmt.Errorf("%w: HSM %s runs version %s, which does not know keys that stand above others; upgrade it first", hsm.ErrInvalid, a.from.ID, a.value.Version))
		}
	}
	return s.learnUsers(ctx)
}

// read reads what the HSMs hold under the reference.
func (r *Resolution) read(ctx context.Context) error {
	r.states, r.births = nil, map[[16]byte]*hsm.Record{}
	*r.Result = Resolved{Lineage: r.sides[0].Lineage(), Ref: r.options.Ref, Births: []Birth{}, KeepBoth: r.options.KeepBoth, Version: r.options.Version, Asked: r.options.Asked}
	for i, s := range r.sides {
		l := &look{side: s}
		if err := l.survey(ctx); err != nil {
			return err
		}
		held, err := l.read(ctx, []hsm.KeyRef{r.options.Ref})
		if err != nil {
			return err
		}
		for _, m := range orNothing(held[r.options.Ref]).masked {
			_, rec, err := hsm.ParseMasked(m.Bytes)
			if err != nil {
				return s.wrap(err)
			}
			r.states = append(r.states, state{s, m, rec})
			if known := r.births[rec.Birth]; known != nil {
				if rec, err = hsm.Merge(known, rec); err != nil {
					return s.wrap(err)
				}
			}
			r.births[rec.Birth] = rec
		}
		described := describe(s)
		l.describe(&described)
		if into := &r.Result.Src; i == 0 {
			*into = described
		} else {
			r.Result.Dst = &described
		}
	}
	return nil
}

// choose finds the birth that is to stand.
func (r *Resolution) choose() error {
	of := map[string][][16]byte{}
	for _, st := range r.states {
		if st.record.Kind != hsm.KindKey {
			return fmt.Errorf("%w: %s is a %s; only keys can be in conflict", hsm.ErrInvalid, r.options.Ref, st.record.Kind)
		}
		if !slices.Contains(of[st.side.name], st.record.Birth) {
			of[st.side.name] = append(of[st.side.name], st.record.Birth)
		}
	}
	if err := r.rights(); err != nil {
		return err
	}
	if len(r.births) == 0 {
		return fmt.Errorf("%w: no key under %s on either side, as far as these logins see", hsm.ErrNotFound, r.options.Ref)
	}
	var err error
	if r.stands, err = r.kept(of); err != nil {
		return err
	}
	decided := slices.ContainsFunc(r.states, func(st state) bool { return len(st.record.Rivals) > 0 })
	if len(r.births) == 1 && !decided {
		return fmt.Errorf("%w: all HSMs that hold %s hold one birth of it, as far as these logins see", ErrNoConflict, r.options.Ref)
	}
	return r.aliveOrNot()
}

// rights checks that a crypto user owns every birth that a decision is about, on
// whichever side it logs in: otherwise the decision would be made on one side and
// refused on the other.
func (r *Resolution) rights() error {
	for _, s := range r.sides {
		p := s.Principal()
		for _, rec := range r.births {
			owners := []string{rec.Core.Owner}
			for _, rival := range rec.Rivals {
				owners = append(owners, rival.Core.Owner)
			}
			if p.Role == hsm.RoleCryptoUser && slices.ContainsFunc(owners, func(o string) bool { return o != p.Name }) {
				return s.wrap(fmt.Errorf("%w: %s is another user's key too; log in as an admin on both sides", hsm.ErrDenied, r.options.Ref))
			}
		}
	}
	return nil
}

// aliveOrNot refuses a decision for a birth that is destroyed in one place and live in
// another: the two merge to a destroyed one, and to destroy a key is no decision
// between two.
func (r *Resolution) aliveOrNot() error {
	if !r.births[r.stands].Destroyed {
		return nil
	}
	for _, st := range r.states {
		if st.record.Birth == r.stands && !st.record.Destroyed {
			return fmt.Errorf("%w: birth %x of %s is live at the %s and destroyed elsewhere, so that it would be destroyed everywhere; "+
				"destroy it at the %s first (synckey --destroyed), or keep another birth", hsm.ErrDestroyed, r.stands, r.options.Ref, st.side.name, st.side.name)
		}
	}
	return nil
}

// kept reads Keep.
func (r *Resolution) kept(of map[string][][16]byte) (birth [16]byte, err error) {
	switch r.options.Keep {
	case "src", "dst":
		name := map[string]string{"src": "source", "dst": "destination"}[r.options.Keep]
		switch list := of[name]; {
		case len(list) == 1:
			return list[0], nil
		case len(list) == 0:
			return birth, fmt.Errorf("%w: the %s holds no key under %s, as far as its login sees", ErrNoConflict, name, r.options.Ref)
		}
		return birth, fmt.Errorf("%w: the HSMs of the %s hold %d births of %s; name the one to keep by its birth", hsm.ErrInvalid, name, len(of[name]), r.options.Ref)
	}
	b, err := hex.DecodeString(r.options.Keep)
	if err != nil || len(b) != len(birth) {
		return birth, fmt.Errorf("%w: keep %.80q: want src, dst, or a birth of 32 hexadecimal digits", hsm.ErrInvalid, r.options.Keep)
	}
	if birth = [16]byte(b); r.births[birth] == nil {
		return birth, fmt.Errorf("%w: no HSM holds the birth %x of %s", hsm.ErrNotFound, birth, r.options.Ref)
	}
	return birth, nil
}

// losers are the births that give way, each in its last state.
func (r *Resolution) losers() (out []state) {
	for _, st := range r.states {
		known := slices.ContainsFunc(out, func(o state) bool { return o.record.Birth == st.record.Birth })
		if st.record.Birth != r.stands && !known {
			out = append(out, r.last(st.record.Birth))
		}
	}
	return out
}

// standing is the birth that is to stand, in its last state.
func (r *Resolution) standing() state { return r.last(r.stands) }

// last returns of the states that a birth is in one of the last life, and destroyed if
// that life has ended anywhere, as the states merge.
func (r *Resolution) last(birth [16]byte) (best state) {
	later := func(a, b *hsm.Record) bool {
		return a.Incarnation > b.Incarnation || a.Incarnation == b.Incarnation && a.Destroyed && !b.Destroyed
	}
	for _, st := range r.states {
		if st.record.Birth == birth && (best.record == nil || later(st.record, best.record)) {
			best = st
		}
	}
	return best
}

// blocked tells who is missing where keys are to go.
func (r *Resolution) blocked() error {
	going := []state{r.standing()}
	if r.options.KeepBoth {
		going = append(going, r.losers()...)
	}
	for _, st := range going {
		for _, to := range r.sides {
			f := &flow{from: st.side, to: to}
			o := &object{ref: r.options.Ref, kind: hsm.KindKey, merged: st.record}
			if missing := f.needs(o, &held{record: st.record}); missing != "" {
				return fmt.Errorf("%w: key %s needs %s, unknown at the %s; create the user there, or run synckey --users first", ErrBlocked, r.options.Ref, missing, to.name)
			}
		}
	}
	return nil
}

// planID fingerprints what was found and what is to become of it.
func (r *Resolution) planID() string {
	var lines []string
	for _, st := range r.states {
		lines = append(lines, fmt.Sprintf("%s %s", st.side.Profile().ID, st.masked.Digest))
	}
	slices.Sort(lines)
	h := sha256.New()
	fmt.Fprintf(h, "hsmbackup synckey resolve v1\n%s\n%x\n%t\n", r.options.Ref, r.stands, r.options.KeepBoth)
	for _, line := range lines {
		fmt.Fprintln(h, line)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
