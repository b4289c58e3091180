package mech

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"math/big"
)

// gcmWith is aes-gcm with a nonce and tag of the caller's choosing. Tags shorter than
// 16 bytes are for nonces of 12.
func (k *secretKey) gcmWith(p CryptParams) (cipher.AEAD, error) {
	tag := p.TagLength
	if tag == 0 {
		tag = 16
	}
	var aead cipher.AEAD
	var err error
	switch {
	case tag < 12 || tag > 16:
		return nil, refuse(ErrParam, "a tag of %d bytes; there are 12 to 16", tag)
	case len(p.IV) > 256:
		return nil, refuse(ErrParam, "a nonce of %d bytes; there are 1 to 256", len(p.IV))
	case tag == 16:
		aead, err = cipher.NewGCMWithNonceSize(k.block, len(p.IV))
	case len(p.IV) == 12:
		aead, err = cipher.NewGCMWithTagSize(k.block, tag)
	default:
		return nil, refuse(ErrParam, "a tag of %d bytes takes a nonce of 12, not %d", tag, len(p.IV))
	}
	if err != nil {
		return nil, refuse(ErrParam, "%s with this nonce and tag is not available: %v", AESGCM, err)
	}
	return aead, nil
}

func (k *secretKey) openGCMWith(p CryptParams, data []byte, failed error) ([]byte, error) {
	aead, err := k.gcmWith(p)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, p.IV, data, p.AAD)
	if err != nil {
		return nil, failed
	}
	return plain, nil
}

// blockMode is aes-cbc, aes-ecb and aes-ctr, and the first two with des3: as many bytes come out as go in.
func (k *secretKey) blockMode(p CryptParams, data []byte, encrypt bool) ([]byte, error) {
	if err := k.checkBlockMode(p, data, encrypt); err != nil {
		return nil, err
	}
	out := bytes.Clone(data)
	switch p.name() {
	case AESCTR:
		cipher.NewCTR(k.block, p.IV).XORKeyStream(out, out)
	case AESECB, DES3ECB:
		n := k.block.BlockSize()
		for b := out; len(b) > 0; b = b[n:] {
			if encrypt {
				k.block.Encrypt(b[:n], b[:n])
			} else {
				k.block.Decrypt(b[:n], b[:n])
			}
		}
	default:
		if encrypt {
			cipher.NewCBCEncrypter(k.block, p.IV).CryptBlocks(out, out)
		} else {
			cipher.NewCBCDecrypter(k.block, p.IV).CryptBlocks(out, out)
		}
	}
	return out, nil
}

func (k *secretKey) checkBlockMode(p CryptParams, data []byte, encrypt bool) error {
	name := p.name()
	if err := k.checkBlockKey(name, encrypt); err != nil {
		return err
	}
	block := k.block.BlockSize()
	iv := block
	if name == AESECB || name == DES3ECB {
		iv = 0
	}
	switch {
	case len(p.AAD) > 0:
		return refuse(ErrParam, "%s has no additional authenticated data", name)
	case len(p.IV) != iv:
		return refuse(ErrParam, "an IV of %d bytes, %s wants %d", len(p.IV), name, iv)
	case name != AESCTR && len(data)%block != 0:
		return refuse(ErrDataLen, "%d bytes; %s takes whole blocks of %d", len(data), name, block)
	case name == AESCTR:
		if err := checkCounter(p, len(data)); err != nil {
			return err
		}
	}
	return noHash(p)
}

// checkCounter refuses data so long that the counting bits would begin anew.
func checkCounter(p CryptParams, n int) error {
	const all = 8 * aes.BlockSize
	bits := p.CounterBits
	switch {
	case bits == 0 || bits == all:
		return nil
	case bits < 1 || bits > all:
		return refuse(ErrParam, "a counter of %d bits; there are 1 to %d", bits, all)
	}
	end := new(big.Int).Lsh(big.NewInt(1), uint(bits))
	start := new(big.Int).SetBytes(p.IV)
	left := end.Sub(end, start.Mod(start, end))
	if blocks := big.NewInt(int64(n+aes.BlockSize-1) / aes.BlockSize); blocks.Cmp(left) > 0 {
		return refuse(ErrDataLen, "%d bytes; after %s blocks the counter of %d bits would repeat", n, left, bits)
	}
	return nil
}
