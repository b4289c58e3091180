package hsm

import (
	"bytes"
	"fmt"
	"math"
)

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
