package sim

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// wish is what callers wanted a key to be.
type wish struct {
	labels  []string // that it may have: one, unless that is not known
	unsure  []string // those of this storm that were not acknowledged
	busy    int      // changes of the label under way
	crowded bool     // more than one was at once: any of them may be the last
	round   int      // of the last change
	sealed  bool     // not extractable any more: acknowledged
}

// changeKey changes an attribute or a share of a key, and notes what was told.
func (c *caller) changeKey(ctx context.Context, k key, ch hsm.Change) {
	w, end := c.r.w, c.end
	var strict func(*cluster.Changed) bool
	if ch.Name == "label" {
		first := w.checker.wishes(k, c.r.round)
		strict = func(x *cluster.Changed) bool { return first || c.heardEnough(x) }
	}
	changed, err := c.cluster.Change(ctx, ch)
	c.say(ch.Kind, k.ref, err)
	acked := err == nil && !end.isDead()
	var short *cluster.CopiesError
	refused := changed == nil && errors.As(err, &short) || err != nil && errors.Is(err, hsm.ErrNotFound) && !errors.Is(err, hsm.ErrUnavailable)
	switch {
	case ch.Name == "label":
		w.checker.labelled(k.ref, ch.Value, acked, refused, acked && strict(changed))
	case ch.Name == "extractable" && acked:
		w.checker.sealed(k.ref)
	}
}

// wishes notes that a change of a label is asked for. It tells whether it is the
// first since all HSMs agreed.
func (c *checker) wishes(k key, round int) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.wish(k.ref)
	if len(x.labels) == 0 {
		x.labels = []string{k.label}
	}
	if first = x.round != round; first {
		x.unsure, x.crowded, x.round = nil, false, round
	}
	x.busy++
	x.crowded = x.crowded || x.busy > 1
	return first
}

func (c *checker) wish(ref hsm.KeyRef) *wish {
	if c.wanted[ref] == nil {
		c.wanted[ref] = &wish{}
	}
	return c.wanted[ref]
}

// labelled notes what became of a change of a label. strict: it is later than all
// that were acknowledged before it was asked for.
func (c *checker) labelled(ref hsm.KeyRef, label string, acked, refused, strict bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.wish(ref)
	switch {
	case refused:
	case acked && strict && !x.crowded:
		x.labels = append([]string{label}, x.unsure...)
	case acked:
		x.labels = append(x.labels, label)
	default:
		x.labels, x.unsure = append(x.labels, label), append(x.unsure, label)
	}
	if x.busy--; x.busy == 0 {
		x.crowded = false
	}
}

// sealed notes that a key is not extractable any more.
func (c *checker) sealed(ref hsm.KeyRef) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wish(ref).sealed = true
}

// attributes checks, when all HSMs of a region hold the same, that keys are what
// callers were told that they are.
func (c *checker) attributes(r *region) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ref := range slices.Sorted(maps.Keys(c.wanted)) {
		x := c.wanted[ref]
		for _, b := range r.members() {
			s, ok := b.known.keys[ref]
			if !ok || s.destroyed || !r.owns(s.label) {
				continue
			}
			if len(x.labels) == 1 && s.label != x.labels[0] {
				c.w.violate("%s: key %s is labelled %s, and %s was acknowledged last", b.name, ref, s.label, x.labels[0])
			}
			if x.sealed && s.extractable {
				c.w.violate("%s: key %s is extractable, after it was acknowledged not to be", b.name, ref)
			}
		}
	}
}

// change changes an attribute or a share.
func (c *caller) change(ctx context.Context, d *dice, k key) {
	ch := hsm.Change{Kind: hsm.ChangeAttribute, Ref: k.ref, Name: "label", Value: strings.TrimSuffix(k.label, "-changed") + []string{"", "-changed"}[d.n(2)]}
	other := users[(c.number+1)%len(users)]
	switch what := d.n(6); {
	case what == 0:
		ch = hsm.Change{Kind: hsm.ChangeShare, Ref: k.ref, User: other}
	case what == 1:
		ch = hsm.Change{Kind: hsm.ChangeUnshare, Ref: k.ref, User: other}
	case what == 2 && !k.wraps:
		ch.Name, ch.Value = "extractable", "false"
	}
	c.changeKey(ctx, k, ch)
}
