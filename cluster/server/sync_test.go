package server

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestSyncBringsWhatAnHSMMissed: keys made, changed and destroyed, users and
// settings, all while one HSM was down.
func TestSyncBringsWhatAnHSMMissed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.createAlice()
	alice := w.boxes[0].alice()
	changed, destroyed := w.createKey(alice, "to be changed"), w.createKey(alice, "to be destroyed")
	w.converge()
	if err := w.boxes[2].stop(); err != nil {
		t.Fatal(err)
	}
	made := w.createKey(alice, "made meanwhile")
	w.change(alice, hsm.Change{Kind: hsm.ChangeAttribute, Ref: changed, Name: "label", Value: "changed meanwhile"})
	w.change(alice, hsm.Change{Kind: hsm.ChangeDestroy, Ref: destroyed})
	root := w.boxes[1].root()
	w.change(root, hsm.Change{Kind: hsm.ChangeUserCreate, User: "bob", Role: hsm.RoleCryptoUser, Password: secret("bob-was-here")})
	w.change(root, hsm.Change{Kind: hsm.ChangeSettings, Settings: &hsm.Settings{MinCopies: 2, CheckOnUse: true}})
	if _, _, err := w.boxes[0].client().Login(t.Context(), hsm.RoleNone, "alice", secret("not-her-password")); !errors.Is(err, hsm.ErrLogin) {
		t.Fatalf("wrong password: %v", err)
	}

	w.boxes[2].start()
	w.converge()
	late := w.boxes[2].alice()
	for ref, label := range map[hsm.KeyRef]string{made: "made meanwhile", changed: "changed meanwhile"} {
		if k, err := late.Key(t.Context(), ref); err != nil || k.Label != label {
			t.Errorf("key %s: %q, %v; want %q", ref, k.Label, err, label)
		}
	}
	if _, err := late.Key(t.Context(), destroyed); !errors.Is(err, hsm.ErrDestroyed) {
		t.Errorf("the destroyed key: %v", err)
	}
	w.boxes[2].login("bob", "bob-was-here")
	if info := w.boxes[2].info(); info.Settings.MinCopies != 2 || !info.Settings.CheckOnUse || info.Keys != 2 {
		t.Errorf("info %+v", info)
	}
}

// TestSyncBringsMembersAndLockouts: the cluster scope.
func TestSyncBringsMembersAndLockouts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.createAlice()
	for range hsm.MaxFailedLogins + 1 {
		if _, _, err := w.boxes[0].client().Login(t.Context(), hsm.RoleNone, "alice", secret("not-her-password")); !errors.Is(err, hsm.ErrLogin) {
			t.Fatalf("wrong password: %v", err)
		}
	}
	w.converge()
	if _, _, err := w.boxes[1].client().Login(t.Context(), hsm.RoleNone, "alice", secret(alicePassword)); !errors.Is(err, hsm.ErrLocked) {
		t.Errorf("a lockout stays on one HSM: %v", err)
	}
	w.change(w.boxes[1].root(), hsm.Change{Kind: hsm.ChangeUserUnlock, User: "alice"})
	w.converge()
	if _, _, err := w.boxes[0].client().Login(t.Context(), hsm.RoleNone, "alice", secret(alicePassword)); err != nil {
		t.Errorf("an unlock stays on one HSM: %v", err)
	}
}

// TestAnHSMThatMovesIsFound: after a restart at another address, and while the
// others still look for it at the old one.
func TestAnHSMThatMovesIsFound(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.createAlice()
	moving := w.boxes[1]
	old := moving.server.Address()
	if err := moving.stop(); err != nil {
		t.Fatal(err)
	}
	free, err := listenFree("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer free.Close()
	edit(t, filepath.Join(moving.folder, configFile), old, "127.0.0.1:0")
	moving.start()
	ref := w.createKey(moving.alice(), "made after the move")
	w.eventually("the others do not find the HSM at its new address", func() bool {
		_, err := w.boxes[0].alice().Key(t.Context(), ref)
		return err == nil
	})
	members, err := w.boxes[2].self().Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		if m.ID == moving.id() && m.Address != moving.server.Address() {
			t.Errorf("HSM 3 knows it at %s, it is at %s", m.Address, moving.server.Address())
		}
	}
}

// TestSwappedAddressesAreNotMistaken: where another HSM of the cluster answers,
// it does not count as the one that was expected.
func TestSwappedAddressesAreNotMistaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.rounds()
	a, b := w.boxes[1], w.boxes[2]
	addressA, addressB := a.server.Address(), b.server.Address()
	if err := errors.Join(a.stop(), b.stop()); err != nil {
		t.Fatal(err)
	}
	edit(t, filepath.Join(b.folder, configFile), addressB, addressA)
	b.start() // where HSM 1 expects a
	began := time.Now()
	w.eventually("HSM 1 does not find b at its new address", func() bool {
		w.boxes[0].server.sync.mu.Lock()
		defer w.boxes[0].server.sync.mu.Unlock()
		p := w.boxes[0].server.sync.peers[b.id()]
		return p != nil && p.lastSync().After(began)
	})
	if !w.boxes[0].server.sync.lastSync().Before(began) {
		t.Error("HSM 1 says it is in sync with an HSM that is down")
	}
	if _, all := w.boxes[0].server.sync.witnesses(); all {
		t.Error("one HSM counts as two witnesses")
	}
}

// counting counts what is asked of an HSM.
type counting struct {
	hsm.Session
	infos, others *atomic.Int64
}

func (c counting) Info(ctx context.Context) (hsm.Info, error) {
	c.infos.Add(1)
	return c.Session.Info(ctx)
}

func (c counting) Scoped(scope hsm.Scope) hsm.SketchReplica {
	c.others.Add(1)
	return c.Session.Scoped(scope)
}

func (c counting) Objects(ctx context.Context) iter.Seq2[hsm.Object, error] {
	c.others.Add(1)
	return c.Session.Objects(ctx)
}

type countingModule struct {
	hsm.Module
	infos, others *atomic.Int64
}

func (m countingModule) Session(ctx context.Context) (hsm.Session, error) {
	s, err := m.Module.Session(ctx)
	return counting{s, m.infos, m.others}, err
}

// TestIdleRoundsAskForOneMessage: while nothing differs, a round is one Info per
// peer.
func TestIdleRoundsAskForOneMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.createAlice()
	w.converge()
	w.rounds()
	one := w.boxes[0].server
	var infos, others atomic.Int64
	dial := func(ctx context.Context, m hsm.Member) (hsm.Module, error) {
		module, err := one.sync.dial(ctx, m)
		return countingModule{module, &infos, &others}, err
	}
	s := newSyncer(one.config.ID, one.device.self, softLocal{one.device.soft}, dial, testInterval, w.log)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	w.eventually("no rounds", func() bool { return infos.Load() > 10 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := others.Load(); n != 0 {
		t.Errorf("%d requests beside %d Infos", n, infos.Load())
	}
}

// TestAPeerThatHangsHoldsUpNobody: it accepts connections and never answers.
func TestAPeerThatHangsHoldsUpNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.createAlice()
	hanging := w.boxes[2]
	address := hanging.server.Address()
	if err := hanging.stop(); err != nil {
		t.Fatal(err)
	}
	tar, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer tar.Close()
	ref := w.createKey(w.boxes[0].alice(), "made while one hangs")
	w.eventually("sync with the others stands still", func() bool {
		_, err := w.boxes[1].alice().Key(t.Context(), ref)
		return err == nil
	})
	began := time.Now()
	for range 3 { // rounds with the peer that answers go on all the time
		at := time.Now()
		w.eventually("rounds with the others stand still", func() bool {
			w.boxes[1].server.sync.mu.Lock()
			defer w.boxes[1].server.sync.mu.Unlock()
			return w.boxes[1].server.sync.peers[w.boxes[0].id()].lastSync().After(at)
		})
	}
	if last := w.boxes[1].server.sync.lastSync(); last.After(began) {
		t.Error("an HSM counts as in sync with a peer that hangs")
	}
}

func TestPeersThatGoAndComeAreLoggedOnce(t *testing.T) {
	t.Parallel()
	var log logged
	w := newWorld(t, 2)
	if err := w.boxes[0].stop(); err != nil {
		t.Fatal(err)
	}
	w.log = slog.New(slog.NewTextHandler(&log, nil))
	w.boxes[0].start()
	w.rounds()
	if err := w.boxes[1].stop(); err != nil {
		t.Fatal(err)
	}
	w.eventually("the absence of a peer is not logged", func() bool { return strings.Contains(log.String(), "no sync with peer") })
	w.boxes[1].start()
	w.eventually("its return is not logged", func() bool { return strings.Contains(log.String(), "peer is back") })
	if n := strings.Count(log.String(), "no sync with peer"); n != 1 {
		t.Errorf("its absence is logged %d times:\n%s", n, log.String())
	}
}

// TestARemovedHSMStops: at once if it is up, and when it comes back if it was
// down; meanwhile nobody takes it for a member.
func TestARemovedHSMStops(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	remove := func(b *box, at *box) {
		m := hsm.Member{ID: b.server.config.ID, Name: b.server.config.Name, Address: b.server.Address(), Zone: b.server.config.Zone, Removed: true}
		w.change(at.root(), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
	}
	up, down := w.boxes[1], w.boxes[2]
	downServer := down.server
	if err := down.stop(); err != nil {
		t.Fatal(err)
	}
	remove(up, w.boxes[0])
	if err := <-up.served; !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("the one that was up: %v, want ErrDenied", err)
	}
	up.served <- nil
	if err := up.stop(); err != nil {
		t.Error(err)
	}
	down.server = downServer
	remove(down, w.boxes[0])
	down.server = nil
	down.start()
	if err := <-down.served; !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("the one that was down: %v, want ErrDenied", err)
	}
	down.served <- nil
	if err := down.stop(); err != nil {
		t.Error(err)
	}
	w.eventually("the last member is not in sync with itself", func() bool { return time.Since(w.boxes[0].info().LastSync) < time.Minute })
}

// TestAConflictIsLoggedAndTheRestIsSynced: one reference with two births.
func TestAConflictIsLoggedAndTheRestIsSynced(t *testing.T) {
	t.Parallel()
	var log logged
	w := newWorld(t, 2)
	w.createAlice()
	if err := errors.Join(w.boxes[0].stop(), w.boxes[1].stop()); err != nil {
		t.Fatal(err)
	}
	w.log = slog.New(slog.NewTextHandler(&log, nil))
	ref := hsm.NewKeyRef()
	for _, b := range w.boxes {
		s, err := Open(t.Context(), b.folder, b.options())
		if err != nil {
			t.Fatal(err)
		}
		insertKey(t, s, ref)
		insertKey(t, s, hsm.NewKeyRef())
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	w.boxes[0].start()
	w.boxes[1].start()
	w.eventually("the conflict is not logged", func() bool {
		return strings.Contains(log.String(), "two births") && strings.Contains(log.String(), ref.String())
	})
	w.eventually("a conflict holds up the rest", func() bool { return w.boxes[0].info().Keys == 3 && w.boxes[1].info().Keys == 3 })
}

// insertKey puts a new key of alice's into an HSM under a reference.
func insertKey(t *testing.T, s *Server, ref hsm.KeyRef) {
	t.Helper()
	r := &hsm.Record{
		Kind: hsm.KindKey, Ref: ref, Material: hsm.NewSecret([]byte(hsm.NewHSMID().String())[:16]),
		Registers: map[string]hsm.Register{}, Hidden: map[string]hsm.Register{},
		Core: hsm.Core{Class: hsm.ClassSecret, Type: "aes", Size: 16, Origin: hsm.MethodImport, Owner: "alice"},
	}
	var err error
	if r.Birth, err = s.secrets.keyring.Birth(r); err != nil {
		t.Fatal(err)
	}
	m, err := s.secrets.keyring.Mask(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.device.self.Insert(t.Context(), func(yield func(hsm.MaskedObject, error) bool) { yield(m, nil) }); err != nil {
		t.Fatal(err)
	}
}

func TestAnOldDataFolderCatchesUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.createAlice()
	alice := w.boxes[0].alice()
	ref := w.createKey(alice, "to be destroyed")
	w.converge()
	old := filepath.Join(t.TempDir(), "old")
	if err := w.boxes[1].stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(old, os.DirFS(w.boxes[1].folder)); err != nil {
		t.Fatal(err)
	}
	w.boxes[1].start()
	w.change(alice, hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
	w.converge()
	if err := w.boxes[1].stop(); err != nil {
		t.Fatal(err)
	}
	w.boxes[1].folder = old
	w.boxes[1].start()
	w.rounds()
	w.converge()
	for i, b := range w.boxes {
		if _, err := b.alice().Key(t.Context(), ref); !errors.Is(err, hsm.ErrDestroyed) {
			t.Errorf("HSM %d: %v: an old data folder revived a destroyed key", i+1, err)
		}
	}
}
