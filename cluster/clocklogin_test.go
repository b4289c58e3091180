package cluster

import (
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestLoginBesideASlowClock: the ticket of an HSM whose clock is behind has expired for the
// others. Those that wait while it checks the password, as all do when a client opens, take
// the password themselves: else one wrong clock keeps a client from every other HSM.
func TestLoginBesideASlowClock(t *testing.T) {
	w, odd, _ := skewed(t, -tenMinutes, 2, asUser)
	a := newAuth(asUser)
	dial := w.dialer(hsm.RoleNone)
	for _, b := range []*box{odd, w.boxes[0], w.boxes[2]} {
		m, err := dial(t.Context(), b.member)
		if err != nil {
			t.Fatal(err)
		}
		s, err := a.login(t.Context(), m, hsm.Info{ID: b.member.ID}, nil)
		if err != nil {
			t.Fatalf("%s: %v", b.member.Name, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
