package hsm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math"
	"unicode/utf8"
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

// Keys of the clear part (FORMAT.md §4).
const (
	keyKind        = 1
	keyRef         = 2
	keyLineage     = 3
	keyCluster     = 4
	keyBirth       = 5
	keyIncarnation = 6
	keyDestroyed   = 7
	keyCore        = 8
	keyRegisters   = 9
	keyStanding    = 10
	keyRivals      = 11

	clearRequired = 1<<keyKind | 1<<keyRef | 1<<keyLineage | 1<<keyBirth | 1<<keyCore
)

func (k *Keyring) encodeClear(r *Record) []byte {
	w := writeFields(make([]byte, 0, 256+registersBound(r.Registers)+512*len(r.Rivals)))
	w.uint(keyKind, uint64(r.Kind))
	w.uint(keyRef, uint64(r.Ref))
	w.bytes(keyLineage, k.lineage[:])
	w.uint(keyCluster, uint64(r.Cluster))
	w.bytes(keyBirth, r.Birth[:])
	w.uint(keyIncarnation, r.Incarnation)
	w.flag(keyDestroyed, r.Destroyed)
	w.key(keyCore)
	w.b = appendCore(w.b, &r.Core)
	w.registers(keyRegisters, r.Registers)
	w.uint(keyStanding, r.Standing)
	w.rivals(keyRivals, r.Rivals)
	return w.b
}

func decodeClear(b []byte) (*claim, error) {
	c, in := &claim{record: Record{Registers: map[string]Register{}, Hidden: map[string]Register{}}}, &reader{b: b}
	seen := in.fields(func(key uint64) { c.decodeField(in, key) })
	if !in.done() || seen&clearRequired != clearRequired {
		return nil, fmt.Errorf("%w: masked object: the clear part does not decode", ErrCorrupt)
	}
	if err := c.record.checkShape(); err != nil { // the reader takes no name that is not UTF-8
		return nil, fmt.Errorf("%w: masked object %s: %w", ErrCorrupt, c.record.Ref, err)
	}
	return c, nil
}

func (c *claim) decodeField(in *reader, key uint64) {
	r := &c.record
	switch key {
	case keyKind:
		r.Kind = Kind(min(in.count(), math.MaxUint8))
	case keyRef:
		r.Ref = KeyRef(in.count())
	case keyLineage:
		c.lineage = Lineage(in.fixed(len(c.lineage)))
	case keyCluster:
		r.Cluster = ClusterID(in.count())
	case keyBirth:
		r.Birth = [16]byte(in.fixed(len(r.Birth)))
	case keyIncarnation:
		r.Incarnation = in.count()
	case keyDestroyed:
		r.Destroyed = in.flag()
	case keyCore:
		in.fields(func(key uint64) { r.Core.decodeField(in, key) })
	case keyRegisters:
		r.Registers = in.registers()
	case keyStanding:
		r.Standing = in.count()
	case keyRivals:
		r.Rivals = in.rivals()
	default:
		in.fail()
	}
}

// Keys of the core (FORMAT.md §4).
const (
	coreClass       = 1
	coreType        = 2
	coreSize        = 3
	coreCurve       = 4
	coreOrigin      = 5
	coreCreated     = 6
	coreOwner       = 7
	corePublic      = 8
	coreCheck       = 9
	corePair        = 10
	coreSensitive   = 11
	coreExtractable = 12
)

func appendCore(b []byte, c *Core) []byte {
	w := writeFields(b)
	w.text(coreClass, string(c.Class))
	w.text(coreType, c.Type)
	w.uint(coreSize, uint64(c.Size))
	w.text(coreCurve, c.Curve)
	w.text(coreOrigin, string(c.Origin))
	if c.Created != (Stamp{}) {
		w.key(coreCreated)
		w.b = appendStamp(append(w.b, cborArray|2), c.Created)
	}
	w.text(coreOwner, c.Owner)
	w.bytes(corePublic, c.Public)
	w.bytes(coreCheck, c.Check)
	w.uint(corePair, uint64(c.Pair))
	w.flag(coreSensitive, c.SensitiveAtBirth)
	w.flag(coreExtractable, c.ExtractableAtBirth)
	return w.b
}

func (c *Core) decodeField(in *reader, key uint64) {
	switch key {
	case coreClass:
		c.Class = Class(in.text())
	case coreType:
		c.Type = in.text()
	case coreSize:
		c.Size = int(min(in.count(), maxSmall+1))
	case coreCurve:
		c.Curve = in.text()
	case coreOrigin:
		c.Origin = Method(in.text())
	case coreCreated:
		in.array(2)
		if c.Created = in.stamp(); c.Created == (Stamp{}) {
			in.fail()
		}
	case coreOwner:
		c.Owner = in.text()
	case corePublic:
		c.Public = in.data()
	case coreCheck:
		c.Check = in.data()
	case corePair:
		c.Pair = KeyRef(in.count())
	case coreSensitive:
		c.SensitiveAtBirth = in.flag()
	case coreExtractable:
		c.ExtractableAtBirth = in.flag()
	default:
		in.fail()
	}
}

// Keys of the sealed part (FORMAT.md §5).
const (
	hiddenMaterial  = 1
	hiddenRegisters = 2
)

// encodeHidden encodes the sealed part of a live record. Its buffer never
// grows, so that no copy of the material is left behind.
func encodeHidden(r *Record) []byte {
	w := writeFields(make([]byte, 0, 16+r.Material.Len()+registersBound(r.Hidden)))
	w.bytes(hiddenMaterial, r.Material.Reveal())
	w.registers(hiddenRegisters, r.Hidden)
	return w.b
}

// registersBound is at least the encoded size of the registers.
func registersBound(m map[string]Register) int {
	n := 9
	for name, reg := range m {
		n += len(name) + len(reg.Value) + 4*9 + 1
	}
	return n
}

// decodeHidden reads the sealed part into r, without aliasing b.
func (r *Record) decodeHidden(b []byte) error {
	in := &reader{b: b}
	in.fields(func(key uint64) {
		switch key {
		case hiddenMaterial:
			r.Material = NewSecret(bytes.Clone(in.data()))
		case hiddenRegisters:
			r.Hidden = cloneRegisters(in.registers())
		default:
			in.fail()
		}
	})
	if !in.done() {
		return fmt.Errorf("%w: the sealed part does not decode", ErrCorrupt)
	}
	return nil
}

// check tells why a record has no masked form.
func (r *Record) check() error {
	if err := r.checkShape(); err != nil {
		return err
	}
	valid := validTexts(&r.Core, r.Registers, r.Hidden)
	for _, v := range r.Rivals {
		valid = valid && validTexts(&v.Core, v.Registers)
	}
	if !valid {
		return errors.New("a name is not UTF-8")
	}
	return nil
}

// checkShape is check, but for the names.
func (r *Record) checkShape() error {
	if _, known := kindNames[r.Kind]; !known {
		return errors.New("its kind does not exist")
	}
	if !r.Ref.valid() {
		return errors.New("a reference has 1 to 63 bits")
	}
	if (r.Kind.Scope() == ScopeCluster) != (r.Cluster != 0) {
		return errors.New("objects of a cluster name it, nothing else does")
	}
	if err := r.checkRivals(); err != nil {
		return err
	}
	return r.checkState()
}

// checkState checks what is said of one birth.
func (r *Record) checkState() error {
	if r.Core.Pair != 0 && !r.Core.Pair.valid() {
		return errors.New("a reference has 1 to 63 bits")
	}
	if r.Core.Size < 0 || r.Core.Size > maxSmall {
		return fmt.Errorf("its size is %d", r.Core.Size)
	}
	if r.Destroyed && !r.erased() {
		return errors.New("a tombstone holds its owner and what lasts, no more")
	}
	return nil
}

// erased tells whether the record holds what Destroy leaves, and no more.
func (r *Record) erased() bool {
	for name, reg := range r.Registers {
		if !lasts(r.Kind, name, reg) {
			return false
		}
	}
	return len(r.Hidden) == 0 && r.Material.Len() == 0 && r.Core.equal(&Core{Owner: r.Core.Owner})
}

func validTexts(c *Core, registers ...map[string]Register) bool {
	for _, s := range []string{string(c.Class), c.Type, c.Curve, string(c.Origin), c.Owner} {
		if !utf8.ValidString(s) {
			return false
		}
	}
	for _, m := range registers {
		for name := range m {
			if !utf8.ValidString(name) {
				return false
			}
		}
	}
	return true
}
