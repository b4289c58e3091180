package cloudhsm

import "fmt"

// field is a place in a file of which the type is known.
type field struct {
	path string // for errors: clusters[0].cluster.options
	of   *value // nil if it is not there
}

func (f field) get(key string) field {
	path := key
	if f.path != "" {
		path = f.path + "." + key
	}
	return field{path, f.of.get(key)}
}

func (f field) wrong(want string) error {
	return badFile("%s is %s; want %s", f.path, f.of.kindName(), want)
}

// is checks the kind of the value, if it is there.
func (f field) is(kind byte, want string) error {
	if f.of == nil || f.of.kind == kind {
		return nil
	}
	return f.wrong(want)
}

func (f field) object() error { return f.is('{', "an object") }

func (f field) array() error { return f.is('[', "an array") }

func (f field) strings(keys ...string) error {
	for _, key := range keys {
		if err := f.get(key).is('"', "a string"); err != nil {
			return err
		}
	}
	return nil
}

func (f field) bools(keys ...string) error {
	for _, key := range keys {
		if err := f.get(key).is('t', "true or false"); err != nil {
			return err
		}
	}
	return nil
}

// item is one element of an array.
func (f field) item(i int) field {
	return field{fmt.Sprintf("%s[%d]", f.path, i), f.of.items[i]}
}
