package mech

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"testing"
)

func TestEncryptDecrypt(t *testing.T) {
	for _, mechanism := range []string{AESGCM, "cloudhsm-aes-gcm", AESCBCPad} {
		for _, size := range []int{16, 24, 32} {
			k, other := aesKey(t, size), aesKey(t, size)
			for _, n := range []int{0, 1, 15, 16, 17, 1000} {
				p := CryptParams{Mechanism: mechanism}
				data := fresh(n)
				ct := must(k.Encrypt(nil, p, data))(t)
				equal(t, mechanism, must(k.Decrypt(nil, p, ct))(t), data)
				if bytes.Equal(ct, must(k.Encrypt(nil, p, data))(t)) {
					t.Errorf("%s: the same IV twice", mechanism)
				}
				if got, err := other.Decrypt(nil, p, ct); mechanism != AESCBCPad || n > 0 && err == nil && bytes.Equal(got, data) {
					wantErr(t, mechanism+" other key", err, ErrDecrypt)
				}
			}
		}
	}
}

func TestGCMIsAuthentic(t *testing.T) {
	k := aesKey(t, 32)
	p := CryptParams{Mechanism: AESGCM, AAD: []byte("context")}
	ct := must(k.Encrypt(nil, p, []byte("data")))(t)
	if len(ct) != 12+4+16 {
		t.Errorf("nonce, data and tag take %d bytes", len(ct))
	}
	flips(ct, 1000, func(bit int, flipped []byte) {
		_, err := k.Decrypt(nil, p, flipped)
		wantErr(t, "flipped bit", err, ErrDecrypt)
	})
	for n := range len(ct) {
		_, err := k.Decrypt(nil, p, ct[:n])
		wantErr(t, "truncated", err, ErrDecrypt)
	}
	_, err := k.Decrypt(nil, CryptParams{Mechanism: AESGCM, AAD: []byte("other")}, ct)
	wantErr(t, "other AAD", err, ErrDecrypt)
	_, err = k.Decrypt(nil, CryptParams{Mechanism: AESGCM}, ct)
	wantErr(t, "no AAD", err, ErrDecrypt)
}

// TestCBCPadding tries every last byte, and compares with the plain reading of PKCS #7.
func TestCBCPadding(t *testing.T) {
	k := aesKey(t, 16)
	p := CryptParams{Mechanism: AESCBCPad}
	for last := range 256 {
		for _, spoil := range []int{-1, 0, 1, 8, 14} {
			block := bytes.Repeat([]byte{byte(last)}, 16)
			if spoil >= 0 {
				block[spoil] ^= 0x40
			}
			ct := make([]byte, 32)
			cipher.NewCBCEncrypter(k.k().block, ct[:16]).CryptBlocks(ct[16:], block)
			got, err := k.Decrypt(nil, p, ct)
			if want, ok := plainUnpad(block); !ok {
				wantErr(t, "bad padding", err, ErrDecrypt)
			} else if err != nil || !bytes.Equal(got, want) {
				t.Errorf("padding %d, spoilt at %d: %x, %v", last, spoil, got, err)
			}
		}
	}
	for _, n := range []int{0, 1, 15, 16, 17, 31, 33, 40} {
		_, err := k.Decrypt(nil, p, make([]byte, n))
		wantErr(t, "bad length", err, ErrDecrypt)
	}
}

func plainUnpad(b []byte) ([]byte, bool) {
	n := int(b[len(b)-1])
	if n < 1 || n > aes.BlockSize {
		return nil, false
	}
	for _, c := range b[len(b)-n:] {
		if int(c) != n {
			return nil, false
		}
	}
	return b[:len(b)-n], true
}

func TestDecryptLeavesItsInput(t *testing.T) {
	k := aesKey(t, 16)
	for _, mechanism := range []string{AESGCM, AESCBCPad, AESKW, AESKWP} {
		p := CryptParams{Mechanism: mechanism}
		var ct []byte
		if mechanism == AESKW || mechanism == AESKWP {
			ct = must(k.Wrap(nil, p, fresh(24)))(t)
		} else {
			ct = must(k.Encrypt(nil, p, fresh(24)))(t)
		}
		before := bytes.Clone(ct)
		k.Decrypt(nil, p, ct)
		k.Unwrap(nil, p, ct)
		equal(t, mechanism+" input afterwards", ct, before)
	}
}

func TestOAEP(t *testing.T) {
	k, other := private(t, "rsa2048"), private(t, "rsa2048.other")
	for i, h := range append([]string{""}, hashNames...) {
		p := CryptParams{Mechanism: RSAOAEP, Hash: h, AAD: []byte("label")}
		limit := 256 - 2 - 2*[]int{32, 20, 28, 32, 48, 64}[i]
		for _, n := range []int{0, 1, limit} {
			data := fresh(n)
			ct := must(k.PublicKey().Encrypt(nil, p, data))(t)
			equal(t, "oaep "+h, must(k.Decrypt(nil, p, ct))(t), data)
			_, err := other.Decrypt(nil, p, ct)
			wantErr(t, "other key", err, ErrDecrypt)
			_, err = k.Decrypt(nil, CryptParams{Mechanism: RSAOAEP, Hash: h}, ct)
			wantErr(t, "other label", err, ErrDecrypt)
			flips(ct, 8, func(_ int, flipped []byte) {
				_, err := k.Decrypt(nil, p, flipped)
				wantErr(t, "flipped bit", err, ErrDecrypt)
			})
		}
		_, err := k.PublicKey().Encrypt(nil, p, make([]byte, limit+1))
		wantErr(t, "too long", err, ErrDataLen)
	}
	for _, n := range []int{0, 1, 255, 257, 10000} {
		_, err := k.Decrypt(nil, CryptParams{Mechanism: RSAOAEP}, make([]byte, n))
		wantErr(t, "bad length", err, ErrDecrypt)
	}
	_, err := k.Decrypt(nil, CryptParams{Mechanism: RSAOAEP}, bytes.Repeat([]byte{0xff}, 256))
	wantErr(t, "not below the modulus", err, ErrDecrypt)
}

func TestCryptRefuses(t *testing.T) {
	aesK, gen := aesKey(t, 32), secret(t, GenericSecret, fresh(32))
	rsaK, ecK := private(t, "rsa2048"), private(t, "prime256v1")
	for _, c := range []struct {
		what string
		k    *SecretKey
		p    CryptParams
		want error
	}{
		{"unknown", aesK, CryptParams{Mechanism: "rc4"}, ErrMechanism},
		{"none", aesK, CryptParams{}, ErrMechanism},
		{"wrapping only", aesK, CryptParams{Mechanism: AESKWP}, ErrMechanism},
		{"oaep with aes", aesK, CryptParams{Mechanism: RSAOAEP}, ErrMechanism},
		{"gcm with generic", gen, CryptParams{Mechanism: AESGCM}, ErrMechanism},
		{"cbc with generic", gen, CryptParams{Mechanism: AESCBCPad}, ErrMechanism},
		{"cbc with AAD", aesK, CryptParams{Mechanism: AESCBCPad, AAD: []byte{1}}, ErrParam},
		{"gcm with a hash", aesK, CryptParams{Mechanism: AESGCM, Hash: "sha256"}, ErrHash},
		{"cbc with a hash", aesK, CryptParams{Mechanism: AESCBCPad, Hash: "sha256"}, ErrHash},
	} {
		_, err := c.k.Encrypt(nil, c.p, nil)
		wantErr(t, c.what, err, c.want)
		_, err = c.k.Decrypt(nil, c.p, make([]byte, 64))
		wantErr(t, c.what, err, c.want)
	}
	for _, c := range []struct {
		what string
		k    *PrivateKey
		p    CryptParams
		want error
	}{
		{"gcm with rsa", rsaK, CryptParams{Mechanism: AESGCM}, ErrMechanism},
		{"wrapping only", rsaK, CryptParams{Mechanism: RSAAES}, ErrMechanism},
		{"oaep with ec", ecK, CryptParams{Mechanism: RSAOAEP}, ErrMechanism},
		{"oaep with md5", rsaK, CryptParams{Mechanism: RSAOAEP, Hash: "md5"}, ErrHash},
	} {
		_, err := c.k.PublicKey().Encrypt(nil, c.p, nil)
		wantErr(t, c.what, err, c.want)
		_, err = c.k.Decrypt(nil, c.p, nil)
		wantErr(t, c.what, err, c.want)
	}
}
