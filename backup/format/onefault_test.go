package format

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/fxamacker/cbor/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// twoFields are vectors that differ from every good one in two fields, and why.
var twoFields = map[string]string{
	"manifest_number_0":       "nothing is older than number 0, so it has no parent either",
	"envelope_threshold_huge": "both numbers are too large: envelope_custodians_too_many and envelope_threshold_too_high have one fault each",
	"index_no_items":          "an index without items has no blocks",
	"manifest_body_not_a_map": "a body that is none has none of the fields", "manifest_body_empty": "a body that is none has none of the fields",
	"pack_empty_plaintext": "there is no block at all",
	"pack_other_recipient": "nobody can look into it",
}

// TestVectorsHaveOneFault compares each vector that is refused with the good ones of its kind: from
// one of them it differs in one place, so that its fault is the one that its comment tells of, and
// undone it is that good one. Signatures are compared by what they are good for. Packs, whose
// plaintext is compared, are told apart by block.
func TestVectorsHaveOneFault(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(vectorFolder, "*_*"))
	if err != nil || len(paths) < 40 {
		t.Fatalf("%d vectors, %v", len(paths), err)
	}
	good, bad := map[string][]vector{}, 0
	for _, p := range paths {
		if v := readVector(t, p); v.expect == "ok" {
			kind, _, _ := strings.Cut(v.name, "_")
			good[kind] = append(good[kind], v)
		}
	}
	good["pack"] = append(good["pack"], mendedPack(t))
	for _, p := range paths {
		v := readVector(t, p)
		kind, _, _ := strings.Cut(v.name, "_")
		if v.expect == "ok" {
			continue
		}
		bad++
		least := []string{"it is like none"}
		for i, g := range good[kind] {
			if d := differences(t, kind, v.stored, g.stored); i == 0 || len(d) < len(least) {
				least = d
			}
		}
		if _, known := twoFields[v.name]; len(least) != 1 != known {
			t.Errorf("%s differs in %d places from what is good: %s", v.name, len(least), least)
		}
	}
	if bad < 100 {
		t.Errorf("only %d vectors were compared", bad)
	}
}

// mendedPack is the pack that those were made of which are damaged outside.
func mendedPack(t *testing.T) vector {
	t.Helper()
	v := readVector(t, filepath.Join(vectorFolder, "pack_trailing_byte"))
	v.stored = v.stored[:len(v.stored)-1]
	if objects, err := readPack(v.stored, vectorIdentity(t)); err != nil || len(objects) != 3 {
		t.Fatalf("without its trailing byte: %d objects, %v", len(objects), err)
	}
	return v
}

// differences names the places in which two stored objects of a kind differ.
func differences(t *testing.T, kind string, a, b []byte) (out []string) {
	t.Helper()
	if replaced(a, b) <= 1 { // a byte, or the end
		return []string{"bytes"}
	}
	if kind == "pack" {
		p, err := plaintext(t, bytes.TrimPrefix(a, []byte(packHeader)))
		q, goodErr := plaintext(t, bytes.TrimPrefix(b, []byte(packHeader)))
		if err == nil && goodErr == nil && 0 < replaced(p, q) && replaced(p, q) <= 4 { // one number
			return []string{"bytes of the plaintext"}
		}
	}
	x, y := places(t, kind, a), places(t, kind, b)
	all := maps.Clone(x)
	maps.Copy(all, y)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if x[name] != y[name] {
			out = append(out, name)
		}
	}
	return out
}

// replaced is how many bytes of the shorter one lie between what both begin and end with.
func replaced(a, b []byte) int {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return min(len(a), len(b))
}

// places takes a stored object apart, without checking anything.
func places(t *testing.T, kind string, stored []byte) map[string]string {
	t.Helper()
	out := map[string]string{}
	line, rest, _ := bytes.Cut(stored, []byte("\n"))
	out["first line"] = string(line)
	switch kind {
	case "index":
		indexPlaces(rest, out)
	case "pack":
		packPlaces(t, rest, out)
	case "mark", "copy":
		fieldsOf(rest, out)
	case "envelope":
		fieldsOf(rest, out)
		envelopeSignature(t, out)
	case "manifest", "verified":
		signedPlaces(t, kind, rest, out)
	}
	return out
}

// envelopeSignature replaces key and signature, which each vector has of a lineage of its own, by
// what they are good for: they sign what the good vector says.
func envelopeSignature(t *testing.T, out map[string]string) {
	t.Helper()
	var public, signature []byte
	_ = cbor.Unmarshal([]byte(out["field 9"]), &public) // if there are none, the signature is none
	_ = cbor.Unmarshal([]byte(out["field 10"]), &signature)
	delete(out, "field 9")
	delete(out, "field 10")
	if public == nil && signature == nil {
		return
	}
	e, err := DecodeEnvelope(readVector(t, filepath.Join(vectorFolder, "envelope_ok_signed")).stored)
	if err != nil {
		t.Fatal(err)
	}
	part, err := e.SignedPart()
	if err != nil {
		t.Fatal(err)
	}
	out["signature"] = string(public) + string(signature)
	if (hsm.LineageSignature{Public: public, Signature: signature}).Verify(hsm.LineageOf(public), hsm.PurposeEnvelope, part) == nil {
		out["signature"] = "good"
	}
}

func signedPlaces(t *testing.T, kind string, b []byte, out map[string]string) {
	t.Helper()
	var parts [3][]byte
	if err := cbor.Unmarshal(b, &parts); err != nil {
		out["file"] = string(b)
		return
	}
	fieldsOf(parts[0], out)
	purpose := map[string]hsm.Purpose{"manifest": hsm.PurposeManifest, "verified": hsm.PurposeVerified}[kind]
	s := hsm.LineageSignature{Public: parts[1], Signature: parts[2]}
	out["signature"] = string(s.Public) + string(s.Signature)
	if s.Verify(testKeyring(t).Lineage(), purpose, parts[0]) == nil {
		out["signature"] = "good"
	}
}

// fieldsOf takes a map apart, and what follows it.
func fieldsOf(b []byte, out map[string]string) {
	var m map[uint64]cbor.RawMessage
	rest, err := cbor.UnmarshalFirst(b, &m)
	if err != nil {
		out["body"], m = string(b), nil
		return
	}
	out["behind"] = string(rest)
	for k, v := range m {
		out[fmt.Sprintf("field %d", k)] = string(v)
	}
}

// indexPlaces takes an index apart; the numbers of blocks and items follow from those.
func indexPlaces(b []byte, out map[string]string) {
	if len(b) < indexFixed {
		out["head"] = string(b)
		return
	}
	blocks := int(binary.BigEndian.Uint32(b[56:])) * blockSize
	out["pack"], out["size"], out["lineage"] = string(b[:32]), string(b[32:40]), string(b[40:56])
	if b = b[indexFixed:]; len(b) < blocks {
		out["blocks"] = string(b)
		return
	}
	out["blocks"], out["items"] = string(b[:blocks]), string(b[blocks:])
}

// packPlaces takes a pack apart: the blocks of its plaintext; or what does not decrypt, by its bytes.
func packPlaces(t *testing.T, b []byte, out map[string]string) {
	t.Helper()
	plain, err := plaintext(t, b)
	if err != nil {
		out["age"] = string(b)
		return
	}
	for i := 0; len(plain) > 0; i++ {
		if plain[0] == blockEnd {
			out["end"] = string(plain)
			return
		}
		size := len(plain)
		if size > blockHeaderSize {
			n := uint64(blockHeaderSize) + uint64(binary.BigEndian.Uint32(plain[9:])) + uint64(binary.BigEndian.Uint32(plain[13:]))
			size = int(min(n, uint64(size)))
		}
		out[fmt.Sprintf("block %d", i)] = string(plain[:size])
		plain = plain[size:]
	}
}

// plaintext decrypts the age file of a pack whole.
func plaintext(t *testing.T, b []byte) ([]byte, error) {
	t.Helper()
	r, err := Decrypt(b, []age.Identity{vectorIdentity(t)})
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}
