package hsm

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Vectors are text: "name: value" lines (FORMAT.md §11). Each fails in one way
// only. With -update the missing ones are written; one that exists is never
// changed, since released vectors are what old snapshots hold.
var update = flag.Bool("update", false, "write vectors that do not exist yet")

const vectorDir = "testdata/vectors/v1"

// vector is a file of vectorDir.
type vector struct {
	comment, expect string
	keyring         *Keyring
	epochs          []uint64
	masked          MaskedObject
	fields          []string // of an opened record, "name: value"
	mended          []byte   // the masked object without its fault; not in the file
}

var expectations = map[string]error{"ok": nil, "corrupt": ErrCorrupt, "lineage": ErrLineage}

func TestVectors(t *testing.T) {
	if *update {
		updateVectors(t)
	}
	files := result(filepath.Glob(filepath.Join(vectorDir, "*.txt")))(t)
	if len(files) < 40 {
		t.Fatalf("only %d vectors in %s", len(files), vectorDir)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			parseVector(t, string(result(os.ReadFile(file))(t))).check(t)
		})
	}
}

func (v vector) check(t *testing.T) {
	want, known := expectations[v.expect]
	r, err := v.keyring.Unmask(v.masked)
	if !known || !errors.Is(err, want) {
		t.Fatalf("%s: got %v, expect %s", v.comment, err, v.expect)
	}
	if want != nil {
		return
	}
	equal(t, "fields", recordFields(r), v.fields)
	parsed, _, err := ParseMasked(v.masked.Bytes)
	if err != nil || parsed.Object != v.masked.Object || parsed.Lineage != v.masked.Lineage {
		t.Errorf("parses as %v, %v", parsed.Object, err)
	}
	again := mask(t, v.keyring, r)
	if again.Object != v.masked.Object || (v.epochs[0] == v.keyring.Epoch() && !bytes.Equal(again.Bytes, v.masked.Bytes)) {
		t.Error("masks to something else today")
	}
	cols := result(SplitMasked(v.masked.Bytes))(t)
	if joined := result(JoinMasked(cols))(t); !bytes.Equal(joined, v.masked.Bytes) {
		t.Error("does not come together again")
	}
}

// recordFields prints a record as vectors do.
func recordFields(r *Record) []string {
	c := r.Core
	out := []string{
		fmt.Sprintf("birth: %x", r.Birth), fmt.Sprintf("cluster: %d", uint64(r.Cluster)), fmt.Sprintf("incarnation: %d", r.Incarnation),
		"class: " + string(c.Class), "type: " + c.Type, fmt.Sprintf("size: %d", c.Size), "curve: " + c.Curve, "origin: " + string(c.Origin),
		"created: " + stampText(c.Created), "owner: " + c.Owner, fmt.Sprintf("public: %x", c.Public), fmt.Sprintf("check: %x", c.Check),
		"pair: " + c.Pair.String(), fmt.Sprintf("sensitive: %v", c.SensitiveAtBirth), fmt.Sprintf("extractable: %v", c.ExtractableAtBirth),
		fmt.Sprintf("material: %x", r.Material.Reveal()),
	}
	for what, m := range map[string]map[string]Register{"register": r.Registers, "hidden": r.Hidden} {
		for name, reg := range m {
			out = append(out, fmt.Sprintf("%s: %s %s %x", what, name, stampText(reg.Stamp), reg.Value))
		}
	}
	if r.Standing > 0 {
		out = append(out, fmt.Sprintf("standing: %d", r.Standing))
	}
	for id, v := range r.Rivals {
		said := r.rival(id, v)
		said.Standing = 0
		out = append(out, fmt.Sprintf("rival: %x standing %d", id, v.Standing))
		for _, f := range recordFields(said) {
			out = append(out, fmt.Sprintf("rival: %x %s", id, f))
		}
	}
	slices.Sort(out)
	for i := range out {
		out[i] = strings.TrimSpace(out[i])
	}
	return out
}

func stampText(s Stamp) string { return fmt.Sprintf("%d/%d", s.Time, uint64(s.HSM)) }

func (v vector) String() string {
	secret, masking := v.keyring.Export()
	var b strings.Builder
	line := func(name string, value any) {
		b.WriteString(strings.TrimSpace(fmt.Sprintf("%s: %v", name, value)) + "\n")
	}
	line("comment", v.comment)
	line("expect", v.expect)
	line("secret", hex.EncodeToString(secret.Reveal()))
	for _, e := range v.keyring.Epochs() {
		line("masking", fmt.Sprintf("%d %x", e, masking[e].Reveal()))
	}
	o := v.masked.Object
	line("lineage", v.masked.Lineage)
	line("object", fmt.Sprintf("%d %d %v %s", uint64(o.Ref), uint8(o.Kind), o.Tombstone, o.Digest))
	line("epoch", v.epochs[0])
	for _, f := range v.fields {
		b.WriteString(f + "\n")
	}
	line("masked", hex.EncodeToString(v.masked.Bytes))
	return b.String()
}

func parseVector(t testing.TB, text string) vector {
	t.Helper()
	v, secret, masking := vector{}, Secret{}, map[uint64]Secret{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name {
		case "comment":
			v.comment = value
		case "expect":
			v.expect = value
		case "secret":
			secret = NewSecret(unhex(t, value))
		case "masking":
			epoch, key, _ := strings.Cut(value, " ")
			masking[result(strconv.ParseUint(epoch, 10, 64))(t)] = NewSecret(unhex(t, key))
		case "lineage":
			v.masked.Lineage = result(ParseLineage(value))(t)
		case "object":
			v.masked.Object = parseObject(t, value)
		case "epoch":
			v.epochs = append(v.epochs, result(strconv.ParseUint(value, 10, 64))(t))
		case "masked":
			v.masked.Bytes = unhex(t, value)
		default:
			v.fields = append(v.fields, line)
		}
	}
	v.keyring = result(OpenKeyring(secret, masking))(t)
	return v
}

func parseObject(t testing.TB, s string) (o Object) {
	t.Helper()
	var digest string
	if _, err := fmt.Sscanf(s, "%d %d %t %s", (*uint64)(&o.Ref), (*uint8)(&o.Kind), &o.Tombstone, &digest); err != nil {
		t.Fatal(err)
	}
	if err := o.Digest.UnmarshalText([]byte(digest)); err != nil {
		t.Fatal(err)
	}
	return o
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	return result(hex.DecodeString(s))(t)
}

// updateVectors writes what is missing.
func updateVectors(t *testing.T) {
	if err := os.MkdirAll(vectorDir, 0o755); err != nil {
		t.Fatal(err)
	}
	all := generateVectors(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		file, text := filepath.Join(vectorDir, name+".txt"), all[name].String()
		switch have, err := os.ReadFile(file); {
		case errors.Is(err, os.ErrNotExist):
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		case err != nil:
			t.Fatal(err)
		case string(have) != text:
			t.Errorf("%s exists and would change; give the new vector a new name", name)
		}
	}
}

// The generators still make what the files hold: the format has not moved.
func TestVectorsAreStable(t *testing.T) {
	for name, v := range generateVectors(t) {
		have, err := os.ReadFile(filepath.Join(vectorDir, name+".txt"))
		if err != nil || string(have) != v.String() {
			t.Errorf("%s: %v; the generator makes something else now", name, err)
		}
	}
}

// overtaken are vectors of which, since vectors never change, another one took the place: what they fail
// by is not, or not alone, what their comment says any more.
var overtaken = map[string]string{
	"clear_long_reference": "clear_reference_not_shortest", // it has no core, either
	"clear_unknown_key":    "clear_unknown_key_12",         // field 10 is known by now, and wrong there
	"clear_kind_6":         "clear_kind_8",                 // kind 6 exists by now, and belongs to a cluster
	"envelope_version_2":   "envelope_version_3",           // version 2 is known by now, and wrong for the object
}

// TestVectorsHaveOneFault mends each vector's fault, and nothing else: what it fails by is what
// its comment says. Those of another lineage have none: another keyring opens them.
func TestVectorsHaveOneFault(t *testing.T) {
	all := generateVectors(t)
	for name, v := range all {
		if v.expect == "ok" || strings.HasPrefix(name, "lineage_") {
			continue
		}
		if by, ok := overtaken[name]; ok {
			if all[by].expect != v.expect {
				t.Errorf("%s: there is no %s", name, by)
			}
			continue
		}
		if _, err := v.keyring.Unmask(claimOf(v.keyring, v.mended)); err != nil {
			t.Errorf("%s: not %q alone: without it %v", name, v.comment, err)
		}
		if n := replacedBytes(t, v); n > 36 { // a synthetic IV with its head
			t.Errorf("%s: %d bytes were replaced to mend it, which is more than one fault takes", name, n)
		}
	}
}

// replacedBytes tells how much was replaced in one piece, and not only added or taken away, in what
// the vector authenticates: in its clear part (the number of fields aside, the first byte) and its
// sealed part; or in its bytes, where they do not decode or are what was changed.
func replacedBytes(t *testing.T, v vector) int {
	t.Helper()
	was, err := openEnvelope(v.masked.Bytes)
	is := result(openEnvelope(v.mended))(t)
	if err != nil || bytes.Equal(was.clear, is.clear) && bytes.Equal(was.siv, is.siv) {
		return between(v.masked.Bytes, v.mended)
	}
	n := between(was.clear[1:], is.clear[1:])
	if a, err := v.keyring.openHidden(&was); err == nil {
		n += between(a, result(v.keyring.openHidden(&is))(t))
	}
	return n
}

// between is how many bytes of the shorter one are between what both begin and end with.
func between(a, b []byte) int {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return min(len(a), len(b))
}
