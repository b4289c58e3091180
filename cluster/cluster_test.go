package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/cluster/reconcile"
)

func sign(key hsm.KeyRef) hsm.Use {
	digest := sha256.Sum256([]byte("message"))
	return hsm.Use{Kind: hsm.UseSign, Key: key, Data: digest[:], Params: hsm.Params{Mechanism: "ecdsa", Hash: "sha256", Digest: true}}
}

// mac is what any HSM that holds the key answers alike.
func mac(key hsm.KeyRef) hsm.Use {
	return hsm.Use{Kind: hsm.UseMAC, Key: key, Data: []byte("message"), Params: hsm.Params{Mechanism: "aes-cmac"}}
}

func mustCreate(t testing.TB, c *Cluster, r hsm.CreateRequest) hsm.KeyRef {
	t.Helper()
	made, err := c.Create(context.Background(), r, Policy{})
	if err != nil {
		t.Fatal(err)
	}
	return made.Keys[0].Ref
}

func mustWait(t testing.TB, c *Cluster, ref hsm.KeyRef) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.Wait(ctx, ref); err != nil {
		t.Fatal(err)
	}
}

// TestCreatorDiesAfterSuccess is scenario 3 of cloudhsm.md §9.1.
func TestCreatorDiesAfterSuccess(t *testing.T) {
	for creator := range 3 {
		w := newWorld(t, 3, 2, true)
		c := w.open(asUser)
		ref := mustCreate(t, c, aes())
		want, err := c.Use(t.Context(), mac(ref))
		if err != nil {
			t.Fatal(err)
		}
		w.boxes[creator].kill()
		if got, err := c.Use(t.Context(), mac(ref)); err != nil || !slices.Equal(got, want) {
			t.Errorf("use after the death of %s: %v", w.boxes[creator].member.Name, err)
		}
		w.converge()
		if n := w.holders(ref); n != 3 {
			t.Errorf("the key is on %d HSMs", n)
		}
	}
}

// TestScenario4AvailabilityText: the exact text, and the way out.
func TestScenario4AvailabilityText(t *testing.T) {
	w := newWorld(t, 1, 2, true)
	out := w.open(asUser, WithPolicy(Policy{MinCopies: 1}))
	ref := mustCreate(t, out, aes())
	if _, err := out.Use(t.Context(), mac(ref)); err != nil {
		t.Errorf("use with the check disabled: %v", err)
	}
	c := w.open(asUser)
	_, err := c.Use(t.Context(), mac(ref))
	want := "Key " + ref.String() + " does not meet the availability requirements - The key must be available on at least 2 HSMs before being used."
	if !errors.Is(err, ErrAvailability) || err.Error() != want {
		t.Errorf("use: %v; want %s", err, want)
	}
	session := aes()
	session.Token = false
	if _, err := c.Use(t.Context(), mac(mustCreate(t, c, session))); err != nil {
		t.Errorf("session keys are exempt: %v", err)
	}
}

func TestSessionKeyStaysOnItsHSM(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	c := w.open(asUser)
	r := aes()
	r.Token = false
	ref := mustCreate(t, c, r)
	for range 6 { // never sent to another HSM
		if _, err := c.Use(t.Context(), mac(ref)); err != nil {
			t.Fatal(err)
		}
	}
	if k, err := c.Key(t.Context(), ref); err != nil || len(k.Coverage) != 1 || k.Token {
		t.Errorf("Key: %+v, %v; want a session key on one HSM", k, err)
	}
	if n := w.keyCount(); n != 0 {
		t.Errorf("%d copies of a session key are listed", n)
	}
	other := w.open(asUser)
	if _, err := other.Use(t.Context(), mac(ref)); !errors.Is(err, hsm.ErrNotFound) {
		t.Errorf("use in another session: %v; want ErrNotFound", err)
	}
	k, _ := c.coverage.get(ref)
	b := w.box(k.holders[0])
	b.kill()
	if _, err := c.Use(t.Context(), mac(ref)); !errors.Is(err, hsm.ErrUnavailable) && !errors.Is(err, hsm.ErrNotFound) {
		t.Errorf("use after its HSM died: %v", err)
	}
	b.start()
	w.awaitUp(c)
	if _, err := c.Use(t.Context(), mac(ref)); !errors.Is(err, hsm.ErrNotFound) {
		t.Errorf("use after its HSM was started again: %v; want ErrNotFound", err)
	}
	ref = mustCreate(t, c, r)
	if _, err := c.Change(t.Context(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref}); err != nil {
		t.Errorf("destroy a session key: %v", err)
	}
	if _, err := c.Use(t.Context(), mac(ref)); !errors.Is(err, hsm.ErrNotFound) && !errors.Is(err, hsm.ErrDestroyed) {
		t.Errorf("use of a destroyed session key: %v", err)
	}
}

func (w *world) box(id hsm.HSMID) *box {
	return w.boxes[slices.IndexFunc(w.boxes, func(b *box) bool { return b.member.ID == id })]
}

// TestSessionKeySurvivesABrokenNetwork: a session that still answers is kept.
func TestSessionKeySurvivesABrokenNetwork(t *testing.T) {
	w := newWorld(t, 1, 1, false)
	c := w.open(asUser)
	r := aes()
	r.Token = false
	ref := mustCreate(t, c, r)
	w.boxes[0].away.Store(true)
	if _, err := c.Use(t.Context(), mac(ref)); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("use while cut off: %v", err)
	}
	w.boxes[0].away.Store(false)
	w.awaitUp(c)
	if _, err := c.Use(t.Context(), mac(ref)); err != nil {
		t.Errorf("use afterwards: %v", err)
	}
}

// TestSignWhileHSMsDie signs from 32 goroutines while one HSM after another is
// killed and started again. Not one signature may fail.
func TestSignWhileHSMsDie(t *testing.T) {
	checkGoroutines(t)
	w := newWorld(t, 3, 2, true)
	c := w.open(asUser)
	ref := mustCreate(t, c, ec())
	mustWait(t, c, ref)
	stop := make(chan struct{})
	var done atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := c.Use(context.Background(), sign(ref)); err != nil {
					t.Errorf("sign: %v", err)
					return
				}
				done.Add(1)
			}
		})
	}
	for _, b := range w.boxes {
		before := done.Load()
		b.kill()
		for done.Load() < before+200 && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		b.start()
		w.awaitUp(c)
	}
	close(stop)
	wg.Wait()
	c.Close()
}

// TestUseSpreadsOverAllHolders: of HSMs that have nothing else to do, each is asked in
// its turn, stay times; and calls that overlap go to different ones at once. The looks at
// members and settings, which take turns as well, come too late.
func TestUseSpreadsOverAllHolders(t *testing.T) {
	slow := fast
	slow.refresh = time.Hour
	w := newWorld(t, 3, 2, true)
	c := w.open(asUser, withTiming(slow))
	w.awaitUp(c)
	ref := mustCreate(t, c, aes())
	mustWait(t, c, ref)
	for _, r := range c.all() {
		for r.load.Load() != 0 {
			time.Sleep(time.Millisecond)
		}
	}
	used := map[string]int{}
	var mu sync.Mutex
	w.setFaults(func(b *box, call string) fault {
		mu.Lock()
		defer mu.Unlock()
		if call == "Use" {
			used[b.member.Name]++
		}
		return pass
	})
	for range 3 * stay {
		if _, err := c.Use(t.Context(), mac(ref)); err != nil {
			t.Fatal(err)
		}
	}
	even := func(n int) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		for _, b := range w.boxes {
			if used[b.member.Name] != n {
				t.Errorf("uses: %v; want %d each", used, n)
				break
			}
		}
		clear(used)
	}
	even(stay)
	begun, release := make(chan struct{}, 3), make(chan struct{})
	w.setFaults(func(b *box, call string) fault {
		if call == "Use" {
			mu.Lock()
			used[b.member.Name]++
			mu.Unlock()
			begun <- struct{}{}
			<-release
		}
		return pass
	})
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if _, err := c.Use(t.Context(), mac(ref)); err != nil {
				t.Error(err)
			}
		})
		<-begun
	}
	close(release)
	all.Wait()
	even(1)
}

// TestUseCostsOneRoundTrip: coverage is remembered.
func TestUseCostsOneRoundTrip(t *testing.T) {
	slow := fast
	slow.refresh = time.Hour
	w := newWorld(t, 3, 2, true)
	c := w.open(asUser, withTiming(slow))
	ref := mustCreate(t, c, aes())
	mustWait(t, c, ref)
	before := w.calls.Load()
	for range 10 {
		if _, err := c.Use(t.Context(), mac(ref)); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.calls.Load() - before; n != 10 {
		t.Errorf("10 uses made %d calls", n)
	}
}

// TestASessionKeyIsDestroyedWhereItIs: it costs one round trip, needs no other HSM, and
// the key is gone.
func TestASessionKeyIsDestroyedWhereItIs(t *testing.T) {
	slow := fast
	slow.refresh = time.Hour
	w := newWorld(t, 3, 2, true)
	c := w.open(asUser, withTiming(slow))
	for _, alone := range []bool{false, true} {
		r := aes()
		r.Token = false
		ref := mustCreate(t, c, r)
		k, _ := c.coverage.get(ref)
		for _, b := range w.boxes {
			b.away.Store(alone && !k.on(b.member.ID))
		}
		before := w.calls.Load()
		changed, err := c.Change(t.Context(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
		if err != nil || len(changed.Copies) != 1 || !k.on(changed.Copies[0]) {
			t.Fatalf("%+v, %v", changed, err)
		}
		if n := w.calls.Load() - before; !alone && n != 1 {
			t.Errorf("%d calls", n)
		}
		if _, err := c.Use(t.Context(), mac(ref)); err == nil {
			t.Error("a destroyed key is used")
		}
	}
}

// TestNotFoundIsNotSureWhileAnHSMIsAway: the one HSM that holds a key is away, and
// is not asked by a client that knows it to be.
func TestNotFoundIsNotSureWhileAnHSMIsAway(t *testing.T) {
	w := newWorld(t, 3, 1, false)
	for _, b := range w.boxes[1:] {
		b.away.Store(true)
	}
	ref := mustCreate(t, w.open(asUser), aes())
	w.boxes[0].away.Store(true)
	for _, b := range w.boxes[1:] {
		b.away.Store(false)
	}
	c := w.open(asUser)
	for what, ask := range map[string]func() error{
		"use": func() error { _, err := c.Use(t.Context(), mac(ref)); return err },
		"key": func() error { _, err := c.Key(t.Context(), ref); return err },
	} {
		if err := ask(); !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("%s: %v, want it to say that an HSM is away", what, err)
		}
	}
	w.boxes[0].away.Store(false)
	w.awaitUp(c)
	if _, err := c.Use(t.Context(), mac(hsm.NewKeyRef())); !errors.Is(err, hsm.ErrNotFound) || errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("no such key, and all HSMs answer: %v", err)
	}
}

// TestUseLearnsOfMoreHolders: a key that reached a third HSM later is used there.
func TestUseLearnsOfMoreHolders(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	c := w.open(asUser)
	w.boxes[2].away.Store(true)
	ref := mustCreate(t, c, aes())
	w.converge()
	w.awaitUp(c)
	deadline := time.Now().Add(time.Minute)
	for {
		if _, err := c.Use(t.Context(), mac(ref)); err != nil {
			t.Fatal(err)
		}
		if k, _ := c.coverage.get(ref); len(k.holders) == 3 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the third HSM is never noticed")
		}
		time.Sleep(time.Millisecond)
	}
}

// TestUseMovesOnFromAnHSMWithoutTheKey: what is remembered may be wrong.
func TestUseMovesOnFromAnHSMWithoutTheKey(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	c := w.open(asUser)
	w.boxes[2].away.Store(true)
	ref := mustCreate(t, c, aes())
	w.heal()
	w.awaitUp(c)
	c.coverage.note(ref, w.boxes[2].member.ID)
	for range 9 {
		if _, err := c.Use(t.Context(), mac(ref)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWrongPasswordCountsOnce(t *testing.T) {
	checkGoroutines(t)
	w := newWorld(t, 3, 2, true)
	wrong := asUser
	wrong.Password = secret("not-the-password")
	for i := range hsm.MaxFailedLogins {
		_, err := Open(t.Context(), w.profile(), wrong, WithDialer(w.dialer(hsm.RoleNone)), withTiming(fast))
		if !errors.Is(err, hsm.ErrLogin) {
			t.Fatalf("Open: %v; want ErrLogin", err)
		}
		n := int64(0)
		for _, b := range w.boxes {
			n += b.logins.Load()
		}
		if n != int64(i+1) {
			t.Errorf("%d attempts reached the HSMs; want %d", n, i+1)
		}
	}
	c := w.open(asUser) // five failures do not lock
	w.awaitUp(c)
	logins := int64(0)
	for _, b := range w.boxes {
		logins += b.logins.Load()
	}
	if logins != hsm.MaxFailedLogins+1 {
		t.Errorf("a good login sent the password %d times", logins-hsm.MaxFailedLogins)
	}
	unknown := asUser
	unknown.Name = "nobody"
	if _, err := Open(t.Context(), w.profile(), unknown, WithDialer(w.dialer(hsm.RoleNone)), withTiming(fast)); !errors.Is(err, hsm.ErrLogin) {
		t.Errorf("unknown user: %v; want ErrLogin", err)
	}
}

// TestChangedPasswordDoesNotLockTheUser: a client left with an old password gives
// up before it locks its user.
func TestChangedPasswordDoesNotLockTheUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 2, true)
		old := w.open(asUser)
		admin := w.open(asAdmin)
		if _, err := admin.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserPassword, User: userName, Role: hsm.RoleCryptoUser, Password: secret("a-new-password")}); err != nil {
			t.Fatal(err)
		}
		w.sync()
		before := w.logins()
		for _, b := range w.boxes {
			b.kill()
			b.start()
		}
		for range 3 { // it notices, and tries
			_, _ = old.Use(t.Context(), hsm.Use{Kind: hsm.UseRandom, Length: 8})
		}
		time.Sleep(5 * fast.backoffMax)
		if n := w.logins() - before; n > 2 {
			t.Errorf("%d attempts with a password that was changed", n)
		}
		fresh := asUser
		fresh.Password = secret("a-new-password")
		c := w.open(fresh)
		if users, err := c.Users(t.Context()); err != nil || slices.ContainsFunc(users, func(u User) bool { return u.Locked }) {
			t.Errorf("users: %+v, %v", users, err)
		}
	})
}

func (w *world) logins() (n int64) {
	for _, b := range w.boxes {
		n += b.logins.Load()
	}
	return n
}

// TestOwnPasswordChangeIsTakenOver: the client that changes its own password can
// log in again.
func TestOwnPasswordChangeIsTakenOver(t *testing.T) {
	w := newWorld(t, 2, 2, true)
	c := w.open(asUser)
	if _, err := c.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserPassword, User: "BOB", Role: hsm.RoleCryptoUser, Password: secret("a-new-password")}); err != nil {
		t.Fatal(err)
	}
	for _, b := range w.boxes {
		b.kill()
		b.start()
	}
	w.awaitUp(c)
}

// TestUserNotSyncedYet: an HSM that does not know the user is left out, and used
// once it does.
func TestUserNotSyncedYet(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	late := w.boxes[2]
	late.away.Store(true)
	admin := w.open(asAdmin)
	if _, err := admin.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserCreate, User: "eve", Role: hsm.RoleCryptoUser, Password: secret("eve-password")}); err != nil {
		t.Fatal(err)
	}
	late.away.Store(false)
	eve := Credential{Role: hsm.RoleCryptoUser, Name: "eve", Password: secret("eve-password")}
	var c *Cluster
	for { // whoever answers first is asked for the login: the late HSM does not know eve
		var err error
		if c, err = Open(t.Context(), w.profile(), eve, WithDialer(w.dialer(hsm.RoleNone)), withTiming(fast)); err == nil {
			break
		} else if !errors.Is(err, hsm.ErrLogin) {
			t.Fatal(err)
		}
	}
	defer c.Close()
	if _, err := c.Create(t.Context(), aes(), Policy{}); err != nil {
		t.Errorf("Create on the others: %v", err)
	}
	users, err := admin.Users(t.Context())
	if i := slices.IndexFunc(users, func(u User) bool { return u.Name == "eve" }); err != nil || i < 0 {
		t.Errorf("users: %v, %v", users, err)
	}
	w.sync()
	w.awaitUp(c)
}

func TestNoHSMListsEachAndWhy(t *testing.T) {
	checkGoroutines(t)
	w := newWorld(t, 3, 2, true)
	for _, b := range w.boxes {
		b.kill()
	}
	_, err := Open(t.Context(), w.profile(), asUser, WithDialer(w.dialer(hsm.RoleNone)), withTiming(fast))
	if !errors.Is(err, ErrNoHSM) || !errors.Is(err, hsm.ErrUnavailable) {
		t.Fatalf("Open: %v; want ErrNoHSM", err)
	}
	for _, b := range w.boxes {
		if !strings.Contains(err.Error(), b.member.Address) {
			t.Errorf("%q does not name %s", err, b.member.Address)
		}
	}
}

func TestForeignHSMIsRefused(t *testing.T) {
	w, other := newWorld(t, 1, 1, false), newWorld(t, 1, 1, false)
	dial := func(ctx context.Context, m hsm.Member) (hsm.Module, error) {
		m.Address = other.boxes[0].member.Address
		return other.dialer(hsm.RoleNone)(ctx, m)
	}
	_, err := Open(t.Context(), w.profile(), asUser, WithDialer(dial), withTiming(fast))
	if !errors.Is(err, ErrNoHSM) || !strings.Contains(err.Error(), "belongs to "+other.cluster.String()) {
		t.Errorf("Open: %v", err)
	}
}

// TestMembersAreLearned: one address is enough; members come and go.
func TestMembersAreLearned(t *testing.T) {
	checkGoroutines(t)
	w := newWorld(t, 3, 2, true)
	p := w.profile()
	p.HSMs = []profile.HSM{{Address: p.HSMs[1].Address}}
	c, err := Open(t.Context(), p, asAdmin, WithDialer(w.dialer(hsm.RoleNone)), withTiming(fast))
	if err != nil {
		t.Fatal(err)
	}
	w.awaitUp(c)
	if n := len(c.all()); n != 3 {
		t.Fatalf("the client knows %d HSMs; want 3", n)
	}
	gone := w.boxes[0].member
	gone.Removed = true
	w.change(w.boxes[2].peer(), hsm.Change{Kind: hsm.ChangeMember, Member: &gone})
	w.sync()
	deadline := time.Now().Add(time.Minute)
	for len(c.all()) != 2 {
		if time.Now().After(deadline) {
			t.Fatal("a removed member is kept")
		}
		time.Sleep(time.Millisecond)
	}
	info, err := c.Info(t.Context())
	if err != nil || len(info.HSMs) != 2 {
		t.Errorf("Info: %+v, %v", info, err)
	}
	moved := w.boxes[1].member
	moved.Address = "elsewhere:1"
	w.boxes[1].member = moved
	if done, err := c.Change(t.Context(), hsm.Change{Kind: hsm.ChangeMember, Member: &moved}); err != nil || len(done.Copies) != 2 {
		t.Errorf("change a member: %+v, %v", done, err)
	}
	w.boxes[1].kill()
	w.boxes[1].start()
	for c.find(moved.ID).current() == nil {
		if time.Now().After(deadline) {
			t.Fatal("a member that moved is not found")
		}
		time.Sleep(time.Millisecond)
	}
	c.Close()
}

// TestScenario5DestroyWhileAnHSMIsAway: nothing comes back.
func TestScenario5DestroyWhileAnHSMIsAway(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	c := w.open(asUser)
	ref := mustCreate(t, c, aes())
	mustWait(t, c, ref)
	w.boxes[0].away.Store(true)
	done, err := c.Change(t.Context(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
	if err != nil || len(done.Copies) != 2 || !slices.Equal(done.Missing, []hsm.HSMID{w.boxes[0].member.ID}) {
		t.Fatalf("destroy: %+v, %v", done, err)
	}
	w.boxes[0].away.Store(false)
	w.awaitUp(c)
	if _, err := c.Use(t.Context(), mac(ref)); !errors.Is(err, hsm.ErrDestroyed) {
		t.Errorf("use while one HSM still has the key: %v; want ErrDestroyed", err)
	}
	if _, err := c.Key(t.Context(), ref); !errors.Is(err, hsm.ErrDestroyed) {
		t.Errorf("Key: %v; want ErrDestroyed", err)
	}
	w.converge()
	w.checkNoKeys()
}

func TestChangeNeedsEnoughHSMs(t *testing.T) {
	w := newWorld(t, 2, 2, true)
	user, admin := w.open(asUser), w.open(asAdmin)
	ref := mustCreate(t, user, aes())
	mustWait(t, user, ref)
	w.boxes[1].away.Store(true)
	_, err := user.Change(t.Context(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: ref, Name: "label", Value: "new"})
	if !errors.Is(err, ErrMinCopies) || !strings.Contains(err.Error(), "nothing was done") {
		t.Errorf("set-attribute with one of two HSMs: %v; want ErrMinCopies", err)
	}
	if k, err := user.Key(t.Context(), ref); err != nil || k.Label != "k" {
		t.Errorf("the label is %q, %v", k.Label, err)
	}
	// The way out: lower the policy, with one HSM left.
	if _, err := admin.Change(t.Context(), hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 1}}); err != nil {
		t.Fatalf("settings: %v", err)
	}
	fresh := w.open(asUser)
	if _, err := fresh.Change(t.Context(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: ref, Name: "label", Value: "new"}); err != nil {
		t.Errorf("set-attribute afterwards: %v", err)
	}
	w.heal()
	w.sync()
	w.awaitUp(fresh)
	mustWait(t, fresh, 0)
	if k, err := fresh.Key(t.Context(), ref); err != nil || k.Label != "new" || len(k.Coverage) != 2 {
		t.Errorf("after sync: %+v, %v", k, err)
	}
}

// TestScenario10UserCreatedWhileAnHSMIsAway is in improved mode: it heals.
func TestScenario10UserCreatedWhileAnHSMIsAway(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	admin := w.open(asAdmin)
	w.boxes[1].away.Store(true)
	if _, err := admin.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserCreate, User: "eve", Role: hsm.RoleCryptoUser, Password: secret("eve-password")}); err != nil {
		t.Fatal(err)
	}
	w.boxes[1].away.Store(false)
	w.awaitUp(admin)
	eve := func() User {
		users, err := admin.Users(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return users[slices.IndexFunc(users, func(u User) bool { return u.Name == "eve" })]
	}
	if u := eve(); u.Consistent || len(u.Coverage) != 2 {
		t.Errorf("before sync: %+v; want inconsistent coverage", u)
	}
	w.converge()
	if u := eve(); !u.Consistent || len(u.Coverage) != 3 {
		t.Errorf("after sync: %+v", u)
	}
}

func collect[T any](t testing.TB, seq iter.Seq2[T, error]) []T {
	t.Helper()
	var all []T
	for v, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

// TestReplica reads one cluster and inserts into a clone of it.
func TestReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 2, true)
		user := w.open(asUser, WithPolicy(Policy{MinCopies: 1}))
		var refs []hsm.KeyRef
		for i, b := range w.boxes { // one key on each HSM only, and one on all
			for _, other := range w.boxes {
				other.away.Store(other != b)
			}
			user.answering(t.Context(), 3) // it notices
			ref := mustCreate(t, user, aes())
			refs = append(refs, ref)
			w.heal()
			w.awaitUp(user)
			if n := w.holders(ref); n != 1 {
				t.Fatalf("key %d is on %d HSMs", i, n)
			}
		}
		refs = append(refs, mustCreate(t, user, aes()))
		appliance := w.open(Credential{})
		objects := collect(t, appliance.Objects(t.Context()))
		if !slices.IsSortedFunc(objects, func(a, b hsm.Object) int { return int(a.Ref>>1) - int(b.Ref>>1) }) {
			t.Error("objects are not sorted")
		}
		found := map[hsm.KeyRef]int{}
		for _, o := range objects {
			found[o.Ref]++
		}
		for _, ref := range refs {
			if found[ref] != 1 {
				t.Errorf("key %s is listed %d times", ref, found[ref])
			}
		}
		if got := collect(t, appliance.Extract(t.Context(), slices.Values(append(refs, hsm.NewKeyRef())))); len(got) != len(refs) {
			t.Errorf("extracted %d of %d keys", len(got), len(refs))
		}
		if _, err := appliance.Root(timeout(t, 100*time.Millisecond)); !errors.Is(err, ErrDrift) {
			t.Errorf("Root of HSMs that differ: %v; want ErrDrift", err)
		}
		if info, err := appliance.Info(t.Context()); err != nil || info.InSync || info.UnderReplicated != 3 {
			t.Errorf("Info: %+v, %v; want 3 keys under-replicated", info, err)
		}
		w.converge()
		if info, err := appliance.Info(t.Context()); err != nil || !info.InSync || info.UnderReplicated != 0 || info.Keys != 4 {
			t.Errorf("Info after sync: %+v, %v", info, err)
		}
		clone := newWorldOf(t, w.keyring, 3, 2, true)
		for _, b := range clone.boxes { // without objects of its own
			b.kill()
		}
		to := clone.blank()
		if _, err := reconcile.Sync(t.Context(), appliance, to); err != nil {
			t.Fatal(err)
		}
		a, errA := appliance.Root(t.Context())
		b, errB := to.Root(t.Context())
		if errA != nil || errB != nil || a != b {
			t.Errorf("roots after reconcile: %v, %v; %v, %v", a, b, errA, errB)
		}
		mustWait(t, to, refs[0])
	})
}

// blank opens an appliance's connection to the cluster with empty HSMs.
func (w *world) blank() *Cluster {
	w.t.Helper()
	fresh := &world{t: w.t, cluster: w.cluster, keyring: w.keyring}
	fresh.setFaults(nil)
	for _, b := range w.boxes {
		fresh.boxes = append(fresh.boxes, &box{w: fresh, member: b.member, fs: memFS()})
	}
	for _, b := range fresh.boxes {
		b.start()
	}
	w.t.Cleanup(fresh.stop)
	return fresh.open(Credential{})
}

func timeout(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestInsertNeedsEnoughHSMs(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	c := w.open(Credential{})
	w.boxes[0].away.Store(true)
	w.boxes[1].away.Store(true)
	if n, err := c.Insert(t.Context(), values(w.maskedElsewhere())); !errors.Is(err, ErrMinCopies) || n.Added != 0 {
		t.Errorf("Insert with one of three HSMs: %+v, %v; want ErrMinCopies", n, err)
	}
	w.converge()
	w.checkNoKeys()
	w.awaitUp(c)
	if n, err := c.Insert(t.Context(), values(w.maskedElsewhere())); err != nil || n.Added != 1 {
		t.Errorf("Insert: %+v, %v", n, err)
	}
	if err := errTestSource(c); !errors.Is(err, errTest) {
		t.Errorf("Insert of a failing sequence: %v; want its error", err)
	}
}

var errTest = errors.New("test")

func errTestSource(c *Cluster) error {
	_, err := c.Insert(context.Background(), func(yield func(hsm.MaskedObject, error) bool) { yield(hsm.MaskedObject{}, errTest) })
	return err
}

func TestKeysHaveTheirCoverage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 2, true)
		c := w.open(asUser)
		var want []hsm.KeyRef
		for range 5 {
			want = append(want, mustCreate(t, c, aes()))
		}
		mustWait(t, c, 0)
		w.boxes[2].away.Store(true)
		c.answering(t.Context(), 3) // it notices
		half := mustCreate(t, c, aes())
		want = append(want, half)
		slices.Sort(want)
		w.boxes[2].away.Store(false)
		w.awaitUp(c)
		var got []hsm.KeyRef
		for _, k := range collect(t, c.Keys(t.Context(), hsm.Filter{})) {
			got = append(got, k.Ref)
			if n := len(k.Coverage); n != 3 && k.Ref != half || n != 2 && k.Ref == half || n+len(k.Missing) != 3 {
				t.Errorf("key %s: coverage %v, missing %v", k.Ref, k.Coverage, k.Missing)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Keys: (-want +got)\n%s", diff)
		}
		have, missing, err := c.Where(t.Context(), half)
		if err != nil || len(have) != 2 || !slices.Equal(missing, []hsm.HSMID{w.boxes[2].member.ID}) {
			t.Errorf("Where: %v, %v, %v", have, missing, err)
		}
		if err := c.Wait(timeout(t, 50*time.Millisecond), half); !errors.Is(err, ErrDrift) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait: %v", err)
		}
		if err := c.Wait(t.Context(), hsm.NewKeyRef()); !errors.Is(err, hsm.ErrNotFound) {
			t.Errorf("Wait for no such key: %v", err)
		}
		for _, b := range w.boxes {
			b.kill()
		}
		for _, err := range c.Keys(t.Context(), hsm.Filter{}) {
			if !errors.Is(err, hsm.ErrUnavailable) {
				t.Errorf("Keys without HSMs: %v", err)
			}
		}
	})
}

func TestSources(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	c := w.open(Credential{})
	w.boxes[1].kill()
	answered, missing, err := c.Sources(t.Context())
	if err != nil || len(answered) != 2 && len(answered) != 3 {
		t.Fatalf("Sources: %d, %v, %v", len(answered), missing, err)
	}
	if _, err := c.Info(t.Context()); err != nil { // it notices
		t.Fatal(err)
	}
	answered, missing, err = c.Sources(t.Context())
	if err != nil || len(answered) != 2 || !slices.Equal(missing, []hsm.HSMID{w.boxes[1].member.ID}) {
		t.Errorf("Sources: %d, %v, %v", len(answered), missing, err)
	}
	for _, s := range answered {
		if info, err := s.Info(t.Context()); err != nil || info.ID != s.ID {
			t.Errorf("source %s: %+v, %v", s.ID, info, err)
		}
	}
}

// TestManyClientsUnderFaults creates keys from many goroutines of two clients
// while calls fail at random. Every success is kept, every failure leaves
// nothing.
func TestManyClientsUnderFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		checkGoroutines(t)
		w := newWorld(t, 3, 2, false)
		clients := []*Cluster{w.open(asUser), w.open(asUser)}
		var n atomic.Int64
		w.setFaults(func(b *box, call string) fault {
			if !slices.Contains(protocol, call) {
				return pass
			}
			switch n.Add(1) % 29 {
			case 3:
				return drop
			case 17:
				return lose
			}
			return pass
		})
		var mu sync.Mutex
		made := map[hsm.KeyRef]bool{}
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for range 12 {
					out, err := clients[g%2].Create(context.Background(), aes(), Policy{Timeout: 2 * time.Second})
					if err != nil {
						continue
					}
					mu.Lock()
					made[out.Keys[0].Ref] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		for _, c := range clients {
			c.Close()
		}
		w.converge()
		for _, b := range w.boxes {
			live, _ := b.keysOn()
			if len(live) != len(made) {
				t.Errorf("%s has %d keys; %d were acknowledged", b.member.Name, len(live), len(made))
			}
			for _, ref := range live {
				if !made[ref] {
					t.Errorf("%s has %s, whose creation failed", b.member.Name, ref)
				}
			}
		}
		if len(made) == 0 {
			t.Error("nothing was made")
		}
	})
}

func TestClosedClusterAnswers(t *testing.T) {
	checkGoroutines(t)
	w := newWorld(t, 2, 2, true)
	before := map[*box]uint64{}
	for _, b := range w.boxes {
		info, err := b.peer().Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		before[b] = info.Sessions
	}
	c := w.open(asUser)
	ref := mustCreate(t, c, aes())
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.Use(t.Context(), mac(ref)); !errors.Is(err, ErrClosed) {
		t.Errorf("Use: %v; want ErrClosed", err)
	}
	if _, err := c.Create(t.Context(), aes(), Policy{}); !errors.Is(err, ErrClosed) {
		t.Errorf("Create: %v; want ErrClosed", err)
	}
	if _, err := c.Info(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Info: %v; want ErrClosed", err)
	}
	for _, b := range w.boxes {
		after, err := b.peer().Info(t.Context())
		if err != nil || after.Sessions != before[b]+1 {
			t.Errorf("%s has %d sessions, %v; %d before", b.member.Name, after.Sessions-1, err, before[b])
		}
	}
}
