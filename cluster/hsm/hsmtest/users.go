package hsmtest

import (
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func testBootstrap(w *world) {
	n := w.empty()
	first := hsm.Change{Kind: hsm.ChangeUserCreate, User: adminName, Role: hsm.RoleAdmin, Password: password(adminName)}
	_, err := n.nobody().Change(n.ctx(), first)
	w.want("first admin by nobody", err, hsm.ErrDenied)
	_, err = n.appliance().Change(n.ctx(), first)
	w.want("first admin by an appliance", err, hsm.ErrDenied)
	user := first
	user.Role = hsm.RoleCryptoUser
	_, err = n.hsm().Change(n.ctx(), user)
	w.want("first crypto user by an HSM", err, hsm.ErrDenied)

	w.must(n.hsm().Change(n.ctx(), first))
	w.ok(n.tryLogin(hsm.RoleAdmin, adminName, password(adminName)))
	second := first
	second.User = "second"
	_, err = n.hsm().Change(n.ctx(), second)
	w.want("second admin by an HSM", err, hsm.ErrDenied)
}

func testLogin(w *world) {
	n := w.node()
	for _, c := range []struct {
		what string
		role hsm.Role
		name string
		pw   string
		want error
	}{
		{"right", hsm.RoleCryptoUser, alice, "password of alice", nil},
		{"other case of the name", hsm.RoleCryptoUser, "ALICE", "password of alice", nil},
		{"wrong password", hsm.RoleCryptoUser, alice, "password of bob", hsm.ErrLogin},
		{"other case of the password", hsm.RoleCryptoUser, alice, "Password of alice", hsm.ErrLogin},
		{"empty password", hsm.RoleCryptoUser, alice, "", hsm.ErrLogin},
		{"no role", hsm.RoleNone, alice, "password of alice", nil},
		{"wrong role", hsm.RoleAdmin, alice, "password of alice", hsm.ErrLogin},
		{"unknown user", hsm.RoleCryptoUser, "carol", "password of alice", hsm.ErrLogin},
		{"no name", hsm.RoleCryptoUser, "", "password of alice", hsm.ErrLogin},
		{"impossible name", hsm.RoleCryptoUser, "a:b", "password of alice", hsm.ErrLogin},
		{"appliance by password", hsm.RoleAppliance, alice, "password of alice", hsm.ErrLogin},
	} {
		w.want(c.what, n.tryLogin(c.role, c.name, hsm.NewSecret([]byte(c.pw))), c.want)
	}
	if got, want := n.user(alice).Principal(), (hsm.Principal{Role: hsm.RoleCryptoUser, Name: alice}); got != want {
		w.Errorf("principal %v, want %v", got, want)
	}
	s := n.user(alice)
	w.ok(s.Close())
	_, err := s.Users(n.ctx())
	w.want("use of a closed session", err, hsm.ErrSession)
}

// fail logs in with a wrong password some times.
func (n *node) fail(times int) {
	n.w.Helper()
	for range times {
		n.w.want("wrong password", n.tryLogin(hsm.RoleCryptoUser, alice, password("mallory")), hsm.ErrLogin)
	}
}

func testLockout(w *world) {
	n := w.node()
	right := func() error { return n.tryLogin(hsm.RoleCryptoUser, alice, password(alice)) }
	n.fail(hsm.MaxFailedLogins)
	w.want("after as many failures as allowed", right(), nil)
	n.fail(hsm.MaxFailedLogins)
	w.want("after a success forgave them", right(), nil)
	n.fail(hsm.MaxFailedLogins + 1)
	w.want("after one failure too many", right(), hsm.ErrLocked)
	if !n.isLocked(alice) || n.isLocked(bob) {
		w.Error("user list shows other locks")
	}
	_, err := n.user(bob).Change(n.ctx(), hsm.Change{Kind: hsm.ChangeUserUnlock, User: alice})
	w.want("unlock by a crypto user", err, hsm.ErrDenied)
	w.must(n.admin().Change(n.ctx(), hsm.Change{Kind: hsm.ChangeUserUnlock, User: alice, Role: hsm.RoleCryptoUser}))
	w.want("after unlock", right(), nil)
	n.fail(hsm.MaxFailedLogins + 1)
	w.must(n.admin().Change(n.ctx(), hsm.Change{Kind: hsm.ChangeUserPassword, User: alice, Password: password(alice)}))
	w.want("after a new password", right(), nil)
	n.fail(hsm.MaxFailedLogins + 1)
	w.must(n.hsm().Change(n.ctx(), hsm.Change{Kind: hsm.ChangeUserUnlock, User: alice}))
	w.want("after an HSM unlocked", right(), nil)
}

func (n *node) isLocked(name string) bool {
	n.w.Helper()
	users, err := n.admin().Users(n.ctx())
	n.w.ok(err)
	for _, u := range users {
		if u.Name == name {
			return u.Locked
		}
	}
	n.w.Fatalf("no user %q", name)
	return false
}

func testLockoutCluster(w *world) {
	a, b := w.node(), w.empty()
	w.sync(a, b)
	a.fail(3)
	b.fail(3)
	w.ok(b.nobody().Close())
	w.sync(a, b)
	w.want("3 failures at each of 2 HSMs", b.tryLogin(hsm.RoleCryptoUser, alice, password(alice)), hsm.ErrLocked)
	w.must(b.admin().Change(b.ctx(), hsm.Change{Kind: hsm.ChangeUserUnlock, User: alice}))
	w.want("unlocked at one", b.tryLogin(hsm.RoleCryptoUser, alice, password(alice)), nil)
	a.fail(3)
	w.want("locked at the other, which has not heard of it", a.tryLogin(hsm.RoleCryptoUser, alice, password(alice)), hsm.ErrLocked)
	w.sync(b, a)
	w.want("heard of it", a.tryLogin(hsm.RoleCryptoUser, alice, password(alice)), nil)
}

func testTickets(w *world) {
	a, b := w.node(), w.empty()
	_, ticket, err := a.module().Login(a.ctx(), hsm.RoleCryptoUser, alice, password(alice))
	w.ok(err)
	_, err = b.module().Redeem(b.ctx(), ticket)
	w.want("ticket of a user not yet here", err, hsm.ErrLogin)
	w.sync(a, b)
	s, err := b.module().Redeem(b.ctx(), ticket)
	w.ok(err)
	if got, want := s.Principal(), (hsm.Principal{Role: hsm.RoleCryptoUser, Name: alice}); got != want {
		w.Errorf("principal %v, want %v", got, want)
	}
	w.ok(s.Close())

	bad := append([]byte{}, ticket.Reveal()...)
	bad[len(bad)-1] ^= 1
	for what, t := range map[string][]byte{"altered": bad, "empty": nil, "short": bad[:20]} {
		_, err = b.module().Redeem(b.ctx(), hsm.NewSecret(t))
		w.want(what+" ticket", err, hsm.ErrLogin)
	}
	other := w.openWith(w.keyring, hsm.NewClusterID())
	w.ok(copyLineage(a, other))
	_, err = other.module().Redeem(other.ctx(), ticket)
	w.want("ticket of another cluster of the lineage", err, hsm.ErrLogin)

	w.must(b.admin().Change(b.ctx(), hsm.Change{Kind: hsm.ChangeUserPassword, User: alice, Password: password("alice anew")}))
	_, err = b.module().Redeem(b.ctx(), ticket)
	w.want("ticket after a new password", err, hsm.ErrLogin)
	_, err = a.module().Redeem(a.ctx(), ticket)
	w.want("ticket where the new password is not known", err, nil)
	w.advance(6 * time.Minute)
	_, err = a.module().Redeem(a.ctx(), ticket)
	w.want("ticket that has expired", err, hsm.ErrLogin)
}

func copyLineage(from, to *node) error {
	source := from.hsm()
	refs := func(yield func(hsm.KeyRef) bool) {
		for ref := range from.w.objects(source) {
			if !yield(ref) {
				return
			}
		}
	}
	_, err := to.hsm().Insert(to.ctx(), source.Extract(from.ctx(), refs))
	return err
}

func testUserNames(w *world) {
	n := w.node()
	create := func(name string, role hsm.Role, pw string) error {
		_, err := n.admin().Change(n.ctx(), hsm.Change{Kind: hsm.ChangeUserCreate, User: name, Role: role, Password: hsm.NewSecret([]byte(pw))})
		return err
	}
	const good = "correct horse"
	for _, c := range []struct {
		what, name string
		role       hsm.Role
		pw         string
		want       error
	}{
		{"good", "Carol_2", hsm.RoleCryptoUser, good, nil},
		{"taken in another case", "CAROL_2", hsm.RoleCryptoUser, good, hsm.ErrExist},
		{"taken by another role", "carol_2", hsm.RoleAdmin, good, hsm.ErrExist},
		{"no name", "", hsm.RoleCryptoUser, good, hsm.ErrInvalid},
		{"32 characters", "abcdefghijklmnopqrstuvwxyz123456", hsm.RoleCryptoUser, good, hsm.ErrInvalid},
		{"31 characters", "abcdefghijklmnopqrstuvwxyz12345", hsm.RoleCryptoUser, good, nil},
		{"a dash", "a-b", hsm.RoleCryptoUser, good, hsm.ErrInvalid},
		{"no role", "dave", "", good, hsm.ErrInvalid},
		{"appliance", "dave", hsm.RoleAppliance, good, hsm.ErrInvalid},
		{"short password", "dave", hsm.RoleCryptoUser, "7 chars", hsm.ErrInvalid},
		{"long password", "dave", hsm.RoleCryptoUser, "123456789012345678901234567890123", hsm.ErrInvalid},
		{"colon in password", "dave", hsm.RoleCryptoUser, "dave:dave", hsm.ErrInvalid},
	} {
		w.want(c.what, create(c.name, c.role, c.pw), c.want)
	}
	users, err := n.user(bob).Users(n.ctx())
	w.ok(err)
	var names []string
	for _, u := range users {
		names = append(names, string(u.Role)+" "+u.Name)
	}
	w.equal("users", names, []string{"crypto-user abcdefghijklmnopqrstuvwxyz12345", "admin admin", "crypto-user alice", "crypto-user bob", "crypto-user carol_2"})
}

func testUserPasswords(w *world) {
	n := w.node()
	change := func(s hsm.Session, name, pw string) error {
		_, err := s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeUserPassword, User: name, Password: hsm.NewSecret([]byte(pw))})
		return err
	}
	s, other := n.user(alice), n.user(alice)
	w.want("own password", change(s, "Alice", "a new password"), nil)
	w.want("another's password", change(s, bob, "a new password"), hsm.ErrDenied)
	w.want("own short password", change(s, alice, "short"), hsm.ErrInvalid)
	w.want("login with the old", n.tryLogin(hsm.RoleCryptoUser, alice, password(alice)), hsm.ErrLogin)
	w.want("login with the new", n.tryLogin(hsm.RoleCryptoUser, alice, hsm.NewSecret([]byte("a new password"))), nil)
	_, err := s.Users(n.ctx())
	w.want("the session that changed it", err, nil)
	_, err = other.Users(n.ctx())
	w.want("another session of the user", err, hsm.ErrSession)
	w.want("by an admin", change(n.admin(), alice, "password of alice"), nil)
	_, err = s.Users(n.ctx())
	w.want("a session from before an admin's reset", err, hsm.ErrSession)
	w.want("the password set again from there", change(s, alice, "a new password"), hsm.ErrSession)
	w.want("of nobody", change(n.admin(), "carol", "a new password"), hsm.ErrNotFound)
	w.want("by an appliance", change(n.appliance(), alice, "a new password"), hsm.ErrDenied)
	w.want("by an HSM", change(n.hsm(), alice, "a new password"), hsm.ErrDenied)
}

func testUserDeletion(w *world) {
	n := w.node()
	remove := func(s hsm.Session, name string, role hsm.Role) error {
		_, err := s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeUserDelete, User: name, Role: role})
		return err
	}
	k := n.aes(n.user(alice))
	w.want("the last admin", remove(n.admin(), adminName, hsm.RoleAdmin), hsm.ErrDenied)
	w.want("an owner of keys", remove(n.admin(), alice, hsm.RoleCryptoUser), hsm.ErrDenied)
	w.want("by a crypto user", remove(n.user(bob), bob, hsm.RoleCryptoUser), hsm.ErrDenied)
	w.want("by an HSM", remove(n.hsm(), bob, hsm.RoleCryptoUser), hsm.ErrDenied)
	w.want("in another role", remove(n.admin(), bob, hsm.RoleAdmin), hsm.ErrNotFound)
	w.want("nobody", remove(n.admin(), "carol", ""), hsm.ErrNotFound)
	w.must(n.user(alice).Change(n.ctx(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: k.Ref}))
	open := n.user(alice)
	w.want("without keys", remove(n.admin(), alice, hsm.RoleCryptoUser), nil)
	_, err := open.Users(n.ctx())
	w.want("a session of the deleted user", err, hsm.ErrSession)
	w.want("login of the deleted user", n.tryLogin(hsm.RoleCryptoUser, alice, password(alice)), hsm.ErrLogin)
	w.want("again", remove(n.admin(), alice, hsm.RoleCryptoUser), hsm.ErrNotFound)

	w.must(n.admin().Change(n.ctx(), hsm.Change{Kind: hsm.ChangeUserCreate, User: "other", Role: hsm.RoleAdmin, Password: password("other")}))
	w.want("an admin by itself, another being there", remove(n.admin(), adminName, hsm.RoleAdmin), nil)
}

func testUserRecreation(w *world) {
	a, b := w.node(), w.empty()
	w.sync(a, b)
	old := w.extractOne(a.hsm(), hsm.UserRef(alice))
	shared := aesRequest()
	shared.Shares = []string{alice}
	k := a.create(a.user(bob), shared)[0]
	w.sync(a, b)
	w.must(a.admin().Change(a.ctx(), hsm.Change{Kind: hsm.ChangeUserDelete, User: alice}))
	m, err := a.admin().Change(a.ctx(), hsm.Change{Kind: hsm.ChangeUserCreate, User: alice, Role: hsm.RoleCryptoUser, Password: password("alice anew")})
	w.ok(err)
	open := b.user(alice)
	if !w.visible(open, k.Ref) {
		w.Error("the former user does not see what was shared with it")
	}
	if got, err := w.insert(b.hsm(), m); err != nil || got.Changed != 1 {
		w.Errorf("insert of a re-created user: %+v, %v", got, err)
	}
	_, err = open.Users(b.ctx())
	w.want("a session of the former user", err, hsm.ErrSession)
	w.want("login of the former user", b.tryLogin(hsm.RoleCryptoUser, alice, password(alice)), hsm.ErrLogin)
	anew, _, err := b.module().Login(b.ctx(), hsm.RoleCryptoUser, alice, password("alice anew"))
	w.want("login of the new user", err, nil)
	if w.visible(anew, k.Ref) {
		w.Error("the new user sees what was shared with the former one")
	}
	info, err := b.user(bob).Key(b.ctx(), k.Ref)
	w.ok(err)
	w.equal("shares with a former user", info.Shares, []string{})
	w.must(b.user(bob).Change(b.ctx(), hsm.Change{Kind: hsm.ChangeShare, Ref: k.Ref, User: alice}))
	if !w.visible(anew, k.Ref) {
		w.Error("the new user does not see what was shared with it anew")
	}
	if got, err := w.insert(a.hsm(), old); err != nil || got.Unchanged != 1 {
		w.Errorf("insert of the former user: %+v, %v", got, err)
	}
	w.want("login of the former user after that", a.tryLogin(hsm.RoleCryptoUser, alice, password(alice)), hsm.ErrLogin)
}
