package synckey

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// history draws what happens to two regions that do not hear of each other, and
// keeps count of what must come of it.
type history struct {
	t       *rapid.T
	a, b    *region
	keys    []hsm.KeyRef
	owner   map[hsm.KeyRef]string
	dead    map[hsm.KeyRef]bool
	deleted bool // some user was
	names   []string
	twins   []hsm.KeyRef // keys of alice, born in both
	births  map[hsm.KeyRef][2]hsm.MaskedObject
	decided map[hsm.KeyRef]bool // somebody has, in one region or in both
}

func newHistory(t *rapid.T, a, b *region, names ...string) *history {
	return &history{t: t, a: a, b: b, names: names, owner: map[hsm.KeyRef]string{}, dead: map[hsm.KeyRef]bool{},
		births: map[hsm.KeyRef][2]hsm.MaskedObject{}, decided: map[hsm.KeyRef]bool{}}
}

// decide is what an admin does who decides between twins, on some HSM of a region,
// from what was seen of the other one long ago.
func (h *history) decide(r *region, ref hsm.KeyRef) {
	of := h.births[ref]
	c := hsm.Change{Kind: hsm.ChangeSupersede, Ref: ref, Masked: &of[0], Value: birthOf(h.a.t, rapid.SampledFrom(of[:]).Draw(h.t, "stands"))}
	if birthOf(h.a.t, r.get(0, ref)) == birthOf(h.a.t, of[0]) {
		c.Masked = &of[1]
	}
	if _, err := r.as(rapid.IntRange(0, len(r.boxes)-1).Draw(h.t, "HSM"), hsm.RoleAdmin, admin).Change(context.Background(), c); err != nil {
		h.t.Fatalf("decide %s: %v", ref, err)
	}
	h.decided[ref] = true
	r.sync()
}

func (h *history) region() *region {
	if rapid.Bool().Draw(h.t, "at a") {
		return h.a
	}
	return h.b
}

// live tells whether an object is live in a region.
func live(r *region, ref hsm.KeyRef) bool {
	m := r.get(0, ref)
	return m.Bytes != nil && !m.Tombstone
}

func (h *history) drawLive(r *region) (hsm.KeyRef, bool) {
	var choice []hsm.KeyRef
	for _, ref := range h.keys {
		if live(r, ref) {
			choice = append(choice, ref)
		}
	}
	if len(choice) == 0 {
		return 0, false
	}
	return rapid.SampledFrom(choice).Draw(h.t, "key"), true
}

// drawUser draws a crypto user who is live in the region.
func (h *history) drawUser(r *region) string {
	choice := []string{"alice"}
	for _, name := range h.names {
		if live(r, hsm.UserRef(name)) {
			choice = append(choice, name)
		}
	}
	return rapid.SampledFrom(choice).Draw(h.t, "user")
}

// change changes a key as its owner, on some HSM only: server-side sync does
// the rest. A refusal is part of life.
func (h *history) change(r *region, ref hsm.KeyRef, c hsm.Change) {
	c.Ref = ref
	i := rapid.IntRange(0, len(r.boxes)-1).Draw(h.t, "HSM")
	if m, err := r.as(i, hsm.RoleCryptoUser, h.owner[ref]).Change(context.Background(), c); err == nil {
		h.dead[ref] = h.dead[ref] || m.Tombstone
	}
	r.sync()
}

func (h *history) admin(r *region, c hsm.Change) bool {
	_, err := r.as(0, hsm.RoleAdmin, admin).Change(context.Background(), c)
	r.sync()
	return err == nil
}

func (h *history) steps() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"create": func(*rapid.T) {
			r := h.region()
			owner := h.drawUser(r)
			var shares []string
			if rapid.Bool().Draw(h.t, "shared") {
				if with := h.drawUser(r); with != owner {
					shares = append(shares, with)
				}
			}
			m := r.birth(hsm.NewKeyRef(), owner, "k", shares...)
			r.put([]hsm.MaskedObject{m})
			h.keys, h.owner[m.Ref] = append(h.keys, m.Ref), owner
		},
		"twins": func(*rapid.T) {
			ref := hsm.NewKeyRef()
			h.births[ref] = [2]hsm.MaskedObject{h.a.birth(ref, "alice", "a"), h.b.birth(ref, "alice", "b")}
			h.a.put([]hsm.MaskedObject{h.births[ref][0]})
			h.b.put([]hsm.MaskedObject{h.births[ref][1]})
			h.twins = append(h.twins, ref)
		},
		"decide": func(*rapid.T) {
			if len(h.twins) > 0 {
				h.decide(h.region(), rapid.SampledFrom(h.twins).Draw(h.t, "twins"))
			}
		},
		"change twins": func(*rapid.T) {
			if len(h.twins) > 0 {
				c := rapid.SampledFrom([]hsm.Change{
					{Kind: hsm.ChangeDestroy}, {Kind: hsm.ChangeShare, User: "bob"},
					{Kind: hsm.ChangeAttribute, Name: "label", Value: "later"}, {Kind: hsm.ChangeAttribute, Name: "wrap-with-trusted", Value: "true"},
				}).Draw(h.t, "change")
				c.Ref = rapid.SampledFrom(h.twins).Draw(h.t, "twins")
				r := h.region()
				_, _ = r.as(0, hsm.RoleCryptoUser, "alice").Change(context.Background(), c) // a refusal is part of life
				r.sync()
			}
		},
		"label": func(*rapid.T) {
			r := h.region()
			if ref, ok := h.drawLive(r); ok {
				h.change(r, ref, hsm.Change{Kind: hsm.ChangeAttribute, Name: "label", Value: rapid.StringMatching("[a-z]{1,3}").Draw(h.t, "label")})
			}
		},
		"flag": func(*rapid.T) {
			r := h.region()
			if ref, ok := h.drawLive(r); ok {
				name := rapid.SampledFrom([]string{"encrypt", "decrypt", "wrap-with-trusted", "modifiable"}).Draw(h.t, "flag")
				h.change(r, ref, hsm.Change{Kind: hsm.ChangeAttribute, Name: name, Value: fmt.Sprint(rapid.Bool().Draw(h.t, "value"))})
			}
		},
		"share": func(*rapid.T) {
			r := h.region()
			if ref, ok := h.drawLive(r); ok {
				kind := rapid.SampledFrom([]hsm.ChangeKind{hsm.ChangeShare, hsm.ChangeUnshare}).Draw(h.t, "kind")
				h.change(r, ref, hsm.Change{Kind: kind, User: h.drawUser(r)})
			}
		},
		"destroy": func(*rapid.T) {
			r := h.region()
			if ref, ok := h.drawLive(r); ok {
				h.change(r, ref, hsm.Change{Kind: hsm.ChangeDestroy})
			}
		},
		"user": func(*rapid.T) {
			name := rapid.SampledFrom(h.names).Draw(h.t, "name")
			h.admin(h.region(), hsm.Change{Kind: hsm.ChangeUserCreate, User: name, Role: hsm.RoleCryptoUser, Password: secret(password)})
		},
		"password": func(*rapid.T) {
			r := h.region()
			h.admin(r, hsm.Change{Kind: hsm.ChangeUserPassword, User: h.drawUser(r), Password: secret(rapid.StringMatching("[a-z]{8}").Draw(h.t, "password"))})
		},
		"delete user": func(*rapid.T) {
			r := h.region()
			name := rapid.SampledFrom(h.names).Draw(h.t, "name")
			if h.admin(r, hsm.Change{Kind: hsm.ChangeUserDelete, User: name}) {
				h.deleted = true
			}
		},
		"settings": func(*rapid.T) {
			h.admin(h.region(), hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 1, CheckOnUse: rapid.Bool().Draw(h.t, "check")}})
		},
	}
}

// TestAnyTwoHistories: whatever happened on both sides, a one-way run leaves the
// source untouched, a two-way run with everything ends with equal roots, nothing
// destroyed returns, nothing else is lost, and a further run has nothing to do. Keys
// born twice are in conflict until somebody has decided, and then one key.
func TestAnyTwoHistories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a := newRegion(t, rapid.IntRange(1, 2).Draw(rt, "HSMs of a"))
		b := a.clone(rapid.IntRange(1, 2).Draw(rt, "HSMs of b"))
		defer a.stop()
		defer b.stop()
		h := newHistory(rt, a, b, "bob", "carol", "dave")
		rt.Repeat(h.steps())
		src, dst := a, b
		if rapid.Bool().Draw(rt, "from b to a") {
			src, dst = b, a
		}
		from, to := src.open(appliance), dst.open(appliance)
		defer from.Close()
		defer to.Close()

		before := src.root(0)
		oneWay := Options{Users: rapid.Bool().Draw(rt, "users"), Destroyed: rapid.Bool().Draw(rt, "destroyed"), MaxDestroyed: Unlimited()}
		for _, o := range []Options{oneWay, {Both: true, Users: true, Destroyed: true, MaxDestroyed: Unlimited()}} {
			r, err := run(context.Background(), from, to, o)
			if err == nil {
				err = check(r)
			}
			if err != nil {
				rt.Fatalf("%+v: %v", o, err)
			}
			if !o.Both && src.root(0) != before {
				rt.Fatalf("%+v: the source has changed", o)
			}
			if o.Both {
				h.verify(r)
			}
			again, err := run(context.Background(), from, to, o)
			if err != nil || again.Applied != 0 || again.Remaining != r.Remaining {
				rt.Fatalf("%+v again: %v, applied %d, remaining %d, before %d", o, err, again.Applied, again.Remaining, r.Remaining)
			}
		}
	})
}

func (h *history) verify(r *Result) {
	blocked := map[hsm.KeyRef]bool{}
	for _, b := range r.Blocked {
		blocked[b.Ref] = true
	}
	var undecided []hsm.KeyRef
	for _, ref := range h.twins {
		if !h.decided[ref] {
			undecided = append(undecided, ref)
		} else if h.a.get(0, ref).Object != h.b.get(0, ref).Object && !blocked[ref] {
			h.t.Fatalf("%s was decided on, and differs", ref)
		}
	}
	slices.Sort(undecided)
	switch {
	case !slices.Equal(r.Conflicts, undecided) && len(undecided)+len(r.Conflicts) > 0:
		h.t.Fatalf("conflicts %v; want %v", r.Conflicts, undecided)
	case len(blocked) > 0 && !h.deleted:
		h.t.Fatalf("nobody was deleted, and blocked are %v", r.Blocked)
	case r.RootsEqual != equal(h.a, h.b) || r.RootsEqual != (len(blocked)+len(undecided) == 0):
		h.t.Fatalf("roots equal: %t, in truth: %t; blocked %v, left %v", r.RootsEqual, equal(h.a, h.b), r.Blocked, r.Left)
	}
	for _, ref := range h.keys {
		for _, at := range []*region{h.a, h.b} {
			if got := live(at, ref); got != !h.dead[ref] && !blocked[ref] {
				h.t.Fatalf("key %s is live at %s: %t; destroyed: %t", ref, at.name, got, h.dead[ref])
			}
		}
	}
}
