package mech

import (
	"bytes"
	"crypto"
	"crypto/cipher"
	"crypto/rsa"
	"crypto/subtle"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Mechanisms that encrypt; so do RSAPKCS and RSAX509. AESGCM, RSAOAEP and
// RSAPKCS also wrap.
const (
	AESGCM      = "aes-gcm"
	AESCBCPad   = "aes-cbc-pad"
	AESCBC      = "aes-cbc"
	AESECB      = "aes-ecb"
	AESCTR      = "aes-ctr"
	RSAOAEP     = "rsa-oaep"
	gcmOverhead = 12 + 16 // nonce and tag
)

// CryptParams chooses how to encrypt or wrap.
//
// AAD is for aes-gcm: authenticated, not encrypted, and the same on both sides. For
// rsa-oaep it is the label. Hash is for rsa-oaep and rsa-aes, both for the label
// and for MGF1; empty means sha256.
//
// IV is the caller's: it is needed by aes-cbc (16 bytes) and aes-ctr (16 bytes, of which
// the last CounterBits count), and taken by aes-cbc-pad and aes-gcm, which otherwise
// make one. TagLength is of aes-gcm with IV, 12 to 16, 0 meaning 16. A nonce that repeats
// under one key gives both plaintexts of aes-ctr and aes-gcm away: whoever brings an
// IV answers for that.
type CryptParams struct {
	Mechanism   string
	AAD         []byte
	Hash        string
	IV          []byte
	TagLength   int
	CounterBits int
}

// aliases of mechanism names, as the CloudHSM command line has them.
var cryptAliases = map[string]string{
	"cloudhsm-aes-gcm": AESGCM,
	"aes-zero-pad":     AESKWP,
	"aes-no-pad":       AESKW,
}

// name returns the mechanism's canonical name.
func (p CryptParams) name() string {
	if canonical, ok := cryptAliases[p.Mechanism]; ok {
		return canonical
	}
	return p.Mechanism
}

// Encrypt encrypts data under an aes or des3 key.
//
// aes-gcm returns nonce||ciphertext||tag with a nonce of 12 bytes made inside, or with
// IV ciphertext||tag.
// aes-cbc-pad returns iv||ciphertext, padded as in PKCS #7, with an IV made inside, or with
// IV the ciphertext. It and the modes that follow
// do not authenticate: who can alter ciphertexts and see which of them decrypt can
// read them. They are here for those who must; prefer aes-gcm.
// aes-cbc and aes-ecb take whole blocks, aes-ctr any length; they return as much.
// des3-cbc-pad, des3-cbc and des3-ecb are the same with des3 keys and blocks of 8 bytes; in
// FIPS mode they only decrypt.
func (k *SecretKey) Encrypt(random io.Reader, p CryptParams, data []byte) ([]byte, error) {
	switch name := p.name(); name {
	case AESGCM:
		return k.k().sealGCM(p, data)
	case AESCBCPad, DES3CBCPad:
		if err := k.k().checkCBC(p, true); err != nil {
			return nil, err
		}
		return k.k().encryptCBC(random, p.IV, data)
	case AESCBC, AESECB, AESCTR, DES3CBC, DES3ECB:
		return k.k().blockMode(p, data, true)
	default:
		return nil, refuse(ErrMechanism, "%.40q does not encrypt with %s keys; there are %s", p.Mechanism, k.k().spec.Type, cryptNames)
	}
}

// Decrypt reverses [SecretKey.Encrypt]. Whatever is wrong with the ciphertext, the AAD or
// the key, the answer is [ErrDecrypt] and no more.
func (k *SecretKey) Decrypt(_ io.Reader, p CryptParams, data []byte) ([]byte, error) {
	switch name := p.name(); name {
	case AESGCM:
		return k.k().openGCM(p, data, ErrDecrypt)
	case AESCBCPad, DES3CBCPad:
		if err := k.k().checkCBC(p, false); err != nil {
			return nil, err
		}
		return k.k().decryptCBC(append(slices.Clip(p.IV), data...))
	case AESCBC, AESECB, AESCTR, DES3CBC, DES3ECB:
		return k.k().blockMode(p, data, false)
	default:
		return nil, refuse(ErrMechanism, "%.40q does not decrypt with %s keys; there are %s", p.Mechanism, k.k().spec.Type, cryptNames)
	}
}

const cryptNames = AESGCM + ", " + AESCBCPad + ", " + AESCBC + ", " + AESECB + ", " + AESCTR + ", " + DES3CBCPad + ", " + DES3CBC + " and " + DES3ECB

// checkBlockKey checks that the key is of the mechanism's type, and may still do it.
func (k *secretKey) checkBlockKey(mechanism string, encrypt bool) error {
	if !strings.HasPrefix(mechanism, string(DES3)+"-") {
		return k.needAES(mechanism)
	}
	if err := k.need(DES3, mechanism); err != nil || !encrypt {
		return err
	}
	return des3Ended("encryption")
}

func (k *secretKey) checkGCM(p CryptParams) error {
	if err := k.needAES(AESGCM); err != nil {
		return err
	}
	return noHash(p)
}

func (k *secretKey) checkCBC(p CryptParams, encrypt bool) error {
	if err := k.checkBlockKey(p.name(), encrypt); err != nil {
		return err
	}
	if len(p.AAD) > 0 {
		return refuse(ErrParam, "%s has no additional authenticated data", p.name())
	}
	if n := len(p.IV); n != 0 && n != k.block.BlockSize() {
		return refuse(ErrParam, "an IV of %d bytes, want %d", n, k.block.BlockSize())
	}
	return noHash(p)
}

func noHash(p CryptParams) error {
	if p.Hash != "" {
		return refuse(ErrHash, "%s takes no hash, %.40q was given", p.name(), p.Hash)
	}
	return nil
}

func (k *secretKey) sealGCM(p CryptParams, data []byte) ([]byte, error) {
	if err := k.checkGCM(p); err != nil {
		return nil, err
	}
	if len(p.IV) == 0 {
		return k.gcm.Seal(nil, nil, data, p.AAD), nil
	}
	aead, err := k.gcmWith(p)
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, p.IV, data, p.AAD), nil
}

func (k *secretKey) openGCM(p CryptParams, data []byte, failed error) ([]byte, error) {
	if err := k.checkGCM(p); err != nil {
		return nil, err
	}
	if len(p.IV) > 0 {
		return k.openGCMWith(p, data, failed)
	}
	if len(data) < gcmOverhead {
		return nil, failed
	}
	plain, err := k.gcm.Open(nil, nil, data, p.AAD)
	if err != nil {
		return nil, failed
	}
	return plain, nil
}

func (k *secretKey) encryptCBC(random io.Reader, given, data []byte) ([]byte, error) {
	block := k.block.BlockSize()
	pad := block - len(data)%block
	out := make([]byte, block+len(data)+pad)
	iv, body := out[:block], out[block:]
	if len(given) > 0 {
		copy(iv, given)
	} else if _, err := io.ReadFull(source(random), iv); err != nil {
		return nil, fmt.Errorf("%w: %w", errRandom, err)
	}
	copy(body, data)
	copy(body[len(data):], bytes.Repeat([]byte{byte(pad)}, pad))
	cipher.NewCBCEncrypter(k.block, iv).CryptBlocks(body, body)
	if len(given) > 0 {
		return body, nil
	}
	return out, nil
}

func (k *secretKey) decryptCBC(data []byte) ([]byte, error) {
	block := k.block.BlockSize()
	if len(data) < 2*block || len(data)%block != 0 {
		return nil, ErrDecrypt
	}
	iv, body := data[:block], bytes.Clone(data[block:])
	cipher.NewCBCDecrypter(k.block, iv).CryptBlocks(body, body)
	pad, ok := padLen(body[len(body)-block:])
	if !ok {
		clear(body)
		return nil, ErrDecrypt
	}
	return body[:len(body)-pad], nil
}

// padLen reads PKCS #7 padding off the last block in time that does not depend on it.
func padLen(last []byte) (int, bool) {
	pad := int(last[len(last)-1])
	good := subtle.ConstantTimeLessOrEq(1, pad) & subtle.ConstantTimeLessOrEq(pad, len(last))
	for i, b := range last {
		inPad := subtle.ConstantTimeLessOrEq(len(last)-pad, i)
		good &= subtle.ConstantTimeSelect(inPad, subtle.ConstantTimeByteEq(b, byte(pad)), 1)
	}
	return pad, good == 1
}

// Encrypt encrypts data with rsa-oaep, rsa-pkcs (PKCS #1 v1.5) or rsa-x-509 (no
// padding). Data longer than the key's bytes less two hashes less 2 is [ErrDataLen],
// for rsa-pkcs less 11, for rsa-x-509 a number that is not below the modulus.
func (k *PublicKey) Encrypt(random io.Reader, p CryptParams, data []byte) ([]byte, error) {
	switch p.name() {
	case RSAOAEP:
		return k.k().encryptOAEP(random, p, data)
	case RSAPKCS:
		return k.k().encryptPKCS1(random, p, data)
	case RSAX509:
		return k.k().rawRSA(data)
	}
	return nil, refuse(ErrMechanism, "%.40q does not encrypt with public keys; there are %s", p.Mechanism, rsaCryptNames)
}

const rsaCryptNames = RSAOAEP + ", " + RSAPKCS + " and " + RSAX509

func (k *publicKey) encryptOAEP(random io.Reader, p CryptParams, data []byte) ([]byte, error) {
	h, err := k.oaepHash(p)
	if err != nil {
		return nil, err
	}
	if limit := k.spec.Size/8 - 2*h.Size() - 2; len(data) > limit {
		return nil, refuse(ErrDataLen, "%d bytes of data; %s with this key and hash takes up to %d", len(data), RSAOAEP, limit)
	}
	out, err := rsa.EncryptOAEP(h.New(), source(random), k.rsa, data, p.AAD)
	if err != nil {
		return nil, fmt.Errorf("encrypting with %s: %w", RSAOAEP, err)
	}
	return out, nil
}

// Decrypt reverses [PublicKey.Encrypt]. Whatever is wrong with the ciphertext, the label
// or the key, the answer is [ErrDecrypt] and no more.
func (k *PrivateKey) Decrypt(_ io.Reader, p CryptParams, data []byte) ([]byte, error) {
	switch p.name() {
	case RSAOAEP:
		return k.k().decryptOAEP(p, data, ErrDecrypt)
	case RSAPKCS:
		return k.k().decryptPKCS1(p, data, ErrDecrypt)
	case RSAX509:
		return k.k().rawRSA(data)
	}
	return nil, refuse(ErrMechanism, "%.40q does not decrypt with private keys; there are %s", p.Mechanism, rsaCryptNames)
}

func (k *privateKey) decryptOAEP(p CryptParams, data []byte, failed error) ([]byte, error) {
	h, err := k.pub.oaepHash(p)
	if err != nil {
		return nil, err
	}
	plain, err := rsa.DecryptOAEP(h.New(), nil, k.rsa, data, p.AAD)
	if err != nil {
		return nil, failed
	}
	return plain, nil
}

func (k *publicKey) oaepHash(p CryptParams) (crypto.Hash, error) {
	if k.rsa == nil {
		return 0, refuse(ErrMechanism, "%s needs an rsa key, this is %s", p.name(), k.spec.Type)
	}
	if p.Hash == "" {
		return crypto.SHA256, nil
	}
	return parseHash(p.Hash)
}
