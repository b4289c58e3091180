package format

import (
	"fmt"
	"strings"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Verification is the record of one verification of one snapshot.
type Verification struct {
	Sequence uint64
	Manifest Name
	Level    uint64 // 1 hashes, 2 root, 3 use
	At       time.Time
	OK       bool
	Checked  uint64 // packs read
	Packs    uint64 // packs in all
	Turn     uint64 // of a sample
	Objects  uint64
	Problems uint64
	KeysUsed uint64
	Software string
}

// VerificationVersion is the version of the body of a record of verification.
const VerificationVersion = 1

type verificationBody struct {
	Version  uint64 `cbor:"1,keyasint"`
	Sequence uint64 `cbor:"2,keyasint"`
	Manifest []byte `cbor:"3,keyasint"`
	Level    uint64 `cbor:"4,keyasint"`
	At       uint64 `cbor:"5,keyasint"`
	OK       bool   `cbor:"6,keyasint,omitempty"`
	Checked  uint64 `cbor:"7,keyasint,omitempty"`
	Packs    uint64 `cbor:"8,keyasint,omitempty"`
	Turn     uint64 `cbor:"9,keyasint,omitempty"`
	Objects  uint64 `cbor:"10,keyasint,omitempty"`
	Problems uint64 `cbor:"11,keyasint,omitempty"`
	KeysUsed uint64 `cbor:"12,keyasint,omitempty"`
	Software string `cbor:"13,keyasint"`
}

type verificationFile struct {
	_         struct{} `cbor:",toarray"`
	Body      []byte
	Public    []byte // empty: not signed
	Signature []byte
}

// MaxLevel is the highest level of verification.
const MaxLevel = 3

// VerificationPath returns where a record lies: its name tells level and time, so
// that a listing finds the newest of each level.
func VerificationPath(v Verification) string {
	return fmt.Sprintf("%s%s/%d-%013d", VerifiedPrefix, ID(v.Sequence), v.Level, millis(v.At))
}

// ParseVerificationPath reads number, level and time out of a record's path.
func ParseVerificationPath(path string) (v Verification, ok bool) {
	rest, ok := strings.CutPrefix(path, VerifiedPrefix)
	if !ok || len(rest) != 10+1+1+1+13 {
		return v, false
	}
	if v.Sequence, ok = ParseID(rest[:10]); !ok {
		return v, false
	}
	var at uint64
	if n, err := fmt.Sscanf(rest[10:], "/%1d-%13d", &v.Level, &at); n != 2 || err != nil || v.Level == 0 || v.Level > MaxLevel {
		return v, false
	}
	v.At = fromMillis(at)
	return v, VerificationPath(v) == path
}

// EncodeVerificationBody returns the bytes that may be signed.
func EncodeVerificationBody(v Verification) ([]byte, error) {
	if err := v.check(); err != nil {
		return nil, err
	}
	return encMode.Marshal(verificationBody{
		Version: VerificationVersion, Sequence: v.Sequence, Manifest: v.Manifest[:], Level: v.Level, At: millis(v.At), OK: v.OK,
		Checked: v.Checked, Packs: v.Packs, Turn: v.Turn, Objects: v.Objects, Problems: v.Problems, KeysUsed: v.KeysUsed, Software: v.Software,
	})
}

// EncodeVerification puts body and signature, which may be empty, together.
func EncodeVerification(body []byte, s hsm.LineageSignature) ([]byte, error) {
	return encodeRecord(verifiedHeader, verificationFile{Body: body, Public: s.Public, Signature: s.Signature}, MaxRecord)
}

// DecodeVerification reads stored bytes. What it returns is a claim until the
// signature, if there is one, is verified. ErrVersion, ErrCorrupt.
func DecodeVerification(stored []byte) (v Verification, body []byte, s hsm.LineageSignature, err error) {
	var f verificationFile
	if err := decodeStored(stored, verifiedHeader, "record", MaxRecord, &f); err != nil {
		return v, nil, s, err
	}
	if err := checkVersion(f.Body, "record", 1, VerificationVersion); err != nil {
		return v, nil, s, err
	}
	var b verificationBody
	if err := decodeCanonical(f.Body, &b); err != nil {
		return v, nil, s, err
	}
	if err := checkMillis("record", b.At); err != nil {
		return v, nil, s, err
	}
	if len(b.Manifest) != 32 || (len(f.Public) == 0) != (len(f.Signature) == 0) {
		return v, nil, s, fmt.Errorf("%w: record: a field has the wrong size", ErrCorrupt)
	}
	v = Verification{
		Sequence: b.Sequence, Manifest: Name(b.Manifest), Level: b.Level, At: fromMillis(b.At), OK: b.OK, Checked: b.Checked,
		Packs: b.Packs, Turn: b.Turn, Objects: b.Objects, Problems: b.Problems, KeysUsed: b.KeysUsed, Software: b.Software,
	}
	return v, f.Body, hsm.LineageSignature{Public: f.Public, Signature: f.Signature}, v.check()
}

func (v Verification) check() error {
	switch {
	case v.Sequence == 0 || v.Sequence > MaxSequence:
		return fmt.Errorf("%w: record: snapshot %d", ErrCorrupt, v.Sequence)
	case v.Level == 0 || v.Level > MaxLevel:
		return fmt.Errorf("%w: record: level %d", ErrCorrupt, v.Level)
	case v.Checked > v.Packs || v.Packs > MaxPacks:
		return fmt.Errorf("%w: record: %d of %d packs", ErrCorrupt, v.Checked, v.Packs)
	case v.OK && v.Problems != 0:
		return fmt.Errorf("%w: record: good with %d problems", ErrCorrupt, v.Problems)
	}
	return checkRecordTexts("record", v.Software)
}
