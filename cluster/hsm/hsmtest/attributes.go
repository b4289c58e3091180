package hsmtest

import (
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func (n *node) set(s hsm.Session, ref hsm.KeyRef, name, value string) error {
	_, err := s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: ref, Name: name, Value: value})
	return err
}

func testAttributes(w *world) {
	n := w.node()
	s, admin := n.user(alice), n.admin()
	k := n.aes(s)
	inside := aesRequest()
	inside.Attributes["extractable"] = "false"
	trust := n.create(s, inside)[0]
	private, public := n.ec(s)
	for _, c := range []struct {
		by          hsm.Session
		ref         hsm.KeyRef
		name, value string
		want        error
	}{
		{s, k.Ref, "label", "a new label", nil},
		{s, k.Ref, "id", "0xff", nil},
		{s, k.Ref, "id", "xyz", hsm.ErrInvalid},
		{s, k.Ref, "encrypt", "true", nil},
		{s, k.Ref, "encrypt", "false", nil},
		{s, k.Ref, "encrypt", "perhaps", hsm.ErrInvalid},
		{s, k.Ref, "flavour", "true", hsm.ErrInvalid},
		{s, k.Ref, "class", "true", hsm.ErrAttribute},
		{s, k.Ref, "local", "true", hsm.ErrAttribute},
		{s, k.Ref, "private", "false", hsm.ErrAttribute},
		{s, k.Ref, "token", "true", hsm.ErrInvalid},
		{s, k.Ref, "extractable", "true", nil},
		{s, k.Ref, "extractable", "false", nil},
		{s, k.Ref, "extractable", "true", hsm.ErrAttribute},
		{s, k.Ref, "sensitive", "false", hsm.ErrAttribute},
		{s, k.Ref, "wrap-with-trusted", "true", nil},
		{s, k.Ref, "wrap-with-trusted", "false", hsm.ErrAttribute},
		{s, k.Ref, "trusted", "true", hsm.ErrDenied},
		{admin, k.Ref, "trusted", "true", hsm.ErrAttribute}, // it was extractable
		{admin, k.Ref, "trusted", "false", nil},
		{s, trust.Ref, "decrypt", "true", nil},
		{admin, trust.Ref, "trusted", "true", hsm.ErrAttribute},
		{s, trust.Ref, "decrypt", "false", nil},
		{admin, trust.Ref, "trusted", "true", nil},
		{s, trust.Ref, "decrypt", "true", hsm.ErrAttribute},
		{s, trust.Ref, "encrypt", "true", hsm.ErrAttribute},
		{s, trust.Ref, "wrap", "true", nil},
		{admin, trust.Ref, "trusted", "false", nil},
		{s, trust.Ref, "decrypt", "true", nil},
		{s, k.Ref, "label", "a\u202elabel", hsm.ErrInvalid},
		{s, k.Ref, "label", "a\u00a0label", hsm.ErrInvalid},
		{admin, k.Ref, "label", "an admin's", hsm.ErrDenied},
		{s, private.Ref, "verify", "true", hsm.ErrInvalid},
		{s, private.Ref, "wrap", "true", hsm.ErrInvalid},
		{s, public.Ref, "sign", "true", hsm.ErrInvalid},
		{s, public.Ref, "unwrap", "true", hsm.ErrInvalid},
		{n.user(bob), k.Ref, "label", "bob's", hsm.ErrNotFound},
		{n.user(bob), public.Ref, "label", "bob's", hsm.ErrDenied},
		{s, hsm.NewKeyRef(), "label", "x", hsm.ErrNotFound},
		{s, k.Ref, "modifiable", "false", nil},
		{s, k.Ref, "label", "too late", hsm.ErrAttribute},
		{s, k.Ref, "modifiable", "true", hsm.ErrAttribute},
		{admin, k.Ref, "trusted", "true", hsm.ErrAttribute},
	} {
		w.want(fmt.Sprintf("%s sets %s to %s", c.by.Principal().Name, c.name, c.value), n.set(c.by, c.ref, c.name, c.value), c.want)
	}
	now, err := s.Key(n.ctx(), k.Ref)
	w.ok(err)
	got := map[string]string{}
	for _, name := range []string{"label", "id", "encrypt", "extractable", "never-extractable", "wrap-with-trusted", "modifiable", "trusted"} {
		got[name] = now.Attributes[name]
	}
	w.equal("attributes", got, map[string]string{
		"label": "a new label", "id": "ff", "encrypt": "false", "extractable": "false", "never-extractable": "false",
		"wrap-with-trusted": "true", "modifiable": "false", "trusted": "false",
	})
	if now.Digest == k.Digest {
		w.Error("the digest did not change")
	}
}

// uses lists every use with the attribute that it takes and keys that have it.
func (n *node) uses(s hsm.Session) map[string]hsm.Use {
	private, public := n.ec(s)
	secret := n.create(s, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32, Attributes: trues("encrypt", "decrypt")})[0]
	ecdsa, cmac, gcm := hsm.Params{Mechanism: "ecdsa", Hash: "sha256"}, hsm.Params{Mechanism: "aes-cmac"}, hsm.Params{Mechanism: "aes-gcm"}
	data := []byte("data")
	return map[string]hsm.Use{
		"sign":    {Kind: hsm.UseSign, Key: private.Ref, Params: ecdsa, Data: data},
		"verify":  {Kind: hsm.UseVerify, Key: public.Ref, Params: ecdsa, Data: data, Signature: n.use(s, hsm.Use{Kind: hsm.UseSign, Key: private.Ref, Params: ecdsa, Data: data})},
		"encrypt": {Kind: hsm.UseEncrypt, Key: secret.Ref, Params: gcm, Data: data},
		"decrypt": {Kind: hsm.UseDecrypt, Key: secret.Ref, Params: gcm, Data: n.use(s, hsm.Use{Kind: hsm.UseEncrypt, Key: secret.Ref, Params: gcm, Data: data})},
		"sign ":   {Kind: hsm.UseMAC, Key: secret.Ref, Params: cmac, Data: data},
		"verify ": {Kind: hsm.UseVerifyMAC, Key: secret.Ref, Params: cmac, Data: data, Signature: n.use(s, hsm.Use{Kind: hsm.UseMAC, Key: secret.Ref, Params: cmac, Data: data})},
	}
}

func testAttributesOnUse(w *world) {
	n := w.node()
	s := n.user(alice)
	for attribute, u := range n.uses(s) {
		name := attribute
		if name[len(name)-1] == ' ' {
			name = name[:len(name)-1]
		}
		n.use(s, u)
		w.ok(n.set(s, u.Key, name, "false"))
		_, err := s.Use(n.ctx(), u)
		w.want(fmt.Sprintf("%s when %s is false", u.Kind, name), err, hsm.ErrAttribute)
		w.ok(n.set(s, u.Key, name, "true"))
		n.use(s, u)
	}
}

func testDestroy(w *world) {
	n := w.node()
	s := n.user(alice)
	destroy := func(s hsm.Session, ref hsm.KeyRef) error {
		_, err := s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: ref})
		return err
	}
	k := n.create(s, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32, Attributes: map[string]string{"destroyable": "false", "encrypt": "true"}})[0]
	w.want("not destroyable", destroy(s, k.Ref), hsm.ErrAttribute)
	w.want("by another user", destroy(n.user(bob), k.Ref), hsm.ErrNotFound)
	w.must(s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeShare, Ref: k.Ref, User: bob}))
	w.want("by one it is shared with", destroy(n.user(bob), k.Ref), hsm.ErrDenied)
	w.want("by an admin", destroy(n.admin(), k.Ref), hsm.ErrDenied)
	w.ok(n.set(s, k.Ref, "destroyable", "true"))
	w.want("destroyable", destroy(s, k.Ref), nil)
	w.want("again", destroy(s, k.Ref), hsm.ErrDestroyed)
	_, err := s.Key(n.ctx(), k.Ref)
	w.want("show", err, hsm.ErrDestroyed)
	_, err = n.user(bob).Key(n.ctx(), k.Ref)
	w.want("show to another user", err, hsm.ErrNotFound)
	_, err = s.Use(n.ctx(), hsm.Use{Kind: hsm.UseEncrypt, Key: k.Ref, Params: hsm.Params{Mechanism: "aes-gcm"}})
	w.want("use", err, hsm.ErrDestroyed)
	w.want("set an attribute", n.set(s, k.Ref, "label", "x"), hsm.ErrDestroyed)
	if o := w.objects(n.hsm())[k.Ref]; !o.Tombstone {
		w.Errorf("the tombstone is not listed: %+v", o)
	}
	if w.visible(s, k.Ref) {
		w.Error("a destroyed key is listed")
	}
}

func testShare(w *world) {
	n := w.node()
	s, b := n.user(alice), n.user(bob)
	k := n.aes(s, "encrypt", "decrypt", "wrap", "derive")
	_, public := n.ec(s)
	share := func(by hsm.Session, kind hsm.ChangeKind, user string) error {
		_, err := by.Change(n.ctx(), hsm.Change{Kind: kind, Ref: k.Ref, User: user})
		return err
	}
	encrypt := func() error {
		_, err := b.Use(n.ctx(), hsm.Use{Kind: hsm.UseEncrypt, Key: k.Ref, Params: hsm.Params{Mechanism: "aes-gcm"}})
		return err
	}
	w.want("use before", encrypt(), hsm.ErrNotFound)
	if w.visible(b, k.Ref) || !w.visible(b, public.Ref) || !w.visible(n.admin(), k.Ref) {
		w.Error("visible to others: a secret key is not, a public key is, and to an admin all are")
	}
	w.want("share with nobody", share(s, hsm.ChangeShare, "carol"), hsm.ErrNotFound)
	w.want("share with an admin", share(s, hsm.ChangeShare, adminName), hsm.ErrNotFound)
	w.want("share with the owner", share(s, hsm.ChangeShare, alice), hsm.ErrInvalid)
	w.want("share by another", share(b, hsm.ChangeShare, bob), hsm.ErrNotFound)
	w.want("unshare before", share(s, hsm.ChangeUnshare, bob), hsm.ErrNotFound)
	w.want("share", share(s, hsm.ChangeShare, "BOB"), nil)
	w.want("use", encrypt(), nil)
	info, err := b.Key(n.ctx(), k.Ref)
	w.ok(err)
	w.equal("owner and shares", append([]string{info.Owner}, info.Shares...), []string{alice, bob})
	if !w.visible(b, k.Ref) {
		w.Error("a shared key is not listed")
	}
	w.want("share on", share(b, hsm.ChangeShare, bob), hsm.ErrDenied)
	w.want("unshare by a sharer", share(b, hsm.ChangeUnshare, bob), hsm.ErrDenied)
	w.want("set a label", n.set(b, k.Ref, "label", "bob's"), hsm.ErrDenied)
	_, err = n.tryCreate(b, hsm.CreateRequest{Method: hsm.MethodDerive, Token: true, Type: "aes", Size: 16, Key: k.Ref, Params: hsm.Params{Mechanism: "sp800-108-counter"}})
	w.want("derive", err, hsm.ErrDenied)
	w.want("unshare", share(s, hsm.ChangeUnshare, bob), nil)
	w.want("use after", encrypt(), hsm.ErrNotFound)
	if w.visible(b, k.Ref) {
		w.Error("a key that is shared no more is listed")
	}

	r := aesRequest("encrypt")
	r.Shares = []string{bob}
	k = n.create(s, r)[0]
	w.want("use of a key shared from the start", encrypt(), nil)
}
