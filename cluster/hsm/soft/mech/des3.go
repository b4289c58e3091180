package mech

import (
	"crypto/des"
	"crypto/fips140"
	"crypto/subtle"
	"fmt"
	"io"
	"math/bits"
)

// Mechanisms of des3 keys: Triple DES with three keys (TDEA, NIST SP 800-67) in the modes
// of AES. They are here for data and protocols that have nothing else.
const (
	DES3CBCPad = "des3-cbc-pad"
	DES3CBC    = "des3-cbc"
	DES3ECB    = "des3-ecb"
	des3Bytes  = 3 * desPart
	desPart    = 8
)

// In FIPS mode (GODEBUG=fips140=on) des3 keys only decrypt what there is: NIST SP
// 800-131A, revision 2, section 2, disallows encryption with TDEA after 2023, and
// leaves decryption as legacy use. CloudHSM draws the same line between its modes.
func des3Ended(what string) error {
	if !fips140.Enabled() {
		return nil
	}
	return refuse(ErrMechanism, "%s with des3 ended in 2023 (NIST SP 800-131A), and this HSM runs in FIPS mode; des3 keys still decrypt", what)
}

// expandDES3 takes keys as PKCS #11 has them: with odd parity in each byte. Two parts
// that are equal make less of the key than it looks like, and are refused; CloudHSM
// calls that key reuse, and does not have it either.
func (k *secretKey) expandDES3() (err error) {
	if !oddParity(k.raw) {
		return refuse(ErrKey, "a des3 key whose bytes do not all have odd parity")
	}
	for _, pair := range [][2]int{{0, 1}, {1, 2}, {0, 2}} {
		a, b := k.raw[pair[0]*desPart:][:desPart], k.raw[pair[1]*desPart:][:desPart]
		if subtle.ConstantTimeCompare(a, b) == 1 {
			return refuse(ErrKey, "a des3 key with two equal parts of eight bytes")
		}
	}
	if k.block, err = des.NewTripleDESCipher(k.raw); err != nil {
		return refuse(ErrMechanism, "des3 is not available: %v", err)
	}
	return nil
}

func oddParity(raw []byte) bool {
	odd := 1
	for _, b := range raw {
		odd &= bits.OnesCount8(b)
	}
	return odd == 1
}

// FinishDerived makes a key of derived bytes: those of a des3 key get odd parity, in their
// lowest bits, as PKCS #11 has it. In FIPS mode none is derived: [ErrMechanism]. Keys of
// other types are what was derived.
func FinishDerived(t KeyType, raw []byte) error {
	if t != DES3 {
		return nil
	}
	setParity(raw)
	return des3Ended("making keys")
}

func setParity(raw []byte) {
	for i, b := range raw {
		raw[i] = b&^1 | byte(1^bits.OnesCount8(b>>1)&1)
	}
}

// generateSecret makes the bytes of a secret key.
func generateSecret(random io.Reader, s Spec) ([]byte, error) {
	if s.Type != DES3 {
		return randomBytes(random, s.Size)
	}
	if err := des3Ended("making keys"); err != nil {
		return nil, err
	}
	// Two equal parts come once in 2⁵⁴ keys; a source that makes them again is none.
	for range 3 {
		raw, err := randomBytes(random, des3Bytes)
		if err != nil {
			return nil, err
		}
		setParity(raw)
		if (&secretKey{raw: raw}).expandDES3() == nil {
			return raw, nil
		}
	}
	return nil, fmt.Errorf("%w: it repeats itself", errRandom)
}
