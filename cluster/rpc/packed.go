package rpc

import (
	"encoding/binary"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Fixed binary encodings of what travels by the million (pb/hsm.proto says the
// same in words).

const (
	objectSize   = 8 + 1 + 16
	tombstoneBit = 0x80
	cellFixed    = 24 + 8
)

func appendObject(b []byte, o hsm.Object) []byte {
	kind := byte(o.Kind) &^ tombstoneBit
	if o.Tombstone {
		kind |= tombstoneBit
	}
	b = binary.BigEndian.AppendUint64(b, uint64(o.Ref))
	b = append(b, kind)
	return append(b, o.Digest[:]...)
}

// parseObject reads the first object of b and returns the rest.
func parseObject(b []byte) (o hsm.Object, rest []byte, err error) {
	if len(b) < objectSize {
		return o, nil, invalid("object of %d bytes, want %d", len(b), objectSize)
	}
	o = hsm.Object{
		Ref: hsm.KeyRef(binary.BigEndian.Uint64(b)), Kind: hsm.Kind(b[8] &^ tombstoneBit), Tombstone: b[8]&tombstoneBit != 0,
		Digest: hsm.Digest(b[9:objectSize]),
	}
	return o, b[objectSize:], checkRef(o.Ref)
}

func appendCell(b []byte, c hsm.Cell) []byte {
	b = append(b, c.Item[:]...)
	b = binary.BigEndian.AppendUint64(b, c.Check)
	return binary.AppendVarint(b, c.Count)
}

// parseCell reads the first cell of b and returns the rest.
func parseCell(b []byte) (c hsm.Cell, rest []byte, err error) {
	if len(b) <= cellFixed {
		return c, nil, invalid("cell of %d bytes", len(b))
	}
	count, n := binary.Varint(b[cellFixed:])
	if n <= 0 {
		return c, nil, invalid("cell with a count that does not decode")
	}
	c = hsm.Cell{Item: [24]byte(b[:24]), Check: binary.BigEndian.Uint64(b[24:]), Count: count}
	return c, b[cellFixed+n:], nil
}

func appendMasked(b []byte, m hsm.MaskedObject) []byte {
	return append(binary.AppendUvarint(b, uint64(len(m.Bytes))), m.Bytes...)
}

// parseMasked reads the first masked object of b, whose bytes alias b, and
// returns the rest.
func parseMasked(b []byte) (m hsm.MaskedObject, rest []byte, err error) {
	size, n := binary.Uvarint(b)
	if n <= 0 || size == 0 || size > maxMasked || size > uint64(len(b)-n) {
		return m, nil, invalid("masked object whose length does not fit")
	}
	end := n + int(size)
	if m, err = hsm.PeekMasked(b[n:end:end]); err != nil {
		return m, nil, invalid("%v", err)
	}
	return m, b[end:], nil
}
