package hsm

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
)

// sealInfo separates the keys that seal objects from all others of a masking key.
const sealInfo = "hsmbackup v1 seal"

// sealKey derives the key that seals one state: HKDF-SHA-256 (RFC 5869) of a masking key
// with the state's synthetic IV as salt, of which one block is the key. It is what
// crypto/hkdf computes (TestSealKey), without its dozen allocations: of a million objects
// they cost more than the hashing. The caller wipes what it returns.
func sealKey(masking *[KeySize]byte, siv *[sivSize]byte) [KeySize]byte {
	prk := macBlock(siv, masking[:])
	var info [len(sealInfo) + 1]byte
	copy(info[:], sealInfo)
	info[len(sealInfo)] = 1 // the number of the block
	key := macBlock(&prk, info[:])
	clear(prk[:])
	return key
}

// macBlock is HMAC-SHA-256 (RFC 2104) of a message that fits half a block, under a key
// of 32 bytes.
func macBlock(key *[32]byte, message []byte) [sha256.Size]byte {
	var b [sha256.BlockSize + 32]byte
	pad(b[:], key, &innerPad)
	n := sha256.BlockSize + copy(b[sha256.BlockSize:], message)
	inner := sha256.Sum256(b[:n])
	pad(b[:], key, &outerPad)
	copy(b[sha256.BlockSize:], inner[:])
	sum := sha256.Sum256(b[:])
	clear(b[:])
	return sum
}

// The pads of HMAC.
var (
	innerPad = [sha256.BlockSize]byte(bytes.Repeat([]byte{0x36}, sha256.BlockSize))
	outerPad = [sha256.BlockSize]byte(bytes.Repeat([]byte{0x5c}, sha256.BlockSize))
)

// pad fills one block with the padded key.
func pad(b []byte, key *[32]byte, with *[sha256.BlockSize]byte) {
	copy(b, with[:])
	subtle.XORBytes(b[:len(key)], with[:len(key)], key[:])
}
