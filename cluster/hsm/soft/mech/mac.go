package mech

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/subtle"
)

// MAC authenticates data: "hmac" with a hash under a generic-secret key, "aes-cmac"
// (NIST SP 800-38B) under an aes key. MACLength cuts an hmac
// to its leading bytes. A mechanism that is not for this type of key is [ErrMechanism].
func (k *SecretKey) MAC(p SignParams, data []byte) ([]byte, error) {
	if p.Digest || p.SaltLength != 0 {
		return nil, refuse(ErrParam, "%.40q takes data, no digest and no salt length", p.Mechanism)
	}
	switch p.Mechanism {
	case HMAC:
		mac, err := k.k().hmac(p.Hash, data)
		if err != nil || p.MACLength == 0 {
			return mac, err
		}
		if p.MACLength < 1 || p.MACLength > len(mac) {
			return nil, refuse(ErrParam, "a MAC of %d bytes, there are 1 to %d", p.MACLength, len(mac))
		}
		return mac[:p.MACLength:p.MACLength], nil
	case AESCMAC:
		if p.MACLength != 0 {
			return nil, refuse(ErrParam, "%s is not cut", AESCMAC)
		}
		if p.Hash != "" {
			return nil, refuse(ErrHash, "%s takes no hash, %.40q was given", AESCMAC, p.Hash)
		}
		if err := k.k().needAES(AESCMAC); err != nil {
			return nil, err
		}
		mac := k.k().cmac.sum(k.k().block, data)
		return mac[:], nil
	}
	return nil, refuse(ErrMechanism, "%.40q does not authenticate; there are %s", p.Mechanism, macNames)
}

// VerifyMAC returns nil if mac is the MAC of data, of the length that p asks for, and [ErrSignature] if it is not; the
// comparison takes constant time. Other errors are those of [SecretKey.MAC].
func (k *SecretKey) VerifyMAC(p SignParams, data, mac []byte) error {
	want, err := k.MAC(p, data)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(want, mac) != 1 {
		return ErrSignature
	}
	return nil
}

func (k *secretKey) hmac(hash string, data []byte) ([]byte, error) {
	h, err := parseHash(hash)
	if err != nil {
		return nil, err
	}
	if k.spec.Type != GenericSecret {
		return nil, refuse(ErrMechanism, "%s needs a generic-secret key, this is %s", HMAC, k.spec.Type)
	}
	m := hmac.New(h.New, k.raw)
	m.Write(data)
	return m.Sum(nil), nil
}

type cmacBlock [aes.BlockSize]byte

// cmacSubkeys are K1 and K2 of NIST SP 800-38B, section 6.1.
type cmacSubkeys struct{ k1, k2 cmacBlock }

func newCMACSubkeys(b cipher.Block) cmacSubkeys {
	var l cmacBlock
	b.Encrypt(l[:], l[:])
	k1 := l.double()
	return cmacSubkeys{k1: k1, k2: k1.double()}
}

// double multiplies by x in GF(2¹²⁸), without a branch on the value.
func (b cmacBlock) double() (d cmacBlock) {
	for i := range len(b) - 1 {
		d[i] = b[i]<<1 | b[i+1]>>7
	}
	d[len(d)-1] = b[len(b)-1]<<1 ^ 0x87&-(b[0]>>7)
	return d
}

// sum computes the MAC of section 6.2. A last block that is whole, in a message that is
// not empty, takes K1; any other is padded with 10…0 and takes K2.
func (s *cmacSubkeys) sum(b cipher.Block, data []byte) (c cmacBlock) {
	for len(data) > aes.BlockSize {
		subtle.XORBytes(c[:], c[:], data[:aes.BlockSize])
		b.Encrypt(c[:], c[:])
		data = data[aes.BlockSize:]
	}
	last, key := cmacBlock{}, &s.k1
	if n := copy(last[:], data); n < aes.BlockSize {
		last[n], key = 0x80, &s.k2
	}
	subtle.XORBytes(last[:], last[:], key[:])
	subtle.XORBytes(c[:], c[:], last[:])
	b.Encrypt(c[:], c[:])
	return c
}
