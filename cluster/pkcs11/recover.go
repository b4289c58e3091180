package pkcs11

import (
	"bytes"
	"math/big"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
)

// recoverData returns the data that a signature of RSA holds: sig^e mod n, without the
// padding of PKCS #1 v1.5 for CKM_RSA_PKCS. There is nothing secret in it.
func recoverData(k hsm.KeyInfo, m ck.Mech, signature []byte) ([]byte, error) {
	n, e := new(big.Int).SetBytes(unhex(k.Attributes["modulus"])), new(big.Int).SetBytes(unhex(k.Attributes["public-exponent"]))
	sig := new(big.Int).SetBytes(signature)
	if n.Sign() == 0 || sig.Cmp(n) >= 0 {
		return nil, ck.SignatureInvalid
	}
	out := new(big.Int).Exp(sig, e, n).FillBytes(make([]byte, k.Size/8))
	if m == ck.RSAX509 {
		return out, nil
	}
	if out[0] != 0 || out[1] != 1 {
		return nil, ck.SignatureInvalid
	}
	padding, data, ok := bytes.Cut(out[2:], []byte{0})
	if !ok || len(padding) < 8 || len(bytes.Trim(padding, "\xff")) > 0 {
		return nil, ck.SignatureInvalid
	}
	return data, nil
}
