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
	a.want(ck.AttributeTypeInvalid, rpc.GenerateKey, s, mech(ck.AESKeyGen), []rpc.Attribute{attr(ck.ValueLen, 32), nested(ck.DeriveTemplate)})
	a.want(ck.TemplateInconsistent, rpc.GenerateKey, s, mech(ck.AESKeyGen), []rpc.Attribute{attr(ck.ValueLen, 32), nested(ck.WrapTemplate), wrapping})
}
