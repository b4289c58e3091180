package format

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
)

// checkOf is the SHA-256 of a body that has no check yet. Whoever may write records can
// make one; it tells a record from what a disk made of it, which could say something else.
func checkOf(unchecked any) ([]byte, error) {
	encoded, err := encMode.Marshal(unchecked)
	sum := sha256.Sum256(encoded)
	return sum[:], err
}

// verifyCheck compares the check of a record with what it should be. Bodies of version 1
// had none.
func verifyCheck(what string, version uint64, check []byte, unchecked any) error {
	if version == 1 {
		if len(check) > 0 {
			return fmt.Errorf("%w: %s: version 1 with a check", ErrCorrupt, what)
		}
		return nil
	}
	want, err := checkOf(unchecked)
	if err == nil && !bytes.Equal(check, want) {
		err = fmt.Errorf("%w: %s: its check does not fit", ErrCorrupt, what)
	}
	return err
}

func checkRecordTexts(what string, texts ...string) error {
	if i := slices.IndexFunc(texts, func(s string) bool { return CheckText(s) != nil }); i >= 0 {
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, what, CheckText(texts[i]))
	}
	return nil
}

// encodeRecord returns a first line and a value in CBOR.
func encodeRecord(header string, body any, limit int) ([]byte, error) {
	b, err := encMode.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if len(header)+len(b) > limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrCorrupt, len(header)+len(b), limit)
	}
	return append([]byte(header), b...), nil
}

// decodeRecord reads a body that begins with its version.
func decodeRecord(stored []byte, header, what string, version uint64, limit int, into any) error {
	if len(stored) > limit {
		return fmt.Errorf("%w: %s of %d bytes, at most %d", ErrCorrupt, what, len(stored), limit)
	}
	b, err := cutHeader(stored, header)
	if err != nil {
		return err
	}
	if err := checkVersion(b, what, 1, version); err != nil {
		return err
	}
	return decodeCanonical(b, into)
}

// decodeStored reads a value without a version of its own.
func decodeStored(stored []byte, header, what string, limit int, into any) error {
	if len(stored) > limit {
		return fmt.Errorf("%w: %s of %d bytes, at most %d", ErrCorrupt, what, len(stored), limit)
	}
	b, err := cutHeader(stored, header)
	if err != nil {
		return err
	}
	return decodeCanonical(b, into)
}

// maxMillis is the last moment of a record, in the year 2286: 13 digits.
const maxMillis = 9_999_999_999_999

func checkMillis(what string, v uint64) error {
	if v > maxMillis {
		return fmt.Errorf("%w: %s: a time in the far future", ErrCorrupt, what)
	}
	return nil
}
