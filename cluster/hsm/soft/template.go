package soft

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// template checks the wanted attributes of a new key and returns the registers
// it starts with: the defaults of its class and type, and what is wanted.
func template(class hsm.Class, keyType string, token bool, wanted map[string]string) (map[string][]byte, error) {
	values := hsm.DefaultAttributes(class, keyType)
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		a, err := hsm.LookupAttribute(name)
		if err != nil {
			return nil, err
		}
		if err := settable(a, class, token, wanted[name]); err != nil {
			return nil, err
		}
		if a.Stored && (a.Most == 0 || wanted[name] != "0") {
			values[name] = wanted[name]
		}
	}
	registers := make(map[string][]byte, len(values))
	for name, v := range values {
		a, err := hsm.LookupAttribute(name)
		if err != nil {
			return nil, err
		}
		if registers[hsm.AttributeRegister(name)], err = hsm.ParseAttribute(a, v); err != nil {
			return nil, err
		}
	}
	return registers, nil
}

// settable checks one wanted attribute.
func settable(a hsm.Attribute, class hsm.Class, token bool, value string) error {
	if !a.AtCreation {
		return fmt.Errorf("%w: attribute %s cannot be set at creation", hsm.ErrInvalid, a.Name)
	}
	if a.Name == "token" {
		if v, err := strconv.ParseBool(value); err != nil || v != token {
			return fmt.Errorf("%w: attribute token=%q contradicts the request", hsm.ErrInvalid, value)
		}
		return nil
	}
	v, err := hsm.ParseAttribute(a, value)
	if err != nil {
		return err
	}
	return fits(a, class, v)
}

// fits refuses a flag that objects of this class cannot have.
func fits(a hsm.Attribute, class hsm.Class, value []byte) error {
	if !class.IsKey() && !a.Any {
		return fmt.Errorf("%w: attribute %s is for keys; this is a %s object", hsm.ErrInvalid, a.Name, class)
	}
	if a.Template && len(value) > 0 && slices.Contains(a.Not, class) {
		return fmt.Errorf("%w: a %s has no %s", hsm.ErrInvalid, class, a.Name)
	}
	if !a.Text && (hsm.Register{Value: value}).Bool() && slices.Contains(a.Not, class) {
		return fmt.Errorf("%w: attribute %s cannot be true for a %s", hsm.ErrInvalid, a.Name, class)
	}
	return nil
}
