package hsm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"hash"
	"math"
)

// FormatVersion is the newest version of the masked object format, and what its first
// field is at most: 1 of all objects but keys with rivals, which are of version 2,
// so that software that does not know what a rival is says so.
const FormatVersion = 2

const (
	versionPlain  = 1
	versionRivals = 2
)

// MaxMasked is the largest masked object accepted, in bytes: an RSA-4096 pair's
// private key with every attribute and 1,024 shares fits several times.
const MaxMasked = 256 << 10

const (
	sivSize  = sha256.Size
	sealTag  = 16 // of AES-256-GCM
	maxSmall = math.MaxInt32
)

// noEpoch stands in a tombstone's header: nothing in it is sealed, so that
// rotating the masking key does not touch it.
const noEpoch = 0

// nonce is zero because no AEAD key seals two plaintexts.
var nonce [12]byte

// envelope is the outer CBOR array of a masked object (FORMAT.md §3).
type envelope struct {
	version uint64
	epoch   uint64
	siv     []byte
	clear   []byte
	sealed  []byte // empty for a tombstone
}

// claim is a decoded clear part.
type claim struct {
	lineage Lineage
	record  Record // without what is sealed
}

// Mask seals the record under the newest masking key. Equal records give equal
// bytes on every HSM of the lineage. ErrInvalid if the record could not be
// unmasked again: kind, reference or cluster do not fit, a name is not UTF-8,
// a tombstone still holds something, or the object would exceed MaxMasked.
func (k *Keyring) Mask(r *Record) (MaskedObject, error) {
	if err := r.check(); err != nil {
		return MaskedObject{}, fmt.Errorf("%w: mask %s %s: %w", ErrInvalid, r.Kind, r.Ref, err)
	}
	env := envelope{version: r.version(), epoch: noEpoch, clear: k.encodeClear(r)}
	var hidden []byte
	if !r.Destroyed {
		env.epoch, hidden = k.epoch, encodeHidden(r)
		defer clear(hidden)
	}
	env.siv = k.siv(env.clear, hidden)
	b, err := k.seal(&env, hidden)
	if err != nil {
		return MaskedObject{}, fmt.Errorf("mask %s: %w", r.Ref, err)
	}
	if len(b) > MaxMasked {
		return MaskedObject{}, fmt.Errorf("%w: mask %s: %d bytes, at most %d; share the key with fewer users", ErrInvalid, r.Ref, len(b), MaxMasked)
	}
	return MaskedObject{Object: env.object(r), Lineage: k.lineage, Bytes: b}, nil
}

// seal encodes the envelope and encrypts hidden straight into its place.
func (k *Keyring) seal(env *envelope, hidden []byte) ([]byte, error) {
	b := make([]byte, 0, len(env.clear)+len(hidden)+sivSize+sealTag+32)
	if len(hidden) == 0 {
		return env.append(b), nil
	}
	aead, err := k.aead(env.epoch, env.siv)
	if err != nil {
		return nil, err
	}
	b = appendHead(env.appendOpen(b), cborBytes, uint64(len(hidden)+aead.Overhead()))
	return aead.Seal(b, nonce[:], hidden, env.clear), nil
}

// Unmask opens and authenticates a masked object. ErrLineage if it is another
// lineage's; ErrCorrupt if any bit differs from what Mask wrote, or if its
// Object fields do not match its bytes.
func (k *Keyring) Unmask(m MaskedObject) (*Record, error) {
	env, part, err := decodeMasked(m.Bytes)
	if err != nil {
		return nil, err
	}
	r := &part.record
	if err := k.checkLineage(m, part); err != nil {
		return nil, err
	}
	hidden, err := k.openHidden(env)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", r.Ref, err)
	}
	defer clear(hidden)
	if subtle.ConstantTimeCompare(k.siv(env.clear, hidden), env.siv) != 1 {
		return nil, fmt.Errorf("%w: object %s does not authenticate", ErrCorrupt, r.Ref)
	}
	if m.Object != env.object(r) {
		return nil, fmt.Errorf("%w: object %s does not match its header", ErrCorrupt, r.Ref)
	}
	if !r.Destroyed {
		if err := r.decodeHidden(hidden); err != nil {
			return nil, fmt.Errorf("object %s: %w", r.Ref, err)
		}
	}
	return r, nil
}

func (k *Keyring) checkLineage(m MaskedObject, part *claim) error {
	for _, got := range []Lineage{part.lineage, m.Lineage} {
		if got != k.lineage {
			return fmt.Errorf("%w: object %s is of %s, this HSM of %s", ErrLineage, part.record.Ref, got, k.lineage)
		}
	}
	return nil
}

func (k *Keyring) openHidden(env *envelope) ([]byte, error) {
	if len(env.sealed) == 0 {
		return nil, nil
	}
	aead, err := k.aead(env.epoch, env.siv)
	if err != nil {
		return nil, err
	}
	hidden, err := aead.Open(nil, nonce[:], env.sealed, env.clear)
	if err != nil {
		return nil, fmt.Errorf("%w: does not authenticate", ErrCorrupt)
	}
	return hidden, nil
}

// aead derives the one-time key of one state: the nonce may be zero because no
// two plaintexts share a synthetic IV.
func (k *Keyring) aead(epoch uint64, siv []byte) (cipher.AEAD, error) {
	masking, ok := k.masking[epoch]
	if !ok {
		return nil, maskingKeyError(epoch)
	}
	key := sealKey((*[KeySize]byte)(masking.Reveal()), (*[sivSize]byte)(siv))
	defer clear(key[:])
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// sivHeader separates synthetic IVs from what else is computed under their key.
var sivHeader = []byte("hsmbackup masked object v1\x00")

func (k *Keyring) siv(clearBytes, hidden []byte) []byte {
	m := hmac.New(sha256.New, k.mac.Reveal())
	m.Write(sivHeader)
	writeLengthPrefixed(m, clearBytes, hidden)
	return m.Sum(make([]byte, 0, sivSize))
}

func writeLengthPrefixed(m hash.Hash, parts ...[]byte) {
	var n [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		m.Write(n[:])
		m.Write(p)
	}
}

// ParseMasked reads the clear part of a masked object without any key. What it
// returns is a claim until an HSM unmasks it. ErrCorrupt if it does not decode.
// The MaskedObject's Bytes are b itself.
func ParseMasked(b []byte) (MaskedObject, *Record, error) {
	env, part, err := decodeMasked(b)
	if err != nil {
		return MaskedObject{}, nil, err
	}
	return MaskedObject{Object: env.object(&part.record), Lineage: part.lineage, Bytes: b}, &part.record, nil
}

// Columns are the two halves of a masked object: Clear compresses, Opaque
// (version, epoch, synthetic IV and ciphertext) does not.
type Columns struct{ Clear, Opaque []byte }

// SplitMasked separates a masked object into its columns; JoinMasked is the
// inverse, to the byte. Clear may alias b. ErrCorrupt if the envelope does not
// decode; the clear part is not looked into.
func SplitMasked(b []byte) (Columns, error) {
	env, err := openEnvelope(b)
	if err != nil {
		return Columns{}, err
	}
	return Columns{Clear: env.clear, Opaque: env.appendOpaque(make([]byte, 0, len(env.sealed)+sivSize+32))}, nil
}

func (e *envelope) appendOpaque(b []byte) []byte {
	b = appendUint(appendUint(append(b, cborArray|4), e.version), e.epoch)
	return appendBytes(appendBytes(b, e.siv), e.sealed)
}

// JoinMasked puts the columns together again. ErrCorrupt if Opaque does not
// decode or the object would exceed MaxMasked.
func JoinMasked(c Columns) ([]byte, error) {
	return AppendJoined(make([]byte, 0, JoinedBound(c)), c)
}

// JoinedBound is at least the size of what JoinMasked makes of the columns.
func JoinedBound(c Columns) int { return len(c.Clear) + len(c.Opaque) + 16 }

// AppendJoined is JoinMasked behind what is in b. After an error b is returned as it was.
func AppendJoined(b []byte, c Columns) ([]byte, error) {
	in := reader{b: c.Opaque}
	version, err := in.version(4)
	if err != nil {
		return b, err
	}
	env := envelope{version: version, epoch: in.uint(), siv: in.fixed(sivSize), clear: c.Clear, sealed: in.bytes()}
	if !in.done() {
		return b, fmt.Errorf("%w: masked object: the opaque column does not decode", ErrCorrupt)
	}
	joined := env.append(b)
	if n := len(joined) - len(b); n > MaxMasked {
		return b, tooLarge(n)
	}
	return joined, nil
}

func tooLarge(n int) error {
	return fmt.Errorf("%w: masked object of %d bytes, at most %d", ErrCorrupt, n, MaxMasked)
}

func (e *envelope) append(b []byte) []byte { return appendBytes(e.appendOpen(b), e.sealed) }

// appendOpen appends all but the sealed part.
func (e *envelope) appendOpen(b []byte) []byte {
	b = appendUint(appendUint(append(b, cborArray|5), e.version), e.epoch)
	return appendBytes(appendBytes(b, e.siv), e.clear)
}

// version reads the head of an array of n elements and its first, the version,
// which is looked at first: a later version may have more elements.
func (r *reader) version(n uint64) (uint64, error) {
	got, version := r.head(cborArray), r.uint()
	switch {
	case r.bad:
		return 0, fmt.Errorf("%w: masked object does not decode", ErrCorrupt)
	case version < versionPlain || version > FormatVersion:
		return 0, fmt.Errorf("%w: masked object of version %d; this software knows versions 1 to %d", ErrCorrupt, version, FormatVersion)
	case got != n:
		return 0, fmt.Errorf("%w: masked object has %d parts, want %d", ErrCorrupt, got, n)
	}
	return version, nil
}

// version is the oldest version of the format that can say what the record says; a
// state is written in no other.
func (r *Record) version() uint64 {
	if len(r.Rivals) > 0 {
		return versionRivals
	}
	return versionPlain
}

// openEnvelope decodes the envelope, whose parts alias b.
func openEnvelope(b []byte) (env envelope, err error) {
	if len(b) > MaxMasked {
		return env, tooLarge(len(b))
	}
	in := reader{b: b}
	version, err := in.version(5)
	if err != nil {
		return env, err
	}
	env = envelope{version: version, epoch: in.uint(), siv: in.fixed(sivSize), clear: in.bytes(), sealed: in.bytes()}
	if !in.done() {
		return env, fmt.Errorf("%w: masked object: the envelope does not decode", ErrCorrupt)
	}
	return env, nil
}

// decodeMasked decodes envelope and clear part; the claim does not alias b.
func decodeMasked(b []byte) (*envelope, *claim, error) {
	opened, err := openEnvelope(b)
	if err != nil {
		return nil, nil, err
	}
	env := &opened
	part, err := decodeClear(bytes.Clone(env.clear))
	if err != nil {
		return nil, nil, err
	}
	if want := part.record.version(); env.version != want {
		return nil, nil, fmt.Errorf("%w: masked object %s of version %d; what it holds is version %d", ErrCorrupt, part.record.Ref, env.version, want)
	}
	dead := part.record.Destroyed
	if dead != (len(env.sealed) == 0) || dead != (env.epoch == noEpoch) {
		return nil, nil, fmt.Errorf("%w: masked object %s: sealed part and epoch do not fit its state", ErrCorrupt, part.record.Ref)
	}
	return env, part, nil
}

func (e *envelope) object(r *Record) Object {
	return Object{Ref: r.Ref, Kind: r.Kind, Tombstone: r.Destroyed, Digest: Digest(e.siv[:len(Digest{})])}
}
