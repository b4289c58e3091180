package sim

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/integration/history"
)

type outcome = history.Outcome

const (
	ok           = history.OK
	notFound     = history.NotFound
	wasDestroyed = history.WasDestroyed
	nothingDone  = history.Nothing
	unknown      = history.Unknown
)

// copies is how many HSMs a key must be on.
func (r *region) copies() int { return r.policy.MinCopies }

// creation makes a token key and tells checker and history what came of it.
func (c *caller) creation(ctx context.Context, r hsm.CreateRequest, k key) {
	w, end := c.r.w, c.end
	w.checker.begins(k.label)
	ask := w.history.Invoke(c.number, history.Create, k.label)
	made, err := c.cluster.Create(ctx, r, cluster.Policy{Timeout: creationTimeout})
	if end.isDead() {
		return // nobody was told
	}
	w.trace.add("%s: %s %s: %s", c.name, r.Method, k.label, brief(err))
	result, residue := c.judgeCreation(err)
	ask.Return(result, residue)
	w.count(func(s *stats) { s.kinds[string(r.Method)]++ })
	switch result {
	case ok:
		w.count(func(s *stats) { s.created++ })
		for _, made := range made.Keys {
			w.checker.created(c.r, k.label, made.Ref, c.r.copies())
		}
		k.ref = made.Keys[0].Ref
		c.keys.add(k)
	case unknown:
		w.count(func(s *stats) { s.unknown++ })
	default:
		w.count(func(s *stats) { s.failed++ })
		w.checker.failed(k.label)
	}
	if k.ref = refOf(err); k.ref != 0 && r.Method != hsm.MethodPromote { // that stays a session key
		c.keys.add(k) // nobody may ever find it
	}
}

// judgeCreation is what the client was told.
func (c *caller) judgeCreation(err error) (result outcome, residue bool) {
	var short *cluster.CopiesError
	switch {
	case err == nil:
		return ok, false
	case !errors.As(err, &short):
		return nothingDone, false
	case strings.Contains(short.Outcome, "not known"):
		return unknown, true
	}
	return nothingDone, len(short.Undelivered) > 0
}

// refOf is the reference of a key that was almost made.
func refOf(err error) hsm.KeyRef {
	var short *cluster.CopiesError
	if errors.As(err, &short) && len(short.Refs) > 0 {
		return short.Refs[0]
	}
	return 0
}

// use uses a key.
func (c *caller) use(ctx context.Context, k key) {
	w, end := c.r.w, c.end
	ask := w.history.Invoke(c.number, history.Use, k.label)
	u := k.use
	u.Key, u.Data = k.ref, []byte("data of "+k.label)
	out, err := c.cluster.Use(ctx, u)
	if end.isDead() {
		return
	}
	c.say(u.Kind, k.ref, err)
	ask.Return(evidence(err), false)
	if err == nil {
		w.count(func(s *stats) { s.used++ })
		copies := 1
		if c.r.policy.CheckOnUse {
			copies = c.r.copies()
		}
		w.checker.used(k.ref, hex.EncodeToString(out), copies)
	}
}

// destroy destroys a key.
func (c *caller) destroy(ctx context.Context, k key) {
	w, end := c.r.w, c.end
	w.checker.destroys(k.ref, false)
	ask := w.history.Invoke(c.number, history.Destroy, k.label)
	changed, err := c.cluster.Change(ctx, hsm.Change{Kind: hsm.ChangeDestroy, Ref: k.ref})
	if end.isDead() {
		return
	}
	c.say(hsm.ChangeDestroy, k.ref, err)
	var short *cluster.CopiesError
	result, residue := evidence(err), false
	switch {
	case err == nil:
		residue = len(changed.Missing) > 0
		w.checker.destroys(k.ref, true)
		w.count(func(s *stats) { s.destroyed++ })
	case result == notFound || result == wasDestroyed:
	case changed == nil && errors.As(err, &short):
		result = nothingDone
	default:
		result = unknown
	}
	ask.Return(result, residue)
}
