package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// code is what an argument adds to a call: its letters in the two signatures, and the
// lines that write and read it.
type code struct {
	request, response string
	put, get          []string
}

// codeOf gives the code of an argument.
func codeOf(a argument, structs map[string][]field) (code, error) {
	put := func(letters, format string, v ...any) code {
		return code{request: letters, put: []string{fmt.Sprintf(format, v...)}}
	}
	result := func(get string) code {
		return code{response: "u", put: []string{"need(&c, " + a.name + ");"}, get: []string{fmt.Sprintf("%s(&c, %s);", get, a.name)}}
	}
	switch a.kind {
	case "session", "object":
		return put("u", "put_%s(&c, %s);", a.kind, a.name), nil
	case "slot", "number":
		return put("u", "put_number(&c, %s);", a.name), nil
	case "flag":
		return put("y", "put_byte(&c, %s);", a.name), nil
	case "bytes":
		return put("ay", "put_bytes(&c, %s, %s);", a.name, a.length), nil
	case "template":
		return put("aA", "put_template(&c, %s, %s);", a.name, a.length), nil
	case "mechanism":
		return put("M", "put_mechanism(&c, %s);", a.name), nil
	case "lost":
		return code{put: []string{"(void)" + a.name + ";"}}, nil
	case "null":
		return code{put: []string{"need_null(&c, " + a.name + ");"}}, nil
	case "out":
		return result("get_number"), nil
	case "outsession":
		return result("get_session"), nil
	case "outobject":
		return result("get_object"), nil
	case "room":
		return pair(a, "fy", "ay", "put_room", "get_bytes"), nil
	case "list":
		return pair(a, "fu", "au", "put_list_room", "get_list"), nil
	case "struct":
		return structCode(a, structs[a.ctype])
	}
	return code{}, fmt.Errorf("no code for %s", a.kind)
}

// pair is a place and its length.
func pair(a argument, request, response, put, get string) code {
	return code{
		request: request, response: response,
		put: []string{fmt.Sprintf("%s(&c, %s, %s);", put, a.name, a.length)},
		get: []string{fmt.Sprintf("%s(&c, %s, %s);", get, a.name, a.length)},
	}
}

func structCode(a argument, fields []field) (code, error) {
	c := code{put: []string{"need(&c, " + a.name + ");"}}
	if len(fields) == 0 {
		return c, fmt.Errorf("structs.txt has no %s", a.ctype)
	}
	for _, f := range fields {
		c.response += f.kind[:1]
		place := a.name + "->" + f.names[0]
		switch f.kind[0] {
		case 'u':
			c.get = append(c.get, "get_number(&c, &"+place+");")
		case 'v':
			c.get = append(c.get, "get_version(&c, &"+place+");")
		case 's':
			c.get = append(c.get, fmt.Sprintf("get_padded(&c, %s, %s);", place, f.kind[1:]))
		default:
			return c, fmt.Errorf("structs.txt: no field %s", f.kind)
		}
	}
	// The fields are written only when there is a place for them.
	c.get = append([]string{"if (c.rv == CKR_OK) {"}, append(indent(c.get), "}")...)
	return c, nil
}

func indent(lines []string) []string {
	out := slices.Clone(lines)
	for i := range out {
		out[i] = "\t" + out[i]
	}
	return out
}

// signatures are those of the whole function.
func signatures(f function, structs map[string][]field) (request, response string, err error) {
	for _, a := range f.args {
		c, err := codeOf(a, structs)
		if err != nil {
			return "", "", fmt.Errorf("%s: %w", f.name, err)
		}
		request += c.request
		response += c.response
	}
	return request, response, nil
}

// callsFile has the bodies of the functions, and the lists.
func callsFile(functions []function, structs map[string][]field) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(notice)
	b.WriteString("#include \"call.h\"\n")
	for _, f := range functions {
		switch f.call {
		case "own":
		case "none":
			refusal(&b, f)
		default:
			if err := body(&b, f, structs); err != nil {
				return nil, err
			}
		}
	}
	listValues(&b, functions)
	return b.Bytes(), nil
}

func body(b *bytes.Buffer, f function, structs map[string][]field) error {
	request, response, err := signatures(f, structs)
	if err != nil {
		return err
	}
	var put, get []string
	for _, a := range f.args {
		c, _ := codeOf(a, structs) // signatures has seen its error
		put, get = append(put, c.put...), append(get, c.get...)
	}
	fmt.Fprintf(b, "\nCK_RV %s(%s)\n{\n", f.name, f.parameters())
	fmt.Fprintf(b, "\tstatic const struct call_info info = {%s, %q, %q, %t, %t};\n", f.call, request, response, f.session(), f.retry)
	b.WriteString("\tstruct call c;\n\tcall_begin(&c, &info);\n")
	fmt.Fprintf(b, "\t%s\n\tcall_run(&c);\n", strings.Join(put, "\n\t"))
	if len(get) > 0 {
		fmt.Fprintf(b, "\t%s\n", strings.Join(get, "\n\t"))
	}
	b.WriteString("\treturn call_end(&c);\n}\n")
	return nil
}

// refusal is the body of a function that the wire has no words for.
func refusal(b *bytes.Buffer, f function) {
	fmt.Fprintf(b, "\nCK_RV %s(%s)\n{\n", f.name, f.parameters())
	for _, a := range f.args {
		fmt.Fprintf(b, "\t(void)%s;\n", a.name)
		if a.length != "" {
			fmt.Fprintf(b, "\t(void)%s;\n", a.length)
		}
	}
	b.WriteString("\treturn call_refused();\n}\n")
}
