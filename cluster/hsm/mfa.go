package hsm

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"
)

// A user with a key for logins answers a challenge after the password (QUORUM.md,
// section 7).

// SecondFactor answers a challenge of an HSM with the signature of the user's key.
// Whoever answers checks with ParseLoginChallenge what it signs.
type SecondFactor func(ctx context.Context, challenge []byte) (signature []byte, err error)

// MFA is a Module that logs in users who have a key for logins: Login is ErrMFA for
// them.
type MFA interface {
	// LoginMFA is Login, and asks factor once, after the password was right, where the
	// user has a key. A wrong answer counts against the user like a wrong password.
	LoginMFA(ctx context.Context, role Role, name string, password Secret, factor SecondFactor) (s Session, ticket Secret, err error)
}

// ChallengeLife is how long an HSM waits for the answer.
const ChallengeLife = 2 * time.Minute

// LoginChallenge is what an HSM has a user sign, once.
type LoginChallenge struct {
	User    string
	HSM     HSMID
	Cluster ClusterID
	Lineage Lineage
	Expires time.Time // milliseconds
	Nonce   [32]byte
}

const challengeMagic = "hsmbackup login challenge v1\x00"

const challengeFixed = 8 + 8 + 16 + 8 + 32

// Encode returns what is signed.
func (c LoginChallenge) Encode() []byte {
	b := []byte(challengeMagic)
	b = binary.BigEndian.AppendUint64(b, uint64(c.HSM))
	b = binary.BigEndian.AppendUint64(b, uint64(c.Cluster))
	b = append(b, c.Lineage[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Expires.UnixMilli()))
	b = append(b, c.Nonce[:]...)
	return append(append(b, byte(len(c.User))), c.User...)
}

// ParseLoginChallenge reads what Encode writes, and nothing else: ErrInvalid. So nobody
// has a user approve an operation who meant to log in.
func ParseLoginChallenge(b []byte) (LoginChallenge, error) {
	rest, ok := bytes.CutPrefix(b, []byte(challengeMagic))
	if !ok || len(rest) < challengeFixed+1 {
		return LoginChallenge{}, fmt.Errorf("%w: this is not the challenge of a login", ErrInvalid)
	}
	c := LoginChallenge{HSM: HSMID(binary.BigEndian.Uint64(rest)), Cluster: ClusterID(binary.BigEndian.Uint64(rest[8:]))}
	copy(c.Lineage[:], rest[16:])
	c.Expires = time.UnixMilli(int64(binary.BigEndian.Uint64(rest[32:]))).UTC()
	copy(c.Nonce[:], rest[40:])
	length, user := int(rest[challengeFixed]), string(rest[challengeFixed+1:])
	if name, err := CanonicalUserName(user); err != nil || name != user || length != len(user) {
		return LoginChallenge{}, fmt.Errorf("%w: this is not the challenge of a login", ErrInvalid)
	}
	c.User = user
	return c, nil
}
