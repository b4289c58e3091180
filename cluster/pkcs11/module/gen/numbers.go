package main

import (
	"bytes"
	"fmt"
	"slices"
)

var classes = map[string]string{
	"bytes": "CLASS_BYTES", "bool": "CLASS_BOOL", "number": "CLASS_NUMBER", "attributes": "CLASS_ATTRIBUTES", "mechanisms": "CLASS_MECHANISMS",
}

// numbersFile defines the names of mechanisms and attributes.
func numbersFile(n numbers) []byte {
	var b bytes.Buffer
	b.WriteString(notice)
	b.WriteString("#ifndef HSMBACKUP_NUMBERS_H\n#define HSMBACKUP_NUMBERS_H\n\n")
	for _, a := range n.attributes {
		fmt.Fprintf(&b, "#define CKA_%s 0x%xUL\n", a.name, a.number)
	}
	b.WriteByte('\n')
	for _, m := range n.mechanisms {
		fmt.Fprintf(&b, "#define CKM_%s 0x%xUL\n", m.name, m.number)
	}
	b.WriteString("\n#endif\n")
	return b.Bytes()
}

// tablesFile has the classes of attributes and the parameters of mechanisms.
func tablesFile(n numbers) []byte {
	var b bytes.Buffer
	b.WriteString(notice)
	b.WriteString("#include \"call.h\"\n#include \"mechanism.h\"\n")
	classTable(&b, n.attributes)
	layoutTable(&b, n.layouts)
	mechanismTable(&b, n)
	return b.Bytes()
}

func classTable(b *bytes.Buffer, attributes []attribute) {
	b.WriteString("\nenum attribute_class attribute_class(CK_ATTRIBUTE_TYPE type)\n{\n\tswitch (type) {\n")
	for _, class := range []string{"bool", "number", "attributes", "mechanisms"} {
		for _, a := range attributes {
			if a.class == class {
				fmt.Fprintf(b, "\tcase CKA_%s:\n", a.name)
			}
		}
		fmt.Fprintf(b, "\t\treturn %s;\n", classes[class])
	}
	b.WriteString("\tdefault:\n\t\treturn CLASS_BYTES;\n\t}\n}\n")
}

// place names the variable of a layout: the first of a name bears it alone.
func place(layouts []layout, i int) string {
	name := layouts[i].name
	if slices.ContainsFunc(layouts[:i], func(l layout) bool { return l.name == name }) {
		return "layout_" + name + "_other"
	}
	return "layout_" + name
}

func layoutTable(b *bytes.Buffer, layouts []layout) {
	for i := range layouts {
		fmt.Fprintf(b, "static const struct layout %s;\n", place(layouts, i))
	}
	for i, l := range layouts {
		name := place(layouts, i)
		fmt.Fprintf(b, "\nstatic const struct field %s_fields[] = {\n", name)
		for _, f := range l.fields {
			fmt.Fprintf(b, "\t%s,\n", fieldValue(l.ctype, f))
		}
		alternative := "NULL"
		for j := i + 1; j < len(layouts); j++ {
			if layouts[j].name == l.name {
				alternative = "&" + place(layouts, j)
			}
		}
		fmt.Fprintf(b, "};\nstatic const struct layout %s = {sizeof(%s), %s_fields, %d, %s};\n", name, l.ctype, name, len(l.fields), alternative)
	}
}

// fieldValue is a field in C.
func fieldValue(ctype string, f field) string {
	at := func(i int) string { return fmt.Sprintf("offsetof(%s, %s)", ctype, f.names[i]) }
	one := func(kind string) string { return fmt.Sprintf("{%s, %s, 0, NULL}", kind, at(0)) }
	two := func(kind string) string { return fmt.Sprintf("{%s, %s, %s, NULL}", kind, at(0), at(1)) }
	switch f.kind {
	case "n":
		return one("FIELD_NUMBER")
	case "f":
		return one("FIELD_FLAG")
	case "h":
		return one("FIELD_HANDLE")
	case "x8":
		return one("FIELD_BITS")
	case "0":
		return one("FIELD_ZERO")
	case "b":
		return two("FIELD_BYTES")
	case "d":
		return two("FIELD_ITEMS")
	case "i":
		return fmt.Sprintf("{FIELD_INSIDE, %s, sizeof(((%s *)0)->%s), NULL}", at(0), ctype, f.names[0])
	case "p":
		return fmt.Sprintf("{FIELD_POINTER, %s, 0, &layout_%s}", at(0), f.names[1])
	}
	return "unknown field " + f.kind // which does not compile
}

func mechanismTable(b *bytes.Buffer, n numbers) {
	parameters := map[string]string{"none": "PARAMETER_NONE", "bytes": "PARAMETER_BYTES", "number": "PARAMETER_NUMBER", "handle": "PARAMETER_HANDLE"}
	known := map[string]string{"n0": "KNOWN_FIRST", "e0": "KNOWN_FIRST", "n1": "KNOWN_SECOND", "e1": "KNOWN_SECOND", "-": "KNOWN_NEVER"}
	b.WriteString("\nconst struct mechanism mechanisms[] = {\n")
	for _, m := range n.mechanisms {
		parameter, layout := parameters[m.parameter], "NULL"
		if parameter == "" {
			parameter, layout = "PARAMETER_STRUCTURE", "&layout_"+m.parameter
		}
		fmt.Fprintf(b, "\t{CKM_%s, %s, %s, %s},\n", m.name, parameter, known[m.known], layout)
	}
	b.WriteString("};\nconst size_t mechanisms_count = sizeof mechanisms / sizeof mechanisms[0];\n")
}
