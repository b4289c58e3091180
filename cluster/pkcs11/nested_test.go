package pkcs11

import (
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

func nested(t ck.Attr, inner ...rpc.Attribute) rpc.Attribute {
	return rpc.Attribute{Type: t, Valid: true, Attrs: inner}
}

func TestWrapAndUnwrapTemplates(t *testing.T) {
	w := newWorld(t, 1, cluster.Policy{MinCopies: 1})
	a := w.app()
	s := a.session(bobPIN)
	wrapping := nested(ck.WrapTemplate, attr(ck.Label, "a, b"), attr(ck.Class, ck.ObjectSecretKey), attr(ck.Encrypt, true))
	unwrapping := nested(ck.UnwrapTemplate, attr(ck.Extractable, false), attr(ck.Decrypt, true), attr(ck.KeyType, ck.KeyAES))
	kek := a.aes(s, attr(ck.Token, true), attr(ck.Wrap, true), attr(ck.Unwrap, true), wrapping, unwrapping)

	room := rpc.Room{N: 1 << 20}
	good := a.aes(s, attr(ck.Label, "a, b"), attr(ck.Encrypt, true))
	out := a.call(rpc.WrapKey, s, mech(ck.AESKeyWrapPad), kek, good, room)[0].([]byte)
	for _, other := range []uint64{a.aes(s, attr(ck.Label, "a"), attr(ck.Encrypt, true)), a.aes(s, attr(ck.Label, "a, b"), attr(ck.Decrypt, true))} {
		a.want(ck.KeyHandleInvalid, rpc.WrapKey, s, mech(ck.AESKeyWrapPad), kek, other, room)
	}

	secret := []rpc.Attribute{attr(ck.Class, ck.ObjectSecretKey), attr(ck.KeyType, ck.KeyAES)}
	key := a.call(rpc.UnwrapKey, s, mech(ck.AESKeyWrapPad), kek, out, secret)[0].(uint64)
	for at, want := range map[ck.Attr]uint64{ck.Extractable: 0, ck.Decrypt: 1, ck.Encrypt: 0} {
		if got, rv := a.value(s, key, at); got.Num != want || rv != ck.OK {
			t.Errorf("%x is %d, %v", at, got.Num, rv)
		}
	}
	a.want(ck.TemplateInconsistent, rpc.UnwrapKey, s, mech(ck.AESKeyWrapPad), kek, out, append(secret, attr(ck.Extractable, true)))

	inner := []rpc.AttributeRoom{{Room: 8}, {Room: 10}, {Room: 1}}
	shown := a.call(rpc.GetAttributeValue, s, kek, []rpc.AttributeRoom{{Type: ck.WrapTemplate, Room: 3 * 24, Nested: inner}})[0].([]rpc.Attribute)[0]
	for i, want := range []rpc.Attribute{attr(ck.Class, ck.ObjectSecretKey), attr(ck.Label, "a, b"), attr(ck.Encrypt, true)} {
		if got := shown.Attrs[i]; got.Type != want.Type || !sameValue(got, want) {
			t.Errorf("element %d is %+v, want %+v", i, got, want)
		}
	}
	if found := a.find(s, nested(ck.WrapTemplate, attr(ck.Encrypt, true), attr(ck.Label, "a, b"), attr(ck.Class, ck.ObjectSecretKey))); len(found) != 1 || found[0] != kek {
		t.Errorf("found %v", found)
	}
	a.call(rpc.SetAttributeValue, s, kek, []rpc.Attribute{nested(ck.WrapTemplate)})
	a.call(rpc.WrapKey, s, mech(ck.AESKeyWrapPad), kek, a.aes(s), room)
	for _, bad := range []rpc.Attribute{
		nested(ck.WrapTemplate, nested(ck.WrapTemplate)), nested(ck.UnwrapTemplate, attr(ck.Value, "x")), nested(ck.UnwrapTemplate, attr(ck.Local, true)),
		nested(ck.WrapTemplate, attr(ck.Class, 77)),
	} {
		a.want(ck.AttributeValueInvalid, rpc.GenerateKey, s, mech(ck.AESKeyGen), []rpc.Attribute{attr(ck.ValueLen, 32), bad})
	}
	a.want(ck.TemplateInconsistent, rpc.GenerateKey, s, mech(ck.AESKeyGen), []rpc.Attribute{attr(ck.ValueLen, 32), nested(ck.WrapTemplate), wrapping})
}

// TestDeriveTemplate: a key of which the application does not say what it is for gets
// what the template says, and one that contradicts it is not derived.
func TestDeriveTemplate(t *testing.T) {
	a := newWorld(t, 1, cluster.Policy{MinCopies: 1}).app()
	s := a.session(bobPIN)
	inner := nested(ck.DeriveTemplate, attr(ck.Sign, true), attr(ck.Sensitive, false), attr(ck.ValueLen, 32))
	a.want(ck.AttributeValueInvalid, rpc.GenerateKey, s, mech(ck.GenericSecretGen), []rpc.Attribute{attr(ck.ValueLen, 32), attr(ck.Derive, true), inner})
	inner = nested(ck.DeriveTemplate, attr(ck.Sign, true), attr(ck.Sensitive, false), attr(ck.KeyType, ck.KeyGeneric))
	base := a.call(rpc.GenerateKey, s, mech(ck.GenericSecretGen), []rpc.Attribute{attr(ck.ValueLen, 32), attr(ck.Derive, true), inner})[0].(uint64)
	items := rpc.Mechanism{Type: ck.SP800108Counter, Has: true, Nums: []uint64{uint64(ck.SHA256HMAC), 5, kdfIteration, kdfBytes, kdfBytes, kdfBytes, kdfLength},
		Bufs: [][]byte{ulongs(0, 32), []byte("label"), {0}, []byte("context"), ulongs(1, 0, 32)}}
	key := a.call(rpc.DeriveKey, s, items, base, []rpc.Attribute{attr(ck.ValueLen, 32)})[0].(uint64)
	for at, want := range map[ck.Attr]uint64{ck.Sign: 1, ck.Sensitive: 0, ck.Encrypt: 0} {
		if got, rv := a.value(s, key, at); got.Num != want || rv != ck.OK {
			t.Errorf("%x is %d, %v", at, got.Num, rv)
		}
	}
	a.want(ck.TemplateInconsistent, rpc.DeriveKey, s, items, base, []rpc.Attribute{attr(ck.ValueLen, 32), attr(ck.Sensitive, true)})
	a.want(ck.TemplateInconsistent, rpc.DeriveKey, s, items, base, []rpc.Attribute{attr(ck.ValueLen, 32), attr(ck.KeyType, ck.KeyAES)})
	if found := a.find(s, inner); len(found) != 1 || found[0] != base {
		t.Errorf("found %v", found)
	}
}
