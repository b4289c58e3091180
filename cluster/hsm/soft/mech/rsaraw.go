package mech

import (
	"crypto/rsa"
	"fmt"
	"io"
	"math/big"

	"filippo.io/bigmod"
)

// RSAX509 is RSA without padding: numbers below the modulus, as long as it.
const RSAX509 = "rsa-x-509"

// pkcs1Overhead is what PKCS #1 v1.5 adds to data, at least.
const pkcs1Overhead = 11

func (k *publicKey) checkPKCS1(p CryptParams) error {
	if k.rsa == nil {
		return refuse(ErrMechanism, "%s needs an rsa key, this is %s", p.name(), k.spec.Type)
	}
	if len(p.AAD) > 0 {
		return refuse(ErrParam, "%s has no label", p.name())
	}
	return noHash(p)
}

func (k *publicKey) encryptPKCS1(random io.Reader, p CryptParams, data []byte) ([]byte, error) {
	if err := k.checkPKCS1(p); err != nil {
		return nil, err
	}
	if limit := k.spec.Size/8 - pkcs1Overhead; len(data) > limit {
		return nil, refuse(ErrDataLen, "%d bytes of data; %s with this key takes up to %d", len(data), RSAPKCS, limit)
	}
	//lint:ignore SA1019 PKCS #11 applications still ask for it
	out, err := rsa.EncryptPKCS1v15(source(random), k.rsa, data)
	if err != nil {
		return nil, fmt.Errorf("encrypting with %s: %w", RSAPKCS, err)
	}
	return out, nil
}

// decryptPKCS1 tells by its answer whether the padding was right, as PKCS #11 wants it:
// who may ask a key often can decrypt with it. Keys for that should not have decrypt.
func (k *privateKey) decryptPKCS1(p CryptParams, data []byte, failed error) ([]byte, error) {
	if err := k.pub.checkPKCS1(p); err != nil {
		return nil, err
	}
	//lint:ignore SA1019 PKCS #11 applications still ask for it
	plain, err := rsa.DecryptPKCS1v15(nil, k.rsa, data)
	if err != nil {
		return nil, failed
	}
	return plain, nil
}

// number checks that data is a number below the modulus.
func (k *publicKey) number(data []byte) (*bigmod.Nat, *bigmod.Modulus, error) {
	if k.rsa == nil {
		return nil, nil, refuse(ErrMechanism, "%s needs an rsa key, this is %s", RSAX509, k.spec.Type)
	}
	n, err := bigmod.NewModulus(k.rsa.N.Bytes())
	if err != nil {
		return nil, nil, refuse(ErrKey, "the modulus of the rsa key")
	}
	if len(data) > k.spec.Size/8 {
		return nil, nil, refuse(ErrDataLen, "%d bytes of data; %s with this key takes %d", len(data), RSAX509, k.spec.Size/8)
	}
	padded := make([]byte, k.spec.Size/8)
	copy(padded[len(padded)-len(data):], data)
	m, err := bigmod.NewNat().SetBytes(padded, n)
	if err != nil {
		return nil, nil, refuse(ErrDataLen, "the data is not below the modulus")
	}
	return m, n, nil
}

// rawRSA is m^e mod n.
func (k *publicKey) rawRSA(data []byte) ([]byte, error) {
	m, n, err := k.number(data)
	if err != nil {
		return nil, err
	}
	return bigmod.NewNat().ExpShortVarTime(m, uint(k.rsa.E), n).Bytes(n), nil
}

// rawRSA is m^d mod n, in time that depends on the size of the key only, and checked
// against faults.
func (k *privateKey) rawRSA(data []byte) ([]byte, error) {
	m, n, err := k.pub.number(data)
	if err != nil {
		return nil, err
	}
	d := k.rsa.D.FillBytes(make([]byte, k.pub.spec.Size/8))
	defer clear(d)
	out := bigmod.NewNat().Exp(m, d, n)
	if bigmod.NewNat().ExpShortVarTime(out, uint(k.rsa.E), n).Equal(m) != 1 {
		return nil, fmt.Errorf("%s: the result does not verify", RSAX509)
	}
	return out.Bytes(n), nil
}

// verifyRaw tells whether sig^e mod n is data.
func (k *publicKey) verifyRaw(data, sig []byte) bool {
	if len(sig) != k.spec.Size/8 {
		return false
	}
	got, err := k.rawRSA(sig)
	return err == nil && new(big.Int).SetBytes(got).Cmp(new(big.Int).SetBytes(data)) == 0
}
