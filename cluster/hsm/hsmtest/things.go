package hsmtest

import (
	"bytes"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// certificate is DER of the right shape.
var certificate = hsm.NewSecret([]byte{0x30, 0x03, 0x02, 0x01, 0x05})

func thing(class hsm.Class, data hsm.Secret, attributes map[string]string) hsm.CreateRequest {
	return hsm.CreateRequest{Method: hsm.MethodImport, Token: true, Class: class, Data: data, Attributes: attributes}
}

// testThings: data objects and certificates are kept as keys are, read and not used.
func testThings(w *world) {
	n := w.node()
	s, other := n.user(alice), n.user(bob)
	cert := n.create(s, thing(hsm.ClassCertificate, certificate, map[string]string{"label": "web", "id": "01", "subject": "3000"}))[0]
	data := n.create(s, thing(hsm.ClassData, hsm.NewSecret([]byte("notes")), map[string]string{"application": "app", "object-id": "0603"}))[0]
	for _, c := range []struct {
		by   hsm.Session
		ref  hsm.KeyRef
		want string
		err  error
	}{
		{s, cert.Ref, string(certificate.Reveal()), nil}, {other, cert.Ref, string(certificate.Reveal()), nil},
		{s, data.Ref, "notes", nil}, {other, data.Ref, "", hsm.ErrNotFound}, {n.admin(), cert.Ref, "", hsm.ErrDenied},
	} {
		got, err := c.by.Use(n.ctx(), hsm.Use{Kind: hsm.UseValue, Key: c.ref})
		w.want("value", err, c.err)
		w.equal("value", string(got), c.want)
	}
	info, err := s.Key(n.ctx(), cert.Ref)
	w.ok(err)
	w.equal("attributes", info.Attributes, map[string]string{
		"class": "certificate", "key-type": "x-509", "token": "true", "label": "web", "id": "01", "subject": "3000",
		"destroyable": "true", "modifiable": "true", "private": "false"})
	for _, bad := range []hsm.CreateRequest{
		thing(hsm.ClassCertificate, hsm.NewSecret([]byte("no DER")), nil),
		thing(hsm.ClassData, hsm.NewSecret(make([]byte, hsm.MaxValue+1)), nil),
		thing(hsm.ClassData, hsm.NewSecret(nil), map[string]string{"sign": "false"}),
	} {
		_, err := s.Create(n.ctx(), newOp(), bad)
		w.want("create", err, hsm.ErrInvalid)
	}
	_, err = s.Use(n.ctx(), hsm.Use{Kind: hsm.UseSign, Key: data.Ref, Data: []byte("x")})
	w.want("sign with data", err, hsm.ErrAttribute)
	w.want("change", n.set(s, cert.Ref, "label", "new"), nil)
	w.want("change", n.set(s, cert.Ref, "sign", "true"), hsm.ErrInvalid)
}

// testValue: a key leaves in clear only if all its attributes let it.
func testValue(w *world) {
	n := w.node()
	s := n.user(alice)
	for _, c := range []struct {
		attributes map[string]string
		want       error
	}{
		{map[string]string{"sensitive": "false"}, nil},
		{map[string]string{"sensitive": "true"}, hsm.ErrAttribute},
		{map[string]string{"sensitive": "false", "extractable": "false"}, hsm.ErrAttribute},
		{map[string]string{"sensitive": "false", "wrap-with-trusted": "true"}, hsm.ErrAttribute},
	} {
		k := n.create(s, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 16, Attributes: c.attributes})[0]
		b, err := s.Use(n.ctx(), hsm.Use{Kind: hsm.UseValue, Key: k.Ref})
		w.want("value", err, c.want)
		w.equal("bytes", len(b) == 16, c.want == nil)
		_, err = n.user(bob).Use(n.ctx(), hsm.Use{Kind: hsm.UseValue, Key: k.Ref})
		w.want("another's", err, hsm.ErrNotFound)
	}
}

// testCopy: a copy is another key with the same material, and may lose rights only.
func testCopy(w *world) {
	n := w.node()
	s := n.user(alice)
	base := n.create(s, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32,
		Attributes: map[string]string{"sensitive": "false", "label": "first", "encrypt": "true"}})[0]
	request := func(ref hsm.KeyRef, attributes map[string]string) hsm.CreateRequest {
		return hsm.CreateRequest{Method: hsm.MethodCopy, Token: true, Key: ref, Attributes: attributes}
	}
	second := n.create(s, request(base.Ref, map[string]string{"label": "second", "extractable": "false", "sensitive": "true"}))[0]
	w.equal("check value", second.CheckValue, base.CheckValue)
	w.equal("reference", second.Ref != base.Ref, true)
	got := map[string]string{}
	for _, name := range []string{"label", "encrypt", "extractable", "sensitive", "always-sensitive", "never-extractable", "local"} {
		got[name] = second.Attributes[name]
	}
	w.equal("attributes", got, map[string]string{"label": "second", "encrypt": "true", "extractable": "false", "sensitive": "true",
		"always-sensitive": "false", "never-extractable": "false", "local": "true"})
	inside := n.create(s, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32, Attributes: map[string]string{"extractable": "false"}})[0]
	fixed := n.create(s, request(base.Ref, map[string]string{"copyable": "false"}))[0]
	for _, c := range []struct {
		by   hsm.Session
		r    hsm.CreateRequest
		want error
	}{
		{s, request(second.Ref, map[string]string{"extractable": "true"}), hsm.ErrAttribute},
		{s, request(second.Ref, map[string]string{"sensitive": "false"}), hsm.ErrAttribute},
		{s, request(inside.Ref, nil), hsm.ErrAttribute},
		{s, request(fixed.Ref, nil), hsm.ErrAttribute},
		{n.user(bob), request(base.Ref, nil), hsm.ErrNotFound},
		{s, request(hsm.NewKeyRef(), nil), hsm.ErrNotFound},
	} {
		_, err := c.by.Create(n.ctx(), newOp(), c.r)
		w.want("copy", err, c.want)
	}
	a, err := s.Use(n.ctx(), hsm.Use{Kind: hsm.UseEncrypt, Key: second.Ref, Data: make([]byte, 16), Params: hsm.Params{Mechanism: "aes-ecb"}})
	w.ok(err)
	b, err := s.Use(n.ctx(), hsm.Use{Kind: hsm.UseEncrypt, Key: base.Ref, Data: make([]byte, 16), Params: hsm.Params{Mechanism: "aes-ecb"}})
	w.ok(err)
	w.equal("ciphertexts", bytes.Equal(a, b), true)
}
