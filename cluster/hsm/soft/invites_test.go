package soft

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// voters are HSMs of one cluster that vote on invitations.
type voters struct {
	hsms  []*HSM
	clock *clock
}

func newVoters(t testing.TB, n int) *voters {
	t.Helper()
	v := &voters{clock: newClock()}
	first := testOptions(vfs.NewMem())
	for range n {
		o := first
		o.FS, o.ID, o.Now = vfs.NewMem(), hsm.NewHSMID(), v.clock.Now
		v.hsms = append(v.hsms, withUser(t, open(t, o)))
	}
	for _, h := range v.hsms {
		for _, m := range v.hsms {
			apply(t, peer(t, h), hsm.Change{Kind: hsm.ChangeMember, Member: &hsm.Member{ID: m.opts.ID, Name: "n", Address: "127.0.0.1:1"}})
		}
	}
	return v
}

func (v *voters) ids() (ids []hsm.HSMID) {
	for _, h := range v.hsms {
		ids = append(ids, h.opts.ID)
	}
	return ids
}

func (v *voters) invite(t testing.TB) *hsm.Invite {
	t.Helper()
	i := &hsm.Invite{ID: hsm.NewInviteID(), Key: [32]byte{1}, Expires: v.clock.Now().Add(time.Hour), Voters: v.ids()}
	for _, h := range v.hsms {
		apply(t, login(t, h, "admin"), hsm.Change{Kind: hsm.ChangeInvite, Invite: i})
	}
	return i
}

func (v *voters) vote(t testing.TB, h *HSM, i *hsm.Invite, c hsm.Claim) error {
	t.Helper()
	_, err := peer(t, h).Change(t.Context(), hsm.Change{Kind: hsm.ChangeClaim, Ref: hsm.InviteRef(i.ID), Claim: &c})
	return err
}

// sync brings what one HSM holds of the cluster to another.
func sync1(t testing.TB, from, to *HSM) {
	t.Helper()
	a, b := peer(t, from).Scoped(hsm.ScopeCluster), peer(t, to).Scoped(hsm.ScopeCluster)
	var refs []hsm.KeyRef
	for o, err := range a.Objects(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, o.Ref)
	}
	if _, err := b.Insert(t.Context(), a.Extract(t.Context(), slices.Values(refs))); err != nil {
		t.Fatal(err)
	}
}

// TestAVoteIsForOneJoiner: the first claim is recorded, also over a restart; the
// same one again is fine; another is refused, as is any after the expiry.
func TestAVoteIsForOneJoiner(t *testing.T) {
	v := newVoters(t, 1)
	h, i := v.hsms[0], v.invite(t)
	first, second := hsm.Claim{Joiner: 7, Proof: [32]byte{7}}, hsm.Claim{Joiner: 7, Proof: [32]byte{8}}
	for range 2 {
		if err := v.vote(t, h, i, first); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = open(t, h.opts)
	if err := v.vote(t, h, i, second); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("another joiner's keys: %v, want ErrDenied", err)
	}
	got, err := h.Invite(t.Context(), i.ID)
	if err != nil || !got.Won(first) || got.Won(second) {
		t.Errorf("%+v, %v", got, err)
	}
	late := v.invite2(t, h)
	v.clock.advance(2 * time.Hour)
	if err := v.vote(t, h, late, first); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("after the expiry: %v, want ErrDenied", err)
	}
	if _, err := h.Invite(t.Context(), i.ID); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("after the expiry: %v, want ErrDenied", err)
	}
	if err := v.vote(t, h, &hsm.Invite{ID: hsm.NewInviteID()}, first); !errors.Is(err, hsm.ErrNotFound) {
		t.Errorf("of an unknown one: %v, want ErrNotFound", err)
	}
}

func (v *voters) invite2(t testing.TB, h *HSM) *hsm.Invite {
	t.Helper()
	i := &hsm.Invite{ID: hsm.NewInviteID(), Key: [32]byte{2}, Expires: v.clock.Now().Add(time.Hour), Voters: []hsm.HSMID{h.opts.ID}}
	apply(t, login(t, h, "admin"), hsm.Change{Kind: hsm.ChangeInvite, Invite: i})
	return i
}

// TestATokenHasOneWinner: whatever the order of votes and syncs, at most one of
// several claims ever has the majority, and it keeps it.
func TestATokenHasOneWinner(t *testing.T) {
	v := newVoters(t, 4) // the fourth has no vote
	claims := []hsm.Claim{{Joiner: 1, Proof: [32]byte{1}}, {Joiner: 2, Proof: [32]byte{2}}, {Joiner: 1, Proof: [32]byte{3}}}
	rapid.Check(t, func(rt *rapid.T) {
		i := &hsm.Invite{ID: hsm.NewInviteID(), Key: [32]byte{1}, Expires: v.clock.Now().Add(time.Hour), Voters: v.ids()[:3]}
		for _, h := range v.hsms {
			apply(t, login(t, h, "admin"), hsm.Change{Kind: hsm.ChangeInvite, Invite: i})
		}
		var winner *hsm.Claim
		for range rapid.IntRange(1, 20).Draw(rt, "steps") {
			a, b := rapid.IntRange(0, 3).Draw(rt, "a"), rapid.IntRange(0, 3).Draw(rt, "b")
			if rapid.Bool().Draw(rt, "votes") {
				c := claims[rapid.IntRange(0, 2).Draw(rt, "claim")]
				if err := v.vote(t, v.hsms[a], i, c); err != nil && !errors.Is(err, hsm.ErrDenied) {
					rt.Fatal(err)
				}
			} else {
				sync1(t, v.hsms[a], v.hsms[b])
			}
			for _, h := range v.hsms {
				got, err := h.Invite(t.Context(), i.ID)
				if err != nil {
					rt.Fatal(err)
				}
				for _, c := range claims {
					if !got.Won(c) {
						continue
					}
					if winner != nil && *winner != c {
						rt.Fatalf("%v and %v have both won", *winner, c)
					}
					winner = &c
				}
			}
		}
	})
}

func TestInvitationsThatMakeNoSense(t *testing.T) {
	v := newVoters(t, 2)
	h := v.hsms[0]
	good := hsm.Invite{ID: hsm.NewInviteID(), Key: [32]byte{1}, Expires: v.clock.Now().Add(time.Hour), Voters: v.ids()}
	for name, change := range map[string]func(*hsm.Invite){
		"no id":              func(i *hsm.Invite) { i.ID = hsm.InviteID{} },
		"no key":             func(i *hsm.Invite) { i.Key = [32]byte{} },
		"expired":            func(i *hsm.Invite) { i.Expires = v.clock.Now() },
		"too long":           func(i *hsm.Invite) { i.Expires = v.clock.Now().Add(365 * 24 * time.Hour) },
		"no voters":          func(i *hsm.Invite) { i.Voters = nil },
		"a voter twice":      func(i *hsm.Invite) { i.Voters = append(v.ids(), v.ids()[0]) },
		"a voter from afar":  func(i *hsm.Invite) { i.Voters = []hsm.HSMID{hsm.NewHSMID()} },
		"other than it was ": func(i *hsm.Invite) {},
	} {
		i, want := good, hsm.ErrInvalid
		if change(&i); i.ID == good.ID && name[0] == 'o' {
			apply(t, login(t, h, "admin"), hsm.Change{Kind: hsm.ChangeInvite, Invite: &good})
			i.Voters, want = v.ids()[:1], hsm.ErrExist
		}
		if name == "a voter from afar" {
			want = hsm.ErrNotFound // other HSMs may know it
		}
		if _, err := login(t, h, "admin").Change(t.Context(), hsm.Change{Kind: hsm.ChangeInvite, Invite: &i}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	for _, s := range []hsm.Session{login(t, h, "alice"), peer(t, h)} {
		if _, err := s.Change(t.Context(), hsm.Change{Kind: hsm.ChangeInvite, Invite: &good}); !errors.Is(err, hsm.ErrDenied) {
			t.Errorf("%v invites: %v, want ErrDenied", s.Principal(), err)
		}
	}
	if _, err := login(t, h, "admin").Change(t.Context(), hsm.Change{Kind: hsm.ChangeClaim, Ref: hsm.InviteRef(good.ID), Claim: &hsm.Claim{Joiner: 1}}); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("an admin claims: %v, want ErrDenied", err)
	}
}

// TestMembersGoOneWay: nobody comes back after its removal, and only an HSM itself
// says that it has joined; an old state that comes late changes neither.
func TestMembersGoOneWay(t *testing.T) {
	v := newVoters(t, 2)
	a, b := v.hsms[0], v.hsms[1]
	m := hsm.Member{ID: hsm.NewHSMID(), Name: "new", Address: "127.0.0.1:9", Joining: true}
	member := func(s hsm.Session, m hsm.Member) error {
		_, err := s.Change(t.Context(), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
		return err
	}
	if err := member(peer(t, a), m); err != nil {
		t.Fatal(err)
	}
	sync1(t, a, b)
	joined := m
	joined.Joining = false
	if err := member(login(t, a, "admin"), joined); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("an admin says it has joined: %v, want ErrDenied", err)
	}
	if err := member(peer(t, a), joined); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("another HSM says it has joined: %v, want ErrDenied", err)
	}
	self := a.newSession(hsm.Principal{Role: hsm.RoleHSM, Name: m.ID.String()})
	if err := member(self, joined); err != nil {
		t.Fatal(err)
	}
	v.clock.advance(time.Minute)
	moved := m // joining, with a later stamp than "joined"
	moved.Address = "127.0.0.1:10"
	if err := member(peer(t, b), moved); err != nil {
		t.Fatal(err)
	}
	removed := joined
	removed.Removed = true
	if err := member(login(t, a, "admin"), removed); err != nil {
		t.Fatal(err)
	}
	sync1(t, b, a)
	if err := member(self, joined); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("it comes back: %v, want ErrDenied", err)
	}
	sync1(t, a, b)
	for _, h := range v.hsms {
		list, err := h.members()
		at := slices.IndexFunc(list, func(x hsm.Member) bool { return x.ID == m.ID })
		if err != nil || at < 0 || !list[at].Removed || list[at].Joining || list[at].Address != "127.0.0.1:10" {
			t.Errorf("%+v, %v", list, err)
		}
		if at >= 0 && list[at].RemovedAt != v.clock.Now().UnixMilli() {
			t.Errorf("removed at %d, want %d", list[at].RemovedAt, v.clock.Now().UnixMilli())
		}
	}
}

// TestRevocationsOnlyGrow: the later moment stands, whatever the order.
func TestRevocationsOnlyGrow(t *testing.T) {
	v := newVoters(t, 1)
	h := v.hsms[0]
	early, late := v.clock.Now(), v.clock.Now().Add(time.Minute)
	for _, until := range []time.Time{late, early} {
		apply(t, login(t, h, "admin"), hsm.Change{Kind: hsm.ChangeRevoke, Revoked: &hsm.Revocation{Kind: "client", Name: "app", Until: until}})
	}
	got, err := h.Revocations(t.Context())
	if err != nil || len(got) != 1 || !got[0].Until.Equal(late) || got[0].Kind != "client" || got[0].Name != "app" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := login(t, h, "alice").Change(t.Context(), hsm.Change{Kind: hsm.ChangeRevoke, Revoked: &hsm.Revocation{Kind: "client", Name: "b", Until: late}}); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("a crypto user revokes: %v, want ErrDenied", err)
	}
}

// TestADoubtStays: an admin whose knowledge of a member is from before it was set
// back does not take back that it was.
func TestADoubtStays(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	m := hsm.Member{ID: hsm.NewHSMID(), Name: "n", Address: "127.0.0.1:1"}
	for _, doubt := range []int64{0, 7, 0, 5} {
		m.Doubt, m.Leaving = doubt, !m.Leaving
		apply(t, login(t, h, "admin"), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
	}
	for _, got := range must[[]hsm.Member](t)(h.members()) {
		if got.ID == m.ID && (got.Doubt != 7 || got.Leaving) {
			t.Fatalf("%+v", got)
		}
	}
}
