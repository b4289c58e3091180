package mech

import (
	"bytes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"math"
)

// AES key wrap, RFC 3394 (KW in NIST SP 800-38F), and key wrap with padding, RFC
// 5649 (KWP). Both work on semiblocks of 8 bytes, in place: the first is the register A, the rest R.

const semiblock = 8

// kwIV is the initial value of RFC 3394, section 2.2.3.1.
var kwIV = [semiblock]byte{0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6}

// kwpPrefix begins the alternative initial value of RFC 5649, section 3; the
// length of the payload in 32 bits ends it.
var kwpPrefix = [4]byte{0xa6, 0x59, 0x59, 0xa6}

func wrapKW(b cipher.Block, payload []byte) ([]byte, error) {
	if len(payload) < 2*semiblock || len(payload)%semiblock != 0 {
		return nil, refuse(ErrDataLen, "%s wraps multiples of 8 bytes from 16, this is %d; %s wraps any length", AESKW, len(payload), AESKWP)
	}
	buf := make([]byte, semiblock+len(payload))
	copy(buf, kwIV[:])
	copy(buf[semiblock:], payload)
	kwForward(b, buf)
	return buf, nil
}

func unwrapKW(b cipher.Block, wrapped []byte) ([]byte, error) {
	if len(wrapped) < 3*semiblock || len(wrapped)%semiblock != 0 {
		return nil, ErrUnwrap
	}
	buf := bytes.Clone(wrapped)
	kwBackward(b, buf)
	if subtle.ConstantTimeCompare(buf[:semiblock], kwIV[:]) != 1 {
		clear(buf)
		return nil, ErrUnwrap
	}
	return buf[semiblock:], nil
}

func wrapKWPKCS5(b cipher.Block, payload []byte) ([]byte, error) {
	if len(payload) < semiblock {
		return nil, refuse(ErrDataLen, "%s wraps 8 bytes and more, this is %d; %s wraps any length", AESKWPKCS5, len(payload), AESKWP)
	}
	pad := semiblock - len(payload)%semiblock
	padded := append(bytes.Clone(payload), bytes.Repeat([]byte{byte(pad)}, pad)...)
	defer clear(padded)
	return wrapKW(b, padded)
}

func unwrapKWPKCS5(b cipher.Block, wrapped []byte) ([]byte, error) {
	padded, err := unwrapKW(b, wrapped)
	if err != nil {
		return nil, err
	}
	pad, ok := padLen(padded[len(padded)-semiblock:])
	if !ok {
		clear(padded)
		return nil, ErrUnwrap
	}
	return padded[:len(padded)-pad], nil
}

func wrapKWP(b cipher.Block, payload []byte) ([]byte, error) {
	if len(payload) == 0 || uint64(len(payload)) > math.MaxUint32-semiblock {
		return nil, refuse(ErrDataLen, "%s wraps 1 to 2³²-9 bytes, this is %d", AESKWP, len(payload))
	}
	padded := (len(payload) + semiblock - 1) / semiblock * semiblock
	buf := make([]byte, semiblock+padded)
	copy(buf, kwpPrefix[:])
	binary.BigEndian.PutUint32(buf[4:], uint32(len(payload)))
	copy(buf[semiblock:], payload)
	if padded == semiblock {
		b.Encrypt(buf, buf)
	} else {
		kwForward(b, buf)
	}
	return buf, nil
}

func unwrapKWP(b cipher.Block, wrapped []byte) ([]byte, error) {
	if len(wrapped) < 2*semiblock || len(wrapped)%semiblock != 0 {
		return nil, ErrUnwrap
	}
	buf := bytes.Clone(wrapped)
	if len(buf) == 2*semiblock {
		b.Decrypt(buf, buf)
	} else {
		kwBackward(b, buf)
	}
	n, ok := kwpLen(buf)
	if !ok {
		clear(buf)
		return nil, ErrUnwrap
	}
	return buf[semiblock : semiblock+n], nil
}

// kwpLen checks prefix, length and padding of an unwrapped buffer, RFC 5649, section
// 3. It makes all checks whichever fails, so that time does not tell them apart.
func kwpLen(buf []byte) (n int, ok bool) {
	room := len(buf) - semiblock
	length := uint64(binary.BigEndian.Uint32(buf[4:]))
	good := subtle.ConstantTimeCompare(buf[:4], kwpPrefix[:])
	// room-8 < length ≤ room, without branches: both differences fit 63 bits.
	good &= int(^(uint64(room)-length)>>63) & int((uint64(room-semiblock)-length)>>63)
	tail := buf[len(buf)-semiblock:]
	used := int(length - uint64(room-semiblock)) // bytes of the payload in tail, if good
	for i, c := range tail {
		isPad := subtle.ConstantTimeLessOrEq(used&0xf, i)
		good &= subtle.ConstantTimeSelect(isPad, subtle.ConstantTimeByteEq(c, 0), 1)
	}
	return int(length), good == 1
}

// kwForward is the wrapping process W of RFC 3394, section 2.2.1, by index.
func kwForward(b cipher.Block, buf []byte) {
	n := len(buf)/semiblock - 1
	var block [2 * semiblock]byte
	copy(block[:], buf[:semiblock])
	for t := uint64(1); t <= uint64(6*n); t++ {
		r := buf[semiblock*(1+int((t-1)%uint64(n))):][:semiblock]
		copy(block[semiblock:], r)
		b.Encrypt(block[:], block[:])
		xorCounter(block[:semiblock], t)
		copy(r, block[semiblock:])
	}
	copy(buf, block[:semiblock])
}

// kwBackward is the unwrapping process of section 2.2.2, by index.
func kwBackward(b cipher.Block, buf []byte) {
	n := len(buf)/semiblock - 1
	var block [2 * semiblock]byte
	copy(block[:], buf[:semiblock])
	for t := uint64(6 * n); t >= 1; t-- {
		r := buf[semiblock*(1+int((t-1)%uint64(n))):][:semiblock]
		xorCounter(block[:semiblock], t)
		copy(block[semiblock:], r)
		b.Decrypt(block[:], block[:])
		copy(r, block[semiblock:])
	}
	copy(buf, block[:semiblock])
}

func xorCounter(a []byte, t uint64) {
	binary.BigEndian.PutUint64(a, binary.BigEndian.Uint64(a)^t)
}
