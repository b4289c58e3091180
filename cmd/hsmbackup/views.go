package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// keyView is a key as --json prints it.
type keyView struct {
	Ref        hsm.KeyRef     `json:"key_reference"`
	Class      hsm.Class      `json:"class"`
	Type       string         `json:"key_type"`
	Label      string         `json:"label"`
	ID         string         `json:"id"`
	CheckValue string         `json:"check_value"`
	Attributes map[string]any `json:"attributes"`
	Owner      string         `json:"owner"`
	Shares     []string       `json:"shares"`
	Coverage   []hsm.HSMID    `json:"coverage"`
	Public     *keyView       `json:"public_key,omitempty"`
}

func viewKey(k hsm.KeyInfo, coverage []hsm.HSMID) keyView {
	return keyView{
		Ref: k.Ref, Class: k.Class, Type: k.Type, Label: k.Label, ID: k.ID, CheckValue: k.CheckValue,
		Attributes: viewAttributes(k.Attributes), Owner: k.Owner, Shares: notNil(k.Shares), Coverage: notNil(coverage),
	}
}

// notNil keeps JSON arrays from being null.
func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// viewAttributes gives flags and numbers their JSON types.
func viewAttributes(attrs map[string]string) map[string]any {
	out := map[string]any{}
	for name, v := range attrs {
		switch a, _ := hsm.LookupAttribute(name); {
		case a.Text || name == "check-value" || name == "modulus" || name == "ec-point":
			out[name] = v
		case v == "true" || v == "false":
			out[name] = v == "true"
		default:
			if n, err := strconv.ParseInt(v, 10, 64); err == nil {
				out[name] = n
				continue
			}
			out[name] = v
		}
	}
	return out
}

func (k keyView) print(w io.Writer) {
	fmt.Fprintf(w, "key reference  %s\nclass          %s\nkey type       %s\n", k.Ref, k.Class, k.Type)
	for _, f := range [][2]string{{"label", k.Label}, {"id", k.ID}, {"check value", k.CheckValue}, {"owner", k.Owner}, {"shared with", strings.Join(k.Shares, ", ")}} {
		if f[1] != "" {
			fmt.Fprintf(w, "%-14s %s\n", f[0], f[1])
		}
	}
	fmt.Fprintf(w, "on             %s\nattributes     %s\n", joinIDs(k.Coverage), flagsOf(k.Attributes))
	if k.Public != nil {
		fmt.Fprintf(w, "public key     %s\n", k.Public.Ref)
	}
}

// flagsOf lists the attributes that are true, and what else has a value.
func flagsOf(attrs map[string]any) string {
	shown := map[string]bool{"label": true, "id": true, "class": true, "key-type": true, "check-value": true, "modulus": true, "ec-point": true}
	var out []string
	for name, v := range attrs {
		switch {
		case shown[name] || v == false || v == "":
		case v == true:
			out = append(out, name)
		default:
			out = append(out, fmt.Sprintf("%s=%v", name, v))
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func joinIDs(ids []hsm.HSMID) string {
	if len(ids) == 0 {
		return "none"
	}
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = id.String()
	}
	return strings.Join(out, ", ")
}
