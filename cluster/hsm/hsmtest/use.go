package hsmtest

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func testUse(w *world) {
	n := w.node()
	s := n.user(alice)
	rsaPair := n.create(s, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "rsa", Size: 2048, Attributes: trues("sign", "decrypt"), Public: trues("verify", "encrypt")})
	ec := n.create(s, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "ec", Curve: "secp256k1", Attributes: trues("sign"), Public: trues("verify")})
	ed := n.create(s, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "ed25519", Attributes: trues("sign"), Public: trues("verify")})
	ml := n.create(s, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "ml-dsa", Size: 65, Attributes: trues("sign"), Public: trues("verify")})
	for _, c := range []struct {
		keys []hsm.KeyInfo
		p    hsm.Params
	}{
		{rsaPair, hsm.Params{Mechanism: "rsa-pkcs", Hash: "sha256"}},
		{rsaPair, hsm.Params{Mechanism: "rsa-pkcs-pss", Hash: "sha384"}},
		{ec, hsm.Params{Mechanism: "ecdsa", Hash: "sha256"}},
		{ed, hsm.Params{Mechanism: "ed25519"}},
		{ml, hsm.Params{Mechanism: "ml-dsa", Context: []byte("context")}},
		{ml, hsm.Params{Mechanism: "ml-dsa-deterministic"}},
	} {
		sig := n.use(s, hsm.Use{Kind: hsm.UseSign, Key: c.keys[0].Ref, Params: c.p, Data: []byte("message")})
		verify := hsm.Use{Kind: hsm.UseVerify, Key: c.keys[1].Ref, Params: c.p, Data: []byte("message"), Signature: sig}
		n.use(n.user(bob), verify) // public keys are everybody's
		verify.Data = []byte("another")
		_, err := s.Use(n.ctx(), verify)
		w.want(c.p.Mechanism+" of another message", err, hsm.ErrSignature)
	}
	digest := sha256.Sum256([]byte("message"))
	sig := n.use(s, hsm.Use{Kind: hsm.UseSign, Key: rsaPair[0].Ref, Params: hsm.Params{Mechanism: "rsa-pkcs", Hash: "sha256", Digest: true}, Data: digest[:]})
	public := parseRSA(w, n.use(s, hsm.Use{Kind: hsm.UsePublic, Key: rsaPair[1].Ref}))
	w.ok(rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], sig))

	testCrypt(w, n, s, rsaPair)
	secret := n.create(s, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "generic-secret", Size: 32})[0]
	hmac := hsm.Params{Mechanism: "hmac", Hash: "sha256"}
	mac := n.use(s, hsm.Use{Kind: hsm.UseMAC, Key: secret.Ref, Params: hmac, Data: []byte("data")})
	n.use(s, hsm.Use{Kind: hsm.UseVerifyMAC, Key: secret.Ref, Params: hmac, Data: []byte("data"), Signature: mac})
	_, err := s.Use(n.ctx(), hsm.Use{Kind: hsm.UseVerifyMAC, Key: secret.Ref, Params: hmac, Data: []byte("atad"), Signature: mac})
	w.want("mac of other data", err, hsm.ErrSignature)

	a, b := n.use(s, hsm.Use{Kind: hsm.UseRandom, Length: 32}), n.use(s, hsm.Use{Kind: hsm.UseRandom, Length: 32})
	if len(a) != 32 || bytes.Equal(a, b) {
		w.Error("random is not")
	}
}

func testCrypt(w *world, n *node, s hsm.Session, rsaPair []hsm.KeyInfo) {
	k := n.aes(s, "encrypt", "decrypt")
	for _, c := range []struct {
		encrypt, decrypt hsm.KeyRef
		p                hsm.Params
	}{
		{k.Ref, k.Ref, hsm.Params{Mechanism: "aes-gcm", AAD: []byte("aad")}},
		{k.Ref, k.Ref, hsm.Params{Mechanism: "aes-cbc-pad"}},
		{rsaPair[1].Ref, rsaPair[0].Ref, hsm.Params{Mechanism: "rsa-oaep", Hash: "sha256"}},
	} {
		sealed := n.use(s, hsm.Use{Kind: hsm.UseEncrypt, Key: c.encrypt, Params: c.p, Data: []byte("plaintext")})
		opened := n.use(s, hsm.Use{Kind: hsm.UseDecrypt, Key: c.decrypt, Params: c.p, Data: sealed})
		w.equal(c.p.Mechanism, string(opened), "plaintext")
		_, err := s.Use(n.ctx(), hsm.Use{Kind: hsm.UseDecrypt, Key: c.decrypt, Params: c.p, Data: sealed[:len(sealed)-1]})
		w.want(c.p.Mechanism+" of truncated data", err, hsm.ErrCrypto)
	}
}

func testUseRefuses(w *world) {
	n := w.node()
	s := n.user(alice)
	k := n.aes(s, "encrypt", "decrypt", "sign")
	private, public := n.ec(s)
	for _, c := range []struct {
		what string
		u    hsm.Use
		want error
	}{
		{"unknown use", hsm.Use{Kind: "ponder", Key: k.Ref}, hsm.ErrInvalid},
		{"unknown mechanism", hsm.Use{Kind: hsm.UseEncrypt, Key: k.Ref, Params: hsm.Params{Mechanism: "rot13"}}, hsm.ErrInvalid},
		{"no mechanism", hsm.Use{Kind: hsm.UseEncrypt, Key: k.Ref}, hsm.ErrInvalid},
		{"mechanism of another type", hsm.Use{Kind: hsm.UseSign, Key: private.Ref, Params: hsm.Params{Mechanism: "rsa-pkcs", Hash: "sha256"}}, hsm.ErrInvalid},
		{"unknown hash", hsm.Use{Kind: hsm.UseSign, Key: private.Ref, Params: hsm.Params{Mechanism: "ecdsa", Hash: "md5"}}, hsm.ErrInvalid},
		{"sign with a secret key", hsm.Use{Kind: hsm.UseSign, Key: k.Ref, Params: hsm.Params{Mechanism: "ecdsa", Hash: "sha256"}}, hsm.ErrInvalid},
		{"mac with a private key", hsm.Use{Kind: hsm.UseMAC, Key: private.Ref, Params: hsm.Params{Mechanism: "aes-cmac"}}, hsm.ErrInvalid},
		{"no such key", hsm.Use{Kind: hsm.UseSign, Key: hsm.NewKeyRef()}, hsm.ErrNotFound},
		{"decrypt garbage", hsm.Use{Kind: hsm.UseDecrypt, Key: k.Ref, Params: hsm.Params{Mechanism: "aes-gcm"}, Data: []byte("garbage")}, hsm.ErrCrypto},
		{"verify garbage", hsm.Use{Kind: hsm.UseVerify, Key: public.Ref, Params: hsm.Params{Mechanism: "ecdsa", Hash: "sha256"}, Signature: []byte("garbage")}, hsm.ErrSignature},
		{"public half of a secret key", hsm.Use{Kind: hsm.UsePublic, Key: k.Ref}, hsm.ErrInvalid},
		{"no random", hsm.Use{Kind: hsm.UseRandom}, hsm.ErrInvalid},
		{"too much random", hsm.Use{Kind: hsm.UseRandom, Length: 1<<20 + 1}, hsm.ErrInvalid},
	} {
		_, err := s.Use(n.ctx(), c.u)
		w.want(c.what, err, c.want)
	}
}

func testSessionKeys(w *world) {
	n := w.node()
	s, other := n.user(alice), n.user(alice)
	r := hsm.CreateRequest{Method: hsm.MethodGenerate, Type: "aes", Size: 32, Attributes: trues("encrypt", "wrap")}
	made, err := s.Create(n.ctx(), hsm.OpID{}, r)
	w.ok(err)
	k := made.Keys[0]
	if len(made.Objects) != 0 || k.Token || k.Attributes["token"] != "false" {
		w.Errorf("a session key came as %+v with %d objects", k, len(made.Objects))
	}
	encrypt := func(s hsm.Session) error {
		_, err := s.Use(n.ctx(), hsm.Use{Kind: hsm.UseEncrypt, Key: k.Ref, Params: hsm.Params{Mechanism: "aes-gcm"}})
		return err
	}
	w.want("use", encrypt(s), nil)
	w.want("use in another session of the user", encrypt(other), hsm.ErrNotFound)
	if !w.visible(s, k.Ref) || w.visible(other, k.Ref) || w.visible(n.admin(), k.Ref) {
		w.Error("a session key is seen by its session and no other")
	}
	if n := len(w.objects(s)); n != 0 {
		w.Errorf("%d objects listed", n)
	}
	if got := w.extract(n.hsm(), k.Ref); len(got) != 0 {
		w.Error("a session key was extracted")
	}
	w.ok(n.set(s, k.Ref, "label", "mine"))
	info, err := s.Key(n.ctx(), k.Ref)
	w.ok(err)
	w.equal("label", info.Label, "mine")
	_, err = s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeShare, Ref: k.Ref, User: bob})
	w.want("share", err, hsm.ErrInvalid)

	pair, err := s.Create(n.ctx(), hsm.OpID{}, hsm.CreateRequest{Method: hsm.MethodGenerate, Type: "ec", Curve: "secp256r1"})
	w.ok(err)
	w.must(s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeDestroy, Ref: pair.Keys[0].Ref}))
	_, err = s.Key(n.ctx(), pair.Keys[0].Ref)
	w.want("a destroyed session key", err, hsm.ErrNotFound)
	w.ok(s.Abort(n.ctx(), hsm.OpID{9})) // before it arrives
	_, err = s.Create(n.ctx(), hsm.OpID{9}, r)
	w.want("a session key of an aborted operation", err, hsm.ErrOp)
	lost, err := s.Create(n.ctx(), hsm.OpID{8}, r)
	w.ok(err)
	w.ok(n.set(s, lost.Keys[0].Ref, "label", "changed"))
	w.ok(other.Abort(n.ctx(), hsm.OpID{8})) // not its own
	if !w.visible(s, lost.Keys[0].Ref) {
		w.Error("a session key was aborted by another session")
	}
	w.ok(s.Abort(n.ctx(), hsm.OpID{8}))
	_, err = s.Key(n.ctx(), lost.Keys[0].Ref)
	w.want("an aborted session key", err, hsm.ErrNotFound)
	w.want("the others", encrypt(s), nil)
	w.ok(s.Close())
	w.want("use after the session", encrypt(s), hsm.ErrSession)
	w.want("use after the session in another", encrypt(n.user(alice)), hsm.ErrNotFound)
}

func testPromote(w *world) {
	n := w.node()
	s := n.user(alice)
	made, err := s.Create(n.ctx(), hsm.OpID{}, hsm.CreateRequest{Method: hsm.MethodGenerate, Type: "aes", Size: 32, Attributes: trues("sign")})
	w.ok(err)
	k := made.Keys[0]
	promote := hsm.CreateRequest{Method: hsm.MethodPromote, Token: true, Key: k.Ref}
	mac := func(s hsm.Session) (string, error) {
		b, err := s.Use(n.ctx(), hsm.Use{Kind: hsm.UseMAC, Key: k.Ref, Params: hsm.Params{Mechanism: "aes-cmac"}, Data: []byte("data")})
		return fmt.Sprintf("%x", b), err
	}
	before, err := mac(s)
	w.ok(err)
	_, err = n.user(alice).Create(n.ctx(), newOp(), promote)
	w.want("by another session", err, hsm.ErrNotFound)

	given := newOp()
	_, err = s.Create(n.ctx(), given, promote)
	w.ok(err)
	_, err = s.Create(n.ctx(), newOp(), promote)
	w.want("twice at once", err, hsm.ErrExist)
	w.want("change of a key being promoted", n.set(s, k.Ref, "label", "x"), hsm.ErrExist)
	w.ok(s.Abort(n.ctx(), given))
	_, err = mac(s)
	w.want("use after an abort", err, nil)

	op := newOp()
	made, err = s.Create(n.ctx(), op, promote)
	w.ok(err)
	if len(made.Objects) != 1 || made.Keys[0].Ref != k.Ref {
		w.Errorf("promoted as %+v", made.Keys)
	}
	_, err = mac(s)
	w.want("use before the commit", err, nil)
	w.ok(s.Commit(n.ctx(), op))
	for _, in := range []hsm.Session{s, n.user(alice)} {
		after, err := mac(in)
		w.ok(err)
		w.equal("mac", after, before)
	}
	info, err := s.Key(n.ctx(), k.Ref)
	w.ok(err)
	if !info.Token || info.CheckValue != k.CheckValue {
		w.Errorf("the token key is %+v", info)
	}
	_, err = s.Create(n.ctx(), newOp(), promote)
	w.want("again", err, hsm.ErrNotFound)
	w.ok(s.Close())
	if !w.visible(n.user(alice), k.Ref) {
		w.Error("a promoted key ended with its session")
	}
}

func testFilters(w *world) {
	n := w.node()
	s, b := n.user(alice), n.user(bob)
	label := func(s hsm.Session, r hsm.CreateRequest, label string) hsm.KeyInfo {
		r.Attributes = map[string]string{"label": label, "encrypt": "true"}
		return n.create(s, r)[0]
	}
	one, two := label(s, aesRequest(), "one"), label(s, generate("aes", 16, ""), "two words")
	bobs := label(b, aesRequest(), "one")
	private, public := n.ec(b)
	for _, c := range []struct {
		s     hsm.Session
		terms []string
		want  []hsm.KeyRef
	}{
		{s, nil, []hsm.KeyRef{one.Ref, two.Ref, public.Ref}},
		{s, []string{"attr.label=one"}, []hsm.KeyRef{one.Ref}},
		{s, []string{"attr.label=two words"}, []hsm.KeyRef{two.Ref}},
		{s, []string{"attr.label=none"}, nil},
		{s, []string{"attr.label=one attr.key-length-bytes=16"}, nil},
		{s, []string{"attr.key-length-bytes=16"}, []hsm.KeyRef{two.Ref}},
		{s, []string{"key-reference=" + one.Ref.String(), "key-reference=" + bobs.Ref.String()}, []hsm.KeyRef{one.Ref}},
		{s, []string{"owner=bob"}, []hsm.KeyRef{public.Ref}},
		{s, []string{"attr.class=public-key"}, []hsm.KeyRef{public.Ref}},
		{s, []string{"attr.encrypt=1"}, []hsm.KeyRef{one.Ref, two.Ref}},
		{n.admin(), []string{"attr.label=one"}, []hsm.KeyRef{one.Ref, bobs.Ref}},
		{n.admin(), []string{"owner=bob"}, []hsm.KeyRef{bobs.Ref, private.Ref, public.Ref}},
		{n.admin(), nil, []hsm.KeyRef{one.Ref, two.Ref, bobs.Ref, private.Ref, public.Ref}},
	} {
		f, err := hsm.ParseFilter(c.terms)
		w.ok(err)
		var got []hsm.KeyRef
		for k, err := range c.s.Keys(n.ctx(), f) {
			w.ok(err)
			got = append(got, k.Ref)
		}
		w.equal(fmt.Sprintf("keys for %s with %q", c.s.Principal().Name, c.terms), got, sorted(c.want))
	}
	w.ok(n.set(s, one.Ref, "label", "other"))
	for k, err := range s.Keys(n.ctx(), hsm.Filter{Attrs: map[string]string{"label": "one"}}) {
		w.Errorf("found %v under its former label, %v", k.Ref, err)
	}
}
