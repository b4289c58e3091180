package hsmtest

import (
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// kek makes a wrapping key with templates.
func (n *node) kek(s hsm.Session, wrap, unwrap string) hsm.KeyInfo {
	n.w.Helper()
	r := aesRequest("wrap", "unwrap")
	r.Attributes[hsm.WrapTemplate], r.Attributes[hsm.UnwrapTemplate] = wrap, unwrap
	return n.create(s, r)[0]
}

func (n *node) wrapped(s hsm.Session, key, payload hsm.KeyRef) ([]byte, error) {
	return s.Use(n.ctx(), hsm.Use{Kind: hsm.UseWrap, Key: key, Payload: payload, Params: hsm.Params{Mechanism: "aes-kwp"}})
}

// opened unwraps a key.
func (n *node) opened(s hsm.Session, key hsm.KeyRef, data []byte, token bool, attributes map[string]string) (hsm.KeyInfo, error) {
	keys, err := n.tryCreate(s, hsm.CreateRequest{Method: hsm.MethodUnwrap, Token: token, Type: "aes", Key: key, Data: hsm.NewSecret(data), Params: hsm.Params{Mechanism: "aes-kwp"}, Attributes: attributes})
	if err != nil {
		return hsm.KeyInfo{}, err
	}
	return keys[0], nil
}

func testWrapTemplate(w *world) {
	n, other := w.node(), w.empty()
	s := n.user(alice)
	key := n.kek(s, "encrypt=true,sign=false,copyable=true,token=true,class=secret-key", "")
	w.equal("as it is shown", key.Attributes[hsm.WrapTemplate], "class=secret-key,copyable=true,encrypt=true,sign=false,token=true")
	fits := func(change func(*hsm.CreateRequest)) hsm.CreateRequest {
		r := aesRequest("encrypt")
		r.Attributes["sign"] = "false"
		change(&r)
		return r
	}
	good := n.create(s, fits(func(*hsm.CreateRequest) {}))[0]
	_, err := n.wrapped(s, key.Ref, good.Ref)
	w.ok(err)
	for what, r := range map[string]hsm.CreateRequest{
		"another value": fits(func(r *hsm.CreateRequest) { r.Attributes["encrypt"] = "false" }),
		"a default":     fits(func(r *hsm.CreateRequest) { delete(r.Attributes, "sign") }),
		"not copyable":  fits(func(r *hsm.CreateRequest) { r.Attributes["copyable"] = "false" }),
		"a session key": fits(func(r *hsm.CreateRequest) { r.Token = false }),
	} {
		_, err := n.wrapped(s, key.Ref, n.create(s, r)[0].Ref)
		w.want(what, err, hsm.ErrTemplate)
	}
	private, _ := n.ec(s)
	_, err = n.wrapped(s, key.Ref, private.Ref)
	w.want("another class", err, hsm.ErrTemplate)

	bad := n.create(s, fits(func(r *hsm.CreateRequest) { r.Attributes["encrypt"] = "false" }))[0]
	w.sync(n, other)
	_, err = n.wrapped(other.user(alice), key.Ref, bad.Ref)
	w.want("on another HSM", err, hsm.ErrTemplate)
	for _, c := range []struct{ name, value string }{{hsm.WrapTemplate, "grows=true"}, {hsm.UnwrapTemplate, "local=true"}} {
		_, err := s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: key.Ref, Name: c.name, Value: c.value})
		w.want(c.value, err, hsm.ErrInvalid)
	}
	w.must(s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: key.Ref, Name: hsm.WrapTemplate, Value: ""}))
	_, err = n.wrapped(s, key.Ref, bad.Ref)
	w.ok(err)
	r := hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "ec", Curve: "secp256r1", Attributes: map[string]string{hsm.WrapTemplate: "sign=true"}}
	_, err = n.tryCreate(s, r)
	w.want("of a private key", err, hsm.ErrInvalid)
}

func testUnwrapTemplate(w *world) {
	n := w.node()
	s := n.user(alice)
	key := n.kek(s, "", `extractable=false,encrypt=true,label=from\, outside,class=secret-key,token=true`)
	data, err := n.wrapped(s, key.Ref, n.aes(s).Ref)
	w.ok(err)
	k, err := n.opened(s, key.Ref, data, true, map[string]string{"decrypt": "true", "encrypt": "1"})
	w.ok(err)
	if k.Label != "from, outside" || k.Attributes["extractable"] != "false" || k.Attributes["encrypt"] != "true" || k.Attributes["decrypt"] != "true" {
		w.Errorf("unwrapped as %+v", k)
	}
	for what, attributes := range map[string]map[string]string{"a flag": {"extractable": "true"}, "a text": {"label": "mine"}} {
		_, err := n.opened(s, key.Ref, data, true, attributes)
		w.want(what, err, hsm.ErrTemplate)
	}
	_, err = n.opened(s, key.Ref, data, false, nil)
	w.want("a session key", err, hsm.ErrTemplate)
	pairs := n.kek(s, "", "class=private-key")
	data, err = n.wrapped(s, pairs.Ref, n.aes(s).Ref)
	w.ok(err)
	_, err = n.opened(s, pairs.Ref, data, true, nil)
	w.want("another class", err, hsm.ErrTemplate)
}

func testDeriveTemplate(w *world) {
	n, other := w.node(), w.empty()
	s := n.user(alice)
	base := generate("generic-secret", 32, "")
	base.Attributes = map[string]string{"derive": "true", hsm.DeriveTemplate: "extractable=false,encrypt=true,key-type=aes,token=true"}
	key := n.create(s, base)[0]
	w.equal("as it is shown", key.Attributes[hsm.DeriveTemplate], "encrypt=true,extractable=false,key-type=aes,token=true")
	derive := func(keyType string, token bool, attributes map[string]string) hsm.CreateRequest {
		return hsm.CreateRequest{Method: hsm.MethodDerive, Token: token, Type: keyType, Size: 32, Key: key.Ref,
			Params: hsm.Params{Mechanism: "sp800-108-counter", SharedInfo: []byte("label")}, Attributes: attributes}
	}
	keys, err := n.tryCreate(s, derive("aes", true, map[string]string{"decrypt": "true", "encrypt": "1"}))
	w.ok(err)
	if k := keys[0]; k.Attributes["extractable"] != "false" || k.Attributes["encrypt"] != "true" || k.Attributes["decrypt"] != "true" {
		w.Errorf("derived as %+v", k)
	}
	for what, r := range map[string]hsm.CreateRequest{
		"a flag":        derive("aes", true, map[string]string{"extractable": "true"}),
		"another type":  derive("generic-secret", true, nil),
		"a session key": derive("aes", false, nil),
	} {
		_, err := n.tryCreate(s, r)
		w.want(what, err, hsm.ErrTemplate)
	}
	w.sync(n, other)
	_, err = other.tryCreate(other.user(alice), derive("generic-secret", true, nil))
	w.want("on another HSM", err, hsm.ErrTemplate)
	_, err = s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: key.Ref, Name: hsm.DeriveTemplate, Value: "local=true"})
	w.want("what nobody sets", err, hsm.ErrInvalid)
	w.must(s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: key.Ref, Name: hsm.DeriveTemplate, Value: ""}))
	_, err = n.tryCreate(s, derive("generic-secret", false, nil))
	w.ok(err)
}
