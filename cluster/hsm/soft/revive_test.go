package soft

import (
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// extractOne returns one masked object.
func extractOne(t *testing.T, s hsm.Session, ref hsm.KeyRef) (out hsm.MaskedObject) {
	t.Helper()
	for m, err := range s.Extract(t.Context(), slices.Values([]hsm.KeyRef{ref})) {
		out = must[hsm.MaskedObject](t)(m, err)
	}
	return out
}

// insertMasked brings an object in as server-side sync does.
func insertMasked(t *testing.T, h *HSM, m hsm.MaskedObject) {
	t.Helper()
	must[hsm.Inserted](t)(peer(t, h).Insert(t.Context(), each([]hsm.MaskedObject{m})))
}

// TestRevivedKeyIsNoLooser: an owner who destroys a key and brings it back in an
// old state does not undo what changes one way only.
func TestRevivedKeyIsNoLooser(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	s := login(t, h, "alice")
	r := aesRequest
	r.Attributes = map[string]string{"sensitive": "false", "extractable": "true", "wrap-with-trusted": "false", "modifiable": "true"}
	k := createAs(t, s, r)
	old := extractOne(t, s, k.Ref)
	for _, set := range [][2]string{{"sensitive", "true"}, {"extractable", "false"}, {"wrap-with-trusted", "true"}, {"modifiable", "false"}} {
		wantErr(t, set[0], setAttribute(t, s, k.Ref, set[0], set[1]), nil)
	}
	must[hsm.MaskedObject](t)(s.Change(t.Context(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: k.Ref}))
	must[hsm.MaskedObject](t)(s.Change(t.Context(), hsm.Change{Kind: hsm.ChangeRevive, Ref: k.Ref, Masked: &old}))
	got := must[hsm.KeyInfo](t)(s.Key(t.Context(), k.Ref)).Attributes
	for name, want := range map[string]string{"sensitive": "true", "extractable": "false", "wrap-with-trusted": "true", "modifiable": "false"} {
		if got[name] != want {
			t.Errorf("%s is %s again, want %s", name, got[name], want)
		}
	}
	wantErr(t, "made extractable", setAttribute(t, s, k.Ref, "extractable", "true"), hsm.ErrAttribute)
}

// TestRevivedKeyStaysTrusted: a clone where a key is not trusted yet may destroy it,
// and its tombstone spreads; the owner does not get the key back untrusted.
func TestRevivedKeyStaysTrusted(t *testing.T) {
	o := testOptions(vfs.NewMem())
	h := withUser(t, open(t, o))
	s := login(t, h, "alice")
	r := aesRequest
	r.Attributes = map[string]string{"extractable": "false", "encrypt": "false", "decrypt": "false", "wrap": "true"}
	k := createAs(t, s, r)
	old := extractOne(t, s, k.Ref)
	root := login(t, h, "admin")
	wantErr(t, "trust", setAttribute(t, root, k.Ref, "trusted", "true"), nil)
	rec := must[*hsm.Record](t)(o.Keyring.Unmask(old))
	rec.Destroy()
	insertMasked(t, h, must[hsm.MaskedObject](t)(o.Keyring.Mask(rec)))
	revive := hsm.Change{Kind: hsm.ChangeRevive, Ref: k.Ref, Masked: &old}
	_, err := s.Change(t.Context(), revive)
	wantErr(t, "the owner revives it", err, hsm.ErrDenied)
	must[hsm.MaskedObject](t)(root.Change(t.Context(), revive))
	if got := must[hsm.KeyInfo](t)(s.Key(t.Context(), k.Ref)).Attributes["trusted"]; got != "true" {
		t.Errorf("trusted is %s after an admin revived it, want true", got)
	}
	wantErr(t, "the owner makes it decrypt", setAttribute(t, s, k.Ref, "decrypt", "true"), hsm.ErrAttribute)
}

// TestKeysFollowTheUserNotTheName: whoever gets a name again gets none of the keys
// that belong to the former user, neither live ones nor those that were destroyed.
func TestKeysFollowTheUserNotTheName(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	root, former := login(t, h, "admin"), login(t, h, "alice")
	dead, live := createKey(t, former), createKey(t, former)
	oldDead, oldLive := extractOne(t, former, dead.Ref), extractOne(t, former, live.Ref)
	for _, ref := range []hsm.KeyRef{dead.Ref, live.Ref} {
		apply(t, former, hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
	}
	apply(t, root, hsm.Change{Kind: hsm.ChangeUserDelete, User: "alice"})
	apply(t, root, hsm.Change{Kind: hsm.ChangeUserCreate, User: "alice", Role: hsm.RoleCryptoUser, Password: hsm.NewSecret([]byte(testPassword))})
	anew := login(t, h, "alice")
	_, err := anew.Change(t.Context(), hsm.Change{Kind: hsm.ChangeRevive, Ref: dead.Ref, Masked: &oldDead})
	wantErr(t, "the new user revives a key of the former one", err, hsm.ErrNotFound)

	// A key that an HSM away from all this still had.
	foreign := must[*hsm.Record](t)(h.keys().Unmask(oldLive))
	foreign.Incarnation = 1
	kept := must[hsm.MaskedObject](t)(h.keys().Mask(foreign))
	_, err = anew.Insert(t.Context(), each([]hsm.MaskedObject{kept}))
	wantErr(t, "the new user inserts it", err, hsm.ErrDenied)
	insertMasked(t, h, kept)
	_, err = anew.Key(t.Context(), live.Ref)
	wantErr(t, "the new user looks at it", err, hsm.ErrNotFound)
	_, err = anew.Change(t.Context(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: live.Ref})
	wantErr(t, "the new user destroys it", err, hsm.ErrNotFound)
	if got := extractOne(t, anew, live.Ref); got.Bytes != nil {
		t.Error("the new user extracts it")
	}
	for o, err := range anew.Objects(t.Context()) {
		if err != nil || !o.Tombstone {
			t.Errorf("the new user lists %v, %v", o, err)
		}
	}
	own := createKey(t, anew)
	_, err = anew.Key(t.Context(), own.Ref)
	wantErr(t, "its own key", err, nil)

	// An admin may give it to the new user, by name of the key.
	apply(t, root, hsm.Change{Kind: hsm.ChangeRevive, Ref: dead.Ref, Masked: &oldDead})
	_, err = anew.Use(t.Context(), hsm.Use{Kind: hsm.UseMAC, Key: dead.Ref, Data: []byte("x"), Params: hsm.Params{Mechanism: "aes-cmac"}})
	wantErr(t, "the new user uses a key given to it", err, nil)
	for _, ref := range []hsm.KeyRef{own.Ref, dead.Ref} {
		apply(t, anew, hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
	}
	apply(t, root, hsm.Change{Kind: hsm.ChangeUserDelete, User: "alice"}) // the former one's key keeps nobody
}

// TestALateCallBeginsNoLife: a user that was deleted, and a key that was destroyed
// again, are not brought back by a call that an HSM gets late.
func TestALateCallBeginsNoLife(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	root, s := login(t, h, "admin"), login(t, h, "alice")
	bob := hsm.Change{Kind: hsm.ChangeUserCreate, User: "bob", Role: hsm.RoleCryptoUser, Password: hsm.NewSecret([]byte(testPassword)), Life: 1}
	apply(t, root, bob)
	apply(t, root, hsm.Change{Kind: hsm.ChangeUserDelete, User: "bob"})
	_, err := root.Change(t.Context(), bob)
	wantErr(t, "the creation again", err, hsm.ErrDestroyed)
	bob.Life = 4 // as another HSM knows that its third life has ended
	apply(t, root, bob)
	if u, _ := h.users.get("bob"); u.incarnation != 3 {
		t.Errorf("incarnation %d, want 3", u.incarnation)
	}
	bob.User, bob.Life = "carol", maxLivesAhead+3
	_, err = root.Change(t.Context(), bob)
	wantErr(t, "a life far ahead", err, hsm.ErrInvalid)

	k := createKey(t, s)
	old := extractOne(t, s, k.Ref)
	destroy := hsm.Change{Kind: hsm.ChangeDestroy, Ref: k.Ref}
	revive := hsm.Change{Kind: hsm.ChangeRevive, Ref: k.Ref, Masked: &old, Life: 2}
	apply(t, s, destroy)
	apply(t, s, revive)
	apply(t, s, destroy)
	_, err = s.Change(t.Context(), revive)
	wantErr(t, "the revival again", err, hsm.ErrDestroyed)
}
