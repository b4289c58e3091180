package hsm

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// KeptRef is the reference under which a birth is kept that has to give way to
// another one: the same wherever and however often it is kept.
func (k *Keyring) KeptRef(ref KeyRef, birth [16]byte) KeyRef {
	m := hmac.New(sha256.New, k.mac.Reveal())
	m.Write([]byte("hsmbackup kept key v1\x00"))
	writeLengthPrefixed(m, binary.BigEndian.AppendUint64(nil, uint64(ref)), birth[:])
	return max(KeyRef(binary.BigEndian.Uint64(m.Sum(nil))>>1), 1)
}

// registerKeptFrom names, in a key that is kept, what it was: reference and birth, and
// before them those of what that was kept from.
const registerKeptFrom = "kept-from"

const originSize = 8 + 16

// Origin is a key as it was before it was kept under another reference.
type Origin struct {
	Ref   KeyRef
	Birth [16]byte
}

// KeptFrom returns what a key was kept from; nothing of other keys.
func (r *Record) KeptFrom() (from []Origin) {
	for v := r.Registers[registerKeptFrom].Value; len(v) >= originSize; v = v[originSize:] {
		from = append(from, Origin{KeyRef(binary.BigEndian.Uint64(v)), [16]byte(v[8:originSize])})
	}
	return from
}

// Kept returns a live key as it is kept under KeptRef: the same material, core and
// registers, and what it was (KeptFrom), born anew under that reference. States of one
// birth give states of one birth. ErrInvalid if there is nothing to keep.
func (k *Keyring) Kept(r *Record) (*Record, error) {
	if r.Kind != KindKey || r.Destroyed {
		return nil, fmt.Errorf("%w: keep %s %s: it is no live key", ErrInvalid, r.Kind, r.Ref)
	}
	c := r.Clone()
	c.Ref, c.Incarnation, c.Standing, c.Rivals = k.KeptRef(r.Ref, r.Birth), 0, 0, nil
	from := binary.BigEndian.AppendUint64(bytes.Clone(c.Registers[registerKeptFrom].Value), uint64(r.Ref))
	c.Set(registerKeptFrom, append(from, r.Birth[:]...), c.Core.Created)
	var err error
	c.Birth, err = k.Birth(c)
	return c, err
}
