package soft

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func createAs(t *testing.T, s hsm.Session, r hsm.CreateRequest) hsm.KeyInfo {
	t.Helper()
	op := randomOp()
	r.Token = true
	made := must[hsm.Created](t)(s.Create(t.Context(), op, r))
	if err := s.Commit(t.Context(), op); err != nil {
		t.Fatal(err)
	}
	return made.Keys[0]
}

func setAttribute(t *testing.T, s hsm.Session, ref hsm.KeyRef, name, value string) error {
	t.Helper()
	_, err := s.Change(t.Context(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: ref, Name: name, Value: value})
	return err
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// TestAbortDestroysOnlyTheNewborn: what is committed is undone by its owner, for
// an hour, also if it is not destroyable, also after a restart; copies are not.
func TestAbortDestroysOnlyTheNewborn(t *testing.T) {
	for _, c := range []struct {
		name    string
		method  hsm.Method // by which the operation came here; empty: Prepare
		age     time.Duration
		wait    time.Duration
		restart bool
		want    error
	}{
		{"created here", hsm.MethodGenerate, 0, 0, false, nil},
		{"created here, restarted", hsm.MethodGenerate, 0, 0, true, nil},
		{"created here an hour ago", hsm.MethodGenerate, 0, maxLease + time.Second, false, hsm.ErrDenied},
		{"prepared, young", "", time.Minute, 0, false, nil},
		{"prepared, young, restarted", "", time.Minute, 0, true, nil},
		{"prepared, old", "", maxLease + time.Second, 0, false, hsm.ErrDenied},
		{"prepared, old, restarted", "", maxLease + time.Second, 0, true, hsm.ErrDenied},
		{"inserted, young", hsm.MethodInsert, 0, 0, false, hsm.ErrDenied},
		{"inserted, young, restarted", hsm.MethodInsert, 0, 0, true, hsm.ErrDenied},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs, clk := vfs.NewMem(), newClock()
			o := testOptions(fs)
			o.Now = clk.Now
			h := withUser(t, open(t, o))
			s, op := login(t, h, "alice"), randomOp()
			ref := begin(t, s, c.method, op, handmade(t, o.Keyring, "alice", clk.Now().Add(-c.age)))
			if err := s.Commit(t.Context(), op); err != nil {
				t.Fatal(err)
			}
			if c.restart {
				if err := h.Close(); err != nil {
					t.Fatal(err)
				}
				h = open(t, o)
				s = login(t, h, "alice")
			}
			clk.advance(c.wait)
			wantErr(t, "abort", s.Abort(t.Context(), op), c.want)
			_, err := s.Key(t.Context(), ref)
			state := must[hsm.OpState](t)(s.Resolve(t.Context(), op))
			if c.want != nil {
				wantErr(t, "the key", err, nil)
				if state != hsm.OpCommitted {
					t.Errorf("state %d after a refused abort, want committed", state)
				}
				return
			}
			wantErr(t, "the key", err, hsm.ErrDestroyed)
			wantErr(t, "abort again", s.Abort(t.Context(), op), nil)
			checkStore(t, h)
		})
	}
}

// begin prepares a key that is not destroyable, or a handmade one.
func begin(t *testing.T, s *session, method hsm.Method, op hsm.OpID, m hsm.MaskedObject) hsm.KeyRef {
	t.Helper()
	r := aesRequest
	switch method {
	case hsm.MethodGenerate:
		r.Attributes = map[string]string{"destroyable": "false"}
	case hsm.MethodInsert:
		r = hsm.CreateRequest{Method: method, Token: true, Masked: []hsm.MaskedObject{m}}
	default:
		if err := s.Prepare(t.Context(), op, time.Minute, []hsm.MaskedObject{m}); err != nil {
			t.Fatal(err)
		}
		return m.Ref
	}
	return must[hsm.Created](t)(s.Create(t.Context(), op, r)).Keys[0].Ref
}

// TestNobodyElseDestroysByAbort: neither an appliance nor an admin nor an HSM
// makes a tombstone of a key it has copied.
func TestNobodyElseDestroysByAbort(t *testing.T) {
	a := withUser(t, open(t, testOptions(vfs.NewMem())))
	alice := login(t, a, "alice")
	r := aesRequest
	r.Attributes = map[string]string{"destroyable": "false"}
	k := createAs(t, alice, r)
	for _, role := range []hsm.Role{hsm.RoleAppliance, hsm.RoleAdmin, hsm.RoleHSM} {
		o := testOptions(vfs.NewMem())
		o.Keyring = a.keys()
		b := open(t, o)
		s := must[hsm.Session](t)(b.Module(hsm.Principal{Role: role, Name: "x"}).Session(t.Context()))
		var got []hsm.MaskedObject
		for m, err := range peer(t, a).Extract(t.Context(), slices.Values([]hsm.KeyRef{k.Ref})) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, m)
		}
		op := randomOp()
		if err := errors.Join(s.Prepare(t.Context(), op, time.Minute, got), s.Commit(t.Context(), op)); err != nil {
			t.Fatal(err)
		}
		wantErr(t, string(role)+" aborts", s.Abort(t.Context(), op), hsm.ErrDenied)
		if cur := must[*held](t)(b.read(hsm.ScopeLineage, k.Ref)); cur == nil || cur.obj.Tombstone {
			t.Errorf("%s: the key is gone", role)
		}
	}
}

// TestAbortIsAudited: each key that an abort destroys is named.
func TestAbortIsAudited(t *testing.T) {
	var mu sync.Mutex
	var destroyed []hsm.KeyRef
	o := testOptions(vfs.NewMem())
	o.Audit = func(_ context.Context, event string, _ hsm.Principal, ref hsm.KeyRef, _ string, err error) {
		mu.Lock()
		defer mu.Unlock()
		if event == "destroy" && err == nil {
			destroyed = append(destroyed, ref)
		}
	}
	s := login(t, withUser(t, open(t, o)), "alice")
	op := randomOp()
	made := must[hsm.Created](t)(s.Create(t.Context(), op, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "ed25519"}))
	if err := errors.Join(s.Commit(t.Context(), op), s.Abort(t.Context(), op)); err != nil {
		t.Fatal(err)
	}
	if want := []hsm.KeyRef{made.Keys[0].Ref, made.Keys[1].Ref}; !slices.Equal(destroyed, want) {
		t.Errorf("destroyed %v, want %v", destroyed, want)
	}
}

var trustedKEK = hsm.CreateRequest{
	Method: hsm.MethodGenerate, Type: "aes", Size: 32, Attributes: map[string]string{"wrap": "true", "unwrap": "true", "extractable": "false"},
}

// TestTrustedKeysKeepTheirSecrets: what is to be wrapped with trusted keys only
// does not come out by way of one.
func TestTrustedKeysKeepTheirSecrets(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	admin, alice := login(t, h, "admin"), login(t, h, "alice")
	kek := createAs(t, alice, trustedKEK)
	wantErr(t, "trust", setAttribute(t, admin, kek.Ref, "trusted", "true"), nil)
	r := aesRequest
	r.Attributes = map[string]string{"wrap-with-trusted": "true"}
	careful := createAs(t, alice, r)
	gcm := hsm.Params{Mechanism: "aes-gcm"}
	wrapped := must[[]byte](t)(alice.Use(t.Context(), hsm.Use{Kind: hsm.UseWrap, Key: kek.Ref, Payload: careful.Ref, Params: gcm}))
	for _, name := range []string{"encrypt", "decrypt", "extractable"} {
		if err := setAttribute(t, alice, kek.Ref, name, "true"); !errors.Is(err, hsm.ErrAttribute) {
			t.Errorf("%s of a trusted key: %v", name, err)
		}
	}
	unwrap := hsm.CreateRequest{Method: hsm.MethodUnwrap, Type: "aes", Key: kek.Ref, Data: hsm.NewSecret(wrapped), Params: gcm}
	if got := createAs(t, alice, unwrap).Attributes["wrap-with-trusted"]; got != "true" {
		t.Errorf("an unwrapped key has wrap-with-trusted %s", got)
	}
	unwrap.Attributes = map[string]string{"wrap-with-trusted": "false"}
	_, err := alice.Create(t.Context(), hsm.OpID{}, unwrap)
	wantErr(t, "unwrap without wrap-with-trusted", err, hsm.ErrAttribute)

	// Set at once on two HSMs, and merged.
	cur := must[*held](t)(h.read(hsm.ScopeLineage, kek.Ref))
	both := cur.rec.Clone()
	both.Set(hsm.AttributeRegister("decrypt"), hsm.BoolValue(true), h.clock.Next())
	must[hsm.Inserted](t)(peer(t, h).Insert(t.Context(), each([]hsm.MaskedObject{must[hsm.MaskedObject](t)(h.keys().Mask(both))})))
	_, err = alice.Use(t.Context(), hsm.Use{Kind: hsm.UseDecrypt, Key: kek.Ref, Data: wrapped, Params: gcm})
	wantErr(t, "decrypt with a trusted key", err, hsm.ErrAttribute)
}

// TestTrustNeedsAKeyNobodyKnows lists keys that no admin may trust.
func TestTrustNeedsAKeyNobodyKnows(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	admin, alice := login(t, h, "admin"), login(t, h, "alice")
	with := func(name, value string) hsm.CreateRequest {
		r := trustedKEK
		r.Attributes = map[string]string{"wrap": "true", "extractable": "false", name: value}
		return r
	}
	imported := with("wrap", "true")
	imported.Method, imported.Data = hsm.MethodImport, hsm.NewSecret(make([]byte, 32))
	once := createAs(t, alice, with("extractable", "true"))
	wantErr(t, "extractable", setAttribute(t, alice, once.Ref, "extractable", "false"), nil)
	for what, k := range map[string]hsm.KeyInfo{
		"encrypts": createAs(t, alice, with("encrypt", "true")), "decrypts": createAs(t, alice, with("decrypt", "true")),
		"imported": createAs(t, alice, imported), "extractable": createAs(t, alice, with("extractable", "true")), "was extractable": once,
	} {
		wantErr(t, what, setAttribute(t, admin, k.Ref, "trusted", "true"), hsm.ErrAttribute)
	}
	pair := func(private map[string]string) (priv, pub hsm.KeyRef) {
		op := randomOp()
		made := must[hsm.Created](t)(alice.Create(t.Context(), op, hsm.CreateRequest{
			Method: hsm.MethodGenerate, Token: true, Type: "rsa", Size: 2048, Attributes: private, Public: map[string]string{"wrap": "true"},
		}))
		wantErr(t, "commit", alice.Commit(t.Context(), op), nil)
		return made.Keys[0].Ref, made.Keys[1].Ref
	}
	_, public := pair(map[string]string{"decrypt": "true", "extractable": "false"})
	wantErr(t, "a public key whose private half decrypts", setAttribute(t, admin, public, "trusted", "true"), hsm.ErrAttribute)
	private, public := pair(map[string]string{"unwrap": "true", "extractable": "false"})
	wantErr(t, "a public key whose private half unwraps", setAttribute(t, admin, public, "trusted", "true"), nil)
	wantErr(t, "decrypt of its private half", setAttribute(t, alice, private, "decrypt", "true"), hsm.ErrAttribute)
	careful := createAs(t, alice, aesRequest)
	oaep := hsm.Params{Mechanism: "rsa-oaep", Hash: "sha256"}
	wrapped := must[[]byte](t)(alice.Use(t.Context(), hsm.Use{Kind: hsm.UseWrap, Key: public, Payload: careful.Ref, Params: oaep}))
	got := createAs(t, alice, hsm.CreateRequest{Method: hsm.MethodUnwrap, Type: "aes", Key: private, Data: hsm.NewSecret(wrapped), Params: oaep})
	if got.Attributes["wrap-with-trusted"] != "true" {
		t.Error("the private half of a trusted key unwraps without wrap-with-trusted")
	}
}

// TestShareEndsWithTheUser: also after restarts, and not by a change of password.
func TestShareEndsWithTheUser(t *testing.T) {
	o := testOptions(vfs.NewMem())
	h := withUser(t, open(t, o))
	change := func(kind hsm.ChangeKind) {
		t.Helper()
		apply(t, login(t, h, "admin"), hsm.Change{Kind: kind, User: "bob", Role: hsm.RoleCryptoUser, Password: hsm.NewSecret([]byte(testPassword))})
	}
	uses := func(k hsm.KeyInfo) error {
		_, err := login(t, h, "bob").Use(t.Context(), hsm.Use{Kind: hsm.UseMAC, Key: k.Ref, Params: hsm.Params{Mechanism: "aes-cmac"}})
		return err
	}
	change(hsm.ChangeUserCreate)
	k := createKey(t, login(t, h, "alice"))
	share := hsm.Change{Kind: hsm.ChangeShare, Ref: k.Ref, User: "bob"}
	apply(t, login(t, h, "alice"), share)
	change(hsm.ChangeUserPassword)
	wantErr(t, "use after a new password", uses(k), nil)
	change(hsm.ChangeUserDelete)
	change(hsm.ChangeUserCreate)
	for range 2 {
		wantErr(t, "use by the next user of the name", uses(k), hsm.ErrNotFound)
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		h = open(t, o)
	}
	apply(t, login(t, h, "alice"), share)
	wantErr(t, "use after a share with the next user", uses(k), nil)
}

// TestSharesWithUsersOfUnknownBirth stay: their records are older than the
// register.
func TestSharesWithUsersOfUnknownBirth(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	apply(t, login(t, h, "admin"), hsm.Change{Kind: hsm.ChangeUserCreate, User: "bob", Role: hsm.RoleCryptoUser, Password: hsm.NewSecret([]byte(testPassword))})
	k := createKey(t, login(t, h, "alice"))
	apply(t, login(t, h, "alice"), hsm.Change{Kind: hsm.ChangeShare, Ref: k.Ref, User: "bob"})
	must[hsm.MaskedObject](t)(h.update(hsm.ScopeLineage, hsm.UserRef("bob"), func(cur *held) (*hsm.Record, error) {
		r := cur.rec.Clone()
		delete(r.Registers, hsm.RegisterCreated)
		return r, nil
	}))
	if _, err := login(t, h, "bob").Key(t.Context(), k.Ref); err != nil {
		t.Error(err)
	}
}

// TestNewPasswordEndsSessions: on the HSM where it is set and on those that hear
// of it, but for the session that set it.
func TestNewPasswordEndsSessions(t *testing.T) {
	a := withUser(t, open(t, testOptions(vfs.NewMem())))
	o := testOptions(vfs.NewMem())
	o.Keyring, o.Cluster = a.keys(), a.opts.Cluster
	b := open(t, o)
	copyUser := func(name string) {
		t.Helper()
		got := peer(t, a).Extract(t.Context(), slices.Values([]hsm.KeyRef{hsm.UserRef(name)}))
		must[hsm.Inserted](t)(peer(t, b).Insert(t.Context(), got))
	}
	copyUser("admin")
	copyUser("alice")
	reset := func(s hsm.Session, user, password string) error {
		_, err := s.Change(t.Context(), hsm.Change{Kind: hsm.ChangeUserPassword, User: user, Password: hsm.NewSecret([]byte(password))})
		return err
	}
	over := func(what string, s *session, want error) {
		t.Helper()
		_, err := s.Users(t.Context())
		wantErr(t, what, err, want)
	}
	admin, onA, onB := login(t, a, "admin"), login(t, a, "alice"), login(t, b, "alice")
	wantErr(t, "reset", reset(admin, "alice", "another-password"), nil)
	over("the admin's own session", admin, nil)
	over("a session from before", onA, hsm.ErrSession)
	over("a session where it is not known yet", onB, nil)
	copyUser("alice")
	over("a session on another HSM", onB, hsm.ErrSession)
	wantErr(t, "the password set again from an old session", reset(onA, "alice", testPassword), hsm.ErrSession)

	other := login(t, a, "admin")
	wantErr(t, "own password", reset(admin, "admin", testPassword), nil)
	over("the session that set it", admin, nil)
	over("another session of the admin", other, hsm.ErrSession)
	wantErr(t, "again", reset(login(t, a, "admin"), "admin", testPassword), nil)
	over("the session that set the one before", admin, hsm.ErrSession)
}

// TestAuditIsNotForged: what callers make up does not reach the log as it is.
func TestAuditIsNotForged(t *testing.T) {
	var mu sync.Mutex
	var log []string
	o := testOptions(vfs.NewMem())
	o.Audit = func(_ context.Context, event string, who hsm.Principal, _ hsm.KeyRef, detail string, _ error) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, event+"|"+string(who.Role)+"|"+who.Name+"|"+detail)
	}
	h := withUser(t, open(t, o))
	s := login(t, h, "alice")
	log = nil
	long := strings.Repeat("x", 40)
	for _, c := range []struct {
		role hsm.Role
		name string
	}{{"root", "alice"}, {hsm.RoleAdmin, "a\u202eb"}, {"x\ny", "a\x1b[2J"}, {hsm.RoleNone, long}, {hsm.RoleNone, "a:b"}} {
		_, _, err := h.Module(hsm.Principal{}).Login(t.Context(), c.role, c.name, hsm.NewSecret([]byte("wrong-pass")))
		wantErr(t, "login", err, hsm.ErrLogin)
	}
	for _, c := range []hsm.Change{{Kind: "a\nb"}, {Kind: hsm.ChangeShare, User: "a\nb" + strings.Repeat("x", 5000)}} {
		if _, err := s.Change(t.Context(), c); err == nil {
			t.Errorf("%+v was done", c)
		}
	}
	want := []string{
		"login|?|alice|", "login|admin|?|", "login|?|?|", "login||?|", "login||a:b|", "?|crypto-user|alice| ",
		"share|crypto-user|alice| a?b" + strings.Repeat("x", maxAuditDetail-4),
	}
	if !slices.Equal(log, want) {
		t.Errorf("reported %q, want %q", log, want)
	}
}

// TestRevivalDoesNotUndoTrust: the owner of a trusted key does not get it back in a
// state that decrypts, nor in one that is trusted when an admin has withdrawn that.
func TestRevivalDoesNotUndoTrust(t *testing.T) {
	h := withUser(t, open(t, testOptions(vfs.NewMem())))
	admin, alice := login(t, h, "admin"), login(t, h, "alice")
	r := trustedKEK
	r.Attributes = map[string]string{"wrap": "true", "unwrap": "true", "extractable": "false", "decrypt": "true"}
	kek := createAs(t, alice, r)
	state := func() hsm.MaskedObject {
		for m, err := range alice.Extract(t.Context(), slices.Values([]hsm.KeyRef{kek.Ref})) {
			return must[hsm.MaskedObject](t)(m, err)
		}
		t.Fatal("the key is not there")
		return hsm.MaskedObject{}
	}
	change := func(s hsm.Session, c hsm.Change) error {
		c.Ref = kek.Ref
		_, err := s.Change(t.Context(), c)
		return err
	}
	decrypts := state()
	wantErr(t, "decrypt off", setAttribute(t, alice, kek.Ref, "decrypt", "false"), nil)
	wantErr(t, "encrypt off", setAttribute(t, alice, kek.Ref, "encrypt", "false"), nil)
	wantErr(t, "trust", setAttribute(t, admin, kek.Ref, "trusted", "true"), nil)
	trusted := state()
	wantErr(t, "destroy a trusted key", change(alice, hsm.Change{Kind: hsm.ChangeDestroy}), hsm.ErrAttribute)
	wantErr(t, "no more trust", setAttribute(t, admin, kek.Ref, "trusted", "false"), nil)
	wantErr(t, "destroy", change(alice, hsm.Change{Kind: hsm.ChangeDestroy}), nil)
	wantErr(t, "revive the state that was trusted", change(alice, hsm.Change{Kind: hsm.ChangeRevive, Masked: &trusted}), nil)
	if got := must[hsm.KeyInfo](t)(alice.Key(t.Context(), kek.Ref)).Attributes["trusted"]; got != "false" {
		t.Errorf("trusted is %s after an admin has withdrawn it, want false", got)
	}
	wantErr(t, "destroy again", change(alice, hsm.Change{Kind: hsm.ChangeDestroy}), nil)
	wantErr(t, "revive it", change(alice, hsm.Change{Kind: hsm.ChangeRevive, Masked: &decrypts}), nil)
}

// TestALateChangeLoses: a change that an HSM makes late, when its caller has long turned
// to another, is stamped as its caller had it stamped; and is refused where a later one
// is known.
func TestALateChangeLoses(t *testing.T) {
	o := testOptions(vfs.NewMem())
	here := withUser(t, open(t, o))
	alice := login(t, here, "alice")
	key := createAs(t, alice, aesRequest)
	heard := here.clock.Latest()
	late := hsm.Change{Kind: hsm.ChangeAttribute, Ref: key.Ref, Name: "label", Value: "late", After: heard}
	now := hsm.Change{Kind: hsm.ChangeAttribute, Ref: key.Ref, Name: "label", Value: "now", After: heard + 10}

	there := testOptions(vfs.NewMem())
	there.Keyring, there.ID = o.Keyring, o.ID+1
	other := open(t, there)
	for _, ref := range []hsm.KeyRef{hsm.UserRef("alice"), key.Ref} {
		for m, err := range peer(t, here).Extract(t.Context(), slices.Values([]hsm.KeyRef{ref})) {
			if err != nil {
				t.Fatal(err)
			}
			must[hsm.Inserted](t)(peer(t, other).Insert(t.Context(), each([]hsm.MaskedObject{m})))
		}
	}
	changed := must[hsm.MaskedObject](t)(alice.Change(t.Context(), now))
	_, err := alice.Change(t.Context(), late)
	wantErr(t, "a late change where a later one is", err, hsm.ErrLate)
	_, err = alice.Change(t.Context(), now)
	wantErr(t, "another change of one who heard the same", err, hsm.ErrLate)

	must[hsm.MaskedObject](t)(login(t, other, "alice").Change(t.Context(), late))
	must[hsm.Inserted](t)(peer(t, other).Insert(t.Context(), each([]hsm.MaskedObject{changed})))
	if k := must[hsm.KeyInfo](t)(peer(t, other).Key(t.Context(), key.Ref)); k.Label != "now" {
		t.Errorf("the label is %q after both; want the one changed later", k.Label)
	}
}
