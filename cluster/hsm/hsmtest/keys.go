package hsmtest

import (
	"crypto/aes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func generate(keyType string, size int, curve string) hsm.CreateRequest {
	return hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: keyType, Size: size, Curve: curve}
}

func testGenerate(w *world) {
	n := w.node()
	s := n.user(alice)
	for _, r := range []hsm.CreateRequest{
		generate("aes", 16, ""), generate("aes", 24, ""), generate("aes", 32, ""), generate("des3", 24, ""), generate("generic-secret", 800, ""),
		generate("rsa", 2048, ""), generate("ec", 0, "secp224r1"), generate("ec", 0, "prime256v1"), generate("ec", 0, "secp384r1"),
		generate("ec", 0, "secp521r1"), generate("ec", 0, "secp256k1"), generate("ed25519", 0, ""),
		generate("ml-dsa", 44, ""), generate("ml-dsa", 65, ""), generate("ml-dsa", 87, ""), generate("ml-kem", 768, ""), generate("ml-kem", 1024, ""),
	} {
		w.Run(fmt.Sprintf("%s %d%s", r.Type, r.Size, r.Curve), func(t *testing.T) {
			checkGenerated(&world{T: t, open: w.open, keyring: w.keyring, cluster: w.cluster, time: w.now()}, n, s, r)
		})
	}
}

// checkGenerated makes a key with label and id and checks what is shown of it.
func checkGenerated(w *world, n *node, s hsm.Session, r hsm.CreateRequest) {
	r.Attributes = map[string]string{"label": "a label", "id": "0x0a0b"}
	keys, err := n.tryCreate(s, r)
	w.ok(err)
	want := 1
	if r.Type != "aes" && r.Type != "des3" && r.Type != "generic-secret" {
		want = 2
	}
	if len(keys) != want {
		w.Fatalf("%d keys, want %d", len(keys), want)
	}
	for i, k := range keys {
		stored, err := s.Key(w.Context(), k.Ref)
		w.ok(err)
		w.equal("key after commit", stored, k)
		if k.Label != "a label" || k.ID != "0a0b" || k.Owner != alice || k.Type != r.Type || !k.Token || k.Attributes["local"] != "true" {
			w.Errorf("unexpected key %+v", k)
		}
		if want == 2 && k.Pair != keys[1-i].Ref {
			w.Errorf("pair is %s, want %s", k.Pair, keys[1-i].Ref)
		}
		checkDefaults(w, k)
	}
}

func checkDefaults(w *world, k hsm.KeyInfo) {
	symmetric, public := k.Class == hsm.ClassSecret, k.Class == hsm.ClassPublic
	signs := symmetric && k.Type != "des3"
	for name, want := range map[string]bool{
		"encrypt": false, "decrypt": false, "wrap": false, "unwrap": false, "derive": false, "sign": signs, "verify": signs,
		"extractable": true, "destroyable": true, "modifiable": true, "sensitive": !public, "private": !public, "trusted": false,
		"wrap-with-trusted": false, "token": true, "always-sensitive": !public, "never-extractable": false,
	} {
		if got := k.Attributes[name]; got != fmt.Sprint(want) {
			w.Errorf("%s: %s is %q, want %t", k.Class, name, got, want)
		}
	}
	present := map[string]bool{
		"check-value": k.Type != "generic-secret", "key-length-bytes": symmetric, "modulus": k.Type == "rsa", "public-exponent": k.Type == "rsa",
		"modulus-size-bits": k.Type == "rsa", "ec-point": k.Type == "ec" || k.Type == "ed25519", "curve": k.Type == "ec" || k.Type == "ed25519",
	}
	for name, want := range present {
		if _, got := k.Attributes[name]; got != want {
			w.Errorf("%s %s: has %s: %t, want %t", k.Class, k.Type, name, got, want)
		}
	}
}

func testGenerateRefuses(w *world) {
	n := w.node()
	s := n.user(alice)
	with := func(r hsm.CreateRequest, attrs, public map[string]string) hsm.CreateRequest {
		r.Attributes, r.Public = attrs, public
		return r
	}
	pair := generate("ec", 0, "secp256r1")
	shared := func(name string) hsm.CreateRequest {
		r := aesRequest()
		r.Shares = []string{name}
		return r
	}
	for _, c := range []struct {
		what string
		r    hsm.CreateRequest
		want error
	}{
		{"unknown type", generate("rc4", 16, ""), hsm.ErrInvalid},
		{"des3 of 16 bytes", generate("des3", 16, ""), hsm.ErrInvalid},
		{"no type", generate("", 32, ""), hsm.ErrInvalid},
		{"aes of 17 bytes", generate("aes", 17, ""), hsm.ErrInvalid},
		{"aes of no size", generate("aes", 0, ""), hsm.ErrInvalid},
		{"generic secret of 801 bytes", generate("generic-secret", 801, ""), hsm.ErrInvalid},
		{"rsa of 1024 bits", generate("rsa", 1024, ""), hsm.ErrInvalid},
		{"rsa of 8192 bits", generate("rsa", 8192, ""), hsm.ErrInvalid},
		{"unknown curve", generate("ec", 0, "secp112r1"), hsm.ErrInvalid},
		{"no curve", generate("ec", 0, ""), hsm.ErrInvalid},
		{"unknown method", hsm.CreateRequest{Method: "grow", Token: true, Type: "aes", Size: 32}, hsm.ErrInvalid},
		{"unknown attribute", with(aesRequest(), trues("exportable"), nil), hsm.ErrInvalid},
		{"attribute not set at creation", with(aesRequest(), trues("trusted"), nil), hsm.ErrInvalid},
		{"attribute that follows", with(aesRequest(), trues("local"), nil), hsm.ErrInvalid},
		{"attribute without sense", with(aesRequest(), map[string]string{"sign": "maybe"}, nil), hsm.ErrInvalid},
		{"token contradicted", with(aesRequest(), map[string]string{"token": "false"}, nil), hsm.ErrInvalid},
		{"long label", with(aesRequest(), map[string]string{"label": string(make([]byte, 128))}, nil), hsm.ErrInvalid},
		{"private key that verifies", with(pair, trues("verify"), nil), hsm.ErrInvalid},
		{"public key that signs", with(pair, nil, trues("sign")), hsm.ErrInvalid},
		{"public attributes of a secret key", with(hsm.CreateRequest{Method: hsm.MethodImport, Token: true, Type: "aes", Data: hsm.NewSecret(make([]byte, 16))}, nil, trues("verify")), hsm.ErrInvalid},
		{"share with nobody", shared("carol"), hsm.ErrNotFound},
		{"share with an admin", shared(adminName), hsm.ErrNotFound},
		{"share with oneself", shared(alice), hsm.ErrInvalid},
	} {
		_, err := n.tryCreate(s, c.r)
		w.want(c.what, err, c.want)
	}
	_, err := s.Create(n.ctx(), hsm.OpID{}, aesRequest())
	w.want("token key without an operation", err, hsm.ErrInvalid)
	if left := len(w.objects(s)); left != 0 {
		w.Errorf("%d objects are left of what was refused", left)
	}
}

// importRequest imports data in clear.
func importRequest(keyType string, data []byte, flags ...string) hsm.CreateRequest {
	return hsm.CreateRequest{Method: hsm.MethodImport, Token: true, Type: keyType, Data: hsm.NewSecret(data), Attributes: trues(flags...)}
}

func testImport(w *world) {
	n := w.node()
	s := n.user(alice)
	raw := []byte("0123456789abcdef")
	k := n.create(s, importRequest("aes", raw))[0]
	block, err := aes.NewCipher(raw)
	w.ok(err)
	check := make([]byte, 16)
	block.Encrypt(check, check)
	w.equal("check value", k.CheckValue, hex.EncodeToString(check[:3]))
	w.equal("local, always-sensitive, never-extractable", []string{k.Attributes["local"], k.Attributes["always-sensitive"], k.Attributes["never-extractable"]}, []string{"false", "false", "false"})

	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.ok(err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	w.ok(err)
	spki, err := x509.MarshalPKIXPublicKey(private.Public())
	w.ok(err)
	signs := n.create(s, importRequest("ec", pkcs8, "sign"))[0]
	verifies := n.create(s, importRequest("ec", spki, "verify"))[0]
	detected := n.create(s, importRequest("", spki, "verify"))[0]
	w.equal("classes", []hsm.Class{signs.Class, verifies.Class, detected.Class}, []hsm.Class{hsm.ClassPrivate, hsm.ClassPublic, hsm.ClassPublic})
	w.equal("check values of a pair", signs.CheckValue, verifies.CheckValue)
	sig := n.use(s, hsm.Use{Kind: hsm.UseSign, Key: signs.Ref, Params: hsm.Params{Mechanism: "ecdsa", Hash: "sha256"}, Data: []byte("message")})
	digest := sha256.Sum256([]byte("message"))
	if !ecdsa.Verify(&private.PublicKey, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		w.Error("the imported key's signature does not verify outside")
	}
	n.use(s, hsm.Use{Kind: hsm.UseVerify, Key: verifies.Ref, Params: hsm.Params{Mechanism: "ecdsa", Hash: "sha256"}, Data: []byte("message"), Signature: sig})
	w.equal("public half", n.use(s, hsm.Use{Kind: hsm.UsePublic, Key: signs.Ref}), spki)

	for what, r := range map[string]hsm.CreateRequest{
		"garbage":       importRequest("ec", []byte("garbage")),
		"nothing":       importRequest("aes", nil),
		"wrong type":    importRequest("rsa", pkcs8),
		"wrong class":   {Method: hsm.MethodImport, Token: true, Type: "ec", Class: hsm.ClassPublic, Data: hsm.NewSecret(pkcs8)},
		"wrong curve":   {Method: hsm.MethodImport, Token: true, Type: "ec", Curve: "secp384r1", Data: hsm.NewSecret(pkcs8)},
		"wrong size":    {Method: hsm.MethodImport, Token: true, Type: "aes", Size: 32, Data: hsm.NewSecret(raw)},
		"trailing byte": importRequest("ec", append(append([]byte{}, pkcs8...), 0)),
	} {
		_, err := n.tryCreate(s, r)
		w.want(what, err, hsm.ErrInvalid)
	}
}

// use does what must succeed.
func (n *node) use(s hsm.Session, u hsm.Use) []byte {
	n.w.Helper()
	out, err := s.Use(n.ctx(), u)
	n.w.ok(err)
	return out
}

// sampleKeys are keys of all kinds in the form in which they are wrapped.
func sampleKeys(w *world) map[string][]byte {
	pkcs8 := func(k any, err error) []byte {
		w.ok(err)
		b, err := x509.MarshalPKCS8PrivateKey(k)
		w.ok(err)
		return b
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	w.ok(err)
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	return map[string][]byte{"aes": []byte("0123456789abcdef0123456789abcdef"), "generic-secret": []byte("a generic secret"), "ec": pkcs8(p521, err), "ed25519": pkcs8(ed, nil)}
}

func testWrapUnwrap(w *world) {
	n := w.node()
	s := n.user(alice)
	kek := n.aes(s, "wrap", "unwrap")
	pair := n.create(s, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "rsa", Size: 2048, Attributes: trues("unwrap"), Public: trues("wrap")})
	for keyType, data := range sampleKeys(w) {
		k := n.create(s, importRequest(keyType, data, "derive"))[0]
		for mechanism, keys := range map[string][2]hsm.KeyRef{
			"aes-kwp": {kek.Ref, kek.Ref}, "aes-gcm": {kek.Ref, kek.Ref}, "rsa-aes": {pair[1].Ref, pair[0].Ref}, "rsa-oaep": {pair[1].Ref, pair[0].Ref},
		} {
			if mechanism == "rsa-oaep" && len(data) > 190 {
				continue // what OAEP holds with SHA-256 under 2048 bits
			}
			p := hsm.Params{Mechanism: mechanism}
			wrapped := n.use(s, hsm.Use{Kind: hsm.UseWrap, Key: keys[0], Payload: k.Ref, Params: p})
			r := hsm.CreateRequest{Method: hsm.MethodUnwrap, Token: true, Type: keyType, Key: keys[1], Params: p, Data: hsm.NewSecret(wrapped)}
			back := n.create(s, r)[0]
			if back.Ref == k.Ref || back.CheckValue != k.CheckValue || back.Class != k.Class || back.Type != k.Type || back.Size != k.Size || back.Curve != k.Curve {
				w.Errorf("%s by %s came back as %+v", keyType, mechanism, back)
			}
			if again := n.use(s, hsm.Use{Kind: hsm.UseWrap, Key: kek.Ref, Payload: back.Ref, Params: hsm.Params{Mechanism: "aes-kwp"}}); string(again) !=
				string(n.use(s, hsm.Use{Kind: hsm.UseWrap, Key: kek.Ref, Payload: k.Ref, Params: hsm.Params{Mechanism: "aes-kwp"}})) {
				w.Errorf("%s by %s came back as another key", keyType, mechanism)
			}
		}
	}
}

func testWrapRefuses(w *world) {
	n := w.node()
	s := n.user(alice)
	inside := aesRequest("wrap", "unwrap")
	inside.Attributes["extractable"] = "false"
	kek, plain := n.create(s, inside)[0], n.aes(s)
	kwp := hsm.Params{Mechanism: "aes-kwp"}
	wrap := func(s hsm.Session, key, payload hsm.KeyRef) error {
		_, err := s.Use(n.ctx(), hsm.Use{Kind: hsm.UseWrap, Key: key, Payload: payload, Params: kwp})
		return err
	}
	locked := n.create(s, hsm.CreateRequest{Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32, Attributes: map[string]string{"extractable": "false"}})[0]
	careful := n.aes(s, "wrap-with-trusted")
	_, public := n.ec(s)
	w.equal("never-extractable", locked.Attributes["never-extractable"], "true")
	w.want("a key that is not extractable", wrap(s, kek.Ref, locked.Ref), hsm.ErrAttribute)
	w.want("with a key that does not wrap", wrap(s, plain.Ref, kek.Ref), hsm.ErrAttribute)
	w.want("wrap-with-trusted with a key that is not", wrap(s, kek.Ref, careful.Ref), hsm.ErrAttribute)
	w.want("a public key", wrap(s, kek.Ref, public.Ref), hsm.ErrInvalid)
	w.want("a key that is not there", wrap(s, kek.Ref, hsm.NewKeyRef()), hsm.ErrNotFound)
	w.must(n.admin().Change(n.ctx(), hsm.Change{Kind: hsm.ChangeAttribute, Ref: kek.Ref, Name: "trusted", Value: "true"}))
	w.want("wrap-with-trusted with a trusted key", wrap(s, kek.Ref, careful.Ref), nil)
	for _, k := range []hsm.KeyRef{kek.Ref, plain.Ref} {
		w.must(s.Change(n.ctx(), hsm.Change{Kind: hsm.ChangeShare, Ref: k, User: bob}))
	}
	own := n.aes(n.user(bob))
	w.want("of a key shared with the user", wrap(n.user(bob), kek.Ref, plain.Ref), hsm.ErrDenied)
	w.want("with a key shared with the user", wrap(n.user(bob), kek.Ref, own.Ref), hsm.ErrDenied)

	good := n.use(s, hsm.Use{Kind: hsm.UseWrap, Key: kek.Ref, Payload: plain.Ref, Params: kwp})
	unwrap := func(s hsm.Session, key hsm.KeyRef, data []byte) error {
		_, err := n.tryCreate(s, hsm.CreateRequest{Method: hsm.MethodUnwrap, Token: true, Type: "aes", Key: key, Params: kwp, Data: hsm.NewSecret(data)})
		return err
	}
	bad := append([]byte{}, good...)
	bad[0] ^= 1
	w.want("unwrap of altered bytes", unwrap(s, kek.Ref, bad), hsm.ErrCrypto)
	w.want("unwrap of garbage", unwrap(s, kek.Ref, []byte("garbage")), hsm.ErrCrypto)
	w.want("unwrap of nothing", unwrap(s, kek.Ref, nil), hsm.ErrCrypto)
	w.want("unwrap with a key that does not", unwrap(s, plain.Ref, good), hsm.ErrAttribute)
	w.want("unwrap with a shared key", unwrap(n.user(bob), kek.Ref, good), hsm.ErrDenied)
}

func testDerive(w *world) {
	n := w.node()
	s := n.user(alice)
	private, _ := n.ec(s)
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	w.ok(err)
	theirs, err := x509.MarshalPKIXPublicKey(peer.PublicKey())
	w.ok(err)
	mine, err := x509.ParsePKIXPublicKey(n.use(s, hsm.Use{Kind: hsm.UsePublic, Key: private.Ref}))
	w.ok(err)
	mineECDH, err := mine.(*ecdsa.PublicKey).ECDH()
	w.ok(err)
	z, err := peer.ECDH(mineECDH)
	w.ok(err)
	derive := func(key hsm.KeyRef, keyType string, size int, p hsm.Params) ([]hsm.KeyInfo, error) {
		return n.tryCreate(s, hsm.CreateRequest{Method: hsm.MethodDerive, Token: true, Type: keyType, Size: size, Key: key, Params: p, Attributes: trues("derive")})
	}
	for _, c := range []struct {
		what string
		p    hsm.Params
		want []byte
	}{
		{"the shared secret", hsm.Params{Mechanism: "ecdh", Peer: theirs}, z},
		{"its last bytes", hsm.Params{Mechanism: "ecdh", Peer: theirs}, z[16:]},
		{"the X9.63 KDF", hsm.Params{Mechanism: "ecdh", Peer: theirs, Hash: "sha256", SharedInfo: []byte("info")}, x963(z, "info")},
	} {
		keys, err := derive(private.Ref, "aes", len(c.want), c.p)
		w.ok(err)
		block, err := aes.NewCipher(c.want)
		w.ok(err)
		check := make([]byte, 16)
		block.Encrypt(check, check)
		w.equal(c.what, keys[0].CheckValue, hex.EncodeToString(check[:3]))
	}
	base := n.create(s, importRequest("generic-secret", []byte("base"), "derive"))[0]
	kdf := hsm.Params{Mechanism: "sp800-108-counter", Hash: "sha256", SharedInfo: []byte("label"), Context: []byte("context")}
	one, err := derive(base.Ref, "aes", 32, kdf)
	w.ok(err)
	two, err := derive(base.Ref, "aes", 32, kdf)
	w.ok(err)
	w.equal("one key twice", one[0].CheckValue, two[0].CheckValue)

	none := n.aes(s)
	for _, c := range []struct {
		what, keyType string
		key           hsm.KeyRef
		size          int
		p             hsm.Params
		want          error
	}{
		{"garbage for a peer", "aes", private.Ref, 32, hsm.Params{Mechanism: "ecdh", Peer: []byte("garbage")}, hsm.ErrInvalid},
		{"more than there is", "generic-secret", private.Ref, 33, hsm.Params{Mechanism: "ecdh", Peer: theirs}, hsm.ErrInvalid},
		{"an rsa key", "rsa", private.Ref, 2048, hsm.Params{Mechanism: "ecdh", Peer: theirs}, hsm.ErrInvalid},
		{"ecdh with a secret key", "aes", base.Ref, 32, hsm.Params{Mechanism: "ecdh", Peer: theirs}, hsm.ErrInvalid},
		{"kdf with a private key", "aes", private.Ref, 32, kdf, hsm.ErrInvalid},
		{"unknown mechanism", "aes", base.Ref, 32, hsm.Params{Mechanism: "magic"}, hsm.ErrInvalid},
		{"a key that does not derive", "aes", none.Ref, 32, kdf, hsm.ErrAttribute},
	} {
		_, err := derive(c.key, c.keyType, c.size, c.p)
		w.want(c.what, err, c.want)
	}
}

// x963 is the X9.63 KDF with SHA-256 for at most 32 bytes.
func x963(z []byte, info string) []byte {
	h := sha256.Sum256(append(append(append([]byte{}, z...), 0, 0, 0, 1), info...))
	return h[:]
}

// parseRSA reads a public key as the world outside does.
func parseRSA(w *world, spki []byte) *rsa.PublicKey {
	k, err := x509.ParsePKIXPublicKey(spki)
	w.ok(err)
	return k.(*rsa.PublicKey)
}
