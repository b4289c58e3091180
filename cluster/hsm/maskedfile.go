package hsm

import (
	"bytes"
	"fmt"
)

// maskedFileHeader begins a file with one masked key (FORMAT.md, section 14).
const maskedFileHeader = "hsmbackup masked object v1\n"

// MaxMaskedFile is the size of the largest file with a masked key.
const MaxMaskedFile = len(maskedFileHeader) + MaxMasked

// EncodeMaskedFile makes the contents of a file that carries one masked key to
// another place: CloudHSM's extractMaskedObject. It reveals no more than the
// masked object itself. ErrInvalid for anything but a live key.
func EncodeMaskedFile(m MaskedObject) ([]byte, error) {
	if m.Kind != KindKey || m.Tombstone {
		return nil, fmt.Errorf("%w: %s is no live key; only live keys are extracted to files", ErrInvalid, m.Ref)
	}
	return append([]byte(maskedFileHeader), m.Bytes...), nil
}

// ParseMaskedFile reads such a file. What it says of the key is a claim until an
// HSM of the lineage has opened it. ErrCorrupt if it is not exactly a file with one
// live key.
func ParseMaskedFile(b []byte) (MaskedObject, error) {
	body, ok := bytes.CutPrefix(b, []byte(maskedFileHeader))
	switch {
	case !ok && bytes.HasPrefix(b, []byte("hsmbackup masked object v")):
		return MaskedObject{}, fmt.Errorf("%w: a masked object file of a version this program does not know", ErrCorrupt)
	case !ok:
		return MaskedObject{}, fmt.Errorf("%w: not a masked object file: it must begin with %q", ErrCorrupt, maskedFileHeader)
	case len(b) > MaxMaskedFile:
		return MaskedObject{}, fmt.Errorf("%w: masked object file of %d bytes: at most %d", ErrCorrupt, len(b), MaxMaskedFile)
	}
	m, _, err := ParseMasked(body)
	switch {
	case err != nil:
		return MaskedObject{}, fmt.Errorf("masked object file: %w", err)
	case m.Kind != KindKey || m.Tombstone:
		return MaskedObject{}, fmt.Errorf("%w: the masked object file holds %s %s, no live key", ErrCorrupt, m.Kind, m.Ref)
	}
	return m, nil
}
