package hsm

import (
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

// Kept returns a live key as it is kept under KeptRef: the same material, core and
// registers, born anew under that reference. States of one birth give states of one
// birth. ErrInvalid if there is nothing to keep.
func (k *Keyring) Kept(r *Record) (*Record, error) {
	if r.Kind != KindKey || r.Destroyed {
		return nil, fmt.Errorf("%w: keep %s %s: it is no live key", ErrInvalid, r.Kind, r.Ref)
	}
	c := r.Clone()
	c.Ref, c.Incarnation, c.Standing, c.Rivals = k.KeptRef(r.Ref, r.Birth), 0, 0, nil
	var err error
	c.Birth, err = k.Birth(c)
	return c, err
}
