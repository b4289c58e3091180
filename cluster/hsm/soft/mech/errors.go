package mech

import (
	"errors"
	"fmt"
)

// The errors of this package, to be asked for with [errors.Is].
var (
	// ErrKeyType: no such key type, or the key is of another type than was said.
	ErrKeyType = errors.New("key type not supported")
	// ErrKeySize: the key type does not come in this size.
	ErrKeySize = errors.New("key size not supported")
	// ErrCurve: no such elliptic curve.
	ErrCurve = errors.New("curve not supported")
	// ErrKey: the bytes are not a well-formed and valid key.
	ErrKey = errors.New("key material is not valid")
	// ErrMechanism: no such mechanism, or it is not one for this type of key.
	ErrMechanism = errors.New("mechanism not supported")
	// ErrHash: no such hash, or not one for this mechanism.
	ErrHash = errors.New("hash not supported")
	// ErrParam: a parameter contradicts the mechanism, the key or the data.
	ErrParam = errors.New("mechanism parameter is not valid")
	// ErrDataLen: the data is too short or too long for this key and mechanism.
	ErrDataLen = errors.New("data length not supported")
	// ErrSignature: the signature or MAC does not verify.
	ErrSignature = errors.New("signature verification failed")
	// ErrDecrypt: the ciphertext does not decrypt under this key and parameters.
	ErrDecrypt = errors.New("decryption failed")
	// ErrUnwrap: the wrapped key does not unwrap under this key and parameters.
	ErrUnwrap = errors.New("unwrapping failed")
)

// refuse wraps a sentinel with what was wrong and what to do.
func refuse(sentinel error, format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{sentinel}, args...)...)
}
