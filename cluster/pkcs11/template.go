package pkcs11

import (
	"encoding/hex"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// template is a template: each attribute once.
type template map[ck.Attr]rpc.Attribute

// parseTemplate: an attribute that stands twice must say the same both times.
func parseTemplate(list []rpc.Attribute) (template, error) {
	t := template{}
	for _, a := range list {
		if !a.Valid {
			return nil, ck.AttributeValueInvalid
		}
		if b, twice := t[a.Type]; twice && !sameValue(a, b) {
			return nil, ck.TemplateInconsistent
		}
		if a.Type.Kind() == ck.KindBool && a.Num > 1 {
			return nil, ck.AttributeValueInvalid
		}
		t[a.Type] = a
	}
	return t, nil
}

func (t template) has(a ck.Attr) bool { _, ok := t[a]; return ok }

func (t template) flag(a ck.Attr) bool { return t[a].Num == 1 }

func (t template) bytes(a ck.Attr) []byte { return t[a].Bytes }

// readOnly are attributes that nobody sets.
var readOnly = []ck.Attr{ck.Local, ck.AlwaysSensitive, ck.NeverExtractable, ck.KeyGenMechanism, ck.UniqueID}

// usage are the attributes that say what a key is for.
var usage = []ck.Attr{ck.Encrypt, ck.Decrypt, ck.Sign, ck.SignRecover, ck.Verify, ck.VerifyRecover, ck.Wrap, ck.Unwrap, ck.Derive, ck.Encapsulate, ck.Decapsulate}

// material are the attributes that hold a key's numbers, or say which are wanted.
var material = []ck.Attr{ck.Class, ck.KeyType, ck.Value, ck.ValueLen, ck.Modulus, ck.ModulusBits, ck.PublicExponent, ck.PrivateExponent, ck.Prime1, ck.Prime2,
	ck.Exponent1, ck.Exponent2, ck.Coefficient, ck.ECParams, ck.ECPoint, ck.CertificateType, ck.CheckValue, ck.PublicKeyInfo, ck.Token, ck.ParameterSet, ck.Seed}

// ofPairs is the material that no secret key has.
var ofPairs = []ck.Attr{ck.Modulus, ck.ModulusBits, ck.PublicExponent, ck.PrivateExponent, ck.Prime1, ck.Prime2, ck.Exponent1, ck.Exponent2, ck.Coefficient,
	ck.ECParams, ck.ECPoint, ck.CertificateType}

// wanted turns a template into the attributes of an HSM's key. Material is for others
// to read.
func (t template) wanted(class hsm.Class, keyType string) (map[string]string, error) {
	set, out := attributeSet(class, keyType), map[string]string{}
	for at, a := range t {
		switch {
		case class == hsm.ClassSecret && !set[at] && slices.Contains(ofPairs, at):
			return nil, ck.AttributeTypeInvalid
		case slices.Contains(material, at):
			continue
		case at == ck.Derive && class == hsm.ClassPublic:
			continue // the other side of a derivation; nothing is derived from it here
		case !set[at]:
			return nil, ck.AttributeTypeInvalid
		case slices.Contains(readOnly, at):
			return nil, ck.AttributeReadOnly
		}
		if err := addText(out, at, a); err != nil {
			return nil, err
		}
	}
	if t.flag(ck.SignRecover) {
		out["sign"] = "true"
	}
	if t.flag(ck.VerifyRecover) {
		out["verify"] = "true"
	}
	if class.IsKey() && !slices.ContainsFunc(usage, t.has) {
		t.defaultUsage(class, keyType, out)
	}
	return out, nil
}

// defaultUsage is for keys of which the application says nothing of what they are for:
// it would make them useless if all were false. What it says anything of keeps
// CloudHSM's defaults.
func (t template) defaultUsage(class hsm.Class, keyType string, out map[string]string) {
	names := map[string][]string{
		"private-key rsa": {"sign", "decrypt"}, "public-key rsa": {"verify", "encrypt"},
		"private-key ec": {"sign", "derive"}, "public-key ec": {"verify"},
		"private-key ed25519": {"sign"}, "public-key ed25519": {"verify"},
		"private-key ml-dsa": {"sign"}, "public-key ml-dsa": {"verify"}, "private-key ml-kem": {"derive"},
		"secret-key aes": {"encrypt", "decrypt"}, "secret-key des3": {"encrypt", "decrypt"},
	}
	for _, name := range names[string(class)+" "+keyType] {
		out[name] = "true"
	}
}

// addText adds an attribute of a template as HSMs name and write it, if they know it.
func addText(out map[string]string, at ck.Attr, a rpc.Attribute) error {
	name, value, err := attributeText(at, a)
	if err == nil && name != "" {
		out[name] = value
	}
	return err
}

// attributeText is an attribute by the HSM's name and as its text. No name: it is what
// it always is.
func attributeText(at ck.Attr, a rpc.Attribute) (name, value string, err error) {
	switch {
	case at == ck.Trusted:
		if a.Num == 1 {
			return "", "", ck.AttributeReadOnly // an admin's to give
		}
		return "", "", nil
	case at == ck.AlwaysAuthenticate && a.Num == 0, at == ck.SignRecover, at == ck.VerifyRecover:
		return "", "", nil
	case at == ck.Encapsulate, at == ck.Decapsulate:
		return pqUsage(at, a)
	case at == ck.Copyable:
		if a.Num == 1 {
			return "", "", nil
		}
		return "copyable", "false", nil
	case flags[at] != "":
		return flags[at], strconv.FormatBool(a.Num == 1), nil
	case texts[at] != "":
		if !utf8.Valid(a.Bytes) || len(a.Bytes) > hsm.MaxLabel {
			return "", "", ck.AttributeValueInvalid
		}
		if len(a.Bytes) == 0 && at != ck.Label {
			return "", "", nil
		}
		return texts[at], string(a.Bytes), nil
	case blobs[at] != "":
		if at != ck.ID && len(a.Bytes) == 0 {
			return "", "", nil
		}
		return blobs[at], hex.EncodeToString(a.Bytes), nil
	case at == ck.CertificateCategory:
		if a.Num > 3 {
			return "", "", ck.AttributeValueInvalid
		}
		return "certificate-category", strconv.FormatUint(a.Num, 10), nil
	case templates[at] != "":
		value, err := templateText(at, a.Attrs)
		return templates[at], value, err
	case at == ck.AllowedMechanisms:
		if len(a.Mechs) == 0 {
			return "", "", nil
		}
		if len(a.Mechs) > 14 {
			return "", "", ck.AttributeValueInvalid
		}
		return "allowed-mechanisms", formatMechanisms(a.Mechs), nil
	}
	return "", "", ck.AttributeTypeInvalid
}

// keyType reads CKA_KEY_TYPE; what is not given is fallback.
func (t template) keyType(fallback string) (string, error) {
	a, ok := t[ck.KeyType]
	if !ok {
		if fallback == "" {
			return "", ck.TemplateIncomplete
		}
		return fallback, nil
	}
	for name, n := range keyTypes {
		if n == a.Num {
			return name, nil
		}
	}
	switch a.Num {
	case ck.KeySHA1HMAC, ck.KeySHA224HM, ck.KeySHA256HM, ck.KeySHA384HM, ck.KeySHA512HM:
		return "generic-secret", nil
	}
	return "", ck.AttributeValueInvalid
}
