package hsmtest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func (n *node) settings(s hsm.Session, v *hsm.Settings) error {
	_, err := s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeSettings, Settings: v})
	return err
}

func (n *node) info() hsm.Info {
	n.w.Helper()
	i, err := n.nobody().Info(n.ctx())
	n.w.ok(err)
	return i
}

func testSettings(w *world) {
	a, b := w.pair()
	first := hsm.Settings{MinCopies: 2, CheckOnUse: true, Custodians: []string{"age1one", "age1two"}, Threshold: 1}
	w.want("the first by an HSM", a.settings(a.hsm(), &first), nil)
	w.want("the second by an HSM", a.settings(a.hsm(), &first), hsm.ErrDenied)
	w.equal("settings", a.info().Settings, first)
	w.sync(a, b)
	w.equal("settings elsewhere", b.info().Settings, first)

	copies, custodians := first, first
	copies.MinCopies, custodians.Custodians = 1, []string{"age1three"}
	w.ok(a.settings(a.admin(), &copies))
	w.ok(b.settings(b.admin(), &custodians))
	w.sync(a, b)
	w.sync(b, a)
	want := hsm.Settings{MinCopies: 1, CheckOnUse: true, Custodians: []string{"age1three"}, Threshold: 1}
	w.equal("different settings changed on two HSMs", a.info().Settings, want)
	w.equal("and on the other", b.info().Settings, want)

	for what, v := range map[string]*hsm.Settings{
		"none": nil, "no copies": {}, "too many copies": {MinCopies: 29}, "threshold without custodians": {MinCopies: 1, Threshold: 1},
		"a custodian of two lines": {MinCopies: 1, Custodians: []string{"age1\nage2"}},
	} {
		w.want(what, a.settings(a.admin(), v), hsm.ErrInvalid)
	}
}

func testMembers(w *world) {
	n := w.node()
	change := func(s hsm.Session, m hsm.Member) error {
		_, err := s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeMember, Member: &m})
		return err
	}
	one := hsm.Member{ID: n.id, Name: "hsm-1", Address: "127.0.0.1:2223", Zone: "zone-1"}
	two := hsm.Member{ID: hsm.NewHSMID(), Name: "hsm-2", Address: "[::1]:2223", Zone: "zone-2"}
	w.want("by an HSM", change(n.hsm(), two), nil)
	w.want("by an admin", change(n.admin(), one), nil)
	two.Removed = true
	w.want("removal", change(n.admin(), two), nil)
	got, err := n.nobody().Members(n.ctx())
	w.ok(err)
	for i := range got {
		got[i].RemovedAt = 0 // known of an HSM's own process only
	}
	w.equal("members", got, []hsm.Member{one, two})
	w.want("no id", change(n.admin(), hsm.Member{Address: "127.0.0.1:1"}), hsm.ErrInvalid)
	w.want("a zone that breaks lines", change(n.admin(), hsm.Member{ID: n.id, Address: "127.0.0.1:1", Zone: "a\nb"}), hsm.ErrInvalid)
	w.want("a name that is not what it looks like", change(n.admin(), hsm.Member{ID: n.id, Address: "127.0.0.1:1", Name: "a\u202eb"}), hsm.ErrInvalid)
	w.want("no port", change(n.admin(), hsm.Member{ID: n.id, Address: "127.0.0.1"}), hsm.ErrInvalid)
}

func testEnvelope(w *world) {
	n := w.node()
	envelope := func(s hsm.Session, threshold int, custodians ...string) (string, error) {
		b, err := s.Envelope(n.ctx(), custodians, threshold)
		return string(b), err
	}
	_, err := envelope(n.admin(), 0)
	w.want("without custodians", err, hsm.ErrInvalid)
	w.ok(n.settings(n.admin(), &hsm.Settings{MinCopies: 1, Custodians: []string{"age1one", "age1two"}, Threshold: 2}))
	plain := hsm.EncodeRecovery(w.keyring, hsm.NewSecret([]byte("certificate authority")))
	want := fmt.Sprintf("%x to 2 of age1one+age1two", sha256.Sum256(plain.Reveal()))
	for _, s := range []hsm.Session{n.admin(), n.appliance()} {
		got, err := envelope(s, 0)
		w.ok(err)
		w.equal("envelope", got, want)
	}
	_, err = envelope(n.appliance(), 2, "age1one", "age1two")
	w.want("an appliance naming the custodians there are", err, nil)
	_, err = envelope(n.appliance(), 1, "age1one", "age1two")
	w.want("an appliance lowering the threshold", err, hsm.ErrDenied)
	_, err = envelope(n.appliance(), 1, "age1mallory")
	w.want("an appliance naming itself", err, hsm.ErrDenied)
	_, err = envelope(n.admin(), 1, "age1other")
	w.want("an admin naming others", err, nil)
	_, err = envelope(n.admin(), 2, "age1other")
	w.want("a threshold above the number", err, hsm.ErrInvalid)
	_, err = envelope(n.user(alice), 0)
	w.want("a crypto user", err, hsm.ErrDenied)
}

func testSign(w *world) {
	n := w.node()
	message := []byte("message")
	for _, p := range []hsm.Purpose{hsm.PurposeManifest, hsm.PurposeReport, hsm.PurposeChallenge} {
		sig, err := n.appliance().Sign(n.ctx(), p, message)
		w.ok(err)
		w.want("verify", sig.Verify(w.keyring.Lineage(), p, message), nil)
		w.want("another message", sig.Verify(w.keyring.Lineage(), p, []byte("another")), hsm.ErrSignature)
		w.want("another lineage", sig.Verify(hsm.NewKeyring().Lineage(), p, message), hsm.ErrLineage)
		for _, other := range []hsm.Purpose{hsm.PurposeManifest, hsm.PurposeReport, hsm.PurposeChallenge} {
			if other != p {
				w.want("another purpose", sig.Verify(w.keyring.Lineage(), other, message), hsm.ErrSignature)
			}
		}
	}
	_, err := n.appliance().Sign(n.ctx(), "anything", message)
	w.want("unknown purpose", err, hsm.ErrInvalid)
	for _, s := range []hsm.Session{n.admin(), n.appliance(), n.hsm()} {
		for _, p := range []hsm.Purpose{hsm.PurposeEnvelope, hsm.PurposeVerified} {
			_, err := s.Sign(n.ctx(), p, message)
			w.want("a purpose that nobody may ask for", err, hsm.ErrInvalid)
		}
	}
}

func testInfo(w *world) {
	n := w.node()
	before := n.info()
	k := n.aes(n.user(alice))
	n.ec(n.user(alice))
	w.must(n.user(alice).Change(n.ctx(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: k.Ref}))
	i := n.info()
	if i.ID != n.id || i.Cluster != w.cluster || i.Lineage != w.keyring.Lineage() || i.State != "ACTIVE" {
		w.Errorf("info %+v", i)
	}
	w.equal("live keys", i.Keys, uint64(2))
	w.equal("objects: three users, two keys, a tombstone", i.Root.Count, uint64(6))
	if i.Root == before.Root || i.Root != w.root(n.hsm()) || i.ClusterRoot != w.root(n.hsm().Scoped(hsm.ScopeCluster)) {
		w.Error("the roots are not those of the replica")
	}
	s := n.user(alice)
	open := n.info().Sessions
	w.ok(s.Close())
	w.equal("sessions after one was closed", n.info().Sessions, open) // asking takes one
	w.equal("lineage of the source", s.Lineage(), w.keyring.Lineage())
}

func testCanceled(w *world) {
	n := w.node()
	s, h := n.user(alice), n.hsm()
	k := n.aes(s)
	ctx, cancel := context.WithCancel(n.ctx())
	cancel()
	check := func(what string, err error) {
		w.Helper()
		if err == nil {
			w.Errorf("%s: no error after cancel", what)
		}
	}
	_, err := s.Create(ctx, newOp(), aesRequest())
	check("create", err)
	_, err = s.Change(ctx, hsm.Change{Kind: hsm.ChangeDestroy, Ref: k.Ref})
	check("change", err)
	_, err = s.Use(ctx, hsm.Use{Kind: hsm.UseRandom, Length: 1})
	check("use", err)
	_, err = h.Insert(ctx, each(nil))
	check("insert", err)
	check("objects", errOf(h.Objects(ctx)))
	check("cells", errOf(h.Cells(ctx, 0)))
	check("extract", errOf(h.Extract(ctx, slices.Values([]hsm.KeyRef{k.Ref}))))
	check("keys", errOf(s.Keys(ctx, hsm.Filter{})))
	_, _, err = n.module().Login(ctx, hsm.RoleCryptoUser, alice, password(alice))
	check("login", err)
	if !w.visible(s, k.Ref) {
		w.Error("the key was destroyed after cancel")
	}
}
