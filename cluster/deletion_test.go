package cluster

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestNobodyIsDeletedWhoOwnsAKeySomewhere: the HSM that is asked to delete a user may not
// have heard of a key that was acknowledged, which nobody could use after that.
func TestNobodyIsDeletedWhoOwnsAKeySomewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 2, false)
	bob, admin := w.open(asUser), w.open(asAdmin)
	w.awaitUp(bob)
	unheard := w.boxes[0]
	unheard.away.Store(true)
	made, err := bob.Create(t.Context(), hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 16}, Policy{})
	if err != nil {
		t.Fatal(err)
	}
	ref := made.Keys[0].Ref
	unheard.away.Store(false)
	w.awaitUp(admin)
	remove := hsm.Change{Kind: hsm.ChangeUserDelete, User: userName}
	undo := admin.forceFirst(unheard)
	if _, err := admin.Change(t.Context(), remove); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("delete the owner of a key: %v, want ErrDenied", err)
	}
	w.sync()
	for _, b := range w.boxes {
		if got := b.roleOf(userName); got != hsm.RoleCryptoUser {
			t.Errorf("%s: bob is %q", b.member.Name, got)
		}
	}
	undo()
	for _, b := range w.boxes[1:] { // those that hold it: the last one does not know enough
		b.away.Store(true)
	}
	if _, err := admin.Change(t.Context(), remove); !errors.Is(err, hsm.ErrUnavailable) && !errors.Is(err, ErrMinCopies) {
		t.Errorf("delete while too few answer: %v", err)
	}
	w.heal()
	w.awaitUp(admin)
	w.awaitUp(bob)
	if _, err := bob.Change(t.Context(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Change(t.Context(), remove); err != nil {
		t.Errorf("delete who owns no key: %v", err)
	}
}

// TestKeysOfAnEarlierUserKeepNobody: they do not belong to the user whose name it is now;
// those that an admin has revived for that user do.
func TestKeysOfAnEarlierUserKeepNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2, 1, false)
	admin, bob := w.open(asAdmin), w.open(asUser)
	w.awaitUp(admin)
	made, err := bob.Create(t.Context(), hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 16}, Policy{})
	if err != nil {
		t.Fatal(err)
	}
	w.sync()
	ref := made.Keys[0].Ref
	var live hsm.MaskedObject
	for live, err = range w.boxes[0].peer().Extract(t.Context(), slices.Values([]hsm.KeyRef{ref})) {
		if err != nil {
			t.Fatal(err)
		}
	}
	change := func(ch hsm.Change) error {
		_, err := admin.Change(t.Context(), ch)
		return err
	}
	remove := hsm.Change{Kind: hsm.ChangeUserDelete, User: userName}
	anew := hsm.Change{Kind: hsm.ChangeUserCreate, User: userName, Role: hsm.RoleCryptoUser, Password: secret(userPassword)}
	if _, err := bob.Change(t.Context(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref}); err != nil {
		t.Fatal(err)
	}
	w.sync()
	for _, ch := range []hsm.Change{remove, anew, {Kind: hsm.ChangeRevive, Ref: ref, Masked: &live}} {
		if err := change(ch); err != nil {
			t.Fatalf("%s: %v", ch.Kind, err)
		}
		w.sync()
	}
	if err := change(remove); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("delete who was given a key: %v, want ErrDenied", err)
	}
	old, err := w.keyring.Unmask(live)
	if err != nil {
		t.Fatal(err)
	}
	old.Ref, old.Core.Pair = hsm.NewKeyRef(), 0 // one that an HSM away from all this still had
	if old.Birth, err = w.keyring.Birth(old); err != nil {
		t.Fatal(err)
	}
	kept, err := w.keyring.Mask(old)
	if err != nil {
		t.Fatal(err)
	}
	if err := insertAll(t.Context(), w.boxes[1].peer(), []hsm.MaskedObject{kept}); err != nil {
		t.Fatal(err)
	}
	again := w.open(asUser)
	w.awaitUp(again)
	if _, err := again.Change(t.Context(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref}); err != nil {
		t.Fatal(err)
	}
	w.sync()
	if err := change(remove); err != nil {
		t.Errorf("delete while an earlier user's key is there: %v", err)
	}
}

// TestADeletionWaitsForASlowHSM: where one copy is enough all must say that the user owns no
// key, and one that takes some seconds to connect to is no reason to refuse.
func TestADeletionWaitsForASlowHSM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 1, false)
		slow, dial := w.boxes[2], w.dialer(hsm.RoleNone)
		admin, err := Open(t.Context(), w.profile(), asAdmin, WithDialer(func(ctx context.Context, m hsm.Member) (hsm.Module, error) {
			if m.Address == slow.member.Address {
				time.Sleep(4 * time.Second)
			}
			return dial(ctx, m)
		}))
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close()
		if _, err := admin.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserDelete, User: userName}); err != nil {
			t.Error(err)
		}
	})
}
