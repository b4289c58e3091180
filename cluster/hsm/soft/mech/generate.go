package mech

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
)

// Generated is fresh key material in canonical encoding. Secret is raw bytes or
// PKCS #8, Public is SPKI and nil for secret keys; of a pair Check is the check value
// (see [CheckValuePublic]). It prints redacted.
type Generated struct {
	Spec   Spec
	Secret []byte
	Public []byte
	Check  []byte
}

// Generate makes a key. The errors are those of [Spec.Validate], and those of
// the reader. RSA keys have the exponent 65537; generating one takes from a
// tenth of a second to many seconds. See the package comment on what random is used for.
func Generate(random io.Reader, s Spec) (Generated, error) {
	if err := s.Validate(); err != nil {
		return Generated{}, err
	}
	s = s.canonical()
	if s.Type.Secret() {
		raw, err := generateSecret(random, s)
		return Generated{Spec: s, Secret: raw}, err
	}
	k, err := generatePair(source(random), s)
	if err != nil {
		return Generated{}, fmt.Errorf("generating %s key: %w", s.Type, err)
	}
	return Generated{Spec: s, Secret: k.PKCS8(), Public: k.Public(), Check: k.KCV()}, nil
}

func generatePair(random io.Reader, s Spec) (*PrivateKey, error) {
	switch s.Type {
	case RSA:
		key, err := rsa.GenerateKey(random, s.Size)
		if err != nil {
			return nil, err
		}
		return newRSAPrivate(key), nil
	case Ed25519:
		_, key, err := ed25519.GenerateKey(random)
		if err != nil {
			return nil, err
		}
		return newEd25519Private(key), nil
	case MLDSA, MLKEM:
		info, _ := pqOf(s)
		seed, err := randomBytes(random, info.seed)
		if err != nil {
			return nil, err
		}
		defer clear(seed)
		return newPQPrivate(s, seed)
	}
	info := infoOf(s.Curve)
	if info.std == nil {
		return generateK1(random)
	}
	key, err := ecdsa.GenerateKey(info.std, random)
	if err != nil {
		return nil, err
	}
	return newStdECPrivate(info, key)
}

// source returns the reader, or the system's generator for nil.
func source(random io.Reader) io.Reader {
	if random == nil {
		return rand.Reader
	}
	return random
}

var errRandom = errors.New("the random source failed")

// randomBytes reads n bytes or fails; it never returns fewer.
func randomBytes(random io.Reader, n int) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(source(random), b); err != nil {
		return nil, fmt.Errorf("%w: %w", errRandom, err)
	}
	return b, nil
}
