package pkcs11

import (
	"cmp"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// CKA_WRAP_TEMPLATE, CKA_UNWRAP_TEMPLATE and CKA_DERIVE_TEMPLATE are templates in a template, and text in an
// HSM (hsm.ParseTemplate), which enforces them.

// templates are the attributes that are templates.
var templates = map[ck.Attr]string{ck.WrapTemplate: hsm.WrapTemplate, ck.UnwrapTemplate: hsm.UnwrapTemplate, ck.DeriveTemplate: hsm.DeriveTemplate}

// templateText is the text of a template for an HSM.
func templateText(at ck.Attr, list []rpc.Attribute) (string, error) {
	t, err := parseTemplate(list)
	if err != nil {
		return "", err
	}
	out := map[string]string{}
	for inner, a := range t {
		name, value, ok := nestedText(inner, a)
		if !ok {
			return "", ck.AttributeValueInvalid
		}
		out[name] = value
	}
	text := hsm.FormatTemplate(out)
	if _, err := hsm.ParseTemplate(templates[at], text); err != nil {
		return "", ck.AttributeValueInvalid
	}
	return text, nil
}

// nestedText is one attribute of a template. Unlike in a template for a new object,
// nothing goes without saying in it.
func nestedText(at ck.Attr, a rpc.Attribute) (name, value string, ok bool) {
	switch {
	case at == ck.Class:
		for class, n := range classes {
			if n == a.Num {
				return "class", string(class), true
			}
		}
	case at == ck.KeyType:
		for keyType, n := range keyTypes {
			if n == a.Num {
				return "key-type", keyType, true
			}
		}
	case at == ck.ValueLen:
		return "key-length-bytes", strconv.FormatUint(a.Num, 10), true
	case at == ck.ModulusBits:
		return "modulus-size-bits", strconv.FormatUint(a.Num, 10), true
	case at == ck.Copyable:
		return "copyable", strconv.FormatBool(a.Num == 1), true
	case flags[at] != "":
		return flags[at], strconv.FormatBool(a.Num == 1), true
	case texts[at] != "":
		return texts[at], string(a.Bytes), utf8.Valid(a.Bytes)
	case blobs[at] != "":
		return blobs[at], hex.EncodeToString(a.Bytes), true
	case at == ck.AllowedMechanisms:
		return "allowed-mechanisms", formatMechanisms(a.Mechs), len(a.Mechs) <= 14
	}
	return "", "", false
}

// byName finds the attribute for an HSM's name.
var byName = func() map[string]ck.Attr {
	out := map[string]ck.Attr{"class": ck.Class, "key-type": ck.KeyType, "key-length-bytes": ck.ValueLen, "modulus-size-bits": ck.ModulusBits, "copyable": ck.Copyable,
		"allowed-mechanisms": ck.AllowedMechanisms}
	for _, m := range []map[ck.Attr]string{flags, texts, blobs} {
		for at, name := range m {
			out[name] = at
		}
	}
	return out
}()

// templateAttributes is a template of an HSM as PKCS #11 shows it, ascending by type.
// What PKCS #11 has no word for, such as quorum values, is left out.
func templateAttributes(at ck.Attr, text string) []rpc.Attribute {
	t, err := hsm.ParseTemplate(templates[at], text)
	if err != nil {
		return nil
	}
	out := []rpc.Attribute{}
	for name, value := range t {
		inner, ok := byName[name]
		if !ok {
			continue
		}
		a := rpc.Attribute{Type: inner, Valid: true}
		switch {
		case inner == ck.Class:
			a.Num = classes[hsm.Class(value)]
		case inner == ck.KeyType:
			a.Num = keyTypes[value]
		case inner.Kind() == ck.KindNumber:
			a.Num, _ = strconv.ParseUint(value, 10, 64)
		case inner.Kind() == ck.KindBool:
			a.Num = flag(value == "true").Num
		case inner == ck.AllowedMechanisms:
			a.Mechs = parseMechanisms(value)
		case blobs[inner] != "":
			a.Bytes = unhex(value)
		default:
			a.Bytes = []byte(value)
		}
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b rpc.Attribute) int { return cmp.Compare(a.Type, b.Type) })
	return out
}

// sameValue compares two values of an attribute; templates whatever their order.
func sameValue(a, b rpc.Attribute) bool {
	if len(a.Attrs)+len(b.Attrs) > 0 {
		x, xErr := templateText(a.Type, a.Attrs)
		y, yErr := templateText(b.Type, b.Attrs)
		return a.Type == b.Type && xErr == nil && yErr == nil && x == y
	}
	return a.Num == b.Num && slices.Equal(a.Bytes, b.Bytes) && slices.Equal(a.Mechs, b.Mechs)
}

// yield takes out of a request what a key is for, where the application did not say it
// and a template of the other key does, with which it is unwrapped, or from which it
// is derived.
func (t template) yield(r *hsm.CreateRequest, other hsm.KeyInfo, attribute string) {
	inner, err := hsm.ParseTemplate(attribute, other.Attributes[attribute])
	if err != nil || slices.ContainsFunc(usage, t.has) {
		return
	}
	for _, at := range usage {
		if _, says := inner[flags[at]]; says {
			maps.DeleteFunc(r.Attributes, func(name, _ string) bool { return slices.Contains(usage, byName[name]) })
			return
		}
	}
}
