package cloudhsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"
)

// Limits of a configuration file. CloudHSM's have a few hundred bytes and six
// levels; a file that has more is something else.
const (
	MaxBytes = 1 << 20
	maxDepth = 32
)

// ErrFile: the file does not say what a configuration file must say.
var ErrFile = errors.New("CloudHSM configuration file is invalid")

func badFile(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFile, fmt.Sprintf(format, args...))
}

// value is one JSON value. Objects keep the order of their members, numbers and
// strings the way they were written.
type value struct {
	raw     json.RawMessage // a string, number, bool or null
	members []member        // of an object
	items   []*value        // of an array
	kind    byte            // '{', '[', '"', '0', 't' or 'n'
}

type member struct {
	key string
	val *value
}

// parse reads one JSON value, with nothing after it.
func parse(b []byte) (*value, error) {
	switch {
	case len(b) > MaxBytes:
		return nil, badFile("%d bytes: at most %d are read", len(b), MaxBytes)
	case len(bytes.TrimSpace(b)) == 0:
		return nil, badFile("it is empty; want a JSON object")
	case !utf8.Valid(b):
		return nil, badFile("not UTF-8")
	case !json.Valid(b):
		return nil, badFile("not JSON: %s", syntaxError(b))
	}
	return parseValue(bytes.TrimSpace(b), 0)
}

// syntaxError says what is wrong and where, without quoting the file.
func syntaxError(b []byte) string {
	var any json.RawMessage
	err := json.Unmarshal(b, &any)
	if at := (*json.SyntaxError)(nil); errors.As(err, &at) {
		line := 1 + bytes.Count(b[:min(int(at.Offset), len(b))], []byte("\n"))
		return fmt.Sprintf("line %d: %s", line, at)
	}
	return fmt.Sprint(err)
}

// parseValue takes apart valid JSON without space around it.
func parseValue(b json.RawMessage, depth int) (*value, error) {
	if depth > maxDepth {
		return nil, badFile("nested more than %d deep", maxDepth)
	}
	switch b[0] {
	case '{':
		return parseObject(b, depth)
	case '[':
		return parseArray(b, depth)
	case '"', 'n':
		return &value{kind: b[0], raw: b}, nil
	case 't', 'f':
		return &value{kind: 't', raw: b}, nil
	}
	return &value{kind: '0', raw: b}, nil
}

func parseObject(b json.RawMessage, depth int) (*value, error) {
	v, seen := &value{kind: '{'}, map[string]bool{}
	err := elements(b, func(d *json.Decoder) error {
		token, err := d.Token()
		if err != nil {
			return err
		}
		key, _ := token.(string)
		if seen[key] {
			return badFile("%q is there twice", key)
		}
		seen[key] = true
		val, err := parseNext(d, depth)
		v.members = append(v.members, member{key, val})
		return err
	})
	return v, err
}

func parseArray(b json.RawMessage, depth int) (*value, error) {
	v := &value{kind: '['}
	err := elements(b, func(d *json.Decoder) error {
		item, err := parseNext(d, depth)
		v.items = append(v.items, item)
		return err
	})
	return v, err
}

// elements calls next for each element of an object or array.
func elements(b json.RawMessage, next func(*json.Decoder) error) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if _, err := d.Token(); err != nil {
		return badFile("%v", err)
	}
	for d.More() {
		if err := next(d); err != nil && !errors.Is(err, ErrFile) {
			return badFile("%v", err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

func parseNext(d *json.Decoder, depth int) (*value, error) {
	var raw json.RawMessage
	if err := d.Decode(&raw); err != nil {
		return nil, err
	}
	return parseValue(raw, depth+1)
}

// encode writes the value with two spaces of indentation and a line end.
func (v *value) encode() []byte {
	var b bytes.Buffer
	v.write(&b, "\n")
	b.WriteByte('\n')
	return b.Bytes()
}

func (v *value) write(b *bytes.Buffer, line string) {
	inner := line + "  "
	switch {
	case v.kind == '{' && len(v.members) > 0:
		for i, m := range v.members {
			b.WriteString([]string{",", "{"}[max(0, 1-i)] + inner)
			b.Write(textOf(m.key))
			b.WriteString(": ")
			m.val.write(b, inner)
		}
		b.WriteString(line + "}")
	case v.kind == '[' && len(v.items) > 0:
		for i, item := range v.items {
			b.WriteString([]string{",", "["}[max(0, 1-i)] + inner)
			item.write(b, inner)
		}
		b.WriteString(line + "]")
	case v.kind == '{':
		b.WriteString("{}")
	case v.kind == '[':
		b.WriteString("[]")
	default:
		b.Write(v.raw)
	}
}

// textOf encodes a string without HTML escapes.
func textOf(s string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		panic(err) // a string always encodes
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// get returns a member of an object, or nil.
func (v *value) get(key string) *value {
	if v == nil {
		return nil
	}
	for _, m := range v.members {
		if m.key == key {
			return m.val
		}
	}
	return nil
}

// set replaces a member of an object, or adds it at the end.
func (v *value) set(key string, to *value) {
	for i, m := range v.members {
		if m.key == key {
			v.members[i].val = to
			return
		}
	}
	v.members = append(v.members, member{key, to})
}

// child returns the object that a member holds, made if it is not there.
func (v *value) child(key string) *value {
	if v.get(key) == nil {
		v.set(key, &value{kind: '{'})
	}
	return v.get(key)
}

func newText(s string) *value { return &value{kind: '"', raw: textOf(s)} }

func newBool(b bool) *value { return &value{kind: 't', raw: fmt.Append(nil, b)} }

func newInt(n int) *value { return &value{kind: '0', raw: fmt.Append(nil, n)} }

// equal tells whether two values say the same, in the same order.
func (v *value) equal(w *value) bool { return bytes.Equal(v.encode(), w.encode()) }

func (v *value) text() (s string, ok bool) {
	if v == nil || v.kind != '"' {
		return "", false
	}
	return s, json.Unmarshal(v.raw, &s) == nil
}

// integer reads a number written as an integer.
func (v *value) integer() (n int, ok bool) {
	if v == nil || v.kind != '0' {
		return 0, false
	}
	return n, json.Unmarshal(v.raw, &n) == nil
}

func (v *value) boolean() (b, ok bool) {
	if v == nil || v.kind != 't' {
		return false, false
	}
	return v.raw[0] == 't', true
}

// kindName is what errors call the type of a value.
func (v *value) kindName() string {
	return map[byte]string{'{': "an object", '[': "an array", '"': "a string", '0': "the number " + clip(string(v.raw)), 't': string(v.raw), 'n': "null"}[v.kind]
}

func clip(s string) string {
	if len(s) > 32 {
		return s[:32] + "…"
	}
	return s
}

// readBounded reads at most MaxBytes.
func readBounded(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err == nil && len(b) > MaxBytes {
		return nil, badFile("more than %d bytes", MaxBytes)
	}
	return slices.Clip(b), err
}
