package hsm

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestMaskedFileRoundTrip(t *testing.T) {
	k := testKeyring(t, 1)
	for _, r := range []*Record{aesRecord(t, k), ecRecord(t, k)} {
		m := mask(t, k, r)
		b := result(EncodeMaskedFile(m))(t)
		if len(maskedFileHeader) != 27 || !bytes.HasPrefix(b, []byte(maskedFileHeader)) || len(b) != 27+len(m.Bytes) {
			t.Errorf("the file has %d bytes of %q…", len(b), b[:27])
		}
		got := result(ParseMaskedFile(b))(t)
		if got.Object != m.Object || got.Lineage != m.Lineage || !bytes.Equal(got.Bytes, m.Bytes) {
			t.Errorf("got %+v; want %+v", got.Object, m.Object)
		}
	}
}

func TestMaskedFileRefuses(t *testing.T) {
	k := testKeyring(t, 1)
	good := result(EncodeMaskedFile(mask(t, k, aesRecord(t, k))))(t)
	header := []byte(maskedFileHeader)
	tests := map[string][]byte{
		"empty": nil, "header alone": header, "half": good[:len(good)/2], "trailing": append(bytes.Clone(good), 0),
		"no header": good[len(header):], "version 2": bytes.Replace(good, []byte(" v1\n"), []byte(" v2\n"), 1),
		"carriage return": bytes.Replace(good, []byte(" v1\n"), []byte(" v1\r\n"), 1), "garbage": append(bytes.Clone(header), "garbage"...),
		"too large": append(bytes.Clone(header), make([]byte, MaxMasked+1)...),
		"tombstone": append(bytes.Clone(header), mask(t, k, tombstone(t, k)).Bytes...), "a user": append(bytes.Clone(header), mask(t, k, userRecord(t, k)).Bytes...),
	}
	for name, b := range tests {
		if m, err := ParseMaskedFile(b); !errors.Is(err, ErrCorrupt) || strings.Contains(err.Error(), "\n") || m.Bytes != nil {
			t.Errorf("%s: %+v, %v; want ErrCorrupt", name, m, err)
		}
	}
	for name, m := range map[string]MaskedObject{"tombstone": mask(t, k, tombstone(t, k)), "a user": mask(t, k, userRecord(t, k))} {
		if _, err := EncodeMaskedFile(m); !errors.Is(err, ErrInvalid) {
			t.Errorf("encode %s: %v; want ErrInvalid", name, err)
		}
	}
}

func FuzzParseMaskedFile(f *testing.F) {
	f.Add([]byte(maskedFileHeader))
	eachVector(f, func(v vector) { f.Add(append([]byte(maskedFileHeader), v.masked.Bytes...)) })
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMaskedFile(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if again, err := EncodeMaskedFile(m); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x was read, and is written as %x, %v", b, again, err)
		}
	})
}
