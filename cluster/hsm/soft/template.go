package soft

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// template checks the wanted attributes of a new key and returns the registers
// it starts with, from at on: the defaults of its class and type, and what is wanted.
func template(class hsm.Class, keyType string, token bool, wanted map[string]string, at hsm.Stamp) (map[string]hsm.Register, error) {
	start, err := defaultRegisters(class, keyType)
	if err != nil {
		return nil, err
	}
	registers := make(map[string]hsm.Register, len(start)+len(wanted))
	own := make([]byte, 0, 2*len(start))
	for _, d := range start {
		from := len(own)
		own = append(own, d.value...)
		registers[d.name] = hsm.Register{Stamp: at, Value: own[from:len(own):len(own)]}
	}
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		a, err := hsm.LookupAttribute(name)
		if err != nil {
			return nil, err
		}
		value, err := settable(a, class, token, wanted[name])
		if err != nil {
			return nil, err
		}
		if a.Stored && (a.Most == 0 || wanted[name] != "0") {
			registers[hsm.AttributeRegister(name)] = hsm.Register{Stamp: at, Value: value}
		}
	}
	return registers, nil
}

// defaultRegister is a register of every new key of a class and type.
type defaultRegister struct {
	name  string
	value []byte // not to be written to
}

// knownDefaults are []defaultRegister by class and type; there are few.
var knownDefaults sync.Map

type classAndType struct {
	class   hsm.Class
	keyType string
}

func defaultRegisters(class hsm.Class, keyType string) ([]defaultRegister, error) {
	if known, ok := knownDefaults.Load(classAndType{class, keyType}); ok {
		return known.([]defaultRegister), nil
	}
	var out []defaultRegister
	for name, v := range hsm.DefaultAttributes(class, keyType) {
		a, err := hsm.LookupAttribute(name)
		if err != nil {
			return nil, err
		}
		value, err := hsm.ParseAttribute(a, v)
		if err != nil {
			return nil, err
		}
		out = append(out, defaultRegister{hsm.AttributeRegister(name), value})
	}
	knownDefaults.Store(classAndType{class, keyType}, out)
	return out, nil
}

// settable checks one wanted attribute, and returns what its register is to hold.
func settable(a hsm.Attribute, class hsm.Class, token bool, value string) ([]byte, error) {
	if !a.AtCreation {
		return nil, fmt.Errorf("%w: attribute %s cannot be set at creation", hsm.ErrInvalid, a.Name)
	}
	if a.Name == "token" {
		if v, err := strconv.ParseBool(value); err != nil || v != token {
			return nil, fmt.Errorf("%w: attribute token=%q contradicts the request", hsm.ErrInvalid, value)
		}
		return nil, nil
	}
	v, err := hsm.ParseAttribute(a, value)
	if err != nil {
		return nil, err
	}
	return v, fits(a, class, v)
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
