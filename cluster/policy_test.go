package cluster

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
)

// newZonedWorld is a cluster whose HSMs stand in these zones.
func newZonedWorld(t testing.TB, minCopies, minZones int, zones ...string) *world {
	w := newWorld(t, len(zones), minCopies, false)
	first := w.boxes[0].as(hsm.RoleAdmin, adminName)
	for i, b := range w.boxes {
		b.member.Zone = zones[i]
		w.change(first, hsm.Change{Kind: hsm.ChangeMember, Member: &b.member})
	}
	w.change(first, hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: minCopies, MinZones: minZones}})
	w.sync()
	return w
}

// TestCopiesInZones: enough copies in too few zones are not enough, wherever the
// creation is when the other zone goes away; nothing is left.
func TestCopiesInZones(t *testing.T) {
	tests := map[string]struct {
		away   int // the box that is away; -1: none
		faulty string
		fails  bool
	}{
		"all there":                      {-1, "", false},
		"one of the first zone away":     {0, "", false},
		"the other zone away":            {2, "", true},
		"the other zone does not take":   {-1, "Prepare", true},
		"the other zone does not commit": {-1, "Commit", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newZonedWorld(t, 2, 2, "a", "a", "b")
				c := w.open(asUser)
				if p := c.Policy(); p.MinZones != 2 {
					t.Fatalf("policy %+v; want the settings' zones", p)
				}
				if tt.away >= 0 {
					w.boxes[tt.away].away.Store(true)
				}
				w.setFaults(func(b *box, call string) fault {
					// Commit and Insert of the last box; it cannot be the creator either.
					if b == w.boxes[2] && tt.faulty != "" && (call == tt.faulty || call == "Create" || tt.faulty == "Commit" && call == "Insert") {
						return drop
					}
					return pass
				})
				limit := Policy{}
				if tt.fails {
					limit.Timeout = 300 * time.Millisecond
				}
				made, err := c.Create(t.Context(), aes(), limit)
				if !tt.fails {
					if err != nil || !slices.Contains(made.Coverage, w.boxes[2].member.ID) {
						t.Fatalf("Create: %+v, %v; want a copy in each zone", made, err)
					}
					return
				}
				if !errors.Is(err, ErrMinCopies) || !strings.Contains(err.Error(), "min-zones is 2") || strings.Contains(err.Error(), "\n") {
					t.Fatalf("Create: %v; want ErrMinCopies with min-zones", err)
				}
				c.Close()
				w.converge()
				w.checkNoKeys()
			})
		})
	}
}

func TestZonesOfACallRaiseThePolicy(t *testing.T) {
	w := newZonedWorld(t, 2, 0, "a", "a", "a")
	c := w.open(asUser)
	if _, err := c.Create(t.Context(), aes(), Policy{MinZones: 2}); !errors.Is(err, ErrMinCopies) || !strings.Contains(err.Error(), "nothing was done") {
		t.Errorf("two zones of one: %v", err)
	}
	if _, err := c.Create(t.Context(), aes(), Policy{MinZones: 1}); err != nil {
		t.Errorf("one zone: %v", err)
	}
	if _, err := w.boxes[0].as(hsm.RoleAdmin, adminName).Change(t.Context(), hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 2, MinZones: 3}}); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("more zones than copies: %v; want ErrInvalid", err)
	}
}

// TestPolicyPrecedence: the client's own, the profile's, the settings', the default.
func TestPolicyPrecedence(t *testing.T) {
	settings := hsm.Settings{MinCopies: 3, MinZones: 2, CheckOnUse: true}
	if p := policyOf(hsm.Settings{}, &profile.Profile{}); p != DefaultPolicy {
		t.Errorf("nothing said: %+v", p)
	}
	if p := policyOf(settings, &profile.Profile{}); p.MinCopies != 3 || p.MinZones != 2 || !p.CheckOnUse {
		t.Errorf("settings: %+v", p)
	}
	if p := policyOf(settings, &profile.Profile{MinCopies: 2, MinZones: 1}); p.MinCopies != 2 || p.MinZones != 1 || p.CheckOnUse {
		t.Errorf("profile: %+v", p)
	}
	w := newWorld(t, 1, 3, true)
	if p := w.open(asUser, WithPolicy(Policy{})).Policy(); p.MinCopies != 1 || p.CheckOnUse || p.Timeout != DefaultPolicy.Timeout {
		t.Errorf("own: %+v", p)
	}
}

// TestASettingBeyondTheMembersIsRefusedByName, when the cluster is opened.
func TestASettingBeyondTheMembersIsRefusedByName(t *testing.T) {
	w := newWorld(t, 2, 1, false)
	named := Policy{MinCopies: 3, Setting: "create_object_minimum_nodes in x.cfg"}
	_, err := Open(t.Context(), w.profile(), asUser, WithDialer(w.dialer(hsm.RoleNone)), withTiming(fast), WithPolicy(named))
	if !errors.Is(err, ErrMinCopies) || !strings.Contains(err.Error(), "create_object_minimum_nodes in x.cfg is 3") || !strings.Contains(err.Error(), "2 HSMs") {
		t.Errorf("Open: %v", err)
	}
	named.MinCopies = 2
	c := w.open(asUser, WithPolicy(named))
	w.boxes[1].away.Store(true)
	if _, err := c.Create(t.Context(), aes(), Policy{}); !errors.Is(err, ErrMinCopies) || !strings.Contains(err.Error(), "create_object_minimum_nodes in x.cfg is 2") {
		t.Errorf("Create: %v", err)
	}
}

func TestWarnings(t *testing.T) {
	members := func(zones ...string) (ms []hsm.Member) {
		for _, z := range zones {
			ms = append(ms, hsm.Member{Zone: z})
		}
		return append(ms, hsm.Member{Zone: "gone", Removed: true})
	}
	tests := map[string]struct {
		p       Policy
		members []hsm.Member
		want    []string
	}{
		"nothing to warn of": {Policy{MinCopies: 2}, members("a", "b", "c"), nil},
		"one HSM":            {Policy{MinCopies: 1}, members("a"), []string{"one HSM"}},
		"one HSM, check on":  {DefaultPolicy, members("a"), []string{"one HSM", "no key can be made"}},
		"as many as HSMs":    {Policy{MinCopies: 2}, members("a", "b"), []string{"equals the number of HSMs"}},
		"one copy":           {Policy{MinCopies: 1}, members("a", "b"), []string{"min-copies is 1"}},
		"one zone":           {Policy{MinCopies: 2}, members("a", "a", "a"), []string{"one zone"}},
		"too many zones":     {Policy{MinCopies: 3, MinZones: 3}, members("a", "b", "b", "a"), []string{"min-zones is 3"}},
	}
	for name, tt := range tests {
		got := tt.p.Warnings(tt.members)
		for i := range max(len(got), len(tt.want)) {
			if len(got) != len(tt.want) || !strings.Contains(got[i], tt.want[i]) {
				t.Errorf("%s: %q; want %q", name, got, tt.want)
				break
			}
		}
	}
}

// TestWarnedOnce: in the log when the first key is made, and in the state of the
// cluster.
func TestWarnedOnce(t *testing.T) {
	w := newWorld(t, 2, 2, false)
	log := &logged{}
	c := w.open(asUser, WithLog(slog.New(log)))
	for range 3 {
		mustCreate(t, c, aes())
	}
	if text := log.text(); strings.Count(text, "equals the number of HSMs") != 1 {
		t.Errorf("the log says:\n%s", text)
	}
	info, err := c.Info(t.Context())
	if err != nil || len(info.Warnings) != 1 || !strings.Contains(info.Warnings[0], "equals the number of HSMs") {
		t.Errorf("Info: %+v, %v", info, err)
	}
}

// TestResidueIsVisible until it is settled, which the HSMs do without the client.
func TestResidueIsVisible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 3, false)
		c := w.open(asUser)
		// The client dies when two HSMs hold the key provisionally.
		w.setFaults(func(b *box, call string) fault {
			if slices.Contains([]string{"Commit", "Abort", "Change", "Insert"}, call) || b == w.boxes[2] && slices.Contains([]string{"Create", "Prepare"}, call) {
				return drop
			}
			return pass
		})
		_, err := c.Create(t.Context(), aes(), Policy{})
		var short *CopiesError
		if !errors.As(err, &short) {
			t.Fatalf("Create: %v", err)
		}
		c.Close()
		w.heal()
		look := w.open(Credential{})
		if info, err := look.Info(t.Context()); err != nil || info.InDoubt != 0 || info.Residue == nil || len(info.Residue) != 0 {
			t.Errorf("before the lease is over: %+v, %v", info, err)
		}
		w.ahead.Add(int64(time.Hour))
		info, err := look.Info(t.Context())
		if err != nil || info.InDoubt != 2 || len(info.Residue) != 2 {
			t.Fatalf("in doubt %d, residue %+v, %v; want 2", info.InDoubt, info.Residue, err)
		}
		for i, r := range info.Residue {
			if r.HSM != w.boxes[i].member.ID || len(r.Op) != 32 || !slices.Equal(r.Refs, short.Refs) || r.Since.IsZero() {
				t.Errorf("residue %+v", r)
			}
		}
		w.converge()
		w.checkNoKeys()
		if info, err := look.Info(t.Context()); err != nil || info.InDoubt != 0 || len(info.Residue) != 0 {
			t.Errorf("after it was settled: %+v, %v", info, err)
		}
	})
}

// TestRouting: by default a use never meets an HSM without the key; the routing of
// CloudHSM does, and tells.
func TestRouting(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	w.boxes[2].away.Store(true)
	ref := mustCreate(t, w.open(asUser), aes())
	w.heal()
	uses := func(opts ...Option) (ok, missing int) {
		c := w.open(asUser, opts...)
		w.awaitUp(c)
		for range 3 * stay {
			switch _, err := c.Use(t.Context(), mac(ref)); {
			case err == nil:
				ok++
			case errors.Is(err, hsm.ErrNotFound):
				missing++
			default:
				t.Fatal(err)
			}
		}
		return ok, missing
	}
	if ok, missing := uses(); missing != 0 {
		t.Errorf("routed to holders: %d uses, %d of them without the key", ok+missing, missing)
	}
	if ok, missing := uses(WithRouting(RouteAny)); ok == 0 || missing == 0 {
		t.Errorf("routed to any: %d uses worked, %d met an HSM without the key; want both", ok, missing)
	}
	w.sync()
	if _, missing := uses(WithRouting(RouteAny)); missing != 0 {
		t.Errorf("after server-side sync %d uses met an HSM without the key", missing)
	}
}

// TestUneven lists what is not everywhere, since when, and no more than asked for.
func TestUneven(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	c, look := w.open(asUser), w.open(Credential{})
	began := time.Now().Add(-time.Second)
	var refs []hsm.KeyRef
	for range 3 {
		refs = append(refs, mustCreate(t, c, aes()))
	}
	mustWait(t, c, 0)
	if u, err := look.Uneven(t.Context(), 10); err != nil || u.Total != 0 || len(u.Unasked) != 0 {
		t.Errorf("in sync: %+v, %v", u, err)
	}
	w.boxes[2].away.Store(true)
	_, _ = c.Info(t.Context()) // it notices
	fresh := mustCreate(t, c, aes())
	for kind, ref := range map[hsm.ChangeKind]hsm.KeyRef{hsm.ChangeAttribute: refs[0], hsm.ChangeDestroy: refs[1]} {
		if _, err := c.Change(t.Context(), hsm.Change{Kind: kind, Ref: ref, Name: "label", Value: "new"}); err != nil {
			t.Fatal(err)
		}
	}
	if u, err := look.Uneven(t.Context(), 10); err != nil || u.Total != 0 || !slices.Equal(u.Unasked, []hsm.HSMID{w.boxes[2].member.ID}) {
		t.Errorf("with an HSM away: %+v, %v; want it named, and no guess", u, err)
	}
	w.heal()
	w.awaitUp(look)
	u, err := look.Uneven(t.Context(), 10)
	if err != nil || u.Total != 3 || len(u.Objects) != 3 {
		t.Fatalf("%+v, %v; want 3 objects", u, err)
	}
	for _, o := range u.Objects {
		switch {
		case o.Ref == fresh && !o.Stale && !o.Destroyed && slices.Equal(o.Missing, []hsm.HSMID{w.boxes[2].member.ID}) && len(o.Coverage) == 2:
		case o.Ref == refs[0] && o.Stale && !o.Destroyed && len(o.Missing) == 0:
		case o.Ref == refs[1] && o.Stale && o.Destroyed:
		default:
			t.Errorf("unexpected: %+v", o)
		}
		if o.Since.Before(began) || o.Since.After(time.Now().Add(time.Minute)) {
			t.Errorf("%s since %s", o.Ref, o.Since)
		}
	}
	if u, err := look.Uneven(t.Context(), 1); err != nil || u.Total != 3 || len(u.Objects) != 1 {
		t.Errorf("at most one: %+v, %v", u, err)
	}
	w.converge()
	if u, err := look.Uneven(context.Background(), 10); err != nil || u.Total != 0 {
		t.Errorf("after sync: %+v, %v", u, err)
	}
}
