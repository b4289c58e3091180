package hsm

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A template is the value of the attributes wrap-template, unwrap-template and
// derive-template: which attributes keys must have that a key wraps, and which those get
// that it unwraps, or that are derived from it. As text it is NAME=VALUE, separated by commas, ascending by name, each name once, with
// each value as KeyInfo.Attributes prints it; \ stands before a comma and a \ of a value.

// MaxTemplate bounds a template, in bytes.
const MaxTemplate = 2 << 10

// The attributes that are templates.
const (
	WrapTemplate   = "wrap-template"
	UnwrapTemplate = "unwrap-template"
	DeriveTemplate = "derive-template"
)

// ParseTemplate reads the text of a template, in any order. ErrInvalid if it is malformed,
// names what does not exist, or is no template for the attribute.
func ParseTemplate(attribute, text string) (map[string]string, error) {
	out := map[string]string{}
	if len(text) > MaxTemplate {
		return nil, fmt.Errorf("%w: %s of %d bytes, at most %d", ErrInvalid, attribute, len(text), MaxTemplate)
	}
	for _, entry := range splitTemplate(text) {
		name, value, ok := strings.Cut(entry, "=")
		if !ok {
			return nil, fmt.Errorf("%w: %s: %s: want NAME=VALUE, separated by commas", ErrInvalid, attribute, quote(entry))
		}
		a, err := LookupAttribute(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", attribute, err)
		}
		settable := a.AtCreation || name == "class" || name == "key-type"
		if a.Template || attribute != WrapTemplate && !settable {
			return nil, fmt.Errorf("%w: %s: %s cannot be in it", ErrInvalid, attribute, name)
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("%w: %s: %s is there twice", ErrInvalid, attribute, name)
		}
		if out[name], err = canonicalValue(a, value); err != nil {
			return nil, fmt.Errorf("%s: %w", attribute, err)
		}
	}
	return out, nil
}

// splitTemplate cuts at commas without a \ before them, and takes those \ out.
func splitTemplate(text string) (entries []string) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\\' && i+1 < len(text):
			i++
			b.WriteByte(text[i])
		case text[i] == ',':
			entries = append(entries, b.String())
			b.Reset()
		default:
			b.WriteByte(text[i])
		}
	}
	if len(text) > 0 {
		entries = append(entries, b.String())
	}
	return entries
}

// FormatTemplate is the text of a template.
func FormatTemplate(t map[string]string) string {
	entries := make([]string, 0, len(t))
	for _, name := range slices.Sorted(maps.Keys(t)) {
		entries = append(entries, name+"="+strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(t[name]))
	}
	return strings.Join(entries, ",")
}

// parseTemplateAttribute encodes a template in its one form.
func parseTemplateAttribute(a Attribute, value string) ([]byte, error) {
	t, err := ParseTemplate(a.Name, value)
	if err != nil {
		return nil, err
	}
	text := FormatTemplate(t)
	if len(text) > MaxTemplate {
		return nil, fmt.Errorf("%w: %s of %d bytes, at most %d", ErrInvalid, a.Name, len(text), MaxTemplate)
	}
	return []byte(text), nil
}

// SameValue tells whether two texts are the same value of an attribute.
func SameValue(name, x, y string) bool {
	a, err := LookupAttribute(name)
	if err != nil {
		return false
	}
	x, xErr := canonicalValue(a, x)
	y, yErr := canonicalValue(a, y)
	return xErr == nil && yErr == nil && x == y
}
