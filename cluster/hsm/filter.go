package hsm

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Filter selects keys. All terms must hold. The zero Filter selects all.
type Filter struct {
	Refs  []KeyRef          // any of them; none: all
	Attrs map[string]string // attribute name to value, as KeyInfo.Attributes prints it
	Owner string
}

// ParseFilter reads terms of the CloudHSM CLI: key-reference=0x…,
// attr.NAME=VALUE, and owner=USER. Each term may hold several, separated by
// spaces; a label with spaces ends where the next term begins. Several
// references select any of them. Terms that no key could fulfil together are
// refused with ErrInvalid, as is what does not exist: a filter that selects
// everything by mistake would be worse.
func ParseFilter(terms []string) (Filter, error) {
	f := Filter{Attrs: map[string]string{}}
	for _, term := range terms {
		for _, t := range splitTerm(term) {
			if err := f.parse(t); err != nil {
				return Filter{}, err
			}
		}
	}
	return f, nil
}

// splitTerm splits at spaces that begin another term, so that a label may
// contain spaces. Spaces before a term separate and belong to none.
func splitTerm(s string) []string {
	var out []string
	for word := range strings.SplitSeq(strings.TrimLeft(s, " "), " ") {
		if len(out) > 0 && !beginsTerm(word) {
			out[len(out)-1] += " " + word
			continue
		}
		if len(out) > 0 {
			out[len(out)-1] = strings.TrimRight(out[len(out)-1], " ")
		}
		out = append(out, word)
	}
	return out
}

func beginsTerm(s string) bool {
	return strings.HasPrefix(s, "attr.") || strings.HasPrefix(s, "key-reference=") || strings.HasPrefix(s, "owner=")
}

func (f *Filter) parse(term string) error {
	name, value, ok := strings.Cut(term, "=")
	attr, isAttr := strings.CutPrefix(name, "attr.")
	switch {
	case !ok:
		return badTerm(term)
	case name == "key-reference":
		return f.addRef(value)
	case name == "owner":
		return f.setOwner(value)
	case isAttr:
		return f.setAttribute(attr, value)
	}
	return badTerm(term)
}

func badTerm(term string) error {
	return fmt.Errorf("%w: filter %s: want key-reference=0x…, attr.NAME=VALUE or owner=USER", ErrInvalid, quote(term))
}

func (f *Filter) addRef(value string) error {
	ref, err := ParseKeyRef(value)
	if err == nil && !slices.Contains(f.Refs, ref) {
		f.Refs = append(f.Refs, ref)
	}
	return err
}

func (f *Filter) setOwner(value string) error {
	owner, err := CanonicalUserName(value)
	if err != nil {
		return fmt.Errorf("filter owner: %w", err)
	}
	if f.Owner != "" && f.Owner != owner {
		return fmt.Errorf("%w: filter names two owners, %s and %s; no key has both", ErrInvalid, f.Owner, owner)
	}
	f.Owner = owner
	return nil
}

func (f *Filter) setAttribute(name, value string) error {
	a, err := LookupAttribute(name)
	if err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	want, err := canonicalValue(a, value)
	if err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	if before, ok := f.Attrs[a.Name]; ok && before != want {
		return fmt.Errorf("%w: filter wants attribute %s to be both %s and %s; no key is", ErrInvalid, a.Name, quote(before), quote(want))
	}
	f.Attrs[a.Name] = want
	return nil
}

// canonicalValue spells a value as KeyInfo.Attributes does.
func canonicalValue(a Attribute, value string) (string, error) {
	if a.Stored {
		b, err := ParseAttribute(a, value)
		return FormatAttribute(a, b), err
	}
	switch a.Name {
	case "always-sensitive", "local", "never-extractable", "token":
		v, err := strconv.ParseBool(value)
		if err != nil {
			err = fmt.Errorf("%w: attribute %s=%s: want true or false", ErrInvalid, a.Name, quote(value))
		}
		return strconv.FormatBool(v), err
	case "check-value", "ec-point", "modulus", "public-exponent":
		return strings.TrimPrefix(strings.ToLower(value), "0x"), nil
	case "curve":
		return strings.Replace(strings.ToLower(value), "prime256v1", "secp256r1", 1), nil
	}
	return strings.ToLower(value), nil
}

// Match tells whether the filter selects k.
func (f Filter) Match(k KeyInfo) bool {
	if len(f.Refs) > 0 && !slices.Contains(f.Refs, k.Ref) {
		return false
	}
	if f.Owner != "" && f.Owner != k.Owner {
		return false
	}
	for name, want := range f.Attrs {
		if k.Attributes[name] != want {
			return false
		}
	}
	return true
}

// Empty tells whether the filter selects every key.
func (f Filter) Empty() bool { return len(f.Refs) == 0 && len(f.Attrs) == 0 && f.Owner == "" }
