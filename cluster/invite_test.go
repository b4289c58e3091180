package cluster

import (
	"slices"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// TestInvitationAfterAJoin: who has joined, and who was removed, a moment ago, is known
// to one HSM only as yet; an invitation made then has the right voters all the same,
// whichever HSM is asked first.
func TestInvitationAfterAJoin(t *testing.T) {
	t.Parallel()
	ca, err := pki.NewAuthority(hsm.Lineage{1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		w := newWorld(t, 3, 2, false)
		for _, b := range w.boxes {
			for _, m := range w.boxes {
				w.change(b.peer(), hsm.Change{Kind: hsm.ChangeMember, Member: &m.member})
			}
		}
		c := w.open(Credential{Role: hsm.RoleAdmin, Name: adminName, Password: secret(adminPassword)})
		c.profile.CA = string(ca.CertPEM()) // the token's; these HSMs are in this process
		joined := hsm.Member{ID: hsm.NewHSMID(), Name: "new", Address: "127.0.0.1:1"}
		w.change(w.boxes[i].peer(), hsm.Change{Kind: hsm.ChangeMember, Member: &joined})
		gone := w.boxes[(i+1)%3].member
		gone.Removed, gone.Leaving = true, true
		w.change(w.boxes[i].peer(), hsm.Change{Kind: hsm.ChangeMember, Member: &gone})
		for range 4 { // begins with another HSM each time
			made, err := c.Invite(t.Context(), time.Hour, 0)
			if err != nil {
				t.Fatalf("HSM %d alone knows: %v", i, err)
			}
			h, _ := w.boxes[i].running()
			invite, err := h.FindInvite(t.Context(), made.ID)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(invite.Voters, joined.ID) || slices.Contains(invite.Voters, gone.ID) || len(invite.Voters) != 3 {
				t.Errorf("voters %v; %s has joined and %s was removed", invite.Voters, joined.ID, gone.ID)
			}
		}
	}
}

// TestVoters: an HSM that is half removed does not vote, so that the token of the one that
// comes in its place is not bound to it.
func TestVoters(t *testing.T) {
	t.Parallel()
	member := func(id hsm.HSMID, leaving, joining, removed bool) hsm.Member {
		return hsm.Member{ID: id, Leaving: leaving, Joining: joining, Removed: removed}
	}
	for name, tc := range map[string]struct {
		members []hsm.Member
		want    []hsm.HSMID
	}{
		"all":                  {[]hsm.Member{member(1, false, false, false), member(2, false, false, false)}, []hsm.HSMID{1, 2}},
		"not the replaced one": {[]hsm.Member{member(1, false, false, false), member(9, false, false, false)}, []hsm.HSMID{1}},
		"nor one that leaves":  {[]hsm.Member{member(1, false, false, false), member(2, true, false, false)}, []hsm.HSMID{1}},
		"unless all leave":     {[]hsm.Member{member(1, true, false, false), member(9, false, false, false)}, []hsm.HSMID{1}},
		"nor who never counts": {[]hsm.Member{member(1, false, false, false), member(2, false, true, false), member(3, false, false, true)}, []hsm.HSMID{1}},
	} {
		var got []hsm.HSMID
		for _, m := range voters(tc.members, 9) {
			got = append(got, m.ID)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// TestWhoHasJoinedSaysSo: an HSM that the others still list as JOINING may have joined,
// and hold keys; it is asked itself before it is removed as one that holds none.
func TestWhoHasJoinedSaysSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 1, false)
	last := w.boxes[2]
	m := last.member
	m.Joining = true
	w.change(w.boxes[0].peer(), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
	c := w.open(Credential{Role: hsm.RoleAdmin, Name: adminName, Password: secret(adminPassword)})
	if !c.hasJoined(t.Context(), m) {
		t.Error("it serves, and is taken for one that has not joined")
	}
	last.kill()
	if c.hasJoined(t.Context(), m) {
		t.Error("it does not answer, and is taken for one that serves")
	}
}
