package soft

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Wrap, unwrap and derive templates (PKCS #11 v2.40 §4.9.1 and §5.14): a key with a
// wrap-template wraps only keys that have these attributes; what a key with an
// unwrap-template unwraps, or what is derived from one with a derive-template, has these
// attributes, and a request must not say otherwise.

// templateOf reads a template of a key. What this version does not understand lets
// nothing through.
func templateOf(r *hsm.Record, attribute string) (map[string]string, error) {
	t, err := hsm.ParseTemplate(attribute, r.Text(attribute))
	if err != nil {
		return nil, fmt.Errorf("%w: key %s: %s is not understood here: %w", hsm.ErrTemplate, r.Ref, attribute, err)
	}
	return t, nil
}

// fitsWrapTemplate checks a key that is to be wrapped. token tells whether it is a token key.
func fitsWrapTemplate(key, payload *hsm.Record, token bool) error {
	t, err := templateOf(key, hsm.WrapTemplate)
	if err != nil || len(t) == 0 {
		return err
	}
	k := payload.Info(hsm.Digest{})
	k.SetToken(token)
	k.Attributes["copyable"] = strconv.FormatBool(payload.Copyable())
	for _, name := range slices.Sorted(maps.Keys(t)) {
		a, err := hsm.LookupAttribute(name)
		if err != nil {
			return err
		}
		has := k.Attributes[name]
		if !a.Text && a.Stored {
			has = cmp.Or(has, "false")
		}
		if has != t[name] {
			return fmt.Errorf("%w: key %s wraps keys with %s=%q only, and that of key %s is %q", hsm.ErrTemplate, key.Ref, name, t[name], payload.Ref, has)
		}
	}
	return nil
}

// withTemplate returns the attributes of a key that was unwrapped with another, or
// derived from it, by a template of that.
func withTemplate(attribute string, key *hsm.Record, r hsm.CreateRequest, b newborn) (map[string]string, error) {
	t, err := templateOf(key, attribute)
	if err != nil || len(t) == 0 {
		return r.Attributes, err
	}
	given := map[string]string{"class": string(b.class), "key-type": string(b.spec.Type), "token": strconv.FormatBool(r.Token)}
	wanted := map[string]string{}
	maps.Copy(given, r.Attributes)
	maps.Copy(wanted, r.Attributes)
	for _, name := range slices.Sorted(maps.Keys(t)) {
		is, said := given[name]
		switch {
		case said && !hsm.SameValue(name, is, t[name]):
			return nil, fmt.Errorf("%w: by the %s of key %s the new key has %s=%q, not %q", hsm.ErrTemplate, attribute, key.Ref, name, t[name], is)
		case !said:
			wanted[name] = t[name]
		}
	}
	return wanted, nil
}
