package format

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// CopyRecord says where a snapshot was copied from. It is written before
// anything else of the copy.
type CopyRecord struct {
	Sequence uint64
	Manifest Name
	Source   string // the location, without credentials
	Begun    time.Time
	Tags     map[string]string // instead of the manifest's, if any
	Software string
}

// CopyVersion is the version of the body of a record of a copy. Version 1 had no check
// and is still read.
const CopyVersion = 2

type copyBody struct {
	Version  uint64            `cbor:"1,keyasint"`
	Sequence uint64            `cbor:"2,keyasint"`
	Manifest []byte            `cbor:"3,keyasint"`
	Source   string            `cbor:"4,keyasint"`
	Begun    uint64            `cbor:"5,keyasint"`
	Tags     map[string]string `cbor:"6,keyasint,omitempty"`
	Software string            `cbor:"7,keyasint"`
	Check    []byte            `cbor:"8,keyasint,omitempty"`
}

func (b copyBody) unchecked() copyBody {
	b.Check = nil
	return b
}

// CopyPath returns where the record of a copy lies.
func CopyPath(sequence uint64) string { return CopyPrefix + ID(sequence) }

// ParseCopyPath reads the snapshot's number out of the path of a record.
func ParseCopyPath(path string) (sequence uint64, ok bool) {
	s, ok := strings.CutPrefix(path, CopyPrefix)
	if !ok || len(s) != 10 {
		return 0, false
	}
	return ParseID(s)
}

// EncodeCopy returns the stored bytes.
func EncodeCopy(c CopyRecord) ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	b := c.body()
	var err error
	if b.Check, err = checkOf(b); err != nil {
		return nil, err
	}
	return encodeRecord(copyHeader, b, MaxRecord)
}

func (c CopyRecord) body() copyBody {
	return copyBody{
		Version: CopyVersion, Sequence: c.Sequence, Manifest: c.Manifest[:], Source: c.Source, Begun: millis(c.Begun), Tags: c.Tags, Software: c.Software,
	}
}

// DecodeCopy reads stored bytes. ErrVersion, ErrCorrupt.
func DecodeCopy(stored []byte) (CopyRecord, error) {
	var b copyBody
	if err := decodeRecord(stored, copyHeader, "copy", CopyVersion, MaxRecord, &b); err != nil {
		return CopyRecord{}, err
	}
	if err := cmp.Or(verifyCheck("copy", b.Version, b.Check, b.unchecked()), checkMillis("copy", b.Begun)); err != nil {
		return CopyRecord{}, err
	}
	if len(b.Manifest) != 32 {
		return CopyRecord{}, fmt.Errorf("%w: copy: a field has the wrong size", ErrCorrupt)
	}
	c := CopyRecord{Sequence: b.Sequence, Manifest: Name(b.Manifest), Source: b.Source, Begun: fromMillis(b.Begun), Tags: b.Tags, Software: b.Software}
	return c, c.check()
}

func (c CopyRecord) check() error {
	if c.Sequence == 0 || c.Sequence > MaxSequence {
		return fmt.Errorf("%w: copy: snapshot %d", ErrCorrupt, c.Sequence)
	}
	if len(c.Source) > MaxLocation {
		return fmt.Errorf("%w: copy: a location of %d bytes, at most %d", ErrCorrupt, len(c.Source), MaxLocation)
	}
	if err := checkPrints(c.Source); err != nil {
		return fmt.Errorf("%w: copy: %w", ErrCorrupt, err)
	}
	if len(c.Tags) > MaxTags {
		return fmt.Errorf("%w: copy: %d tags, at most %d", ErrCorrupt, len(c.Tags), MaxTags)
	}
	texts := []string{c.Software}
	for k, v := range c.Tags {
		if k == "" {
			return fmt.Errorf("%w: copy: a tag without a name", ErrCorrupt)
		}
		texts = append(texts, k, v)
	}
	return checkRecordTexts("copy", texts...)
}
