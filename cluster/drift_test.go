package cluster

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestDriftHeals is the table of cloudhsm.md §3.7: what CloudHSM shows as
// inconsistent and leaves to repair by hand. Each row makes the drift, changing one
// HSM past the others; until server-side sync it shows, and after it all HSMs
// agree, without hands. check tells whether an HSM is as it should be in the end.
func TestDriftHeals(t *testing.T) {
	user := func(kind hsm.ChangeKind, name string, role hsm.Role) hsm.Change {
		return hsm.Change{Kind: kind, User: name, Role: role, Password: secret(name + "-password")}
	}
	tests := map[string]struct {
		before func(w *world) // on all HSMs
		drift  func(w *world)
		check  func(w *world, b *box) bool
		user   string // of whom the drift shows in Users
	}{
		"role inconsistent": {
			drift: func(w *world) { // two clients, one name, two roles
				w.change(w.admin(0), user(hsm.ChangeUserCreate, "eve", hsm.RoleAdmin))
				w.change(w.admin(1), user(hsm.ChangeUserCreate, "eve", hsm.RoleCryptoUser))
			},
			check: func(w *world, b *box) bool { return b.roleOf("eve") == hsm.RoleCryptoUser }, user: "eve",
		},
		"create reached a subset": {
			drift: func(w *world) { w.change(w.admin(1), user(hsm.ChangeUserCreate, "eve", hsm.RoleCryptoUser)) },
			check: func(w *world, b *box) bool { return b.roleOf("eve") == hsm.RoleCryptoUser }, user: "eve",
		},
		"delete reached a subset": {
			before: func(w *world) { w.change(w.admin(0), user(hsm.ChangeUserCreate, "eve", hsm.RoleCryptoUser)) },
			drift:  func(w *world) { w.change(w.admin(1), user(hsm.ChangeUserDelete, "eve", hsm.RoleCryptoUser)) },
			check:  func(w *world, b *box) bool { return b.roleOf("eve") == "" }, user: "eve",
		},
		"password changed on a subset": {
			drift: func(w *world) {
				change := user(hsm.ChangeUserPassword, userName, hsm.RoleCryptoUser)
				change.Password = secret("another-password")
				w.change(w.admin(1), change)
			},
			check: func(w *world, b *box) bool { return b.login("another-password") == nil && b.login(userPassword) != nil }, user: userName,
		},
		"locked on a subset": {
			drift: func(w *world) { w.guess(1, hsm.MaxFailedLogins+1) },
			check: func(w *world, b *box) bool { return errors.Is(b.login(userPassword), hsm.ErrLocked) }, user: userName,
		},
		"unlocked on a subset": {
			before: func(w *world) { w.guess(0, hsm.MaxFailedLogins+1) },
			drift:  func(w *world) { w.change(w.admin(1), user(hsm.ChangeUserUnlock, userName, hsm.RoleCryptoUser)) },
			check:  func(w *world, b *box) bool { return b.login(userPassword) == nil }, user: userName,
		},
		"policy changed on a subset": {
			drift: func(w *world) {
				w.change(w.admin(1), hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 3, MinZones: 2}})
			},
			check: func(w *world, b *box) bool {
				info, err := b.peer().Info(w.t.Context())
				return err == nil && info.Settings.MinCopies == 3 && info.Settings.MinZones == 2 && !info.Settings.CheckOnUse
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 3, 2, true)
			if tt.before != nil {
				tt.before(w)
				w.sync()
			}
			look := w.open(asAdmin)
			tt.drift(w)
			if tt.user != "" && consistent(t, look, tt.user) {
				t.Error("the drift does not show")
			}
			w.converge()
			for _, b := range w.boxes {
				if !tt.check(w, b) {
					t.Errorf("%s is not as it should be", b.member.Name)
				}
			}
			if tt.user != "" && !consistent(t, look, tt.user) {
				t.Error("the drift still shows")
			}
		})
	}
}

// TestKeyDriftHeals: attributes and shares changed while an HSM is away, on both
// sides of a partition.
func TestKeyDriftHeals(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	w.change(w.admin(0), hsm.Change{Kind: hsm.ChangeUserCreate, User: "eve", Role: hsm.RoleCryptoUser, Password: secret("eve-password")})
	w.change(w.admin(0), hsm.Change{Kind: hsm.ChangeUserCreate, User: "dan", Role: hsm.RoleCryptoUser, Password: secret("dan-password")})
	w.sync()
	ref := mustCreate(t, w.open(asUser), aes())
	w.sync()
	owner := func(i int) hsm.Session { return w.boxes[i].as(hsm.RoleCryptoUser, userName) }
	for i, changes := range [][]hsm.Change{
		{{Kind: hsm.ChangeAttribute, Name: "label", Value: "one"}, {Kind: hsm.ChangeShare, User: "eve"}, {Kind: hsm.ChangeAttribute, Name: "extractable", Value: "false"}},
		{{Kind: hsm.ChangeAttribute, Name: "derive", Value: "false"}, {Kind: hsm.ChangeShare, User: "dan"}, {Kind: hsm.ChangeAttribute, Name: "label", Value: "two"}},
	} {
		for _, c := range changes {
			c.Ref = ref
			w.change(owner(i), c)
		}
	}
	w.converge()
	for _, b := range w.boxes {
		k, err := b.as(hsm.RoleCryptoUser, userName).Key(t.Context(), ref)
		if err != nil || k.Label != "two" || k.Attributes["derive"] != "false" || k.Attributes["extractable"] != "false" || !slices.Equal(k.Shares, []string{"dan", "eve"}) {
			t.Errorf("%s: %+v, %v", b.member.Name, k, err)
		}
	}
	w.change(owner(1), hsm.Change{Kind: hsm.ChangeUnshare, Ref: ref, User: "eve"})
	w.converge()
	for _, b := range w.boxes {
		if _, err := b.as(hsm.RoleCryptoUser, "eve").Key(t.Context(), ref); !errors.Is(err, hsm.ErrNotFound) {
			t.Errorf("%s: eve still sees the key: %v", b.member.Name, err)
		}
	}
}

// TestLockoutCountsForTheCluster: guesses spread over the HSMs are not more
// guesses. CloudHSM counts per HSM.
func TestLockoutCountsForTheCluster(t *testing.T) {
	w := newWorld(t, 3, 2, true)
	for i := range hsm.MaxFailedLogins + 1 {
		w.guess(i%3, 1)
		w.sync()
	}
	for _, b := range w.boxes {
		if err := b.login(userPassword); !errors.Is(err, hsm.ErrLocked) {
			t.Errorf("%s, with the right password after %d guesses at all HSMs: %v; want ErrLocked", b.member.Name, hsm.MaxFailedLogins+1, err)
		}
	}
	w.change(w.admin(2), hsm.Change{Kind: hsm.ChangeUserUnlock, User: userName, Role: hsm.RoleCryptoUser})
	w.sync()
	for _, b := range w.boxes {
		if err := b.login(userPassword); err != nil {
			t.Errorf("%s, unlocked: %v", b.member.Name, err)
		}
	}
}

func (w *world) admin(i int) hsm.Session { return w.boxes[i].as(hsm.RoleAdmin, adminName) }

// guess tries wrong passwords at one HSM.
func (w *world) guess(i, n int) {
	w.t.Helper()
	for range n {
		if err := w.boxes[i].login("a-wrong-password"); !errors.Is(err, hsm.ErrLogin) {
			w.t.Fatalf("a wrong password: %v", err)
		}
	}
}

// login logs the user in at one HSM.
func (b *box) login(password string) error {
	h, _ := b.running()
	s, _, err := h.Module(hsm.Principal{Role: hsm.RoleNone, Name: "test"}).Login(b.w.t.Context(), hsm.RoleCryptoUser, userName, secret(password))
	if err == nil {
		err = s.Close()
	}
	return err
}

// roleOf returns the role that a user has on one HSM, or "".
func (b *box) roleOf(name string) hsm.Role {
	users, err := b.peer().Users(b.w.t.Context())
	if err != nil {
		b.w.t.Fatal(err)
	}
	for _, u := range users {
		if u.Name == name {
			return u.Role
		}
	}
	return ""
}

// consistent tells whether all HSMs agree on a user.
func consistent(t *testing.T, c *Cluster, name string) bool {
	t.Helper()
	users, err := c.Users(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(users, func(u User) bool { return u.Name == name })
	return i < 0 || users[i].Consistent && len(users[i].Missing) == 0
}

// TestUserThatMayHaveBeenMade: an HSM makes a user and does not answer, and the next one
// has it from there: the caller is told that the call may have made it, not that somebody
// else had.
func TestUserThatMayHaveBeenMade(t *testing.T) {
	w := newWorld(t, 3, 2, false)
	c := w.open(asAdmin)
	var calls atomic.Int64
	w.setFaults(func(_ *box, call string) fault {
		if call != "Change" {
			return pass
		}
		if calls.Add(1) == 1 {
			return lose
		}
		w.sync()
		return pass
	})
	_, err := c.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserCreate, User: "carol", Role: hsm.RoleCryptoUser, Password: secret("carol-password")})
	if !errors.Is(err, hsm.ErrUnavailable) || errors.Is(err, hsm.ErrExist) || !strings.Contains(err.Error(), "may have made it") {
		t.Errorf("%v", err)
	}
}
