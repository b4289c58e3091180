package soft

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha512"
	"crypto/subtle"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

const (
	pbkdf2SHA512  = "pbkdf2-hmac-sha512"
	verifierHash  = 64
	verifierSalt  = 32
	maxIterations = 10_000_000
)

// verifier tells whether a password is a user's (RFC 8018). It is the value of
// the hidden register "verifier", as deterministic CBOR.
type verifier struct {
	Algorithm  string `cbor:"1,keyasint"`
	Iterations int    `cbor:"2,keyasint"`
	Salt       []byte `cbor:"3,keyasint"`
	Hash       []byte `cbor:"4,keyasint"`
}

var cborMode = func() cbor.EncMode {
	m, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err) // the options are constant
	}
	return m
}()

func newVerifier(password hsm.Secret, iterations int) ([]byte, error) {
	v := verifier{Algorithm: pbkdf2SHA512, Iterations: iterations, Salt: make([]byte, verifierSalt)}
	rand.Read(v.Salt)
	var err error
	if v.Hash, err = v.hash(password); err != nil {
		return nil, err
	}
	return cborMode.Marshal(v)
}

func parseVerifier(b []byte) (verifier, error) {
	var v verifier
	if err := cbor.Unmarshal(b, &v); err != nil || v.Algorithm != pbkdf2SHA512 || v.Iterations < 1 || v.Iterations > maxIterations || len(v.Hash) != verifierHash {
		return v, fmt.Errorf("%w: password verifier is of a kind this software does not know", hsm.ErrCorrupt)
	}
	return v, nil
}

func (v verifier) hash(password hsm.Secret) ([]byte, error) {
	return pbkdf2.Key(sha512.New, string(password.Reveal()), v.Salt, v.Iterations, verifierHash)
}

// matches takes as long for a wrong password as for the right one.
func (v verifier) matches(password hsm.Secret) bool {
	h, err := v.hash(password)
	return err == nil && subtle.ConstantTimeCompare(h, v.Hash) == 1
}
