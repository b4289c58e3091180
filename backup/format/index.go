package format

import (
	"encoding/binary"
	"fmt"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

const (
	itemSize      = 8 + 1 + 16
	blockSize     = 4 + 4
	indexFixed    = 32 + 8 + 16 + 4 + 4
	tombstoneFlag = 0x80
)

// Index tells what a pack holds, without a key: references, kinds, digests, and
// where the blocks lie, so that one key can be found without reading the rest.
type Index struct {
	Pack     Name
	PackSize uint64
	Lineage  hsm.Lineage
	Blocks   []Block
	Items    []hsm.Object // ascending by reference; item i is the pack's object i
}

// Block is the extent of one block in the decrypted pack.
type Block struct{ Objects, Length uint32 }

// EncodeIndex returns the stored bytes.
func EncodeIndex(x Index) []byte {
	b := make([]byte, 0, len(indexHeader)+indexFixed+len(x.Blocks)*blockSize+len(x.Items)*itemSize)
	b = append(b, indexHeader...)
	b = append(b, x.Pack[:]...)
	b = binary.BigEndian.AppendUint64(b, x.PackSize)
	b = append(b, x.Lineage[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(x.Blocks)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(x.Items)))
	for _, k := range x.Blocks {
		b = binary.BigEndian.AppendUint32(b, k.Objects)
		b = binary.BigEndian.AppendUint32(b, k.Length)
	}
	for _, o := range x.Items {
		b = appendItem(b, o)
	}
	return b
}

func appendItem(b []byte, o hsm.Object) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(o.Ref))
	kind := byte(o.Kind)
	if o.Tombstone {
		kind |= tombstoneFlag
	}
	b = append(b, kind)
	return append(b, o.Digest[:]...)
}

// DecodeIndex reads stored bytes. ErrVersion, ErrCorrupt.
func DecodeIndex(stored []byte) (Index, error) {
	b, err := cutHeader(stored, indexHeader)
	if err != nil {
		return Index{}, err
	}
	if len(b) < indexFixed {
		return Index{}, fmt.Errorf("%w: index is truncated", ErrCorrupt)
	}
	x := Index{Pack: Name(b), PackSize: binary.BigEndian.Uint64(b[32:]), Lineage: hsm.Lineage(b[40:])}
	blocks, items := binary.BigEndian.Uint32(b[56:]), binary.BigEndian.Uint32(b[60:])
	b = b[indexFixed:]
	if blocks > maxBlocks || items > MaxPackObjects || uint64(len(b)) != uint64(blocks)*blockSize+uint64(items)*itemSize {
		return Index{}, fmt.Errorf("%w: index of %d blocks and %d items in %d bytes", ErrCorrupt, blocks, items, len(b))
	}
	if x.PackSize == 0 || x.PackSize > MaxStoredPack {
		return Index{}, fmt.Errorf("%w: index of a pack of %d bytes", ErrCorrupt, x.PackSize)
	}
	if err := x.decodeBlocks(b[:blocks*blockSize], items); err != nil {
		return Index{}, err
	}
	return x, x.decodeItems(b[blocks*blockSize:])
}

func (x *Index) decodeBlocks(b []byte, items uint32) error {
	x.Blocks = make([]Block, 0, len(b)/blockSize)
	var objects, length uint64
	for ; len(b) > 0; b = b[blockSize:] {
		k := Block{Objects: binary.BigEndian.Uint32(b), Length: binary.BigEndian.Uint32(b[4:])}
		if k.Objects == 0 || k.Objects > MaxBlockObjects || k.Length < blockHeaderSize || k.Length > maxBlockBytes+blockHeaderSize {
			return fmt.Errorf("%w: index: a block of %d objects and %d bytes", ErrCorrupt, k.Objects, k.Length)
		}
		objects += uint64(k.Objects)
		length += uint64(k.Length)
		x.Blocks = append(x.Blocks, k)
	}
	if objects != uint64(items) || items == 0 || length > x.PackSize {
		return fmt.Errorf("%w: index: blocks hold %d objects in %d bytes, the pack %d in %d", ErrCorrupt, objects, length, items, x.PackSize)
	}
	return nil
}

func (x *Index) decodeItems(b []byte) error {
	x.Items = make([]hsm.Object, 0, len(b)/itemSize)
	var last hsm.KeyRef
	for ; len(b) > 0; b = b[itemSize:] {
		o := hsm.Object{
			Ref: hsm.KeyRef(binary.BigEndian.Uint64(b)), Kind: hsm.Kind(b[8] &^ tombstoneFlag),
			Tombstone: b[8]&tombstoneFlag != 0, Digest: hsm.Digest(b[9:itemSize]),
		}
		if o.Ref <= last || o.Ref>>63 != 0 || !storable(o.Kind) {
			return fmt.Errorf("%w: index: %s %s after %s", ErrCorrupt, o.Kind, o.Ref, last)
		}
		last = o.Ref
		x.Items = append(x.Items, o)
	}
	return nil
}

// storable tells whether snapshots carry the kind: what belongs to one cluster
// stays with it.
func storable(k hsm.Kind) bool {
	return k == hsm.KindKey || k == hsm.KindUser || k == hsm.KindPolicy
}
