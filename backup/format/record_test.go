package format

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

var testTime = time.UnixMilli(1_700_000_000_000).UTC()

func testMark() Mark {
	return Mark{Number: 9, Written: testTime, Action: ActionDelete, Snapshots: []Marked{{3, Name{3}}, {7, Name{7}}}, Reason: "no rule keeps it", Software: "v1.2.3"}
}

func testVerification() Verification {
	return Verification{Sequence: 7, Manifest: Name{7}, Level: 2, At: testTime, Checked: 1, Packs: 20, Turn: 4, Objects: 5, Problems: 1, KeysUsed: 3, Software: "v1.2.3"}
}

func testCopy() CopyRecord {
	return CopyRecord{Sequence: 7, Manifest: Name{7}, Source: "s3://backups/payments", Begun: testTime, Tags: map[string]string{"why": "copy"}, Software: "v1.2.3"}
}

// openVerification decodes a record and checks its signature, if it has one.
func openVerification(stored []byte) error {
	_, body, s, err := DecodeVerification(stored)
	if err != nil || len(s.Public) == 0 {
		return err
	}
	return s.Verify(hsm.LineageOf(s.Public), hsm.PurposeVerified, body)
}

func TestRecordsRoundTrip(t *testing.T) {
	stored, err := EncodeMark(testMark())
	if err != nil {
		t.Fatal(err)
	}
	m, err := DecodeMark(stored)
	if d := cmp.Diff(testMark(), m); d != "" || err != nil {
		t.Error(d, err)
	}
	if stored, err = EncodeCopy(testCopy()); err != nil {
		t.Fatal(err)
	}
	c, err := DecodeCopy(stored)
	if d := cmp.Diff(testCopy(), c); d != "" || err != nil {
		t.Error(d, err)
	}
	body, err := EncodeVerificationBody(testVerification())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []hsm.LineageSignature{{}, testKeyring(t).Sign(hsm.PurposeVerified, body)} {
		if stored, err = EncodeVerification(body, s); err != nil {
			t.Fatal(err)
		}
		v, _, _, err := DecodeVerification(stored)
		if d := cmp.Diff(testVerification(), v); d != "" || err != nil {
			t.Error(d, err)
		}
	}
}

func TestRecordPaths(t *testing.T) {
	path := VerificationPath(testVerification())
	if path != "verified/0000000007/2-1700000000000" {
		t.Fatal(path)
	}
	v, ok := ParseVerificationPath(path)
	if !ok || v.Sequence != 7 || v.Level != 2 || !v.At.Equal(testTime) {
		t.Fatalf("%+v", v)
	}
	for _, bad := range []string{
		"", "verified/", "verified/0000000007", "verified/0000000007/2-170000000000", "verified/0000000007/4-1700000000000", "verified/0000000007/0-1700000000000",
		"verified/0000000000/2-1700000000000", "verified/0000000007/2-170000000000x", "verified/0000000007/2-+700000000000", "verified/0000000007/22170000000000", path + "0",
	} {
		if _, ok := ParseVerificationPath(bad); ok {
			t.Errorf("%s is accepted", bad)
		}
	}
	for _, parse := range []func(string) (uint64, bool){ParseMarkPath, ParseCopyPath} {
		for _, bad := range []string{"", "marks/", "copies/1", "marks/00000000001", "marks/000000000x", "copies/0000000000"} {
			if _, ok := parse(bad); ok {
				t.Errorf("%s is accepted", bad)
			}
		}
	}
	if n, ok := ParseMarkPath(MarkPath(12)); !ok || n != 12 {
		t.Error("mark path")
	}
	if n, ok := ParseCopyPath(CopyPath(12)); !ok || n != 12 {
		t.Error("copy path")
	}
}

// recordVectors are what all three kinds have in common: edits of the body.
func recordVectors[T any](t testing.TB, kind, header string, good T, wrap func([]byte) []byte, edits []edit[T]) (out []vector) {
	t.Helper()
	add := func(name, expect, comment string, b []byte) {
		out = append(out, vector{name: kind + "_" + name, expect: expect, comment: comment, stored: b})
	}
	marshal := func(b T) []byte {
		body, err := encMode.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	file := func(body []byte) []byte { return append([]byte(header), wrap(body)...) }
	body := marshal(good)
	stored := file(body)
	add("ok", "ok", "every field set", stored)
	add("version_2", "version", "a later version of the file", bytes.Replace(stored, []byte(" v1\n"), []byte(" v2\n"), 1))
	add("wrong_first_line", "corrupt", "no first line", stored[1:])
	add("truncated", "corrupt", "the last byte is missing", stored[:len(stored)-1])
	add("trailing_byte", "corrupt", "one byte more", append(slices.Clone(stored), 0))
	add("unknown_field", "corrupt", "field 20", file(slices.Concat([]byte{body[0] + 1}, body[1:], []byte{20, 1})))
	add("not_shortest", "corrupt", "version 1 in two bytes", file(slices.Concat(body[:2], []byte{0x18, 1}, body[3:])))
	for _, e := range edits {
		b := good
		e.change(&b)
		add(e.name, e.expect, e.comment, file(marshal(b)))
	}
	return out
}

type edit[T any] struct {
	name, expect, comment string
	change                func(*T)
}

func plain(b []byte) []byte { return b }

// checked makes a body of version 2.
func checked(t testing.TB, b *markBody) {
	t.Helper()
	b.Version = 2
	var err error
	if b.Check, err = checkOf(b.unchecked()); err != nil {
		t.Fatal(err)
	}
}

func checkedCopy(t testing.TB, b *copyBody) {
	t.Helper()
	b.Version = 2
	var err error
	if b.Check, err = checkOf(b.unchecked()); err != nil {
		t.Fatal(err)
	}
}

func markVectors(t testing.TB) []vector {
	good := markBody{Version: 1, Number: 9, Written: 1_700_000_000_000, Action: 3, Reason: "no rule keeps it", Software: "v1.2.3", Snapshots: []markedBody{
		{Sequence: 3, Manifest: bytes.Repeat([]byte{3}, 32)}, {Sequence: 7, Manifest: bytes.Repeat([]byte{7}, 32)},
	}}
	return recordVectors(t, "mark", markHeader, good, plain, []edit[markBody]{
		{"body_version_3", "version", "a later version of the body", func(b *markBody) { b.Version = 3 }},
		{"ok_checked", "ok", "version 2 has a check", func(b *markBody) { checked(t, b) }},
		{"check_missing", "corrupt", "version 2 without a check", func(b *markBody) { b.Version = 2 }},
		{"check_size", "corrupt", "a check of 31 bytes", func(b *markBody) { checked(t, b); b.Check = b.Check[1:] }},
		{"check_in_version_1", "corrupt", "version 1 with a check", func(b *markBody) { checked(t, b); b.Version = 1 }},
		{"check_action", "corrupt", "another action than was checked", func(b *markBody) { checked(t, b); b.Action = 1 }},
		{"ok_sweep", "ok", "a sweep, which names no snapshot", func(b *markBody) { b.Action, b.Snapshots = 6, nil }},
		{"number_0", "corrupt", "number 0", func(b *markBody) { b.Number = 0 }},
		{"number_11_digits", "corrupt", "a number of eleven digits", func(b *markBody) { b.Number = MaxSequence + 1 }},
		{"time_14_digits", "corrupt", "a time after the year 2286", func(b *markBody) { b.Written = maxMillis + 1 }},
		{"action_unknown", "corrupt", "action 7", func(b *markBody) { b.Action = 7 }},
		{"no_snapshot", "corrupt", "a deletion of nothing", func(b *markBody) { b.Snapshots = nil }},
		{"sweep_of_snapshots", "corrupt", "a sweep that names snapshots", func(b *markBody) { b.Action = 6 }},
		{"snapshots_descend", "corrupt", "snapshots out of order", func(b *markBody) { b.Snapshots = []markedBody{b.Snapshots[1], b.Snapshots[0]} }},
		{"snapshot_twice", "corrupt", "one snapshot twice", func(b *markBody) { b.Snapshots = []markedBody{b.Snapshots[0], b.Snapshots[0]} }},
		{"snapshot_0", "corrupt", "snapshot 0", func(b *markBody) { b.Snapshots = []markedBody{{Manifest: b.Snapshots[0].Manifest}} }},
		{"manifest_size", "corrupt", "a hash of 31 bytes", func(b *markBody) { b.Snapshots = []markedBody{{Sequence: 3, Manifest: make([]byte, 31)}} }},
		{"reason_not_printable", "corrupt", "a reason of two lines", func(b *markBody) { b.Reason = "x\ny" }},
	})
}

func verifiedVectors(t testing.TB) []vector {
	good := verificationBody{
		Version: 1, Sequence: 7, Manifest: bytes.Repeat([]byte{7}, 32), Level: 2, At: 1_700_000_000_000, OK: true, Checked: 1, Packs: 20, Turn: 4, Objects: 5, KeysUsed: 3, Software: "v1.2.3",
	}
	file := func(sign func([]byte) hsm.LineageSignature) func([]byte) []byte {
		return func(body []byte) []byte {
			s := sign(body)
			b, err := encMode.Marshal(verificationFile{Body: body, Public: s.Public, Signature: s.Signature})
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	unsigned := file(func([]byte) hsm.LineageSignature { return hsm.LineageSignature{} })
	signed := file(func(b []byte) hsm.LineageSignature { return testKeyring(t).Sign(hsm.PurposeVerified, b) })
	other := file(func(b []byte) hsm.LineageSignature { return testKeyring(t).Sign(hsm.PurposeReport, b) })
	half := file(func(b []byte) hsm.LineageSignature {
		return hsm.LineageSignature{Public: testKeyring(t).Sign(hsm.PurposeVerified, b).Public}
	})
	out := recordVectors(t, "verified", verifiedHeader, good, unsigned, []edit[verificationBody]{
		{"body_version_2", "version", "a later version of the body", func(b *verificationBody) { b.Version = 2 }},
		{"ok_failed", "ok", "a verification that found problems", func(b *verificationBody) { b.OK, b.Problems = false, 2 }},
		{"snapshot_0", "corrupt", "snapshot 0", func(b *verificationBody) { b.Sequence = 0 }},
		{"level_0", "corrupt", "level 0", func(b *verificationBody) { b.Level = 0 }},
		{"level_4", "corrupt", "level 4", func(b *verificationBody) { b.Level = 4 }},
		{"good_with_problems", "corrupt", "good, and with problems", func(b *verificationBody) { b.Problems = 1 }},
		{"more_packs_than_all", "corrupt", "21 of 20 packs", func(b *verificationBody) { b.Checked = 21 }},
		{"manifest_size", "corrupt", "a hash of 31 bytes", func(b *verificationBody) { b.Manifest = b.Manifest[1:] }},
		{"time_14_digits", "corrupt", "a time after the year 2286", func(b *verificationBody) { b.At = maxMillis + 1 }},
	})
	for _, v := range []struct {
		name, expect, comment string
		wrap                  func([]byte) []byte
	}{
		{"ok_signed", "ok", "signed by the lineage", signed},
		{"other_purpose", "signature", "a signature made for a report", other},
		{"signature_missing", "corrupt", "a public key without a signature", half},
	} {
		body, err := encMode.Marshal(good)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, vector{name: "verified_" + v.name, expect: v.expect, comment: v.comment, stored: append([]byte(verifiedHeader), v.wrap(body)...)})
	}
	return out
}

func copyVectors(t testing.TB) []vector {
	good := copyBody{Version: 1, Sequence: 7, Manifest: bytes.Repeat([]byte{7}, 32), Source: "s3://backups/payments", Begun: 1_700_000_000_000, Tags: map[string]string{"why": "copy"}, Software: "v1.2.3"}
	return recordVectors(t, "copy", copyHeader, good, plain, []edit[copyBody]{
		{"body_version_3", "version", "a later version of the body", func(b *copyBody) { b.Version = 3 }},
		{"ok_checked", "ok", "version 2 has a check", func(b *copyBody) { checkedCopy(t, b) }},
		{"check_missing", "corrupt", "version 2 without a check", func(b *copyBody) { b.Version = 2 }},
		{"check_size", "corrupt", "a check of 31 bytes", func(b *copyBody) { checkedCopy(t, b); b.Check = b.Check[1:] }},
		{"check_in_version_1", "corrupt", "version 1 with a check", func(b *copyBody) { checkedCopy(t, b); b.Version = 1 }},
		{"check_source", "corrupt", "another source than was checked", func(b *copyBody) { checkedCopy(t, b); b.Source = "s3://backups/payment5" }},
		{"ok_no_tags", "ok", "the manifest's tags hold", func(b *copyBody) { b.Tags = nil }},
		{"snapshot_0", "corrupt", "snapshot 0", func(b *copyBody) { b.Sequence = 0 }},
		{"manifest_size", "corrupt", "a hash of 33 bytes", func(b *copyBody) { b.Manifest = make([]byte, 33) }},
		{"source_not_printable", "corrupt", "a location of two lines", func(b *copyBody) { b.Source = "x\ny" }},
		{"source_too_long", "corrupt", "a location of 1,025 bytes", func(b *copyBody) { b.Source = strings.Repeat("x", 1025) }},
		{"tag_without_name", "corrupt", "a tag without a name", func(b *copyBody) { b.Tags = map[string]string{"": "x"} }},
		{"tag_not_printable", "corrupt", "a tag of two lines", func(b *copyBody) { b.Tags = map[string]string{"a": "x\ny"} }},
		{"time_14_digits", "corrupt", "a time after the year 2286", func(b *copyBody) { b.Begun = maxMillis + 1 }},
	})
}

func FuzzMark(f *testing.F) {
	addVectors(f, "mark")
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMark(b)
		if err == nil {
			old := m.body()
			old.Version = 1
			first, oldErr := encodeRecord(markHeader, old, MaxMark)
			if again, err := EncodeMark(m); errors.Join(err, oldErr) != nil || !bytes.Equal(again, b) && !bytes.Equal(first, b) {
				t.Fatalf("a second encoding is accepted: %v", err)
			}
		} else if !known(err) {
			t.Fatal(err)
		}
	})
}

func FuzzCopy(f *testing.F) {
	addVectors(f, "copy")
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeCopy(b)
		if err == nil {
			old := c.body()
			old.Version = 1
			first, oldErr := encodeRecord(copyHeader, old, MaxRecord)
			if again, err := EncodeCopy(c); errors.Join(err, oldErr) != nil || !bytes.Equal(again, b) && !bytes.Equal(first, b) {
				t.Fatalf("a second encoding is accepted: %v", err)
			}
		} else if !known(err) {
			t.Fatal(err)
		}
	})
}

func FuzzVerified(f *testing.F) {
	addVectors(f, "verified")
	f.Fuzz(func(t *testing.T, b []byte) {
		v, body, s, err := DecodeVerification(b)
		if err != nil {
			if !known(err) {
				t.Fatal(err)
			}
			return
		}
		again, err := EncodeVerificationBody(v)
		if err != nil || !bytes.Equal(again, body) {
			t.Fatalf("a second encoding is accepted: %v", err)
		}
		if stored, err := EncodeVerification(body, s); err != nil || !bytes.Equal(stored, b) {
			t.Fatalf("a second encoding is accepted: %v", err)
		}
	})
}
