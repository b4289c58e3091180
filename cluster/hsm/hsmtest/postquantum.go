package hsmtest

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// testPostQuantumMoves: keys of ML-DSA and ML-KEM leave an HSM wrapped and come back, and
// come from and go to PEM, as the same keys.
func testPostQuantumMoves(w *world) {
	n := w.node()
	s := n.user(alice)
	for _, r := range []hsm.CreateRequest{generate("ml-dsa", 44, ""), generate("ml-dsa", 65, ""), generate("ml-dsa", 87, ""), generate("ml-kem", 768, ""), generate("ml-kem", 1024, "")} {
		w.Run(fmt.Sprintf("%s %d", r.Type, r.Size), func(t *testing.T) {
			w := &world{T: t, open: w.open, keyring: w.keyring, cluster: w.cluster, time: w.now()}
			r.Attributes, r.Public = trues("sign"), trues("verify")
			if r.Type == "ml-kem" {
				r.Attributes, r.Public = trues("derive"), nil
			}
			keys := n.create(s, r)
			w.wrapsAndUnwraps(n, s, keys[0], r)
			w.fromPEM(n, s, keys[0], r)
		})
	}
}

// wrapsAndUnwraps moves the private key under each kind of wrapping key.
func (w *world) wrapsAndUnwraps(n *node, s hsm.Session, private hsm.KeyInfo, r hsm.CreateRequest) {
	w.Helper()
	kek := n.create(s, aesRequest("wrap", "unwrap"))[0]
	rsa := generate("rsa", 2048, "")
	rsa.Attributes, rsa.Public = trues("unwrap"), trues("wrap")
	pair := n.create(s, rsa)
	unwrap := func(by hsm.KeyRef, mechanism string, data []byte, keyType string) ([]hsm.KeyInfo, error) {
		return n.tryCreate(s, hsm.CreateRequest{Method: hsm.MethodUnwrap, Token: true, Type: keyType, Class: hsm.ClassPrivate, Key: by,
			Data: hsm.NewSecret(bytes.Clone(data)), Params: hsm.Params{Mechanism: mechanism}, Attributes: r.Attributes})
	}
	for mechanism, by := range map[string][2]hsm.KeyRef{"aes-kwp": {kek.Ref, kek.Ref}, "aes-pkcs5-pad": {kek.Ref, kek.Ref}, "aes-gcm": {kek.Ref, kek.Ref}, "rsa-aes": {pair[1].Ref, pair[0].Ref}} {
		data := n.use(s, hsm.Use{Kind: hsm.UseWrap, Key: by[0], Payload: private.Ref, Params: hsm.Params{Mechanism: mechanism}})
		back, err := unwrap(by[1], mechanism, data, r.Type)
		w.ok(err)
		w.samePQ(n, s, private, back[0])
		if back[0].Attributes["local"] != "false" || back[0].Size != r.Size {
			w.Errorf("unwrapped as %+v", back[0])
		}
		other := "ml-kem"
		if r.Type == other {
			other = "ml-dsa"
		}
		_, err = unwrap(by[1], mechanism, data, other)
		w.want("as another type", err, hsm.ErrInvalid)
		data[len(data)-1] ^= 1
		_, err = unwrap(by[1], mechanism, data, r.Type)
		w.want("altered", err, hsm.ErrCrypto)
	}
	stays := r
	stays.Attributes = maps.Clone(r.Attributes)
	stays.Attributes["extractable"] = "false"
	_, err := n.wrapped(s, kek.Ref, n.create(s, stays)[0].Ref)
	w.want("not extractable", err, hsm.ErrAttribute)
}

// samePQ compares two private keys by their public halves, and by what they make.
func (w *world) samePQ(n *node, s hsm.Session, one, two hsm.KeyInfo) {
	w.Helper()
	public := func(k hsm.KeyInfo) []byte { return n.use(s, hsm.Use{Kind: hsm.UsePublic, Key: k.Ref}) }
	w.equal("public half", public(two), public(one))
	w.equal("check value", two.CheckValue, one.CheckValue)
	if one.Type == "ml-dsa" {
		sign := func(k hsm.KeyInfo) []byte {
			return n.use(s, hsm.Use{Kind: hsm.UseSign, Key: k.Ref, Data: []byte("data"), Params: hsm.Params{Mechanism: "ml-dsa-deterministic"}})
		}
		w.equal("signature", sign(two), sign(one))
	}
}

// fromPEM reads the key's value and public half, and imports both as PEM.
func (w *world) fromPEM(n *node, s hsm.Session, private hsm.KeyInfo, r hsm.CreateRequest) {
	w.Helper()
	spki := n.use(s, hsm.Use{Kind: hsm.UsePublic, Key: private.Ref})
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
	in := hsm.CreateRequest{Method: hsm.MethodImport, Token: true, Type: r.Type, Attributes: trues("verify"), Data: hsm.NewSecret(text)}
	if r.Type == "ml-kem" {
		in.Attributes = nil
	}
	public := n.create(s, in)[0]
	w.equal("public key", n.use(s, hsm.Use{Kind: hsm.UsePublic, Key: public.Ref}), spki)
	if r.Type == "ml-dsa" {
		signature := n.use(s, hsm.Use{Kind: hsm.UseSign, Key: private.Ref, Data: []byte("data"), Params: hsm.Params{Mechanism: "ml-dsa"}})
		n.use(s, hsm.Use{Kind: hsm.UseVerify, Key: public.Ref, Data: []byte("data"), Signature: signature, Params: hsm.Params{Mechanism: "ml-dsa"}})
	}
	open := r
	open.Attributes = maps.Clone(r.Attributes)
	open.Attributes["sensitive"] = "false"
	shown := n.create(s, open)[0]
	der := n.use(s, hsm.Use{Kind: hsm.UseValue, Key: shown.Ref})
	in = hsm.CreateRequest{Method: hsm.MethodImport, Token: true, Type: r.Type, Attributes: r.Attributes,
		Data: hsm.NewSecret(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}
	w.samePQ(n, s, shown, n.create(s, in)[0])
	in.Data = hsm.NewSecret(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: slices.Concat(der, []byte{0})}))
	_, err := n.tryCreate(s, in)
	w.want("trailing bytes", err, hsm.ErrInvalid)
}
