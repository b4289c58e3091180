package synckey

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func TestEqualClusters(t *testing.T) {
	p := newPair(t)
	r, err := Run(t.Context(), p.src, p.dst, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Seconds <= 0 || !r.RootsEqual || r.Remaining != 0 || r.Applied != 0 || r.RoundTrips != 1 || r.SketchBytes != 0 {
		t.Errorf("equal clusters: %+v", r)
	}
	if r.Src.Root == "" || r.Src.Root != r.Dst.Root || r.Src.HSMs != 2 || r.Lineage != p.a.keyring.Lineage() {
		t.Errorf("source %+v, destination %+v", r.Src, r.Dst)
	}
}

// TestDifferences checks differences of every size with keys new, and that a
// second run finds nothing to do.
func TestDifferences(t *testing.T) {
	p := newPair(t)
	for _, n := range []int{1, 2, 10, 1000} {
		refs := p.a.keys(n)
		before := p.a.root(0)
		r := p.run(t, Options{})
		if r.Missing != n || r.Applied != n || !r.RootsEqual || r.ObjectBytes == 0 {
			t.Errorf("%d new: missing %d, applied %d, roots equal %t", n, r.Missing, r.Applied, r.RootsEqual)
		}
		if n <= 10 && r.RoundTrips != 1 {
			t.Errorf("%d new: %d round trips; want 1", n, r.RoundTrips)
		}
		for _, ref := range refs {
			if p.b.get(0, ref).Object != p.a.get(0, ref).Object || p.b.get(1, ref).Object != p.a.get(0, ref).Object {
				t.Errorf("key %s did not arrive on every HSM", ref)
			}
		}
		if p.a.root(0) != before {
			t.Error("the source has changed")
		}
		if again := p.run(t, Options{}); again.Applied != 0 || again.Missing != 0 || !again.RootsEqual {
			t.Errorf("second run: %+v", again)
		}
	}
}

// outcome is what tests compare of a result.
type outcome struct {
	Missing, Changed, DestroyedAtSrc, DestroyedAtDst, OnlyAtDst, Tombstones, Users, Conflicts, Blocked, Applied, Remaining, Outside int
}

func outcomeOf(r *Result) outcome {
	return outcome{r.Missing, r.Changed, r.DestroyedAtSrc, r.DestroyedAtDst, r.OnlyAtDst, r.Tombstones, r.Users, len(r.Conflicts), len(r.Blocked), r.Applied, r.Remaining, r.Outside}
}

// TestClasses makes one difference at a time and reconciles it under every
// option.
func TestClasses(t *testing.T) {
	tests := []struct {
		name          string
		differ        func(a, b *region, ref hsm.KeyRef)
		class         string
		what          []string
		plain         outcome // without options
		both          outcome // with Both
		bothDestroyed outcome // with Both and Destroyed
	}{
		{name: "new", class: "new", differ: func(a, b *region, _ hsm.KeyRef) { a.key("alice", "n") },
			plain: outcome{Missing: 1, Applied: 1}, both: outcome{Missing: 1, Applied: 1}, bothDestroyed: outcome{Missing: 1, Applied: 1}},
		{name: "changed", class: "changed", what: []string{"label"}, differ: func(a, b *region, k hsm.KeyRef) { a.setLabel(k, "x") },
			plain: outcome{Changed: 1, Applied: 1}, both: outcome{Changed: 1, Applied: 1}, bothDestroyed: outcome{Changed: 1, Applied: 1}},
		{name: "changed on both sides", class: "changed", what: []string{"label", "share/bob"},
			differ: func(a, b *region, k hsm.KeyRef) { a.setLabel(k, "x"); b.share(k, "bob") },
			plain:  outcome{Changed: 1, Applied: 1, Remaining: 1}, both: outcome{Changed: 1, Applied: 2}, bothDestroyed: outcome{Changed: 1, Applied: 2}},
		{name: "changed at the destination", class: "only at destination", what: []string{"label"}, differ: func(a, b *region, k hsm.KeyRef) { b.setLabel(k, "x") },
			plain: outcome{OnlyAtDst: 1, Remaining: 1}, both: outcome{OnlyAtDst: 1, Applied: 1}, bothDestroyed: outcome{OnlyAtDst: 1, Applied: 1}},
		{name: "only at the destination", class: "only at destination", differ: func(a, b *region, _ hsm.KeyRef) { b.key("alice", "n") },
			plain: outcome{OnlyAtDst: 1, Remaining: 1}, both: outcome{OnlyAtDst: 1, Applied: 1}, bothDestroyed: outcome{OnlyAtDst: 1, Applied: 1}},
		{name: "destroyed at the source", class: "destroyed at source", differ: func(a, b *region, k hsm.KeyRef) { a.destroy("alice", k) },
			plain: outcome{DestroyedAtSrc: 1, Remaining: 1}, both: outcome{DestroyedAtSrc: 1, Remaining: 1}, bothDestroyed: outcome{DestroyedAtSrc: 1, Applied: 1}},
		{name: "destroyed at the destination", class: "destroyed at destination", differ: func(a, b *region, k hsm.KeyRef) { b.destroy("alice", k) },
			plain: outcome{DestroyedAtDst: 1, Remaining: 1}, both: outcome{DestroyedAtDst: 1, Remaining: 1}, bothDestroyed: outcome{DestroyedAtDst: 1, Applied: 1}},
		{name: "destroyed and changed", class: "destroyed at source", differ: func(a, b *region, k hsm.KeyRef) { a.destroy("alice", k); b.setLabel(k, "x") },
			plain: outcome{DestroyedAtSrc: 1, Remaining: 1}, both: outcome{DestroyedAtSrc: 1, Remaining: 1}, bothDestroyed: outcome{DestroyedAtSrc: 1, Applied: 1}},
		{name: "tombstone of the source", class: "tombstone of the source", differ: func(a, b *region, _ hsm.KeyRef) { a.destroy("alice", a.key("alice", "n")) },
			plain: outcome{Tombstones: 1, Applied: 1}, both: outcome{Tombstones: 1, Applied: 1}, bothDestroyed: outcome{Tombstones: 1, Applied: 1}},
		{name: "tombstone of the destination", class: "tombstone of the destination", differ: func(a, b *region, _ hsm.KeyRef) { b.destroy("alice", b.key("alice", "n")) },
			plain: outcome{Tombstones: 1, Remaining: 1}, both: outcome{Tombstones: 1, Applied: 1}, bothDestroyed: outcome{Tombstones: 1, Applied: 1}},
		{name: "revived at the source", class: "changed", what: []string{"revived"}, differ: func(a, b *region, k hsm.KeyRef) {
			was := a.get(0, k)
			a.destroy("alice", k)
			b.destroy("alice", k)
			a.revive(was)
		}, plain: outcome{Changed: 1, Applied: 1}, both: outcome{Changed: 1, Applied: 1}, bothDestroyed: outcome{Changed: 1, Applied: 1}},
		{name: "revived and destroyed again at the source", class: "destroyed at source", differ: func(a, b *region, k hsm.KeyRef) {
			was := a.get(0, k)
			a.destroy("alice", k)
			a.revive(was)
			a.destroy("alice", k)
		}, plain: outcome{DestroyedAtSrc: 1, Remaining: 1}, both: outcome{DestroyedAtSrc: 1, Remaining: 1}, bothDestroyed: outcome{DestroyedAtSrc: 1, Applied: 1}},
		{name: "conflict", class: "conflict", differ: func(a, b *region, _ hsm.KeyRef) {
			ref := hsm.NewKeyRef()
			a.put([]hsm.MaskedObject{a.birth(ref, "alice", "one")})
			b.put([]hsm.MaskedObject{b.birth(ref, "alice", "two")})
		}, plain: outcome{Conflicts: 1, Remaining: 1}, both: outcome{Conflicts: 1, Remaining: 1}, bothDestroyed: outcome{Conflicts: 1, Remaining: 1}},
	}
	for _, tt := range tests {
		for name, variant := range map[string]struct {
			o    Options
			want outcome
		}{
			"plain": {Options{}, tt.plain}, "both": {Options{Both: true}, tt.both}, "both destroyed": {Options{Both: true, Destroyed: true}, tt.bothDestroyed},
		} {
			t.Run(tt.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				a := newRegion(t, 1)
				ref := a.keys(2)[0]
				b := a.clone(2)
				tt.differ(a, b, ref)
				p := &pair{a, b, a.open(appliance), b.open(appliance)}
				plan, err := NewPlan(t.Context(), p.src, p.dst, variant.o)
				if err != nil {
					t.Fatal(err)
				}
				before := a.root(0)
				if d := plan.Result.Details; len(d) != 1 || d[0].Class != tt.class || !slices.Equal(d[0].What, tt.what) {
					t.Errorf("details %+v; want %s %v", d, tt.class, tt.what)
				}
				if plan.Result.Remaining != 1 || plan.Result.RootsEqual || len(plan.Result.Left) != variant.want.Remaining {
					t.Errorf("plan: remaining %d, left %v", plan.Result.Remaining, plan.Result.Left)
				}
				r := p.run(t, variant.o)
				if diff := cmp.Diff(variant.want, outcomeOf(r)); diff != "" {
					t.Errorf("-want +got\n%s%+v", diff, r.Left)
				}
				if !variant.o.Both && a.root(0) != before {
					t.Error("the source has changed")
				}
				if r.RootsEqual != equal(a, b) {
					t.Errorf("roots equal: %t, and they are: %t", r.RootsEqual, equal(a, b))
				}
				again := p.run(t, variant.o)
				if again.Applied != 0 || again.Remaining != r.Remaining {
					t.Errorf("second run: applied %d, remaining %d", again.Applied, again.Remaining)
				}
			})
		}
	}
}

func TestNoCommonLineage(t *testing.T) {
	a, b := newRegion(t, 1), newRegion(t, 1)
	_, err := Run(t.Context(), a.open(appliance), b.open(appliance), Options{})
	if !errors.Is(err, hsm.ErrLineage) {
		t.Fatalf("strangers: %v; want ErrLineage", err)
	}
	for _, l := range []hsm.Lineage{a.keyring.Lineage(), b.keyring.Lineage()} {
		if !strings.Contains(err.Error(), l.String()) {
			t.Errorf("error %q does not name %s", err, l)
		}
	}
}

func TestSameCluster(t *testing.T) {
	a := newRegion(t, 1)
	if _, err := Run(t.Context(), a.open(appliance), a.open(appliance), Options{}); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("one cluster on both sides: %v; want ErrInvalid", err)
	}
}

// impostor claims a lineage and cannot prove it.
type impostor struct {
	wired
	sign func(hsm.Purpose, []byte) hsm.LineageSignature
}

func (i impostor) Sign(_ context.Context, p hsm.Purpose, m []byte) (hsm.LineageSignature, error) {
	return i.sign(p, m), nil
}

type impostorModule struct {
	hsm.Module
	b    *box
	sign func(hsm.Purpose, []byte) hsm.LineageSignature
}

func (m impostorModule) Session(ctx context.Context) (hsm.Session, error) {
	s, err := m.Module.Session(ctx)
	return impostor{wired{s, m.b}, m.sign}, err
}

func TestImpostor(t *testing.T) {
	a := newRegion(t, 1)
	b := a.clone(2)
	other := hsm.NewKeyring()
	var overheard hsm.LineageSignature
	tests := map[string]func(hsm.Purpose, []byte) hsm.LineageSignature{
		"no signature":    func(hsm.Purpose, []byte) hsm.LineageSignature { return hsm.LineageSignature{} },
		"another lineage": other.Sign,
		"another message": func(p hsm.Purpose, m []byte) hsm.LineageSignature { return a.keyring.Sign(p, m[1:]) },
		"another purpose": func(_ hsm.Purpose, m []byte) hsm.LineageSignature { return a.keyring.Sign(hsm.PurposeManifest, m) },
		"borrowed key": func(p hsm.Purpose, m []byte) hsm.LineageSignature {
			s := other.Sign(p, m)
			s.Public = a.keyring.Sign(p, m).Public
			return s
		},
		"replayed answer": func(hsm.Purpose, []byte) hsm.LineageSignature { return overheard },
		"answer of a peer": func(p hsm.Purpose, m []byte) hsm.LineageSignature {
			return a.keyring.Sign(p, challengeMessage(m[len(challengeLabel):][:nonceSize], a.boxes[0].id, a.id, b.id))
		},
	}
	overheard = a.keyring.Sign(hsm.PurposeChallenge, challengeMessage(make([]byte, nonceSize), b.boxes[1].id, b.id, a.id))
	for name, sign := range tests {
		t.Run(name, func(t *testing.T) {
			dial := func(ctx context.Context, m hsm.Member) (hsm.Module, error) {
				module, err := b.dial(ctx, m)
				if m.ID != b.boxes[1].id {
					return module, err
				}
				return impostorModule{module, b.boxes[1], sign}, err
			}
			a.key("alice", name)
			for i := range 2 {
				before := b.root(i)
				_, err := Run(t.Context(), a.open(appliance), b.open(appliance, cluster.WithDialer(dial)), Options{})
				if !errors.Is(err, hsm.ErrLineage) || !strings.Contains(err.Error(), "destination") {
					t.Errorf("impostor: %v; want ErrLineage that names the destination", err)
				}
				if b.root(i) != before {
					t.Error("something was inserted all the same")
				}
			}
		})
	}
}

func TestFilter(t *testing.T) {
	tests := map[string]struct {
		filter  []string
		applied int
	}{
		"label":          {[]string{"attr.label=wanted"}, 1},
		"owner":          {[]string{"owner=bob"}, 2}, // one live, one tombstone
		"both":           {[]string{"owner=bob", "attr.label=wanted"}, 0},
		"type":           {[]string{"attr.key-type=aes"}, 3},
		"nothing":        {[]string{"attr.label=nothing"}, 0},
		"before and now": {[]string{"attr.label=old"}, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a := newRegion(t, 1)
			changed := a.key("alice", "old")
			b := a.clone(1)
			a.key("alice", "wanted")
			a.key("bob", "other")
			a.destroy("bob", a.key("bob", "gone"))
			a.setLabel(changed, "new")
			f, err := hsm.ParseFilter(tt.filter)
			if err != nil {
				t.Fatal(err)
			}
			p := &pair{a, b, a.open(appliance), b.open(appliance)}
			r := p.run(t, Options{Filter: f})
			if r.Applied != tt.applied || r.Outside != 4-tt.applied || r.Remaining != 4-tt.applied {
				t.Errorf("applied %d, outside %d, remaining %d: %v", r.Applied, r.Outside, r.Remaining, r.Left)
			}
		})
	}
}

func TestFilterByReference(t *testing.T) {
	p := newPair(t)
	refs := p.a.keys(5)
	r := p.run(t, Options{Filter: hsm.Filter{Refs: refs[1:3]}})
	if r.Missing != 2 || r.Applied != 2 || r.Outside != 3 || r.Remaining != 3 || r.RootsEqual {
		t.Errorf("two of five: %+v", r)
	}
	for i, ref := range refs {
		if got := p.b.get(0, ref).Bytes != nil; got != (i == 1 || i == 2) {
			t.Errorf("key %d is there: %t", i, got)
		}
	}
}

// TestBlocked checks that keys whose users are missing are named, and come with
// their users.
func TestBlocked(t *testing.T) {
	p := newPair(t)
	for _, u := range []string{"carol", "dave", "erin"} {
		p.a.user(u)
	}
	owned := p.a.key("carol", "of carol")
	shared := p.a.birth(hsm.NewKeyRef(), "alice", "shared", "bob", "dave", "erin")
	p.a.put([]hsm.MaskedObject{shared})
	fine := p.a.key("bob", "fine")
	r := p.run(t, Options{})
	if want := (outcome{Missing: 3, Users: 3, Blocked: 2, Applied: 1, Remaining: 5}); outcomeOf(r) != want {
		t.Errorf("got %+v", outcomeOf(r))
	}
	reasons := map[hsm.KeyRef]string{}
	for _, b := range r.Blocked {
		reasons[b.Ref] = b.Reason
	}
	if s := reasons[owned]; !strings.Contains(s, "carol (owner)") {
		t.Errorf("key of carol: %q", s)
	}
	if s := reasons[shared.Ref]; !strings.Contains(s, "dave (shared user), erin (shared user)") || strings.Contains(s, "bob") {
		t.Errorf("shared key: %q", s)
	}
	if p.b.get(0, fine).Bytes == nil || p.b.get(0, owned).Bytes != nil {
		t.Error("the wrong keys arrived")
	}
	r = p.run(t, Options{Users: true})
	if len(r.Blocked) != 0 || !r.RootsEqual || r.Applied != 5 {
		t.Errorf("with users: %+v", r)
	}
	if _, _, err := p.b.boxes[1].soft.Module(hsm.Principal{}).Login(t.Context(), hsm.RoleCryptoUser, "carol", secret(password)); err != nil {
		t.Errorf("carol logs in at the destination: %v", err)
	}
}

func TestBlockedAtTheSource(t *testing.T) {
	p := newPair(t)
	p.b.user("carol")
	p.b.key("carol", "of carol")
	r := p.run(t, Options{Both: true})
	if len(r.Blocked) != 1 || !strings.Contains(r.Blocked[0].Reason, "unknown at the source") || r.Applied != 0 {
		t.Errorf("%+v", r.Blocked)
	}
	if r = p.run(t, Options{Both: true, Users: true}); !r.RootsEqual || r.Applied != 2 {
		t.Errorf("with users: %+v", r)
	}
}

// TestShareWithNobody checks that a share with someone who does not exist where
// the key comes from asks for nobody.
func TestShareWithNobody(t *testing.T) {
	p := newPair(t)
	p.a.put([]hsm.MaskedObject{p.a.birth(hsm.NewKeyRef(), "alice", "k", "ghost")})
	if r := p.run(t, Options{}); !r.RootsEqual || len(r.Blocked) != 0 {
		t.Errorf("%+v", r)
	}
}

func TestPasswordChanged(t *testing.T) {
	logins := func(r *region, pw string) bool {
		_, _, err := r.boxes[0].soft.Module(hsm.Principal{}).Login(t.Context(), hsm.RoleCryptoUser, "bob", secret(pw))
		return err == nil
	}
	t.Run("at the source", func(t *testing.T) {
		p := newPair(t)
		p.a.setPassword("bob", "another-one")
		r := p.run(t, Options{})
		if r.Users != 1 || r.Applied != 0 || r.Remaining != 1 || r.Details[0].Label != "bob" || !slices.Equal(r.Details[0].What, []string{"credential"}) {
			t.Errorf("without users: %+v", r)
		}
		if r = p.run(t, Options{Users: true}); !r.RootsEqual || r.Applied != 1 || !logins(p.b, "another-one") {
			t.Errorf("with users: %+v", r)
		}
	})
	t.Run("at the destination", func(t *testing.T) {
		p := newPair(t)
		p.b.setPassword("bob", "another-one")
		r := p.run(t, Options{Users: true})
		if r.Applied != 0 || r.Remaining != 1 || !strings.Contains(r.Left[0].Reason, "newer one") || !logins(p.b, "another-one") {
			t.Errorf("one way: %+v", r)
		}
		if r = p.run(t, Options{Users: true, Both: true}); !r.RootsEqual || r.Applied != 1 || !logins(p.a, "another-one") {
			t.Errorf("both ways: %+v", r)
		}
	})
}

func TestSettingsTravelWithUsers(t *testing.T) {
	p := newPair(t)
	set := hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 2, CheckOnUse: true}}
	p.a.put([]hsm.MaskedObject{p.a.changeOn(0, hsm.RoleAdmin, admin, set)})
	if r := p.run(t, Options{}); r.Users != 1 || r.Applied != 0 {
		t.Errorf("without users: %+v", r)
	}
	if r := p.run(t, Options{Users: true}); r.Applied != 1 || !r.RootsEqual {
		t.Errorf("with users: %+v", r)
	}
}

func TestDeletedUser(t *testing.T) {
	p := newPair(t)
	p.a.deleteUser("bob")
	if r := p.run(t, Options{Users: true}); r.Users != 1 || r.Applied != 0 || r.Remaining != 1 || !strings.Contains(r.Left[0].Reason, "--destroyed") {
		t.Errorf("without destroyed: %+v", r)
	}
	kept := p.b.key("bob", "made since")
	r := p.run(t, Options{Users: true, Destroyed: true})
	if len(r.Blocked) != 1 || !strings.Contains(r.Blocked[0].Reason, "still owns 1 keys") || r.Applied != 0 || r.Remaining != 2 {
		t.Errorf("bob owns a key: %+v", r)
	}
	r = p.run(t, Options{Users: true, Destroyed: true, Both: true})
	if len(r.Blocked) != 2 || r.Applied != 0 { // and the key is blocked at the source
		t.Errorf("bob owns a key, both ways: %+v", r)
	}
	p.b.destroy("bob", kept)
	if r = p.run(t, Options{Users: true, Destroyed: true, Both: true}); !r.RootsEqual || r.Applied != 2 {
		t.Errorf("bob owns no key: %+v", r)
	}
}

// TestUserDeletedWithKeys checks that a user's keys are destroyed before the
// user goes.
func TestUserDeletedWithKeys(t *testing.T) {
	a := newRegion(t, 1)
	ref := a.key("bob", "k")
	b := a.clone(2)
	a.destroy("bob", ref)
	a.deleteUser("bob")
	p := &pair{a, b, a.open(appliance), b.open(appliance)}
	if r := p.run(t, Options{Users: true, Destroyed: true}); !r.RootsEqual || r.Applied != 2 || len(r.Blocked) != 0 {
		t.Errorf("%+v", r)
	}
}

// TestUneven checks clusters whose HSMs differ among themselves.
func TestUneven(t *testing.T) {
	t.Run("a key on one HSM of the source only", func(t *testing.T) {
		p := newPair(t)
		one, two := p.a.key("alice", "one", 0), p.a.key("alice", "two", 1)
		r := p.run(t, Options{})
		if r.Missing != 2 || r.Applied != 2 || r.Settling != 0 || r.RoundTrips != 2 {
			t.Errorf("%+v", r)
		}
		if p.b.get(1, one).Bytes == nil || p.b.get(0, two).Bytes == nil {
			t.Error("a key was missed")
		}
		if r.RootsEqual || r.Remaining != 2 || !strings.Contains(r.Left[0].Reason, "HSMs of the source do not agree yet") {
			t.Errorf("the source's HSMs differ still, and the result is %+v", r)
		}
		p.a.sync()
		if r = p.run(t, Options{}); !r.RootsEqual || r.Applied != 0 {
			t.Errorf("settled: %+v", r)
		}
	})
	t.Run("a key on one HSM of the destination only", func(t *testing.T) {
		p := newPair(t)
		m := p.a.birth(hsm.NewKeyRef(), "alice", "k")
		p.a.put([]hsm.MaskedObject{m})
		p.b.put([]hsm.MaskedObject{m}, 1)
		r := p.run(t, Options{})
		if r.Missing != 0 || r.OnlyAtDst != 0 || r.Settling != 1 || r.Applied != 1 || !r.RootsEqual {
			t.Errorf("%+v", r)
		}
	})
	t.Run("two changes on two HSMs of the source", func(t *testing.T) {
		a := newRegion(t, 2)
		ref := a.keys(1)[0]
		b := a.clone(2)
		a.setLabel(ref, "x", 0)
		a.put([]hsm.MaskedObject{a.changeOn(1, hsm.RoleCryptoUser, "alice", hsm.Change{Kind: hsm.ChangeShare, Ref: ref, User: "bob"})}, 1)
		p := &pair{a, b, a.open(appliance), b.open(appliance)}
		r := p.run(t, Options{})
		if r.Changed != 1 || !slices.Equal(r.Details[0].What, []string{"label", "share/bob"}) {
			t.Errorf("%+v", r.Details)
		}
		a.sync()
		if !equal(a, b) {
			t.Error("the destination does not hold both changes")
		}
	})
	t.Run("two births in one cluster", func(t *testing.T) {
		p := newPair(t)
		ref := hsm.NewKeyRef()
		p.a.put([]hsm.MaskedObject{p.a.birth(ref, "alice", "one")}, 0)
		p.a.put([]hsm.MaskedObject{p.a.birth(ref, "alice", "two")}, 1)
		r := p.run(t, Options{Both: true})
		if !slices.Equal(r.Conflicts, []hsm.KeyRef{ref}) || r.Applied != 0 || p.b.get(0, ref).Bytes != nil {
			t.Errorf("%+v", r)
		}
	})
	t.Run("all four differ", func(t *testing.T) {
		p := newPair(t)
		for i := range 2 {
			for range 3 {
				p.a.key("alice", "a", i)
				p.b.key("alice", "b", i)
			}
		}
		r := p.run(t, Options{Both: true})
		if r.Missing != 6 || r.OnlyAtDst != 6 || r.Applied != 12 {
			t.Errorf("%+v", r)
		}
		p.a.sync()
		p.b.sync()
		if !equal(p.a, p.b) {
			t.Error("roots differ")
		}
	})
}

// TestCheckWaits checks that Check waits for server-side sync.
func TestCheckWaits(t *testing.T) {
	p := newPair(t)
	p.a.key("alice", "k", 0)
	plan, err := NewPlan(t.Context(), p.src, p.dst, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	looked := make(chan struct{}, 100)
	p.a.boxes[1].onCall(func(method string) error {
		if method == "Root" {
			looked <- struct{}{}
		}
		return nil
	})
	go func() { done <- plan.Check(t.Context()) }()
	<-looked // the first look has begun; the source settles meanwhile
	p.a.sync()
	if err := <-done; err != nil || !plan.Result.RootsEqual {
		t.Errorf("after server-side sync: %v, %+v", err, plan.Result.Left)
	}
}

func TestRights(t *testing.T) {
	setUp := func(t *testing.T) (a, b *region) {
		a = newRegion(t, 2)
		gone := a.key("alice", "gone")
		a.key("bob", "shared by all")
		b = a.clone(2)
		a.key("alice", "of alice")
		a.key("bob", "of bob")
		a.destroy("alice", gone)
		b.key("bob", "of bob, later")
		return a, b
	}
	tests := []struct {
		src, dst string
		want     outcome
		err      error
	}{
		{src: appliance, dst: appliance, want: outcome{Missing: 2, DestroyedAtSrc: 1, OnlyAtDst: 1, Applied: 3, Remaining: 1}},
		{src: admin, dst: admin, want: outcome{Missing: 2, DestroyedAtSrc: 1, OnlyAtDst: 1, Applied: 3, Remaining: 1}},
		{src: appliance, dst: admin, want: outcome{Missing: 2, DestroyedAtSrc: 1, OnlyAtDst: 1, Applied: 3, Remaining: 1}},
		{src: "alice", dst: "alice", want: outcome{Missing: 1, DestroyedAtSrc: 1, Applied: 2}},
		{src: "alice", dst: appliance, want: outcome{Missing: 1, DestroyedAtSrc: 1, Applied: 2}},
		{src: admin, dst: "alice", want: outcome{Missing: 1, DestroyedAtSrc: 1, Applied: 2}},
		{src: "bob", dst: "bob", want: outcome{Missing: 1, OnlyAtDst: 1, Applied: 1, Remaining: 1}},
		{src: "alice", dst: "bob", err: hsm.ErrDenied},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%q to %q", tt.src, tt.dst), func(t *testing.T) {
			t.Parallel()
			a, b := setUp(t)
			src, dst := a.open(tt.src), b.open(tt.dst)
			r, err := run(t.Context(), src, dst, Options{Destroyed: true})
			if !errors.Is(err, tt.err) {
				t.Fatalf("%v; want %v", err, tt.err)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(tt.want, outcomeOf(r)); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			if err := check(r); err != nil {
				t.Error(err)
			}
			if r, err = run(t.Context(), src, dst, Options{Destroyed: true, Both: true}); err != nil || !r.RootsEqual {
				t.Errorf("both ways: %v, %+v", err, r)
			}
		})
	}
}

func TestUsersTakeAnAdmin(t *testing.T) {
	a := newRegion(t, 1)
	b := a.clone(1)
	if _, err := NewPlan(t.Context(), a.open("alice"), b.open(admin), Options{Users: true}); !errors.Is(err, hsm.ErrDenied) || !strings.Contains(err.Error(), "alice") {
		t.Errorf("a crypto user takes users along: %v; want ErrDenied", err)
	}
}

// TestChains checks that clones of clones, siblings and old clones all
// reconcile, by lineage.
func TestChains(t *testing.T) {
	a := newRegion(t, 2)
	a.keys(3)
	old := a.clone(1)
	a.keys(10)
	b := a.clone(2)
	b.keys(1)
	c := b.clone(1)
	c.keys(2)
	all := []*region{a, old, b, c}
	connections := make([]*cluster.Cluster, len(all))
	for i, r := range all {
		connections[i] = r.open(appliance)
	}
	for _, hop := range [][2]int{{0, 1}, {1, 2}, {2, 3}, {3, 0}, {0, 1}, {1, 2}} {
		if r, err := run(t.Context(), connections[hop[0]], connections[hop[1]], Options{Both: true}); err != nil || !r.RootsEqual {
			t.Fatalf("%d to %d: %v, %+v", hop[0], hop[1], err, r)
		}
	}
	for _, r := range all[1:] {
		if !equal(a, r) {
			t.Error("a clone differs")
		}
	}
}

// TestRefetch checks a plan that keeps nothing in memory, and that it destroys
// nothing that it did not show.
func TestRefetch(t *testing.T) {
	p := newPair(t)
	refs := p.a.keys(6)
	changed, removed := refs[:3], refs[3:]
	p.run(t, Options{})
	for _, ref := range refs {
		p.a.setLabel(ref, "new")
	}
	for _, o := range []Options{{}, {Destroyed: true}} {
		plan, err := NewPlan(t.Context(), p.src, p.dst, o)
		if err != nil {
			t.Fatal(err)
		}
		plan.settle = 0
		clear(plan.forth.steps.kept)
		if !o.Destroyed {
			for _, ref := range removed {
				p.a.destroy("alice", ref)
			}
		}
		if err := plan.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := plan.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, ref := range changed {
			if p.b.get(0, ref).Object != p.a.get(0, ref).Object {
				t.Errorf("key %s did not arrive", ref)
			}
		}
		if got := p.b.get(0, removed[0]).Tombstone; got != o.Destroyed {
			t.Errorf("destroyed: %t, options %+v", got, o)
		}
		if want := map[bool]int{true: 0, false: 3}[o.Destroyed]; plan.Result.Remaining != want {
			t.Errorf("remaining %d, want %d: %v", plan.Result.Remaining, want, plan.Result.Left)
		}
	}
}

func TestHeldIsBounded(t *testing.T) {
	room := 100
	s := newSteps(&room)
	for i := range 10 {
		s.add(phaseKeys, hsm.KeyRef(i+1), &held{record: &hsm.Record{}, masked: []hsm.MaskedObject{{Bytes: make([]byte, 30)}}})
	}
	if len(s.kept) != 3 || s.len() != 10 {
		t.Errorf("kept %d of %d", len(s.kept), s.len())
	}
}

func TestProgress(t *testing.T) {
	p := newPair(t)
	p.a.keys(3)
	p.b.keys(2)
	var calls []int64
	r := p.run(t, Options{Both: true, Progress: func(done, total, bytes int64) {
		if calls = append(calls, done); total != 5 || bytes <= 0 {
			t.Errorf("%d of %d, %d bytes", done, total, bytes)
		}
	}})
	if !slices.Equal(calls, []int64{3, 5}) || r.Applied != 5 {
		t.Errorf("progress %v", calls)
	}
}

// TestJSON pins the field names that CLI.md promises.
func TestJSON(t *testing.T) {
	p := newPair(t)
	r := p.run(t, Options{})
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lineage", "src", "dst", "missing", "changed", "destroyed_at_src", "only_at_dst", "conflicts", "blocked", "applied",
		"remaining", "sketch_bytes", "object_bytes", "round_trips", "roots_equal", "seconds"} {
		if _, ok := fields[name]; !ok {
			t.Errorf("no field %s in %v", name, slices.Sorted(maps.Keys(fields)))
		}
	}
	for _, list := range []string{"conflicts", "blocked"} {
		if _, ok := fields[list].([]any); !ok {
			t.Errorf("%s is %v; want a list", list, fields[list])
		}
	}
}
