package backup

import (
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"
)

// Shamir's secret sharing (Communications of the ACM 22, 1979) over the scalar
// field of P-256, by package secretsharing: the secret is the constant term of a
// random polynomial of degree threshold-1, and share i its value at i.

// scalarSize is the size of a secret and of a share.
const scalarSize = 32

var scalars = group.P256

// share is the polynomial's value at ID.
type share struct {
	ID    uint8
	Value [scalarSize]byte
}

// splitSecret draws a secret and shares it among n, of whom threshold together
// know it and fewer know nothing.
func splitSecret(threshold, n int) (secret [scalarSize]byte, shares []share, err error) {
	drawn := scalars.RandomScalar(rand.Reader)
	if secret, err = scalarBytes(drawn); err != nil {
		return secret, nil, err
	}
	sharing := secretsharing.New(rand.Reader, uint(threshold-1), drawn)
	for id := 1; id <= n; id++ {
		value, err := scalarBytes(sharing.ShareWithID(scalars.NewScalar().SetUint64(uint64(id))).Value)
		if err != nil {
			return secret, nil, err
		}
		shares = append(shares, share{ID: uint8(id), Value: value})
	}
	return secret, shares, nil
}

func scalarBytes(s group.Scalar) (out [scalarSize]byte, err error) {
	b, err := s.MarshalBinary()
	if err != nil || len(b) != scalarSize {
		return out, fmt.Errorf("encode a share: %w", errors.Join(err, errors.New("unexpected size")))
	}
	copy(out[:], b)
	return out, nil
}

// combineShares interpolates at 0. Shares that are forged, or of another
// secret, give a wrong secret: the caller authenticates what it opens with it.
func combineShares(shares []share) (secret [scalarSize]byte, err error) {
	seen := map[uint8]bool{}
	points := make([]secretsharing.Share, len(shares))
	for i, s := range shares {
		value, err := parseScalar(s.Value)
		switch {
		case err != nil:
			return secret, err
		case s.ID == 0:
			return secret, errors.New("a share is out of range")
		case seen[s.ID]:
			return secret, errors.New("a share is there twice")
		}
		seen[s.ID] = true
		points[i] = secretsharing.Share{ID: scalars.NewScalar().SetUint64(uint64(s.ID)), Value: value}
	}
	recovered, err := secretsharing.Recover(uint(len(points)-1), points)
	if err != nil {
		return secret, fmt.Errorf("combine the shares: %w", err)
	}
	return scalarBytes(recovered)
}

// parseScalar refuses what is not below the group's order.
func parseScalar(b [scalarSize]byte) (group.Scalar, error) {
	s := scalars.NewScalar()
	if err := s.UnmarshalBinary(b[:]); err != nil {
		return nil, errors.New("a share is out of range")
	}
	if again, err := scalarBytes(s); err != nil || again != b {
		return nil, errors.New("a share is out of range")
	}
	return s, nil
}
