package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// A vector is a file of backup/testdata/vectors: lines "name: value", an empty
// line, and the stored bytes. Each shows one failure; expect says which, and
// objects how many objects of a pack are released before it.

var (
	update     = flag.Bool("update", false, "write the test vectors again")
	updateKind = flag.String("kind", "", "with -update: only those of one kind")
)

const vectorFolder = "../testdata/vectors"

var expectations = map[string]error{"ok": nil, "corrupt": ErrCorrupt, "version": ErrVersion, "identity": ErrIdentity, "signature": hsm.ErrSignature, "lineage": hsm.ErrLineage}

type vector struct {
	name    string // kind_failure
	expect  string
	objects int
	comment string
	stored  []byte
	plain   []byte // of a pack: what is encrypted
}

func (v vector) encode() []byte {
	head := fmt.Sprintf("expect: %s\nobjects: %d\ncomment: %s\n\n", v.expect, v.objects, v.comment)
	return append([]byte(head), v.stored...)
}

func readVector(t testing.TB, path string) vector {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, stored, ok := bytes.Cut(b, []byte("\n\n"))
	v := vector{name: filepath.Base(path), stored: stored}
	for line := range strings.SplitSeq(string(head), "\n") {
		key, value, _ := strings.Cut(line, ": ")
		switch key {
		case "expect":
			v.expect = value
		case "objects":
			fmt.Sscan(value, &v.objects)
		}
	}
	if _, known := expectations[v.expect]; !ok || !known {
		t.Fatalf("%s: malformed vector", path)
	}
	return v
}

func addVectors(f *testing.F, kind string) {
	f.Helper()
	paths, err := filepath.Glob(filepath.Join(vectorFolder, kind+"_*"))
	if err != nil || len(paths) == 0 {
		f.Fatalf("no vectors of %s: %v", kind, err)
	}
	for _, p := range paths {
		f.Add(readVector(f, p).stored)
	}
}

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	paths, err := filepath.Glob(filepath.Join(vectorFolder, "*_*"))
	if err != nil || len(paths) < 40 {
		t.Fatalf("%d vectors, %v", len(paths), err)
	}
	for _, p := range paths {
		t.Run(filepath.Base(p), func(t *testing.T) { checkVector(t, readVector(t, p)) })
	}
}

func checkVector(t *testing.T, v vector) {
	t.Helper()
	objects, err := openVector(t, v)
	if want := expectations[v.expect]; !errors.Is(err, want) || len(objects) != v.objects {
		t.Fatalf("%d objects and %v, want %d and %s", len(objects), err, v.objects, v.expect)
	}
}

// TestVectorsFailForTheirReason compares why each vector is refused with a list that was
// read beside the comments: a fault that another check finds first tests nothing.
func TestVectorsFailForTheirReason(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(vectorFolder, "*_*"))
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, p := range paths {
		if v := readVector(t, p); v.expect != "ok" {
			_, err := openVector(t, v)
			fmt.Fprintf(&got, "%s: %v\n", v.name, err)
		}
	}
	list := filepath.Join("testdata", "reasons.txt")
	if *update {
		if err := os.WriteFile(list, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("refused for other reasons; read them beside the comments, and write the list again with -update -kind none: %s", diff)
	}
}

// openVector does with a vector what a reader does with an object of its kind.
func openVector(t *testing.T, v vector) (objects [][]byte, err error) {
	t.Helper()
	kind, _, _ := strings.Cut(v.name, "_")
	switch kind {
	case "pack":
		objects, err = readPack(v.stored, vectorIdentity(t))
		want := testObjects(t, 3)
		for i, b := range objects {
			if !bytes.Equal(b, want[i].Bytes) {
				t.Fatalf("object %d differs", i)
			}
		}
	case "index":
		_, err = DecodeIndex(v.stored)
	case "envelope":
		err = openEnvelope(v.stored)
	case "mark":
		_, err = DecodeMark(v.stored)
	case "copy":
		_, err = DecodeCopy(v.stored)
	case "verified":
		err = openVerification(v.stored)
	case "manifest":
		var m *Manifest
		var body []byte
		var s hsm.LineageSignature
		if m, body, s, err = DecodeManifest(v.stored); err == nil {
			err = s.Verify(m.Lineage, hsm.PurposeManifest, body)
		}
	}
	return objects, err
}

// openEnvelope decodes an envelope and verifies its signature if it has one, with
// the key that stands beside it.
func openEnvelope(stored []byte) error {
	e, err := DecodeEnvelope(stored)
	if err != nil || !e.Signed() {
		return err
	}
	part, err := e.SignedPart()
	if err != nil {
		return err
	}
	return e.Signature.Verify(hsm.LineageOf(e.Signature.Public), hsm.PurposeEnvelope, part)
}

func writeVectors(t *testing.T) {
	t.Helper()
	old, _ := filepath.Glob(filepath.Join(vectorFolder, *updateKind+"*_*"))
	for _, p := range old {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range slices.Concat(packVectors(t), indexVectors(t), manifestVectors(t), envelopeVectors(t), markVectors(t), verifiedVectors(t), copyVectors(t)) {
		if !strings.HasPrefix(v.name, *updateKind) {
			continue
		}
		if err := os.WriteFile(filepath.Join(vectorFolder, v.name), v.encode(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// sealPack encrypts the plaintext of a pack.
func sealPack(t testing.TB, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	out.WriteString(packHeader)
	w, err := age.Encrypt(&out, vectorIdentity(t).Recipient())
	if err != nil {
		t.Fatal(err)
	}
	w.Write(plain)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// block is a block of a pack that may lie about itself.
type block struct {
	kind                                byte
	objects, raw, compressed, opaqueLen uint32
	packed, opaque                      []byte
}

func (b block) bytes() []byte {
	out := []byte{b.kind}
	for _, v := range []uint32{b.objects, b.raw, b.compressed, b.opaqueLen} {
		out = binary.BigEndian.AppendUint32(out, v)
	}
	return slices.Concat(out, b.packed, b.opaque)
}

// goodBlock is the block of objects; lengths replaces the lengths if not nil.
func goodBlock(t testing.TB, objects []hsm.MaskedObject, lengths []byte) block {
	t.Helper()
	var own, clearPart, opaque []byte
	for _, m := range objects {
		c, err := hsm.SplitMasked(m.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		own = binary.AppendUvarint(binary.AppendUvarint(own, uint64(len(c.Clear))), uint64(len(c.Opaque)))
		clearPart, opaque = append(clearPart, c.Clear...), append(opaque, c.Opaque...)
	}
	if lengths == nil {
		lengths = own
	}
	return rawBlock(t, len(objects), append(lengths, clearPart...), opaque)
}

func rawBlock(t testing.TB, objects int, raw, opaque []byte) block {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	packed := enc.EncodeAll(raw, nil)
	return block{kind: blockObjects, objects: uint32(objects), raw: uint32(len(raw)), compressed: uint32(len(packed)), opaqueLen: uint32(len(opaque)), packed: packed, opaque: opaque}
}

func endBlock(blocks, objects uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte{blockEnd}, blocks), objects)
}

func packVectors(t testing.TB) (out []vector) {
	objects := testObjects(t, 3)
	first, second := goodBlock(t, objects[:2], nil), goodBlock(t, objects[2:], nil)
	good := slices.Concat(first.bytes(), second.bytes(), endBlock(2, 3))
	stored := sealPack(t, good)
	inside := func(name, expect string, released int, comment string, parts ...[]byte) {
		plain := slices.Concat(parts...)
		out = append(out, vector{"pack_" + name, expect, released, comment, sealPack(t, plain), plain})
	}
	outside := func(name, expect string, released int, comment string, b []byte) {
		out = append(out, vector{"pack_" + name, expect, released, comment, b, nil})
	}
	inside("ok", "ok", 3, "two blocks and the end", good)
	inside("no_end_block", "corrupt", 3, "ends where a block may begin", first.bytes(), second.bytes())
	inside("empty_plaintext", "corrupt", 0, "no block at all")
	inside("block_missing", "corrupt", 2, "the end block counts one block more", first.bytes(), endBlock(2, 3))
	inside("end_counts_objects_wrong", "corrupt", 3, "the end block counts one object more", first.bytes(), second.bytes(), endBlock(2, 4))
	inside("bytes_after_end", "corrupt", 3, "one byte follows the end block", good, []byte{0})
	inside("unknown_block", "corrupt", 2, "a block of type 2", first.bytes(), []byte{2}, make([]byte, 16), endBlock(2, 3))
	edit := func(name, comment string, change func(*block)) {
		b := second
		change(&b)
		inside(name, "corrupt", 2, comment, first.bytes(), b.bytes(), endBlock(2, 3))
	}
	edit("block_of_type_2", "a block of type 2, whole", func(b *block) { b.kind = 2 })
	edit("no_objects", "a block of no objects", func(b *block) { b.objects = 0 })
	edit("one_object_too_many", "a block of 65,537 objects", func(b *block) { b.objects = MaxBlockObjects + 1 })
	edit("too_many_objects", "a block of 2^32-1 objects", func(b *block) { b.objects = 1<<32 - 1 })
	edit("column_too_large", "a column of 4 GiB is announced", func(b *block) { b.raw = 1<<32 - 1 })
	edit("column_shorter_than_announced", "the clear column decompresses to less", func(b *block) { b.raw++ })
	edit("column_longer_than_announced", "the clear column decompresses to more", func(b *block) { b.raw-- })
	edit("not_zstd", "the clear column is not zstd", func(b *block) { b.packed = bytes.Repeat([]byte{7}, len(b.packed)) })
	edit("opaque_truncated", "the plaintext ends in the opaque column", func(b *block) { b.opaqueLen += 1 << 16 })
	bad := func(name, comment string, b block) {
		inside(name, "corrupt", 2, comment, first.bytes(), b.bytes(), endBlock(2, 3))
	}
	c, _ := hsm.SplitMasked(objects[2].Bytes)
	lengths := func(clearLen, opaqueLen int) []byte {
		return binary.AppendUvarint(binary.AppendUvarint(nil, uint64(clearLen)), uint64(opaqueLen))
	}
	bad("clear_not_filled", "lengths leave a byte of the clear column", goodBlock(t, objects[2:], lengths(len(c.Clear)-1, len(c.Opaque))))
	bad("opaque_not_filled", "lengths leave a byte of the opaque column", goodBlock(t, objects[2:], lengths(len(c.Clear), len(c.Opaque)-1)))
	bad("length_too_large", "an object of 1 GiB", goodBlock(t, objects[2:], lengths(1<<30, len(c.Opaque))))
	bad("length_not_shortest", "a length with a leading zero group", goodBlock(t, objects[2:], notShortest(lengths(len(c.Clear), len(c.Opaque)))))
	bad("no_lengths", "a clear column without lengths", rawBlock(t, 1, nil, c.Opaque))
	bad("opaque_not_cbor", "an object that does not join", rawBlock(t, 1, lengths(0, 1), []byte{0xff}))

	outside("wrong_first_line", "corrupt", 0, "another kind of object", append([]byte(indexHeader), stored[len(packHeader):]...))
	outside("version_2", "version", 0, "a later version", bytes.Replace(stored, []byte(" v1\n"), []byte(" v2\n"), 1))
	outside("no_bytes", "corrupt", 0, "nothing", nil)
	outside("header_truncated", "corrupt", 0, "ends in the age header", stored[:len(packHeader)+40])
	outside("header_mac", "corrupt", 0, "one bit of the age header's MAC", flipAfter(stored, []byte("\n--- "), 10))
	outside("last_frame_truncated", "corrupt", 0, "the last byte is missing", stored[:len(stored)-1])
	outside("payload_bit", "corrupt", 0, "one bit of the payload", flipAt(stored, len(stored)-30))
	outside("trailing_byte", "corrupt", 0, "one byte more", append(slices.Clone(stored), 0))
	other, err := age.ParseX25519Recipient("age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	b.WriteString(packHeader)
	w, err := age.Encrypt(&b, other)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(good)
	w.Close()
	outside("other_recipient", "identity", 0, "encrypted to someone else", b.Bytes())
	return out
}

// notShortest writes the last number of b with one group more, a zero.
func notShortest(b []byte) []byte {
	out := slices.Clone(b)
	out[len(out)-1] |= 0x80
	return append(out, 0)
}

func flipAt(b []byte, at int) []byte {
	out := slices.Clone(b)
	out[at] ^= 1
	return out
}

func flipAfter(b, mark []byte, offset int) []byte {
	return flipAt(b, bytes.Index(b, mark)+len(mark)+offset)
}

func indexVectors(t testing.TB) (out []vector) {
	objects := testObjects(t, 3)
	good := Index{
		Pack: Name{1}, PackSize: 5000, Lineage: testKeyring(t).Lineage(), Blocks: []Block{{2, 1000}, {1, 600}},
		Items: []hsm.Object{objects[0].Object, objects[1].Object, objects[2].Object},
	}
	add := func(name, expect, comment string, b []byte) {
		out = append(out, vector{name: "index_" + name, expect: expect, comment: comment, stored: b})
	}
	edit := func(name, comment string, change func(*Index)) {
		x := good
		x.Items, x.Blocks = slices.Clone(good.Items), slices.Clone(good.Blocks)
		change(&x)
		add(name, "corrupt", comment, EncodeIndex(x))
	}
	stored := EncodeIndex(good)
	add("ok", "ok", "three items in two blocks", stored)
	add("version_2", "version", "a later version", bytes.Replace(stored, []byte(" v1\n"), []byte(" v2\n"), 1))
	add("wrong_first_line", "corrupt", "no first line", stored[1:])
	add("truncated", "corrupt", "the last byte is missing", stored[:len(stored)-1])
	add("truncated_head", "corrupt", "ends in the fixed part", stored[:len(indexHeader)+20])
	add("trailing_byte", "corrupt", "one byte more", append(slices.Clone(stored), 0))
	edit("unsorted", "references descend", func(x *Index) { slices.Reverse(x.Items) })
	edit("reference_twice", "one reference twice", func(x *Index) { x.Items[1].Ref = x.Items[0].Ref })
	edit("reference_0", "reference 0", func(x *Index) { x.Items[0].Ref = 0 })
	edit("reference_64_bits", "a reference of 64 bits", func(x *Index) { x.Items[2].Ref |= 1 << 63 })
	edit("kind_of_cluster", "a member, which belongs to one cluster", func(x *Index) { x.Items[0].Kind = hsm.KindMember })
	edit("kind_unknown", "kind 77", func(x *Index) { x.Items[0].Kind = 77 })
	edit("blocks_do_not_add_up", "blocks hold one object less", func(x *Index) { x.Blocks = x.Blocks[:1] })
	edit("block_empty", "a block of no objects", func(x *Index) { x.Blocks[0].Objects, x.Blocks[1].Objects = 0, 3 })
	edit("blocks_exceed_pack", "blocks longer than the pack", func(x *Index) { x.PackSize = 1599 })
	edit("pack_size_0", "a pack of no bytes", func(x *Index) { x.PackSize = 0 })
	edit("no_items", "an index of nothing", func(x *Index) { x.Items, x.Blocks = nil, nil })
	return out
}

func manifestVectors(t testing.TB) (out []vector) {
	add := func(name, expect, comment string, b []byte) {
		out = append(out, vector{name: "manifest_" + name, expect: expect, comment: comment, stored: b})
	}
	goodBody, err := EncodeManifestBody(testManifest(t))
	if err != nil {
		t.Fatal(err)
	}
	good := signManifest(t, goodBody)
	add("ok", "ok", "every field set", good)
	add("version_2", "version", "a later version of the file", bytes.Replace(good, []byte(" v1\n"), []byte(" v2\n"), 1))
	add("truncated", "corrupt", "the last byte is missing", good[:len(good)-1])
	add("trailing_byte", "corrupt", "one byte more", append(slices.Clone(good), 0))
	add("body_bit", "signature", "one bit of the root", flipAfter(good, testManifest(t).Fingerprints.Root[:], 10))
	add("signature_bit", "signature", "one bit of the signature", flipAt(good, len(good)-1))
	stranger := hsm.NewKeyring()
	forged, err := EncodeManifest(goodBody, stranger.Sign(hsm.PurposeManifest, goodBody))
	if err != nil {
		t.Fatal(err)
	}
	add("other_signer", "lineage", "signed by another lineage", forged)
	report, err := EncodeManifest(goodBody, testKeyring(t).Sign(hsm.PurposeReport, goodBody))
	if err != nil {
		t.Fatal(err)
	}
	add("other_purpose", "signature", "a signature made for a report", report)

	edit := func(name, expect, comment string, change func(*manifestBody)) {
		var b manifestBody
		if err := decodeCanonical(goodBody, &b); err != nil {
			t.Fatal(err)
		}
		change(&b)
		body, err := encMode.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		add(name, expect, comment, signManifest(t, body))
	}
	edit("body_version_2", "version", "a later version of the body", func(b *manifestBody) { b.Version = 2 })
	edit("body_version_0", "corrupt", "version 0", func(b *manifestBody) { b.Version = 0 })
	edit("number_0", "corrupt", "number 0", func(b *manifestBody) { b.Sequence, b.Parent = 0, 0 })
	edit("parent_not_older", "corrupt", "its own parent", func(b *manifestBody) { b.Parent = b.Sequence })
	edit("lineage_size", "corrupt", "a lineage of 15 bytes", func(b *manifestBody) { b.Lineage = b.Lineage[1:] })
	edit("no_cluster", "corrupt", "cluster 0", func(b *manifestBody) { b.Cluster = 0 })
	edit("cells_size", "corrupt", "half a cell", func(b *manifestBody) { b.Cells = b.Cells[20:] })
	edit("too_many_cells", "corrupt", "one cell more than allowed", func(b *manifestBody) { b.Cells = make([]byte, (MaxCells+1)*cellSize) })
	edit("counts_do_not_add_up", "corrupt", "one tombstone more than the root counts", func(b *manifestBody) { b.Tombstones++ })
	edit("kind_of_cluster", "corrupt", "counts members", func(b *manifestBody) { b.Live = map[hsm.Kind]uint64{hsm.KindMember: 2} })
	edit("count_0", "corrupt", "counts no users, instead of leaving it out", func(b *manifestBody) { b.Live[hsm.KindUser], b.Live[hsm.KindKey] = 0, 2 })
	edit("packs_too_few", "corrupt", "packs hold less than the root counts", func(b *manifestBody) { b.Packs[0].Objects = 2 })
	edit("pack_twice", "corrupt", "one pack twice", func(b *manifestBody) { b.Packs[1].Pack = b.Packs[0].Pack })
	edit("pack_name_size", "corrupt", "a name of 31 bytes", func(b *manifestBody) { b.Packs[0].Pack = b.Packs[0].Pack[1:] })
	edit("pack_too_large", "corrupt", "a pack of 2^63 bytes", func(b *manifestBody) { b.Packs[0].Size = 1 << 63 })
	edit("unsettled_unsorted", "corrupt", "unsettled states out of order", func(b *manifestBody) {
		b.Unsettled = slices.Concat(b.Unsettled[versionSize:], b.Unsettled[:versionSize])
	})
	edit("nobody_answered", "corrupt", "no HSM answered", func(b *manifestBody) { b.Answered = nil })
	edit("tag_not_printable", "corrupt", "a tag of two lines", func(b *manifestBody) { b.Tags = map[string]string{"a": "x\ny"} })
	edit("name_too_long", "corrupt", "a cluster's name of 257 bytes", func(b *manifestBody) { b.ClusterName = strings.Repeat("x", 257) })

	raw := func(name, expect, comment string, body []byte) { add(name, expect, comment, signManifest(t, body)) }
	unknown := append([]byte{goodBody[0], goodBody[1] + 1}, goodBody[2:]...)
	raw("unknown_field", "corrupt", "field 28", append(unknown, 0x18, 28, 1))
	raw("not_shortest", "corrupt", "version 1 in two bytes", slices.Concat(goodBody[:3], []byte{0x18, 1}, goodBody[4:]))
	raw("body_empty", "corrupt", "no body", nil)
	raw("body_not_a_map", "corrupt", "an array", []byte{0x80})
	return out
}

func envelopeVectors(t testing.TB) (out []vector) {
	add := func(name, expect, comment string, b []byte) {
		out = append(out, vector{name: "envelope_" + name, expect: expect, comment: comment, stored: b})
	}
	good := envelopeBody{Version: 1, Threshold: 2, Custodians: 3, Shares: [][]byte{{1}, {2}, {3}}, Sealed: []byte{4}}
	encode := func(b envelopeBody) []byte {
		body, err := encMode.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte(envelopeHeader), body...)
	}
	edit := func(name, expect, comment string, change func(*envelopeBody)) {
		b := good
		change(&b)
		add(name, expect, comment, encode(b))
	}
	stored := encode(good)
	add("ok_2_of_3", "ok", "three shares", stored)
	edit("ok_1_of_3", "ok", "no shares", func(b *envelopeBody) { b.Threshold, b.Shares = 1, nil })
	add("version_2", "version", "a later version of the file", bytes.Replace(stored, []byte(" v1\n"), []byte(" v2\n"), 1))
	edit("body_version_4", "version", "a later version of the body", func(b *envelopeBody) { b.Version = 4 })
	edit("ok_packs", "ok", "version 2 names recipients of packs", func(b *envelopeBody) { b.Version, b.Packs, b.Epochs = 2, []string{"age1a", "age1b"}, []uint64{1, 7} })
	edit("ok_one_recipient", "ok", "version 2 names one recipient of packs", func(b *envelopeBody) { b.Version, b.Packs, b.Epochs = 2, []string{"age1a"}, []uint64{1} })
	edit("epochs_missing", "corrupt", "version 2 without epochs", func(b *envelopeBody) { b.Version, b.Packs = 2, []string{"age1a"} })
	edit("epochs_twice", "corrupt", "one epoch twice", func(b *envelopeBody) { b.Version, b.Packs, b.Epochs = 2, []string{"age1a"}, []uint64{1, 1} })
	edit("epoch_0", "corrupt", "the epoch of what is not sealed", func(b *envelopeBody) { b.Version, b.Packs, b.Epochs = 2, []string{"age1a"}, []uint64{0, 1} })
	edit("packs_in_version_1", "corrupt", "version 1 with recipients of packs", func(b *envelopeBody) { b.Packs = []string{"age1a"} })
	edit("packs_missing", "corrupt", "version 2 without recipients of packs", func(b *envelopeBody) { b.Version, b.Epochs = 2, []uint64{1} })
	edit("packs_too_many", "corrupt", "five recipients of packs", func(b *envelopeBody) {
		b.Version, b.Epochs, b.Packs = 2, []uint64{1}, []string{"a", "b", "c", "d", "e"}
	})
	edit("packs_line_break", "corrupt", "a recipient of two lines", func(b *envelopeBody) { b.Version, b.Epochs, b.Packs = 2, []uint64{1}, []string{"age1\na"} })
	signed := func(name, expect, comment string, change func(*envelopeBody)) {
		edit(name, expect, comment, func(b *envelopeBody) {
			k := hsm.NewKeyring()
			b.Version, b.Packs, b.Epochs, b.Custody = 3, []string{"age1a"}, []uint64{1}, make([]byte, 32)
			part, err := encMode.Marshal(b)
			if err != nil {
				t.Fatal(err)
			}
			s := k.Sign(hsm.PurposeEnvelope, part)
			b.Public, b.Signature = s.Public, s.Signature
			change(b)
		})
	}
	signed("ok_signed", "ok", "version 3 is signed", func(*envelopeBody) {})
	signed("signature_bit", "signature", "one bit of the signature", func(b *envelopeBody) { b.Signature[0] ^= 1 })
	signed("signed_custody_bit", "signature", "one bit of the fingerprint of the custodians", func(b *envelopeBody) { b.Custody[0] ^= 1 })
	signed("signed_packs", "signature", "another recipient of packs than was signed", func(b *envelopeBody) { b.Packs = []string{"age1b"} })
	signed("signed_content", "signature", "another content than was signed", func(b *envelopeBody) { b.Sealed = []byte{5} })
	signed("signature_missing", "corrupt", "version 3 without a signature", func(b *envelopeBody) { b.Public, b.Signature = nil, nil })
	signed("custody_size", "corrupt", "a fingerprint of 31 bytes", func(b *envelopeBody) { b.Custody = b.Custody[1:] })
	signed("public_key_size", "corrupt", "a public key of 31 bytes", func(b *envelopeBody) { b.Public = b.Public[1:] })
	signed("signature_in_version_2", "corrupt", "version 2 with a signature", func(b *envelopeBody) { b.Version = 2 })
	add("truncated", "corrupt", "the last byte is missing", stored[:len(stored)-1])
	add("trailing_byte", "corrupt", "one byte more", append(slices.Clone(stored), 0))
	edit("threshold_0", "corrupt", "nobody is needed", func(b *envelopeBody) { b.Threshold = 0 })
	edit("threshold_too_high", "corrupt", "4 of 3", func(b *envelopeBody) { b.Threshold = 4 })
	edit("threshold_huge", "corrupt", "2^63 of 2^63", func(b *envelopeBody) { b.Threshold, b.Custodians = 1<<63, 1<<63 })
	edit("custodians_too_many", "corrupt", "65 custodians", func(b *envelopeBody) {
		b.Threshold, b.Shares, b.Custodians = 1, nil, MaxCustodians+1
	})
	edit("share_missing", "corrupt", "two shares for three", func(b *envelopeBody) { b.Shares = b.Shares[:2] })
	edit("shares_at_threshold_1", "corrupt", "shares that nobody needs", func(b *envelopeBody) { b.Threshold = 1 })
	edit("no_content", "corrupt", "nothing sealed", func(b *envelopeBody) { b.Sealed = nil })
	body := stored[len(envelopeHeader):]
	unknown := slices.Concat([]byte(envelopeHeader), []byte{body[0] + 1}, body[1:], []byte{11, 1})
	add("unknown_field", "corrupt", "field 11", unknown)
	add("not_shortest", "corrupt", "version 1 in two bytes", slices.Concat([]byte(envelopeHeader), body[:2], []byte{0x18, 1}, body[3:]))
	return out
}
