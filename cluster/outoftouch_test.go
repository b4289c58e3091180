package cluster

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// lonely is an HSM that says that it is out of touch with the others, until met.
type lonely struct {
	hsm.Module
	met *atomic.Bool
}

func (m lonely) Session(ctx context.Context) (hsm.Session, error) {
	s, err := m.Module.Session(ctx)
	return lonelySession{s, m.met}, err
}

type lonelySession struct {
	hsm.Session
	met *atomic.Bool
}

func (s lonelySession) Info(ctx context.Context) (hsm.Info, error) {
	i, err := s.Session.Info(ctx)
	i.OutOfTouch = !s.met.Load()
	return i, err
}

var asEve = Credential{Role: hsm.RoleCryptoUser, Name: "eve", Password: secret("eve-password")}

// openBesideLonely opens the cluster for eve, of whom the last HSM, which is out of touch
// until met, does not know, or it alone.
func (w *world) openBesideLonely(met *atomic.Bool) (*Cluster, error) {
	last, dial := w.boxes[len(w.boxes)-1], w.dialer(hsm.RoleNone)
	return Open(w.t.Context(), w.profile(), asEve, WithDialer(func(ctx context.Context, m hsm.Member) (hsm.Module, error) {
		module, err := dial(ctx, m)
		if m.Address == last.member.Address {
			return lonely{module, met}, err
		}
		time.Sleep(time.Second) // the others are slower
		return module, err
	}))
}

// TestAnHSMOutOfTouchLeavesThePasswordToOthers: it does not know of a user who was made
// meanwhile, and would refuse him for good. Its refusal does not end the login on the
// others, and is not asked for again.
func TestAnHSMOutOfTouchLeavesThePasswordToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 2, true)
		last := w.boxes[2]
		last.kill()
		if _, err := w.open(asAdmin).Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserCreate, User: asEve.Name, Role: asEve.Role, Password: asEve.Password}); err != nil {
			t.Fatal(err)
		}
		last.start()
		var met atomic.Bool
		eve, err := w.openBesideLonely(&met)
		if err != nil {
			t.Fatal(err)
		}
		defer eve.Close()
		time.Sleep(refusalPauses[0] + refusalPauses[1] + time.Minute)
		if n := len(eve.up()); n != 2 {
			t.Errorf("%d HSMs are in use, want 2", n)
		}
		if err := eve.auth.refusal(); err != nil {
			t.Errorf("the login was given up: %v", err)
		}
		if n := last.logins.Load(); n > 1 {
			t.Errorf("the HSM out of touch was shown the password %d times, want once at most", n)
		}
		w.sync()
		met.Store(true)
		w.awaitUp(eve)
	})
}

// TestAnHSMOutOfTouchLogsInAlone: without others nobody is waited for.
func TestAnHSMOutOfTouchLogsInAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 1, false)
		w.change(w.admin(2), hsm.Change{Kind: hsm.ChangeUserCreate, User: asEve.Name, Role: asEve.Role, Password: asEve.Password})
		w.boxes[0].kill()
		w.boxes[1].kill()
		began := time.Now()
		eve, err := w.openBesideLonely(new(atomic.Bool))
		if err != nil {
			t.Fatal(err)
		}
		defer eve.Close()
		if took := time.Since(began); took >= yielding {
			t.Errorf("the login took %s, though the others had failed after a second", took)
		}
	})
}

// TestAnHSMOutOfTouchSetsNoPolicy: one that missed that more copies are wanted does not put
// fewer in force, whenever it is looked at; only while nobody else was heard is it.
func TestAnHSMOutOfTouchSetsNoPolicy(t *testing.T) {
	w := newWorld(t, 1, 1, false)
	c := w.open(asUser)
	old, now := hsm.Info{Settings: hsm.Settings{MinCopies: 1}, OutOfTouch: true}, hsm.Info{Settings: hsm.Settings{MinCopies: 3}}
	c.inTouch = false
	lonely, other := &remote{c: c}, &remote{c: c}
	for i, info := range []hsm.Info{old, now, old, now, old} {
		from := other
		if info.OutOfTouch {
			from = lonely
		}
		c.hearSettings(from, info)
		if want := max(1, min(3, 1+2*i)); c.Policy().MinCopies != want {
			t.Fatalf("after %d: %d copies, want %d", i+1, c.Policy().MinCopies, want)
		}
	}
}

// TestTheLastHSMChangesThePolicy: an admin who lowers the number of copies on the one HSM that
// is left, which is out of touch, is heard by whoever was there before.
func TestTheLastHSMChangesThePolicy(t *testing.T) {
	w := newWorld(t, 1, 1, false)
	c := w.open(asUser)
	left, gone := &remote{c: c}, &remote{c: c}
	two, one := hsm.Settings{MinCopies: 2}, hsm.Settings{MinCopies: 1}
	c.hearSettings(left, hsm.Info{Settings: two})
	c.hearSettings(gone, hsm.Info{Settings: two})
	for _, s := range []hsm.Settings{two, one, one} {
		c.hearSettings(left, hsm.Info{Settings: s, OutOfTouch: true})
		if got := c.Policy().MinCopies; got != s.MinCopies {
			t.Fatalf("%d copies, want %d", got, s.MinCopies)
		}
	}
}
