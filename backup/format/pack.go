package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// The types of a block, its first byte.
const (
	blockEnd     = 0
	blockObjects = 1
)

const (
	blockHeaderSize = 1 + 4*4
	endSize         = 1 + 4 + 4
)

// Pack is a finished pack: what to store and under which name, and its index.
type Pack struct {
	Name   Name
	Stored []byte // valid until the writer is reset
	Index  Index
	Epochs []uint64 // of the masking keys that its objects need, ascending
}

// PackWriter makes packs in memory, one after the other, from blocks of masked
// objects in ascending order of reference. It is not safe for concurrent use:
// take one for each worker.
type PackWriter struct {
	recipients []age.Recipient
	lineage    hsm.Lineage
	zstd       *zstd.Encoder
	buf        *bytes.Buffer
	age        io.WriteCloser
	index      Index
	last       hsm.KeyRef
	epochs     []uint64
	clear      []byte   // scratch: lengths and clear parts
	opaque     []byte   // scratch: opaque parts
	parts      [][]byte // scratch: the clear parts of a block
	block      []byte   // scratch: a block up to its opaque column
}

// Reserve sees to it that a pack of n stored bytes is made without growing the
// buffer, which would hold it twice.
func (w *PackWriter) Reserve(n int) { w.buf.Grow(max(0, n-w.buf.Len())) }

// NewPackWriter returns a writer of packs for objects of one lineage.
func NewPackWriter(lineage hsm.Lineage, recipients []age.Recipient) (*PackWriter, error) {
	if len(recipients) == 0 {
		return nil, errors.New("pack: no recipient: the pack could never be read again")
	}
	// What is no repetition in a clear column is nearly all of it random: references,
	// births, stamps. Coding its entropy takes a third of the time and saves nothing.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithNoEntropyCompression(true),
		zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("pack: zstd: %w", err)
	}
	w := &PackWriter{recipients: recipients, lineage: lineage, zstd: enc, buf: new(bytes.Buffer)}
	return w, nil
}

// Size is the number of bytes stored so far; 0 before the first block.
func (w *PackWriter) Size() int { return w.buf.Len() }

// Append adds the objects as one block. References ascend strictly within a
// pack; each object is of the writer's lineage and is what its bytes say it is
// (ErrCorrupt, hsm.ErrLineage).
func (w *PackWriter) Append(objects []hsm.MaskedObject) error {
	if len(objects) == 0 {
		return nil
	}
	if w.age == nil {
		if err := w.start(); err != nil {
			return err
		}
	}
	if len(objects) > MaxBlockObjects || len(w.index.Items)+len(objects) > MaxPackObjects || len(w.index.Blocks) >= maxBlocks {
		return fmt.Errorf("pack: %d objects are too many for one block or pack", len(objects))
	}
	if err := w.columns(objects); err != nil {
		return err
	}
	w.encodeBlock(len(objects))
	for _, column := range [][]byte{w.block, w.opaque} {
		if _, err := w.age.Write(column); err != nil {
			return fmt.Errorf("pack: encrypt: %w", err)
		}
	}
	w.index.Blocks = append(w.index.Blocks, Block{Objects: uint32(len(objects)), Length: uint32(len(w.block) + len(w.opaque))})
	return nil
}

func (w *PackWriter) start() error {
	w.buf.WriteString(packHeader)
	a, err := age.Encrypt(w.buf, w.recipients...)
	if err != nil {
		return fmt.Errorf("pack: recipients: %w", err)
	}
	w.age, w.last = a, 0
	w.index = Index{Lineage: w.lineage}
	return nil
}

// columns fills the scratch columns: the clear one holds all lengths, then all
// clear parts; the opaque one all opaque parts.
func (w *PackWriter) columns(objects []hsm.MaskedObject) error {
	w.parts, w.clear, w.opaque = w.parts[:0], w.clear[:0], w.opaque[:0]
	for _, m := range objects {
		if m.Ref <= w.last {
			return fmt.Errorf("pack: object %s after %s: references must ascend", m.Ref, w.last)
		}
		if m.Lineage != w.lineage {
			return fmt.Errorf("%w: object %s is of %s, the pack of %s", hsm.ErrLineage, m.Ref, m.Lineage, w.lineage)
		}
		before := len(w.opaque)
		claim, epoch, opaque, part, err := hsm.PeekColumns(w.opaque, m.Bytes)
		if err := check(m, claim, err); err != nil {
			return err
		}
		w.opaque = opaque
		w.parts, w.last = append(w.parts, part), m.Ref
		if i, known := slices.BinarySearch(w.epochs, epoch); !known && epoch != 0 {
			w.epochs = slices.Insert(w.epochs, i, epoch)
		}
		w.clear = binary.AppendUvarint(w.clear, uint64(len(part)))
		w.clear = binary.AppendUvarint(w.clear, uint64(len(w.opaque)-before))
		w.index.Items = append(w.index.Items, m.Object)
	}
	for i, part := range w.parts {
		w.clear = append(w.clear, part...)
		w.parts[i] = nil
	}
	if len(w.clear) > maxColumn || len(w.opaque) > maxColumn {
		return fmt.Errorf("pack: a block of %d and %d bytes is too large", len(w.clear), len(w.opaque))
	}
	return nil
}

// check compares an object with what its bytes claim. Whether the claim is true
// only an HSM can tell.
func check(m, claim hsm.MaskedObject, err error) error {
	switch {
	case err != nil:
		return fmt.Errorf("object %s: %w", m.Ref, err)
	case claim.Object != m.Object:
		return fmt.Errorf("%w: object %s does not match its bytes", hsm.ErrCorrupt, m.Ref)
	case claim.Lineage != m.Lineage:
		return fmt.Errorf("%w: object %s is of %s, not of %s", hsm.ErrLineage, m.Ref, claim.Lineage, m.Lineage)
	}
	return nil
}

// encodeBlock makes the head and the compressed column; the opaque column goes
// to age as it is.
func (w *PackWriter) encodeBlock(objects int) {
	var head [blockHeaderSize]byte
	b := append(w.block[:0], head[:]...)
	b = w.zstd.EncodeAll(w.clear, b)
	compressed := len(b) - blockHeaderSize
	b[0] = blockObjects
	for i, n := range []int{objects, len(w.clear), compressed, len(w.opaque)} {
		binary.BigEndian.PutUint32(b[1+4*i:], uint32(n))
	}
	w.block = b
}

// Finish ends the pack. Its bytes are valid until Reset.
func (w *PackWriter) Finish() (Pack, error) {
	if w.age == nil {
		return Pack{}, errors.New("pack: nothing was appended")
	}
	end := make([]byte, 0, endSize)
	end = append(end, blockEnd)
	end = binary.BigEndian.AppendUint32(end, uint32(len(w.index.Blocks)))
	end = binary.BigEndian.AppendUint32(end, uint32(len(w.index.Items)))
	if _, err := w.age.Write(end); err != nil {
		return Pack{}, fmt.Errorf("pack: encrypt: %w", err)
	}
	if err := w.age.Close(); err != nil {
		return Pack{}, fmt.Errorf("pack: encrypt: %w", err)
	}
	name := NameOf(w.buf.Bytes())
	w.index.Pack, w.index.PackSize = name, uint64(w.buf.Len())
	return Pack{Name: name, Stored: w.buf.Bytes(), Index: w.index, Epochs: w.epochs}, nil
}

// Reset makes the writer ready for the next pack and takes its buffer back.
func (w *PackWriter) Reset() {
	w.buf.Reset()
	w.age, w.index, w.last, w.epochs = nil, Index{}, 0, nil
}

// PackReader reads a pack block by block. It authenticates what it yields as
// far as age does: as written by someone who knew the recipients. Who wrote it
// is told by the manifest that names the pack, and whether an object is real
// only by an HSM.
type PackReader struct {
	plain   io.Reader
	zstd    *zstd.Decoder
	blocks  uint32
	objects uint32
	header  [blockHeaderSize]byte
	packed  []byte    // scratch
	clear   []byte    // scratch: of the block
	block   BlockData // the last one
}

// NewPackReader opens a pack. ErrVersion, ErrIdentity, ErrCorrupt. Close it.
func NewPackReader(stored []byte, identities []age.Identity) (*PackReader, error) {
	if len(stored) > MaxStoredPack {
		return nil, fmt.Errorf("%w: pack of %d bytes, at most %d", ErrCorrupt, len(stored), MaxStoredPack)
	}
	body, err := cutHeader(stored, packHeader)
	if err != nil {
		return nil, err
	}
	plain, err := Decrypt(body, identities)
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxColumn), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("pack: zstd: %w", err)
	}
	return &PackReader{plain: plain, zstd: dec}, nil
}

// Close releases the decompressor.
func (r *PackReader) Close() { r.zstd.Close() }

// Decrypt opens age ciphertext. ErrIdentity if no identity fits, ErrCorrupt if
// the header does not parse or authenticate; the reader it returns reports
// damage further on as errors that are none of this package's.
func Decrypt(ciphertext []byte, identities []age.Identity) (io.Reader, error) {
	if len(identities) == 0 {
		return nil, fmt.Errorf("%w: none was given", ErrIdentity)
	}
	r, err := age.Decrypt(bytes.NewReader(ciphertext), identities...)
	var mismatch *age.NoIdentityMatchError
	switch {
	case errors.As(err, &mismatch):
		return nil, fmt.Errorf("%w: encrypted to other recipients", ErrIdentity)
	case err != nil:
		return nil, fmt.Errorf("%w: age header: %w", ErrCorrupt, err)
	}
	return r, nil
}

// BlockData is one decoded block. It is valid until the next call of Next.
type BlockData struct {
	size   int
	bounds []columnBounds
	clear  []byte
	opaque []byte
}

type columnBounds struct{ clearEnd, opaqueEnd int }

// Size is the length of the block in the decrypted pack.
func (b *BlockData) Size() int { return b.size }

// Len is the number of objects.
func (b *BlockData) Len() int { return len(b.bounds) }

// Columns returns the halves of object i, which share memory with the block.
func (b *BlockData) Columns(i int) hsm.Columns {
	var from columnBounds
	if i > 0 {
		from = b.bounds[i-1]
	}
	to := b.bounds[i]
	return hsm.Columns{Clear: b.clear[from.clearEnd:to.clearEnd], Opaque: b.opaque[from.opaqueEnd:to.opaqueEnd]}
}

// Next returns the next block, and io.EOF after the end block if nothing
// follows it. Anything else is ErrCorrupt.
func (r *PackReader) Next() (*BlockData, error) {
	if err := r.read(r.header[:1]); err != nil {
		return nil, err
	}
	switch r.header[0] {
	case blockEnd:
		return nil, r.end()
	case blockObjects:
		return r.objectsBlock()
	}
	return nil, fmt.Errorf("%w: block of type %d", ErrCorrupt, r.header[0])
}

func (r *PackReader) read(b []byte) error {
	_, err := io.ReadFull(r.plain, b)
	if errors.Is(err, io.EOF) { // io.EOF itself is kept for the end block
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("%w: block %d: %w", ErrCorrupt, r.blocks, err)
	}
	return nil
}

func (r *PackReader) end() error {
	var b [endSize - 1]byte
	if err := r.read(b[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(b[:]) != r.blocks || binary.BigEndian.Uint32(b[4:]) != r.objects {
		return fmt.Errorf("%w: the end block counts otherwise", ErrCorrupt)
	}
	if n, err := r.plain.Read(b[:1]); n != 0 || err != io.EOF {
		return fmt.Errorf("%w: bytes after the end block", ErrCorrupt)
	}
	return io.EOF
}

func (r *PackReader) objectsBlock() (*BlockData, error) {
	if err := r.read(r.header[1:]); err != nil {
		return nil, err
	}
	var n [4]int
	for i := range n {
		v := binary.BigEndian.Uint32(r.header[1+4*i:])
		if v > maxColumn {
			return nil, fmt.Errorf("%w: block %d announces %d, at most %d are allowed", ErrCorrupt, r.blocks, v, maxColumn)
		}
		n[i] = int(v)
	}
	objects, rawClear, packedClear, opaque := n[0], n[1], n[2], n[3]
	if objects == 0 || objects > MaxBlockObjects || r.blocks >= maxBlocks || int(r.objects)+objects > MaxPackObjects {
		return nil, fmt.Errorf("%w: block %d: %d objects", ErrCorrupt, r.blocks, objects)
	}
	b := &r.block
	b.opaque, b.size = resize(b.opaque, opaque), blockHeaderSize+packedClear+opaque
	if err := r.decompress(b, packedClear, rawClear); err != nil {
		return nil, err
	}
	if err := r.read(b.opaque); err != nil {
		return nil, err
	}
	if err := b.split(objects); err != nil {
		return nil, fmt.Errorf("%w: block %d", err, r.blocks)
	}
	r.blocks++
	r.objects += uint32(objects)
	return b, nil
}

func (r *PackReader) decompress(b *BlockData, packed, raw int) error {
	r.packed, r.clear = resize(r.packed, packed), resize(r.clear, raw)
	if err := r.read(r.packed); err != nil {
		return err
	}
	out, err := r.zstd.DecodeAll(r.packed, r.clear[:0:raw]) // no more than that
	if err != nil || len(out) != raw {
		return fmt.Errorf("%w: block %d does not decompress to %d bytes", ErrCorrupt, r.blocks, raw)
	}
	b.clear = out
	return nil
}

// resize returns n bytes, those of b if there are as many.
func resize(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// split reads the lengths, which stand before the clear parts, and finds the
// bounds of every object. The columns must be used up exactly.
func (b *BlockData) split(objects int) error {
	b.bounds = slices.Grow(b.bounds[:0], objects)[:objects]
	var end columnBounds
	rest := b.clear
	for i := range b.bounds {
		var c, o int
		var ok bool
		if c, rest, ok = cutLength(rest); !ok {
			return fmt.Errorf("%w: lengths", ErrCorrupt)
		}
		if o, rest, ok = cutLength(rest); !ok {
			return fmt.Errorf("%w: lengths", ErrCorrupt)
		}
		end.clearEnd += c
		end.opaqueEnd += o
		b.bounds[i] = end
	}
	b.clear = rest
	if end.clearEnd != len(b.clear) || end.opaqueEnd != len(b.opaque) {
		return fmt.Errorf("%w: lengths do not fill the columns", ErrCorrupt)
	}
	return nil
}

// cutLength reads one length in its shortest encoding.
func cutLength(b []byte) (int, []byte, bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 || v > hsm.MaxMasked || v > math.MaxInt32 || (n > 1 && b[n-1] == 0) {
		return 0, nil, false
	}
	return int(v), b[n:], true
}
