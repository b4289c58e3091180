package pkcs11

import (
	"bytes"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

func TestTemplatesAreChecked(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	secret := func(more ...rpc.Attribute) []rpc.Attribute {
		return append([]rpc.Attribute{attr(ck.Class, ck.ObjectSecretKey), attr(ck.KeyType, ck.KeyAES)}, more...)
	}
	value := attr(ck.Value, make([]byte, 16))
	for name, v := range map[string]struct {
		want ck.RV
		list []rpc.Attribute
	}{
		"no class":               {ck.TemplateIncomplete, []rpc.Attribute{value}},
		"no key type":            {ck.TemplateIncomplete, []rpc.Attribute{attr(ck.Class, ck.ObjectSecretKey), value}},
		"no value":               {ck.TemplateIncomplete, secret()},
		"a class there is not":   {ck.AttributeValueInvalid, []rpc.Attribute{attr(ck.Class, 77), value}},
		"a value of 15 bytes":    {ck.AttributeValueInvalid, secret(attr(ck.Value, make([]byte, 15)))},
		"two lengths":            {ck.TemplateInconsistent, secret(value, attr(ck.ValueLen, 32))},
		"two labels":             {ck.TemplateInconsistent, secret(value, attr(ck.Label, "a"), attr(ck.Label, "b"))},
		"one label twice":        {ck.OK, secret(value, attr(ck.Label, "a"), attr(ck.Label, "a"))},
		"an attribute of others": {ck.AttributeTypeInvalid, secret(value, attr(ck.Subject, []byte{1}))},
		"one there is not":       {ck.AttributeTypeInvalid, secret(value, attr(0x80001234, []byte{1}))},
		"local":                  {ck.AttributeReadOnly, secret(value, attr(ck.Local, true))},
		"trusted":                {ck.AttributeReadOnly, secret(value, attr(ck.Trusted, true))},
		"not trusted":            {ck.OK, secret(value, attr(ck.Trusted, false))},
		"a label with a newline": {ck.AttributeValueInvalid, secret(value, attr(ck.Label, "a\nb"))},
		"no length":              {ck.AttributeValueInvalid, secret(value, rpc.Attribute{Type: ck.Label})},
		"an rsa key's type":      {ck.TemplateInconsistent, []rpc.Attribute{attr(ck.Class, ck.ObjectSecretKey), attr(ck.KeyType, ck.KeyRSA), value}},
		"a certificate of none":  {ck.TemplateIncomplete, []rpc.Attribute{attr(ck.Class, ck.ObjectCertificate), attr(ck.CertificateType, 0)}},
		"a certificate of text":  {ck.AttributeValueInvalid, []rpc.Attribute{attr(ck.Class, ck.ObjectCertificate), attr(ck.CertificateType, 0), attr(ck.Value, "hi")}},
	} {
		t.Run(name, func(t *testing.T) { (&app{t, a.App}).want(v.want, rpc.CreateObject, s, v.list) })
	}
	a.want(ck.TemplateIncomplete, rpc.GenerateKey, s, mech(ck.AESKeyGen), []rpc.Attribute{})
	a.want(ck.AttributeValueInvalid, rpc.GenerateKey, s, mech(ck.AESKeyGen), []rpc.Attribute{attr(ck.ValueLen, 17)})
	a.want(ck.MechanismInvalid, rpc.GenerateKey, s, mech(ck.AESECB), []rpc.Attribute{attr(ck.ValueLen, 16)})
	a.want(ck.AttributeTypeInvalid, rpc.GenerateKey, s, mech(ck.AESKeyGen), []rpc.Attribute{attr(ck.ValueLen, 16), attr(ck.ModulusBits, 2048)})
	a.want(ck.AttributeValueInvalid, rpc.GenerateKeyPair, s, mech(ck.RSAPKCSKeyPairGen), []rpc.Attribute{attr(ck.ModulusBits, 2048), attr(ck.PublicExponent, []byte{3})}, []rpc.Attribute{})
	a.want(ck.AttributeValueInvalid, rpc.GenerateKeyPair, s, mech(ck.RSAPKCSKeyPairGen), []rpc.Attribute{attr(ck.ModulusBits, 1024)}, []rpc.Attribute{})
	a.want(ck.TemplateInconsistent, rpc.GenerateKeyPair, s, mech(ck.RSAPKCSKeyPairGen), []rpc.Attribute{attr(ck.ModulusBits, 2048), attr(ck.Token, true)}, []rpc.Attribute{})
}

// The attributes of a key as PKCS #11 means them.
func TestAttributes(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	key := a.aes(s, attr(ck.Label, "k"), attr(ck.ID, []byte{1, 2}), attr(ck.Encrypt, true), attr(ck.Extractable, false))
	for at, want := range map[ck.Attr]uint64{
		ck.Class: ck.ObjectSecretKey, ck.KeyType: ck.KeyAES, ck.Token: 0, ck.Private: 1, ck.Encrypt: 1, ck.Decrypt: 0, ck.Sensitive: 1, ck.AlwaysSensitive: 1,
		ck.Extractable: 0, ck.NeverExtractable: 1, ck.Local: 1, ck.KeyGenMechanism: uint64(ck.AESKeyGen), ck.ValueLen: 32, ck.Modifiable: 1, ck.Destroyable: 1,
		ck.Copyable: 0, ck.Trusted: 0, ck.WrapWithTrusted: 0,
	} {
		if v, rv := a.value(s, key, at); rv != ck.OK || v.Num != want {
			t.Errorf("attribute %x is %d, %v; want %d", at, v.Num, rv, want)
		}
	}
	if v, _ := a.value(s, key, ck.ID); !bytes.Equal(v.Bytes, []byte{1, 2}) {
		t.Errorf("id %x", v.Bytes)
	}
	for at, want := range map[ck.Attr]ck.RV{ck.Value: ck.AttributeSensitive, ck.Modulus: ck.AttributeTypeInvalid, 0x80000001: ck.AttributeTypeInvalid, ck.AlwaysAuthenticate: ck.AttributeTypeInvalid} {
		if v, rv := a.value(s, key, at); rv != want || v.Valid {
			t.Errorf("attribute %x: %v, %+v; want %v", at, rv, v, want)
		}
	}
	out := a.call(rpc.GetAttributeValue, s, key, []rpc.AttributeRoom{{Type: ck.Label, Room: 0}, {Type: ck.Value, Room: 100}, {Type: ck.ID, Room: 1}, {Type: ck.Class, Room: 8}})
	list := out[0].([]rpc.Attribute)
	if ck.RV(out[1].(uint64)) != ck.AttributeSensitive || list[0].Length != 1 || list[1].Valid || list[2].Valid || list[3].Num != ck.ObjectSecretKey {
		t.Errorf("%+v %v", list, out[1])
	}
	a.call(rpc.SetAttributeValue, s, key, []rpc.Attribute{attr(ck.Label, "new"), attr(ck.Decrypt, true)})
	if v, _ := a.value(s, key, ck.Label); string(v.Bytes) != "new" {
		t.Errorf("label %q", v.Bytes)
	}
	a.want(ck.AttributeReadOnly, rpc.SetAttributeValue, s, key, []rpc.Attribute{attr(ck.Extractable, true)})
	a.want(ck.AttributeReadOnly, rpc.SetAttributeValue, s, key, []rpc.Attribute{attr(ck.Sensitive, false)})
	a.want(ck.AttributeReadOnly, rpc.SetAttributeValue, s, key, []rpc.Attribute{attr(ck.ValueLen, 16)})
	// One that may not change keeps the others from being changed.
	a.want(ck.AttributeReadOnly, rpc.SetAttributeValue, s, key, []rpc.Attribute{attr(ck.Label, "half"), attr(ck.Derive, true), attr(ck.Sensitive, false)})
	for at, want := range map[ck.Attr]string{ck.Label: "new", ck.Derive: ""} {
		if v, _ := a.value(s, key, at); string(v.Bytes) != want || v.Num != 0 {
			t.Errorf("attribute %x is %+v after a change that was refused", at, v)
		}
	}
	a.want(ck.AttributeTypeInvalid, rpc.SetAttributeValue, s, key, []rpc.Attribute{attr(ck.Subject, []byte{1})})
	a.call(rpc.SetAttributeValue, s, key, []rpc.Attribute{attr(ck.Modifiable, false), attr(ck.Wrap, true), attr(ck.Copyable, false)}) // after which nothing does
	for at, want := range map[ck.Attr]uint64{ck.Modifiable: 0, ck.Wrap: 1, ck.Copyable: 0} {
		if got, rv := a.value(s, key, at); rv != ck.OK || got.Num != want {
			t.Errorf("attribute %#x is %v, %v; want %d", uint64(at), got.Num, rv, want)
		}
	}
	a.want(ck.ActionProhibited, rpc.SetAttributeValue, s, key, []rpc.Attribute{attr(ck.Label, "late")})
}

// What goes in comes out: each kind of object in clear.
func TestObjectsInClear(t *testing.T) {
	w := newWorld(t, 2, cluster.Policy{MinCopies: 2, CheckOnUse: true})
	a := w.app()
	s := a.session(bobPIN)
	rsaPub, rsaPriv := a.pair(s, ck.RSAPKCSKeyPairGen, []rpc.Attribute{attr(ck.ModulusBits, 2048)}, []rpc.Attribute{attr(ck.Sign, true), attr(ck.Sensitive, false)})
	ecPub, ecPriv := a.pair(s, ck.ECKeyPairGen, []rpc.Attribute{attr(ck.ECParams, curveDER("secp384r1"))}, []rpc.Attribute{attr(ck.Sign, true), attr(ck.Sensitive, false)})
	edPub, edPriv := a.pair(s, ck.ECEdwardsPairGen, []rpc.Attribute{attr(ck.ECParams, curveDER("ed25519"))}, []rpc.Attribute{attr(ck.Sign, true), attr(ck.Sensitive, false)})
	again := func(object uint64, class uint64, attrs ...ck.Attr) uint64 {
		list := []rpc.Attribute{attr(ck.Class, class), attr(ck.Token, true)}
		for _, at := range append(attrs, ck.KeyType) {
			v, rv := a.value(s, object, at)
			if rv != ck.OK {
				t.Fatalf("attribute %x: %v", at, rv)
			}
			list = append(list, v)
		}
		return a.call(rpc.CreateObject, s, list)[0].(uint64)
	}
	numbers := []ck.Attr{ck.Modulus, ck.PublicExponent, ck.PrivateExponent, ck.Prime1, ck.Prime2, ck.Exponent1, ck.Exponent2, ck.Coefficient}
	for _, v := range []struct {
		pub, priv uint64
		m         ck.Mech
	}{
		{again(rsaPub, ck.ObjectPublicKey, ck.Modulus, ck.PublicExponent), again(rsaPriv, ck.ObjectPrivateKey, numbers...), ck.SHA256RSAPKCS},
		{again(ecPub, ck.ObjectPublicKey, ck.ECParams, ck.ECPoint), again(ecPriv, ck.ObjectPrivateKey, ck.ECParams, ck.Value), ck.ECDSASHA384},
		{again(edPub, ck.ObjectPublicKey, ck.ECParams, ck.ECPoint), again(edPriv, ck.ObjectPrivateKey, ck.ECParams, ck.Value), ck.EDDSA},
	} {
		sig := a.crypt(rpc.SignInit, s, mech(v.m), v.priv, []byte("data"))
		a.call(rpc.VerifyInit, s, mech(v.m), v.pub)
		a.call(rpc.Verify, s, []byte("data"), sig)
		if local, _ := a.value(s, v.priv, ck.Local); local.Num != 0 {
			t.Error("an imported key is local")
		}
	}
	data := a.call(rpc.CreateObject, s, []rpc.Attribute{attr(ck.Class, ck.ObjectData), attr(ck.Token, true), attr(ck.Value, "notes"), attr(ck.Application, "app"), attr(ck.Label, "n")})[0].(uint64)
	if v, rv := a.value(s, data, ck.Value); rv != ck.OK || string(v.Bytes) != "notes" {
		t.Errorf("%q %v", v.Bytes, rv)
	}
	cert := a.call(rpc.CreateObject, s, []rpc.Attribute{attr(ck.Class, ck.ObjectCertificate), attr(ck.CertificateType, 0), attr(ck.Token, true), attr(ck.Value, []byte{0x30, 0}), attr(ck.Subject, []byte{0x30, 0})})[0].(uint64)
	if got := a.find(s, attr(ck.Class, ck.ObjectCertificate), attr(ck.Value, []byte{0x30, 0})); len(got) != 1 || got[0] != cert {
		t.Errorf("found %v", got)
	}
	other := w.app()
	if got := other.find(other.session(alicePIN), attr(ck.Class, ck.ObjectCertificate)); len(got) != 1 {
		t.Errorf("alice finds %v; certificates are not private", got)
	}
	a.want(ck.KeyHandleInvalid, rpc.SignInit, s, mech(ck.ECDSA), cert)
}

// copyData: of all objects, only the value of a data object may be another in a copy.
func (a *app) copyData(s uint64) {
	a.t.Helper()
	first := a.call(rpc.CreateObject, s, []rpc.Attribute{attr(ck.Class, ck.ObjectData), attr(ck.Application, "app"), attr(ck.Label, "data"), attr(ck.Value, []byte("old"))})[0].(uint64)
	second := a.call(rpc.CopyObject, s, first, []rpc.Attribute{attr(ck.Value, []byte("new")), attr(ck.Label, "copy"), attr(ck.Modifiable, false)})[0].(uint64)
	for at, want := range map[ck.Attr]string{ck.Value: "new", ck.Application: "app", ck.Label: "copy"} {
		if v, rv := a.value(s, second, at); rv != ck.OK || string(v.Bytes) != want {
			a.t.Errorf("attribute %x of the copy is %q, %v; want %q", at, v.Bytes, rv, want)
		}
	}
	if v, _ := a.value(s, first, ck.Value); string(v.Bytes) != "old" {
		a.t.Errorf("the first one's value is %q now", v.Bytes)
	}
	a.want(ck.AttributeReadOnly, rpc.CopyObject, s, second, []rpc.Attribute{attr(ck.Value, []byte("x")), attr(ck.Modifiable, true)})
	a.want(ck.AttributeReadOnly, rpc.CopyObject, s, first, []rpc.Attribute{attr(ck.Value, []byte("x")), attr(ck.Class, ck.ObjectSecretKey)})
	uncopyable := a.call(rpc.CopyObject, s, first, []rpc.Attribute{attr(ck.Value, []byte("x")), attr(ck.Copyable, false)})[0].(uint64)
	a.want(ck.ActionProhibited, rpc.CopyObject, s, uncopyable, []rpc.Attribute{attr(ck.Value, []byte("y"))})
}

func TestCopyAndDestroy(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	key := a.known(s, attr(ck.Label, "first"))
	second := a.call(rpc.CopyObject, s, key, []rpc.Attribute{attr(ck.Token, true), attr(ck.Label, "second"), attr(ck.Extractable, false)})[0].(uint64)
	if v, _ := a.value(s, second, ck.Token); v.Num != 1 {
		t.Error("not a token object")
	}
	a.want(ck.AttributeReadOnly, rpc.CopyObject, s, second, []rpc.Attribute{attr(ck.Extractable, true)})
	a.want(ck.AttributeReadOnly, rpc.CopyObject, s, key, []rpc.Attribute{attr(ck.Value, "x")})
	a.want(ck.ActionProhibited, rpc.CopyObject, s, a.aes(s, attr(ck.Extractable, false)), []rpc.Attribute{})
	a.copyData(s)
	ro := a.open(0)
	a.want(ck.SessionReadOnly, rpc.CopyObject, ro, key, []rpc.Attribute{attr(ck.Token, true)})
	a.want(ck.SessionReadOnly, rpc.DestroyObject, ro, second)
	a.want(ck.SessionReadOnly, rpc.SetAttributeValue, ro, second, []rpc.Attribute{attr(ck.Label, "x")})
	a.call(rpc.DestroyObject, s, second)
	a.want(ck.ObjectHandleInvalid, rpc.DestroyObject, s, second)
	if got := a.find(s, attr(ck.Label, "second")); len(got) != 0 {
		t.Errorf("found %v", got)
	}
	fixed := a.aes(s, attr(ck.Destroyable, false))
	a.want(ck.ActionProhibited, rpc.DestroyObject, s, fixed)
	// A session object that becomes a token object keeps its handle, and stays.
	a.call(rpc.SetAttributeValue, s, key, []rpc.Attribute{attr(ck.Token, true)})
	a.call(rpc.CloseSession, s)
	if v, rv := a.value(ro, key, ck.Token); rv != ck.OK || v.Num != 1 {
		t.Errorf("%+v %v", v, rv)
	}
}

func TestWrapAndUnwrap(t *testing.T) {
	a := newWorld(t, 1, onlyOne).app()
	s := a.session(bobPIN)
	pub, priv := a.rsa(s)
	kek := a.aes(s, attr(ck.Wrap, true), attr(ck.Unwrap, true))
	key := a.known(s, attr(ck.Encrypt, true))
	want := a.crypt(rpc.EncryptInit, s, mech(ck.AESECB), key, make([]byte, 16))
	template := []rpc.Attribute{attr(ck.Class, ck.ObjectSecretKey), attr(ck.KeyType, ck.KeyAES), attr(ck.Encrypt, true)}
	oaep := rpc.Mechanism{Type: ck.RSAPKCSOAEP, Has: true, Nums: []uint64{uint64(ck.SHA256), ck.MGF1SHA256, 1}, Bufs: [][]byte{nil}}
	rsaAES := rpc.Mechanism{Type: ck.RSAAESKeyWrap, Has: true, Nums: []uint64{256, uint64(ck.SHA256), ck.MGF1SHA256, 1}, Bufs: [][]byte{nil}}
	for _, v := range []struct {
		m          rpc.Mechanism
		wrap, open uint64
	}{{mech(ck.AESKeyWrap), kek, kek}, {mech(ck.AESKeyWrapPad), kek, kek}, {mech(ck.AESKeyWrapKWP), kek, kek}, {mech(ck.AESKeyWrapPKCS7), kek, kek},
		{mech(ck.CloudHSMAESKWNoPad), kek, kek}, {mech(ck.CloudHSMAESKWPKCS5), kek, kek}, {mech(ck.CloudHSMAESKWZeroPad), kek, kek}, {gcm(128), kek, kek}, {oaep, pub, priv}, {rsaAES, pub, priv}, {mech(ck.RSAPKCS), pub, priv}} {
		wrapped := a.call(rpc.WrapKey, s, v.m, v.wrap, key, room)[0].([]byte)
		if got := a.call(rpc.WrapKey, s, v.m, v.wrap, key, rpc.Room{Query: true})[0]; got != rpc.Size(len(wrapped)) {
			t.Errorf("%x: size %v, want %d", v.m.Type, got, len(wrapped))
		}
		back := a.call(rpc.UnwrapKey, s, v.m, v.open, wrapped, template)[0].(uint64)
		if got := a.crypt(rpc.EncryptInit, s, mech(ck.AESECB), back, make([]byte, 16)); !bytes.Equal(got, want) {
			t.Errorf("%x: another key", v.m.Type)
		}
		wrapped[len(wrapped)-1]++
		a.want(ck.WrappedKeyInvalid, rpc.UnwrapKey, s, v.m, v.open, wrapped, template)
	}
	inner, innerPriv := a.pair(s, ck.ECKeyPairGen, []rpc.Attribute{attr(ck.ECParams, curveDER("secp256r1"))}, []rpc.Attribute{attr(ck.Sign, true)})
	wrapped := a.call(rpc.WrapKey, s, mech(ck.AESKeyWrapPad), kek, innerPriv, room)[0].([]byte)
	back := a.call(rpc.UnwrapKey, s, mech(ck.AESKeyWrapPad), kek, wrapped, []rpc.Attribute{attr(ck.Class, ck.ObjectPrivateKey), attr(ck.KeyType, ck.KeyEC), attr(ck.Sign, true)})[0].(uint64)
	sig := a.crypt(rpc.SignInit, s, mech(ck.ECDSA), back, make([]byte, 32))
	a.call(rpc.VerifyInit, s, mech(ck.ECDSA), inner)
	a.call(rpc.Verify, s, make([]byte, 32), sig)

	for _, v := range []struct {
		want     ck.RV
		kek, key uint64
	}{
		{ck.KeyUnextractable, kek, a.aes(s, attr(ck.Extractable, false))},
		{ck.KeyNotWrappable, kek, a.aes(s, attr(ck.WrapWithTrusted, true))},
		{ck.KeyNotWrappable, kek, pub},
		{ck.KeyFunctionNotPermitted, key, kek},
		{ck.WrappingKeyTypeInconsistent, priv, key},
		{ck.WrappingKeyHandleInvalid, 9999, key},
		{ck.KeyHandleInvalid, kek, 9999},
	} {
		a.want(v.want, rpc.WrapKey, s, mech(ck.AESKeyWrap), v.kek, v.key, room)
	}
	a.want(ck.TemplateIncomplete, rpc.UnwrapKey, s, mech(ck.AESKeyWrap), kek, make([]byte, 24), []rpc.Attribute{attr(ck.Class, ck.ObjectSecretKey)})
}

// Too few HSMs: CKR_FUNCTION_FAILED, and the log has CloudHSM's line.
func TestAvailability(t *testing.T) {
	w := newWorld(t, 3, cluster.Policy{MinCopies: 2, CheckOnUse: true})
	a := w.app()
	s := a.session(bobPIN)
	key := a.aes(s, attr(ck.Token, true), attr(ck.Encrypt, true), attr(ck.Decrypt, true))
	w.setAway(2, 3)
	a.want(ck.FunctionFailed, rpc.GenerateKey, s, mech(ck.AESKeyGen), []rpc.Attribute{attr(ck.ValueLen, 32), attr(ck.Token, true)})
	const line = "does not meet the availability requirements - The key must be available on at least 2 HSMs before being used."
	if !strings.Contains(w.log.String(), line) || !strings.Contains(w.log.String(), "application.program=judge call=C_GenerateKey rv=CKR_FUNCTION_FAILED") {
		t.Errorf("the log has no line %q:\n%s", line, w.log)
	}
	w.setAway()
	eventually(t, "the first key, and only that", func() bool { got := a.find(s); return len(got) == 1 && got[0] == key })
}

// HSMs die between the parts of an operation, and others go on.
func TestHSMDiesBetweenTheParts(t *testing.T) {
	w := newWorld(t, 3, cluster.Policy{MinCopies: 3, CheckOnUse: true})
	a := w.app()
	s := a.session(bobPIN)
	key := a.aes(s, attr(ck.Token, true), attr(ck.Encrypt, true), attr(ck.Decrypt, true))
	data := bytes.Repeat([]byte("0123456789abcdef"), 9)
	want := a.crypt(rpc.EncryptInit, s, iv(ck.AESCBCPad), key, data)
	a.call(rpc.EncryptInit, s, iv(ck.AESCBCPad), key)
	var got []byte
	for i := range 9 {
		w.setAway(1+i%3, 1+(i+1)%3)
		got = append(got, a.call(rpc.EncryptUpdate, s, data[16*i:16*i+16], room)[0].([]byte)...)
	}
	got = append(got, a.call(rpc.EncryptFinal, s, room)[0].([]byte)...)
	if !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	w.setAway(1, 2, 3)
	a.call(rpc.SignInit, s, mech(ck.AESCMAC), key)
	a.want(ck.DeviceError, rpc.Sign, s, data, room)
	w.setAway()
	eventually(t, "a MAC after the HSMs came back", func() bool {
		_, err := a.App.Call(t.Context(), rpc.SignInit, rpc.Args{s, mech(ck.AESCMAC), key})
		if err == nil {
			_, err = a.App.Call(t.Context(), rpc.Sign, rpc.Args{s, data, room})
		}
		return err == nil
	})
}

func TestPasswordIsChanged(t *testing.T) {
	w := newWorld(t, 2, onlyOne)
	a := w.app()
	s := a.session(bobPIN)
	a.want(ck.PinIncorrect, rpc.SetPIN, s, []byte("bob:something-else"), []byte("bob:another-password"))
	a.want(ck.PinLenRange, rpc.SetPIN, s, []byte(bobPIN), []byte("bob:short"))
	a.want(ck.PinInvalid, rpc.SetPIN, s, []byte(bobPIN), []byte("alice:another-password"))
	a.call(rpc.SetPIN, s, []byte(bobPIN), []byte("bob:another-password"))
	other := w.app()
	s2 := other.open(0)
	other.want(ck.PinIncorrect, rpc.Login, s2, ck.UserUser, []byte(bobPIN))
	other.call(rpc.Login, s2, ck.UserUser, []byte("bob:another-password"))
	a.aes(s)
}
