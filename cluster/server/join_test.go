package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
)

// invite makes a token, as an admin's client does. The first HSMs are its voters;
// all that are up get to know it.
func (w *world) invite(life time.Duration, voters ...*box) *pki.Token {
	w.t.Helper()
	return w.inviteFor(0, life, voters...)
}

func (w *world) inviteFor(replaces hsm.HSMID, life time.Duration, voters ...*box) *pki.Token {
	w.t.Helper()
	var addresses []string
	for _, b := range w.up() {
		addresses = append(addresses, b.server.Address())
	}
	token, err := pki.NewToken(w.profile.ID, []byte(w.profile.CA), time.Now().Add(life), addresses)
	if err != nil {
		w.t.Fatal(err)
	}
	i := &hsm.Invite{ID: token.Invite, Key: token.Key(), Expires: token.Expires, Replaces: replaces}
	for _, b := range voters {
		i.Voters = append(i.Voters, b.id())
	}
	for _, b := range w.up() {
		if _, err := b.root().Change(w.t.Context(), hsm.Change{Kind: hsm.ChangeInvite, Invite: i}); err != nil {
			w.t.Fatal(err)
		}
	}
	return token
}

func (w *world) joinSpec(token *pki.Token, name string) JoinSpec {
	return JoinSpec{Token: token.Text(), Dir: filepath.Join(filepath.Dir(w.boxes[0].folder), name), Address: "127.0.0.1:0", Version: "test", Log: w.log}
}

// join makes the folder of a new HSM and returns it, not started. While voters are not
// connected it says so, and is tried again, as whoever runs it does.
func (w *world) join(token *pki.Token, name string) *box {
	w.t.Helper()
	spec := w.joinSpec(token, name)
	w.eventually("too few HSMs vote", func() bool {
		_, err := Join(w.t.Context(), spec)
		if err != nil && !errors.Is(err, hsm.ErrUnavailable) {
			w.t.Fatal(err)
		}
		return err == nil
	})
	b := &box{w: w, folder: spec.Dir}
	w.boxes = append(w.boxes, b)
	return b
}

// member returns what an HSM knows of another.
func (b *box) member(id hsm.HSMID) hsm.Member {
	b.w.t.Helper()
	members, err := b.self().Members(b.w.t.Context())
	if err != nil {
		b.w.t.Fatal(err)
	}
	for _, m := range members {
		if m.ID == id {
			return m
		}
	}
	return hsm.Member{}
}

// TestAnHSMJoins: it has every key before it counts, and then is a member like the
// others: it takes part in sync, and makes keys that the others get.
func TestAnHSMJoins(t *testing.T) {
	w := newWorld(t, 2)
	w.createAlice()
	alice := w.boxes[0].alice()
	for range 20 {
		w.createKey(alice, "before")
	}
	b := w.join(w.invite(time.Hour, w.boxes...), "new")
	c, err := LoadConfig(b.folder)
	if err != nil {
		t.Fatal(err)
	}
	if m := w.boxes[0].member(c.ID); !m.Joining || m.Name != "hsm-3" || m.Zone != "zone-3" {
		t.Errorf("before it has run: %+v, want a member that is joining", m)
	}
	b.start()
	w.eventually("it does not join", func() bool { return b.info().State != hsm.StateJoining })
	if info := b.info(); info.State != hsm.StateActive || info.Keys != 20 {
		t.Errorf("it serves with %+v", info)
	}
	w.eventually("the others do not know that it has joined", func() bool {
		return w.boxes[0].member(c.ID).Counts() && w.boxes[1].member(c.ID).Counts()
	})
	w.createKey(b.alice(), "after")
	w.converge()
	if info := w.boxes[1].info(); info.Keys != 21 {
		t.Errorf("%d keys, want 21", info.Keys)
	}
	if _, err := os.Stat(b.folder + "/" + pendingFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the joiner's keys are still there: %v", err)
	}
}

// TestAnHSMThatJoinsServesNobody before it has every key, whoever asks it.
func TestAnHSMThatJoinsServesNobody(t *testing.T) {
	w := newWorld(t, 1)
	b := w.join(w.invite(time.Hour, w.boxes...), "new")
	w.boxes[0].stop() // nobody is left to get keys from
	s, err := Open(t.Context(), b.folder, b.options())
	if err != nil {
		t.Fatal(err)
	}
	b.serve(s)
	w.eventually("it is not tried", func() bool { return s.sync.caughtUp() })
	if info := b.info(); info.State != hsm.StateJoining {
		t.Errorf("state %s, want JOINING", info.State)
	}
	module := b.dial(w.profile.ClientPath())
	if _, _, err := module.Login(t.Context(), hsm.RoleNone, "root", secret(rootPassword)); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), "JOINING") {
		t.Errorf("a login: %v, want ErrUnavailable", err)
	}
	appliance := b.appliance()
	if _, err := appliance.Root(t.Context()); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("an appliance reads: %v, want ErrUnavailable", err)
	}
	w.boxes[0].start()
	w.eventually("it does not join", func() bool { return b.info().State == hsm.StateActive })
}

// TestATokenIsGoodOnce: whoever comes second gets nothing, and leaves nothing.
func TestATokenIsGoodOnce(t *testing.T) {
	w := newWorld(t, 2)
	token := w.invite(time.Hour, w.boxes...)
	w.join(token, "first").start()
	spec := w.joinSpec(token, "second")
	_, err := Join(t.Context(), spec)
	if !errors.Is(err, ErrTokenRefused) || !errors.Is(err, hsm.ErrDenied) || !strings.Contains(err.Error(), "was used by hsm-") {
		t.Errorf("%v, want ErrTokenRefused", err)
	}
	w.nothingLeft(spec.Dir)
	if members, _ := w.boxes[0].self().Members(t.Context()); len(members) != 3 {
		t.Errorf("%d members, want 3", len(members))
	}
}

// nothingLeft checks that a refused join leaves no folder.
func (w *world) nothingLeft(dir string) {
	w.t.Helper()
	left, err := filepath.Glob(filepath.Join(filepath.Dir(dir), ".*"+filepath.Base(dir)+"*"))
	if _, statErr := os.Stat(dir); err != nil || len(left) > 0 || statErr == nil {
		w.t.Errorf("left: %v %v", left, statErr)
	}
}

// TestTwoJoinsAtOnce: of several joiners with one token, asking different HSMs at
// the same moment, at most one gets in, and no other is ever a member.
func TestTwoJoinsAtOnce(t *testing.T) {
	w := newWorld(t, 3)
	for round := range 4 {
		token := w.invite(time.Hour, w.boxes[:3]...)
		var mu sync.Mutex
		var in []hsm.HSMID
		var g sync.WaitGroup
		for i := range 3 {
			one := *token
			one.Addresses = []string{w.boxes[i].server.Address()}
			spec := w.joinSpec(&one, strings.Repeat("x", 3*round+i+1))
			g.Go(func() {
				c, err := Join(t.Context(), spec)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					in = append(in, c.ID)
				} else if !errors.Is(err, hsm.ErrDenied) && !errors.Is(err, hsm.ErrUnavailable) {
					t.Errorf("refused with %v", err)
				}
			})
		}
		g.Wait()
		w.converge()
		members, err := w.boxes[0].self().Members(t.Context())
		if err != nil || len(in) > 1 {
			t.Fatalf("%v have joined with one token, %v", in, err)
		}
		for _, m := range members {
			if m.Removed {
				continue
			}
			if m.Joining && len(in) == 0 {
				t.Errorf("%s is a member, and nobody has joined", m.ID)
			}
			if m.Joining && m.ID != in[0] {
				t.Errorf("%s is a member too", m.ID)
			}
		}
		for _, id := range in { // the next round has the same voters, and no leftovers
			m := w.boxes[0].member(id)
			m.Removed = true
			if _, err := w.boxes[0].root().Change(t.Context(), hsm.Change{Kind: hsm.ChangeMember, Member: &m}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestTokensThatAreOfNoUse(t *testing.T) {
	w := newWorld(t, 1)
	expired := w.invite(4*time.Second, w.boxes...) // they have taken it by then
	w.eventually("the token does not expire", func() bool { return time.Now().After(expired.Expires.Add(time.Second)) })
	unknown, err := pki.NewToken(w.profile.ID, []byte(w.profile.CA), time.Now().Add(time.Hour), []string{w.boxes[0].server.Address()})
	if err != nil {
		t.Fatal(err)
	}
	clone := *unknown // of a clone: the same authority, another cluster
	clone.Cluster = hsm.NewClusterID()
	other := *unknown
	other.CA[3]++
	nobody := *unknown
	nobody.Addresses = []string{"127.0.0.1:1"}
	for name, tc := range map[string]struct {
		token *pki.Token
		want  error
		text  string
	}{
		"expired":               {expired, ErrTokenRefused, "expired"},
		"unknown":               {unknown, ErrToken, "lets this one in"},
		"of a clone":            {&clone, pki.ErrCluster, "belongs to"},
		"of another cluster":    {&other, pki.ErrForeign, "not of the cluster"},
		"whose HSMs are absent": {&nobody, ErrToken, "cannot be reached"},
	} {
		spec := w.joinSpec(tc.token, "new")
		if _, err := Join(t.Context(), spec); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v, want %v and %q", name, err, tc.want, tc.text)
		}
		if _, err := os.Stat(spec.Dir); err == nil {
			t.Errorf("%s: there is a folder", name)
		}
	}
	if members, _ := w.boxes[0].self().Members(t.Context()); len(members) != 1 {
		t.Errorf("%d members, want 1", len(members))
	}
	if _, err := Join(t.Context(), JoinSpec{Token: secret("hello"), Dir: t.TempDir(), Address: "127.0.0.1:0"}); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("garbage: %v, want ErrInvalid", err)
	}
}

// TestAnInterruptedJoinGoesOn: stopped at any step it has the same identity when it
// is run again with the same token, and joins.
func TestAnInterruptedJoinGoesOn(t *testing.T) {
	w := newWorld(t, 2)
	token := w.invite(time.Hour, w.boxes...)
	spec := w.joinSpec(token, "new")
	j := &joiner{spec: spec, token: token, staging: filepath.Join(filepath.Dir(spec.Dir), ".new.hsmbackup-join")}
	begin := func() {
		t.Helper()
		unlock, err := j.stage(spec.Dir)
		if err != nil {
			t.Fatal(err)
		}
		unlock()
	}
	begin() // dies before anybody was asked
	first := j.pending.Joiner
	begin()
	w.connect()
	reply, err := j.ask(t.Context()) // dies with the answer
	if err != nil {
		t.Fatal(err)
	}
	begin()
	keys, err := j.accept(reply)
	if err == nil {
		err = j.write(reply, keys) // dies before the objects are there
	}
	if err != nil {
		t.Fatal(err)
	}
	if m := w.boxes[1].member(first); !m.Joining {
		w.converge()
		if m = w.boxes[1].member(first); !m.Joining {
			t.Errorf("%+v", m)
		}
	}
	b := w.join(token, "new")
	b.start()
	if b.id() != first {
		t.Errorf("joined as %s, was %s", b.id(), first)
	}
	w.nothingLeft(spec.Dir + "-x")
}

// TestAStolenTokenGetsNothing once somebody has used it: not even under the
// identity of who has.
func TestAStolenTokenGetsNothing(t *testing.T) {
	w := newWorld(t, 1)
	token := w.invite(time.Hour, w.boxes...)
	c, err := Join(t.Context(), w.joinSpec(token, "first"))
	if err != nil {
		t.Fatal(err)
	}
	spec := w.joinSpec(token, "thief")
	j := &joiner{spec: spec, token: token, staging: filepath.Join(filepath.Dir(spec.Dir), ".thief.hsmbackup-join")}
	unlock, err := j.stage(spec.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	j.pending.Joiner = c.ID
	if _, err := j.ask(t.Context()); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("%v, want ErrDenied", err)
	}
}

// TestAJoinNeedsAMajority of the token's voters.
func TestAJoinNeedsAMajority(t *testing.T) {
	w := newWorld(t, 3)
	token := w.invite(time.Hour, w.boxes...)
	w.boxes[1].stop()
	w.boxes[2].stop()
	spec := w.joinSpec(token, "new")
	if _, err := Join(t.Context(), spec); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), "more than half of 3") {
		t.Errorf("%v, want ErrUnavailable", err)
	}
	w.boxes[1].start()
	w.connect()
	w.join(token, "new").start()
}

// TestAVoterThatLeavesVotes on a token that was made before: a join does not wait for the
// end of a removal.
func TestAVoterThatLeavesVotes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	token := w.invite(time.Hour, w.boxes...)
	w.leave(w.boxes[1])
	w.connect() // the one that is asked can ask the other
	w.join(token, "new").start()
	id := w.boxes[2].id()
	w.eventually("it does not join", func() bool { return !w.boxes[0].member(id).Joining })
}

// TestATokenWhoseVotersAreGone is refused for good: with so many removed there never is a
// majority. As long as one that is a member may still vote, it is not.
func TestATokenWhoseVotersAreGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	token := w.invite(time.Hour, w.boxes[0], w.boxes[1])
	gone := w.boxes[0].member(w.boxes[1].id())
	w.boxes[1].stop()
	token.Addresses = []string{w.boxes[0].server.Address()}
	spec := w.joinSpec(token, "new")
	if _, err := Join(t.Context(), spec); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("a voter is down: %v, want ErrUnavailable", err)
	}
	gone.Removed = true
	w.change(w.boxes[0].root(), hsm.Change{Kind: hsm.ChangeMember, Member: &gone})
	w.eventually("the removal is not known", func() bool { return w.boxes[0].server.place.now.Load().members[gone.ID].Removed })
	if _, err := Join(t.Context(), spec); !errors.Is(err, ErrTokenRefused) || !strings.Contains(err.Error(), "1 of them were removed") {
		t.Errorf("a voter was removed: %v, want ErrTokenRefused", err)
	}
	w.nothingLeft(spec.Dir)
	if members, _ := w.boxes[0].self().Members(t.Context()); len(members) != 3 {
		t.Errorf("%d members, want the 3 that there were", len(members))
	}
}

// TestAReplacementTakesThePlace of the HSM that it is invited for.
func TestAReplacementTakesThePlace(t *testing.T) {
	w := newWorld(t, 3)
	w.createAlice()
	dead := w.boxes[2]
	id, address := dead.id(), dead.server.Address()
	key := w.createKey(w.boxes[0].alice(), "k")
	w.converge()
	dead.stop()
	token := w.inviteFor(id, time.Hour, w.boxes[:2]...)
	spec := w.joinSpec(token, "new")
	spec.Address, spec.Name = address, "hsm-3"
	if _, err := Join(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	b := &box{w: w, folder: spec.Dir}
	w.boxes[2] = b
	b.start()
	w.eventually("the dead HSM is not removed", func() bool { return w.boxes[0].member(id).Removed && w.boxes[1].member(id).Removed })
	w.eventually("it does not serve", func() bool { return b.info().State == hsm.StateActive })
	if _, err := b.alice().Key(t.Context(), key); err != nil {
		t.Error(err)
	}
	if _, err := Open(context.Background(), dead.folder, dead.options()); !errors.Is(err, hsm.ErrUnavailable) {
		t.Logf("the dead one comes back: %v", err) // at its address listens another
	}
}

// TestJoinSeals: a join keeps its keys under the seal that it is given.
func TestJoinSeals(t *testing.T) {
	w := newWorld(t, 1)
	spec := w.joinSpec(w.invite(time.Hour, w.boxes...), "new")
	spec.Seal = func(string) (seal.Seal, error) { return seal.Passphrase(secret("a passphrase"), 10) }
	c, err := Join(t.Context(), spec)
	if err != nil || c.Seal != "passphrase" {
		t.Fatal(c, err)
	}
	b := &box{w: w, folder: spec.Dir}
	o := b.options()
	if _, err := Open(t.Context(), b.folder, o); !errors.Is(err, hsm.ErrInvalid) {
		t.Errorf("without the passphrase: %v", err)
	}
	o.OpenSeal = func(string, string) (seal.Seal, error) { return seal.Passphrase(secret("a passphrase"), 10) }
	s, err := Open(t.Context(), b.folder, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestAJoinOutlivesARotation: the cluster rotates its masking key after it has let an
// HSM in and before that has copied everything.
func TestAJoinOutlivesARotation(t *testing.T) {
	w := newWorld(t, 1)
	w.createAlice()
	one := w.boxes[0].server
	spec := w.joinSpec(w.invite(time.Hour, w.boxes...), "new")
	var epoch uint64
	spec.Step = func(what string) {
		if epoch != 0 || what != "fill the object store" {
			return
		}
		k, err := one.keyring().Rotated(time.Now())
		if err == nil { // by an HSM that did not know yet of the one that joins
			epoch = newest(k)
			if k, err = k.Sealing(epoch); err == nil {
				_, err = one.changeKeyring(func(*hsm.Keyring) (*hsm.Keyring, error) { return k, nil })
			}
		}
		if err != nil {
			t.Error(err)
		}
		w.createKey(w.boxes[0].alice(), "sealed under the new key")
	}
	if _, err := Join(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	b := &box{w: w, folder: spec.Dir}
	w.boxes = append(w.boxes, b)
	b.start()
	w.eventually("it does not join", func() bool { return b.info().State == hsm.StateActive })
	if info := b.info(); info.Keys != 1 || info.Sealing != epoch {
		t.Errorf("%d keys, sealing under %d; want 1, %d", info.Keys, info.Sealing, epoch)
	}
}

// TestAnHSMThatIsRemovedAsItJoins: whoever says to the others that it leaves, before it has
// joined, is sure that it takes nothing.
func TestAnHSMThatIsRemovedAsItJoins(t *testing.T) {
	w := newWorld(t, 2)
	w.createAlice()
	b := w.join(w.invite(time.Hour, w.boxes...), "new")
	c, err := LoadConfig(b.folder)
	if err != nil {
		t.Fatal(err)
	}
	m := w.boxes[0].member(c.ID)
	m.Leaving = true
	for _, other := range w.boxes[:2] {
		w.change(other.root(), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
	}
	b.start()
	w.eventually("it does not join", func() bool { return w.boxes[0].member(c.ID).Counts() })
	w.eventually("it does not leave", func() bool { return b.info().State == hsm.StateLeaving && b.info().Departure != 0 })
	if _, err := b.alice().Create(t.Context(), newOp(), aesRequest("a")); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("a key: %v, want ErrUnavailable", err)
	}
}

// TestAnHSMServesWhenAPeerKnowsThatItHasJoined, and not before.
func TestAnHSMServesWhenAPeerKnowsThatItHasJoined(t *testing.T) {
	w := newWorld(t, 1)
	b := w.join(w.invite(time.Hour, w.boxes...), "new")
	w.boxes[0].stop()
	s, err := Open(t.Context(), b.folder, b.options())
	if err != nil {
		t.Fatal(err)
	}
	b.serve(s)
	w.eventually("it is not tried", func() bool { return s.sync.caughtUp() })
	if err := s.joined(t.Context(), s.place.now.Load().self); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
	w.eventually("it has not read that", func() bool { return !s.place.now.Load().self.Joining })
	if info := b.info(); info.State != hsm.StateJoining {
		t.Errorf("state %s, want JOINING", info.State)
	}
	w.boxes[0].start()
	w.eventually("it does not join", func() bool { return b.info().State == hsm.StateActive })
	if !w.boxes[0].member(b.id()).Counts() {
		t.Error("it serves, and the other does not know")
	}
}
