package hsm

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Attribute describes one key attribute (cloudhsm.md §2.4, hsm2m column).
type Attribute struct {
	Name string
	// Modifiable tells how it may change after creation.
	Modifiable Modifiable
	// AtCreation tells whether a template may set it.
	AtCreation bool
	// Text tells whether it is a string rather than a flag.
	Text bool
	// Stored attributes are registers; the others follow from the core.
	Stored bool
	// Not lists the classes that may not have it set to true.
	Not []Class
	// Bytes bounds an attribute of bytes, given in hexadecimal; 0 for others.
	Bytes int
	// Optional attributes are absent unless they were given.
	Optional bool
	// Most, if not 0, makes it a number from 0 to Most in decimal.
	Most int
	// Template makes it a template: see ParseTemplate.
	Template bool
	// Any tells that data objects and certificates may have it too.
	Any bool
}

// Modifiable tells how an attribute may change.
type Modifiable uint8

// The ways an attribute may change.
const (
	Never Modifiable = iota
	Freely
	ToTrue
	ToFalse
	ByAdmin
)

// Bounds of textual attributes, in bytes.
const (
	MaxLabel = 127
	MaxID    = 64
	MaxName  = 1 << 10 // of a certificate's subject, and the like
)

var attributes = []Attribute{
	{Name: "allowed-mechanisms", AtCreation: true, Text: true, Stored: true, Optional: true},
	{Name: "always-authenticate", AtCreation: true, Stored: true, Optional: true, Not: []Class{ClassPublic, ClassSecret}},
	{Name: "always-sensitive"},
	{Name: "application", Modifiable: Freely, AtCreation: true, Text: true, Stored: true, Optional: true, Any: true},
	{Name: "certificate-category", AtCreation: true, Text: true, Stored: true, Optional: true, Any: true},
	{Name: "check-value"},
	{Name: "class"},
	{Name: "copyable", Modifiable: ToFalse, AtCreation: true, Stored: true, Optional: true, Any: true},
	{Name: "curve"},
	{Name: "decrypt", Modifiable: Freely, AtCreation: true, Stored: true},
	{Name: "derive", Modifiable: Freely, AtCreation: true, Stored: true, Not: []Class{ClassPublic}},
	{Name: DeriveTemplate, Modifiable: Freely, AtCreation: true, Text: true, Stored: true, Optional: true, Template: true, Not: []Class{ClassPublic}},
	{Name: "destroyable", Modifiable: Freely, AtCreation: true, Stored: true, Any: true},
	{Name: "ec-point"},
	{Name: "encrypt", Modifiable: Freely, AtCreation: true, Stored: true},
	{Name: "end-date", Modifiable: Freely, AtCreation: true, Text: true, Stored: true, Optional: true, Any: true},
	{Name: "extractable", Modifiable: ToFalse, AtCreation: true, Stored: true},
	{Name: "id", Modifiable: Freely, AtCreation: true, Text: true, Stored: true, Bytes: MaxID, Any: true},
	{Name: "issuer", Modifiable: Freely, AtCreation: true, Text: true, Stored: true, Optional: true, Bytes: MaxName, Any: true},
	{Name: "key-length-bytes"},
	{Name: "key-type"},
	{Name: "label", Modifiable: Freely, AtCreation: true, Text: true, Stored: true, Any: true},
	{Name: "local"},
	{Name: "manage-key-quorum-value", AtCreation: true, Text: true, Stored: true, Optional: true, Most: MaxQuorum},
	{Name: "modifiable", Modifiable: ToFalse, AtCreation: true, Stored: true, Any: true},
	{Name: "modulus"},
	{Name: "modulus-size-bits"},
	{Name: "never-extractable"},
	{Name: "object-id", Modifiable: Freely, AtCreation: true, Text: true, Stored: true, Optional: true, Bytes: MaxName, Any: true},
	{Name: "private", AtCreation: true, Stored: true, Any: true},
	{Name: "public-exponent"},
	{Name: "sensitive", Modifiable: ToTrue, AtCreation: true, Stored: true},
	{Name: "serial-number", Modifiable: Freely, AtCreation: true, Text: true, Stored: true, Optional: true, Bytes: MaxName, Any: true},
	{Name: "sign", Modifiable: Freely, AtCreation: true, Stored: true, Not: []Class{ClassPublic}},
	{Name: "start-date", Modifiable: Freely, AtCreation: true, Text: true, Stored: true, Optional: true, Any: true},
	{Name: "subject", Modifiable: Freely, AtCreation: true, Text: true, Stored: true, Optional: true, Bytes: MaxName, Any: true},
	{Name: "token", Modifiable: ToTrue, AtCreation: true, Any: true},
	{Name: "trusted", Modifiable: ByAdmin, Stored: true, Any: true},
	{Name: "unwrap", Modifiable: Freely, AtCreation: true, Stored: true, Not: []Class{ClassPublic}},
	{Name: UnwrapTemplate, Modifiable: Freely, AtCreation: true, Text: true, Stored: true, Optional: true, Template: true, Not: []Class{ClassPublic}},
	{Name: "use-key-quorum-value", AtCreation: true, Text: true, Stored: true, Optional: true, Most: MaxQuorum},
	{Name: "verify", Modifiable: Freely, AtCreation: true, Stored: true, Not: []Class{ClassPrivate}},
	{Name: "wrap", Modifiable: Freely, AtCreation: true, Stored: true, Not: []Class{ClassPrivate}},
	{Name: WrapTemplate, Modifiable: Freely, AtCreation: true, Text: true, Stored: true, Optional: true, Template: true, Not: []Class{ClassPrivate}},
	{Name: "wrap-with-trusted", Modifiable: ToTrue, AtCreation: true, Stored: true},
}

// attributesByName and attributeRegisters are attributes by name, and the register of each.
var (
	attributesByName = func() map[string]int {
		out := make(map[string]int, len(attributes))
		for i, a := range attributes {
			out[a.Name] = i
		}
		return out
	}()
	attributeRegisters = func() []string {
		out := make([]string, len(attributes))
		for i, a := range attributes {
			out[i] = attrPrefix + a.Name
		}
		return out
	}()
)

// MayTurn tells whether a Boolean attribute that can be changed may go from one value to
// the other: some do so one way only (PKCS #11 v2.40 §4.4).
func (a Attribute) MayTurn(was, is bool) bool {
	return was == is || !(a.Modifiable == ToTrue && was || a.Modifiable == ToFalse && is)
}

// LookupAttribute finds an attribute by name; ErrInvalid names those there are.
func LookupAttribute(name string) (Attribute, error) {
	i, ok := attributesByName[name]
	if !ok {
		names := make([]string, len(attributes))
		for i, a := range attributes {
			names[i] = a.Name
		}
		return Attribute{}, fmt.Errorf("%w: attribute %s does not exist; there are %s", ErrInvalid, quote(name), strings.Join(names, ", "))
	}
	return attributes[i], nil
}

// ParseAttribute encodes a value as a register holds it: true or false for a
// flag; text for a label; hexadecimal digits, with or without 0x, for an id. Attributes
// that follow from the key are refused, as is every malformed value: ErrInvalid.
func ParseAttribute(a Attribute, value string) ([]byte, error) {
	switch {
	case !a.Stored && !a.AtCreation:
		return nil, fmt.Errorf("%w: attribute %s follows from the key and cannot be given", ErrInvalid, a.Name)
	case !a.Text:
		v, err := strconv.ParseBool(value)
		if err != nil {
			return nil, fmt.Errorf("%w: attribute %s=%s: want true or false", ErrInvalid, a.Name, quote(value))
		}
		return BoolValue(v), nil
	case a.Template:
		return parseTemplateAttribute(a, value)
	case a.Most > 0:
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 || n > a.Most {
			return nil, fmt.Errorf("%w: attribute %s=%s: want 0 to %d", ErrInvalid, a.Name, quote(value), a.Most)
		}
		return []byte(strconv.Itoa(n)), nil
	case a.Bytes > 0:
		b, err := hex.DecodeString(strings.TrimPrefix(value, "0x"))
		if err != nil || len(b) > a.Bytes {
			return nil, fmt.Errorf("%w: attribute %s=%s: want at most %d bytes in hexadecimal", ErrInvalid, a.Name, quote(value), a.Bytes)
		}
		return b, nil
	}
	if len(value) > MaxLabel || !utf8.ValidString(value) || strings.ContainsFunc(value, unprintable) {
		return nil, fmt.Errorf("%w: attribute %s: want at most %d bytes of printable UTF-8", ErrInvalid, a.Name, MaxLabel)
	}
	return []byte(value), nil
}

// unprintable refuses control and format characters and all spaces but the plain
// one: a label must look like what it is.
func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// FormatAttribute is the inverse of ParseAttribute.
func FormatAttribute(a Attribute, value []byte) string {
	switch {
	case !a.Text:
		return strconv.FormatBool(Register{Value: value}.Bool())
	case a.Bytes > 0:
		return hex.EncodeToString(value)
	}
	return string(value)
}

// DefaultAttributes returns the stored attributes of a new key before its
// template is applied (cloudhsm.md §2.4).
func DefaultAttributes(class Class, keyType string) map[string]string {
	if !class.IsKey() {
		return map[string]string{"label": "", "id": "", "destroyable": "true", "modifiable": "true", "private": strconv.FormatBool(class == ClassData)}
	}
	secret, public := class == ClassSecret, class == ClassPublic
	symmetric := secret && (keyType == "aes" || keyType == "generic-secret")
	flags := map[string]bool{
		"decrypt": false, "derive": false, "destroyable": true, "encrypt": false,
		"extractable": true, "modifiable": true, "private": !public, "sensitive": !public,
		"sign": symmetric, "trusted": false, "unwrap": false, "verify": symmetric, "wrap": false,
		"wrap-with-trusted": false,
	}
	out := map[string]string{"label": "", "id": ""}
	for name, v := range flags {
		out[name] = strconv.FormatBool(v)
	}
	return out
}
