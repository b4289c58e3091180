package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// lines reads a table without its comments.
func lines(name string) ([]string, error) {
	text, err := tables.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return out, nil
}

// function is one line of functions.txt.
type function struct {
	name, since, call string // call is a number, "own" or "none"
	args              []argument
	retry             bool
}

// session tells whether the function's first argument is a session.
func (f function) session() bool { return len(f.args) > 0 && f.args[0].kind == "session" }

// argument is one argument of the table, which is one or two of C.
type argument struct {
	kind, ctype, name, length string
}

func readFunctions() ([]function, error) {
	all, err := lines("functions.txt")
	if err != nil {
		return nil, err
	}
	var out []function
	for _, line := range all {
		f, err := parseFunction(line)
		if err != nil {
			return nil, fmt.Errorf("functions.txt: %q: %w", line, err)
		}
		out = append(out, f)
	}
	return out, nil
}

func parseFunction(line string) (function, error) {
	head, rest, ok := strings.Cut(line, "(")
	args, tail, ok2 := strings.Cut(rest, ")")
	words := strings.Fields(head)
	if !ok || !ok2 || len(words) != 3 {
		return function{}, fmt.Errorf("want SINCE CALL NAME(ARGUMENTS)")
	}
	f := function{since: words[0], call: words[1], name: words[2], retry: strings.TrimSpace(tail) == "retry"}
	if tail != "" && !f.retry {
		return f, fmt.Errorf("unknown word %q", tail)
	}
	for text := range strings.SplitSeq(args, ",") {
		a, err := parseArgument(strings.Fields(text))
		if err != nil {
			return f, err
		}
		f.args = append(f.args, a)
	}
	return f, nil
}

// ctypes are the types of the kinds that have one only.
var ctypes = map[string]string{
	"session": "CK_SESSION_HANDLE", "object": "CK_OBJECT_HANDLE", "slot": "CK_SLOT_ID", "flag": "CK_BBOOL",
	"mechanism": "CK_MECHANISM_PTR", "outsession": "CK_SESSION_HANDLE_PTR", "outobject": "CK_OBJECT_HANDLE_PTR",
}

func parseArgument(words []string) (argument, error) {
	if len(words) < 2 {
		return argument{}, fmt.Errorf("argument without a name")
	}
	kind, words := words[0], words[1:]
	switch {
	case ctypes[kind] != "" && len(words) == 1:
		return argument{kind: kind, ctype: ctypes[kind], name: words[0]}, nil
	case slices.Contains([]string{"number", "lost", "null", "out", "struct"}, kind) && len(words) == 2:
		return argument{kind: kind, ctype: words[0], name: words[1]}, nil
	case slices.Contains([]string{"bytes", "room"}, kind) && len(words) == 2:
		return argument{kind: kind, ctype: "CK_BYTE_PTR", name: words[0], length: words[1]}, nil
	case kind == "template" && len(words) == 2:
		return argument{kind: kind, ctype: "CK_ATTRIBUTE_PTR", name: words[0], length: words[1]}, nil
	case kind == "list" && len(words) == 3:
		return argument{kind: kind, ctype: words[0] + "_PTR", name: words[1], length: words[2]}, nil
	}
	return argument{}, fmt.Errorf("cannot read argument %s %s", kind, words)
}

// field is a letter and one or two names.
type field struct {
	kind  string
	names []string
}

func parseFields(text string) ([]field, error) {
	var out []field
	for part := range strings.SplitSeq(text, ",") {
		words := strings.Fields(part)
		if len(words) < 2 || len(words) > 3 {
			return nil, fmt.Errorf("cannot read field %q", part)
		}
		out = append(out, field{words[0], words[1:]})
	}
	return out, nil
}

// readStructs reads the answers that are structures, by type.
func readStructs() (map[string][]field, error) {
	all, err := lines("structs.txt")
	if err != nil {
		return nil, err
	}
	out := map[string][]field{}
	for _, line := range all {
		name, rest, _ := strings.Cut(line, " ")
		if out[name], err = parseFields(rest); err != nil {
			return nil, fmt.Errorf("structs.txt: %s: %w", name, err)
		}
	}
	return out, nil
}

// numbers are the tables of mechanisms and attributes.
type numbers struct {
	layouts    []layout
	mechanisms []mechanism
	attributes []attribute
}

type layout struct {
	name, ctype string
	fields      []field
}

type mechanism struct {
	name             string
	number           uint64
	parameter, known string
}

type attribute struct {
	name   string
	number uint64
	class  string
}

func readNumbers() (numbers, error) {
	var n numbers
	for name, read := range map[string]func([]string) error{"layouts.txt": n.readLayout, "mechanisms.txt": n.readMechanism, "attributes.txt": n.readAttribute} {
		all, err := lines(name)
		if err != nil {
			return n, err
		}
		for _, line := range all {
			if err := read(strings.Fields(line)); err != nil {
				return n, fmt.Errorf("%s: %q: %w", name, line, err)
			}
		}
	}
	slices.SortFunc(n.mechanisms, func(a, b mechanism) int { return int(int64(a.number) - int64(b.number)) })
	return n, nil
}

func (n *numbers) readLayout(words []string) error {
	if len(words) < 4 {
		return fmt.Errorf("want NAME STRUCTURE FIELDS")
	}
	fields, err := parseFields(strings.Join(words[2:], " "))
	n.layouts = append(n.layouts, layout{words[0], words[1], fields})
	return err
}

func (n *numbers) readMechanism(words []string) error {
	if len(words) != 4 || !slices.Contains([]string{"n0", "n1", "e0", "e1", "-"}, words[3]) {
		return fmt.Errorf("want NAME NUMBER PARAMETER P11KIT")
	}
	if strings.HasPrefix(words[3], "n") != (words[2] == "none") && words[3] != "-" {
		return fmt.Errorf("%s does not go with %s", words[2], words[3])
	}
	number, err := strconv.ParseUint(words[1], 16, 32)
	n.mechanisms = append(n.mechanisms, mechanism{words[0], number, words[2], words[3]})
	return err
}

func (n *numbers) readAttribute(words []string) error {
	if len(words) != 3 || classes[words[2]] == "" {
		return fmt.Errorf("want NAME NUMBER CLASS")
	}
	number, err := strconv.ParseUint(words[1], 16, 32)
	n.attributes = append(n.attributes, attribute{words[0], number, words[2]})
	return err
}
