package server

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/hsm/soft"
	"github.com/hsmbackup/hsmbackup/cluster/rpc"
)

// copyFolder copies an HSM's folder, which nobody serves.
func (b *box) copyFolder(to string) string {
	b.w.t.Helper()
	to = filepath.Join(filepath.Dir(b.folder), to)
	if err := os.CopyFS(to, os.DirFS(b.folder)); err != nil {
		b.w.t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(to, "seal.key"), 0o600); err != nil {
		b.w.t.Fatal(err)
	}
	return to
}

// at gives the HSM of a folder another address.
func setAddress(t *testing.T, folder, address string) {
	t.Helper()
	c, err := LoadConfig(folder)
	if err != nil {
		t.Fatal(err)
	}
	c.Address = address
	if err := errors.Join(os.Remove(filepath.Join(folder, configFile)), c.save(folder)); err != nil {
		t.Fatal(err)
	}
}

// TestACopiedFolderIsFoundOut: neither of two HSMs under one identity serves, both
// say why, and the one that is left serves again.
func TestACopiedFolderIsFoundOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	var said logged
	w.log = newLogger(&said)
	one := w.boxes[1]
	one.stop()
	w.boxes[0].stop()
	w.boxes[0].start()
	copied := &box{w: w, folder: one.copyFolder("copied")}
	setAddress(t, copied.folder, "127.0.0.1:0")
	one.start()
	w.eventually("it has not proved that it lives", func() bool { return len(one.server.sync.connected()) == 1 })
	copied.start()
	t.Cleanup(func() { copied.stop() })
	w.eventually("nobody notices", func() bool {
		a, b := one.info(), copied.info()
		return a.State == hsm.StateDuplicate && b.State == hsm.StateDuplicate
	})
	if _, _, err := one.client().Login(t.Context(), hsm.RoleNone, "root", secret(rootPassword)); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), "copy of its folder") {
		t.Errorf("a login: %v, want ErrUnavailable", err)
	}
	if s := w.boxes[0].info().State; s != hsm.StateActive {
		t.Errorf("the HSM that noticed is %s", s)
	}
	if !strings.Contains(said.String(), "two processes run as one HSM") || !strings.Contains(said.String(), "state=DUPLICATE") {
		t.Errorf("the logs do not say so: %s", said.String())
	}
	if err := copied.stop(); err != nil {
		t.Fatal(err)
	}
	w.eventually("the one that is left does not serve again", func() bool { return one.info().State == hsm.StateActive })
	w.eventually("others look for the one that is left where its copy was", func() bool {
		return w.boxes[0].member(one.id()).Address == one.server.Address()
	})
	w.rounds()
}

// TestARemovedHSMServesNobody from the moment on that it knows, whatever it is doing.
func TestARemovedHSMServesNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.createAlice()
	b := w.boxes[1]
	alice := b.alice()
	m := b.member(b.id())
	m.Removed = true
	if _, err := b.self().Change(t.Context(), hsm.Change{Kind: hsm.ChangeMember, Member: &m}); err != nil {
		t.Fatal(err)
	}
	if err := b.server.locate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := alice.Create(t.Context(), newOp(), aesRequest("late")); !errors.Is(err, hsm.ErrUnavailable) && !errors.Is(err, hsm.ErrSession) {
		t.Errorf("a key is made: %v, want ErrUnavailable", err)
	}
	if state := b.server.phase(); state != hsm.StateRemoved || state.Serves() {
		t.Errorf("it is %s, want REMOVED", state)
	}
	w.boxes = w.boxes[:1] // it ends by itself
	if err := <-b.served; !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("it ends with %v, want ErrDenied", err)
	}
	if err := b.server.Close(); err != nil {
		t.Error(err)
	}
}

// TestRestartsAreNoCopies, however fast: nobody is ever told to stop, and nothing
// is taken for set back.
func TestRestartsAreNoCopies(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	var said logged
	w.log = newLogger(&said)
	w.createAlice()
	b := w.boxes[1]
	for range 6 {
		b.stop()
		b.start()
		w.createKey(b.alice(), "k")
	}
	w.rounds()
	if info := b.info(); info.State != hsm.StateActive || info.Notice != "" {
		t.Errorf("after restarts: %s %q", info.State, info.Notice)
	}
	if s := said.String(); strings.Contains(s, "DUPLICATE") || strings.Contains(s, "set back") {
		t.Error(s)
	}
}

// TestNoOrderOfRestartsLooksLikeACopy: starts that live one after the other, with
// messages that come late, are never taken for two; two that live at once are,
// after each has greeted some times.
func TestNoOrderOfRestartsLooksLikeACopy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := &sighting{alive: map[rpc.BootID]*life{}}
		var late []rpc.Greeting
		for boot := byte(1); boot < 6; boot++ {
			g := rpc.Greeting{Boot: rpc.Boot{ID: rpc.BootID{boot}}}
			for range rapid.IntRange(0, 5).Draw(t, "greetings") {
				if rapid.IntRange(0, 3).Draw(t, "late") == 0 {
					late = append(late, g) // it is on its way when its sender dies
				}
				g.Echo = x.lives(g)
				if x.overlap(g.Boot.ID, time.Now(), time.Hour) {
					t.Fatal("a restart looks like a copy")
				}
			}
			for len(late) > 0 && rapid.Bool().Draw(t, "arrives") {
				x.lives(late[0]) // the answer reaches nobody
				if x.overlap(late[0].Boot.ID, time.Now(), time.Hour) {
					t.Fatal("a late message looks like a copy")
				}
				late = late[1:]
			}
		}
		a, b := rpc.Greeting{Boot: rpc.Boot{ID: rpc.BootID{100}}}, rpc.Greeting{Boot: rpc.Boot{ID: rpc.BootID{101}}}
		for range 5 {
			a.Echo = x.lives(a)
			b.Echo = x.lives(b)
		}
		if !x.overlap(a.Boot.ID, time.Now(), time.Hour) || !x.overlap(b.Boot.ID, time.Now(), time.Hour) {
			t.Fatal("two at once are not found out")
		}
		if x.overlap(a.Boot.ID, time.Now().Add(time.Hour), time.Minute) {
			t.Fatal("one that is silent for long is still held against the other")
		}
	})
}

// TestAnHSMThatWasSetBack does not serve, and above all revives nothing, before it
// has what its peers know; and it does not hide that it was behind.
func TestAnHSMThatWasSetBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.createAlice()
	doomed := w.createKey(w.boxes[0].alice(), "doomed")
	w.converge()
	b := w.boxes[1]
	b.stop()
	old := b.copyFolder("old")
	b.start()
	w.change(b.alice(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: doomed})
	later := w.createKey(b.alice(), "later")
	w.converge()
	w.rounds()
	b.stop()
	if err := errors.Join(os.RemoveAll(b.folder), os.Rename(old, b.folder)); err != nil {
		t.Fatal(err)
	}
	b.start()
	w.eventually("it does not serve again", func() bool { return b.info().State == hsm.StateActive })
	if info := b.info(); !strings.Contains(info.Notice, "set back") || !strings.Contains(info.Notice, w.boxes[0].id().String()) {
		t.Errorf("it hides that it was behind: %+v", info)
	}
	if m := w.boxes[0].member(b.id()); m.Doubt == 0 {
		t.Error("the cluster does not know that it may have forgotten")
	}
	alice := b.alice()
	if _, err := alice.Key(t.Context(), doomed); !errors.Is(err, hsm.ErrDestroyed) {
		t.Errorf("the destroyed key: %v, want ErrDestroyed", err)
	}
	if _, err := alice.Key(t.Context(), later); err != nil {
		t.Errorf("the later key: %v", err)
	}
	if _, err := alice.Resolve(t.Context(), newOp()); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("it says what became of an operation: %v, want ErrUnavailable", err)
	}
	log, err := os.ReadFile(filepath.Join(b.folder, AuditFile))
	if err != nil || !strings.Contains(string(log), "set-back") {
		t.Errorf("the audit log does not say so: %v", err)
	}
	b.stop() // its peers have taken note: it is not behind for ever
	b.start()
	w.rounds()
	if info := b.info(); info.State != hsm.StateActive || info.Notice != "" {
		t.Errorf("after another start: %s %q", info.State, info.Notice)
	}
}

func TestIsBehind(t *testing.T) {
	boot := func(id byte, writes uint64) rpc.Boot { return rpc.Boot{ID: rpc.BootID{id}, Writes: writes} }
	g := rpc.Greeting{Boot: boot(3, 30), Before: []rpc.Boot{boot(2, 20), boot(1, 10)}}
	for _, tc := range []struct {
		name   string
		seen   soft.Boot
		behind bool
		lost   uint64
	}{
		{"nothing seen", soft.Boot{}, false, 0},
		{"the same start", soft.Boot{ID: soft.BootID{3}, Writes: 30}, false, 0},
		{"an orderly restart", soft.Boot{ID: soft.BootID{2}, Writes: 20}, false, 0},
		{"two restarts", soft.Boot{ID: soft.BootID{1}, Writes: 5}, false, 0},
		{"an image taken while it ran", soft.Boot{ID: soft.BootID{2}, Writes: 27}, true, 7},
		{"an image from before that start", soft.Boot{ID: soft.BootID{9}, Writes: 1}, true, 0},
	} {
		if behind, lost := isBehind(tc.seen, g); behind != tc.behind || lost != tc.lost {
			t.Errorf("%s: %t %d, want %t %d", tc.name, behind, lost, tc.behind, tc.lost)
		}
	}
}
