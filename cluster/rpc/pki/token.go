package pki

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Token lets one new HSM join a cluster, once. Whoever holds it may, until the
// cluster has seen it used or it has expired; so it is a secret until then.
//
// Its text is "hsmjoin1-" and the base64url (RFC 4648 §5, no padding) of: cluster
// id (8 bytes), invitation (16), SHA-256 of the CA's certificate (32), seed of the
// Ed25519 key (32), Unix seconds of expiry (8), number of addresses (1) and each
// as its length (1) and its text, and the first 4 bytes of the SHA-256 of all
// that, so that a token that lost its end is told from one that is refused.
// Integers are big-endian.
type Token struct {
	Cluster   hsm.ClusterID
	Invite    hsm.InviteID
	CA        [32]byte // SHA-256 of the CA's certificate
	Seed      hsm.Secret
	Expires   time.Time
	Addresses []string
}

const (
	tokenPrefix = "hsmjoin1-"
	tokenFixed  = 8 + 16 + 32 + ed25519.SeedSize + 8
	tokenSum    = 4
	// maxToken bounds what is read: 28 addresses of DNS names.
	maxToken = 12 << 10
	// maxTokenAddresses is how many HSMs a cluster has at most.
	maxTokenAddresses = 28
)

// NewToken draws the token of a new invitation.
func NewToken(cluster hsm.ClusterID, caPEM []byte, expires time.Time, addresses []string) (*Token, error) {
	ca, err := CAFingerprint(caPEM)
	if err != nil {
		return nil, err
	}
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed)
	t := &Token{
		Cluster: cluster, Invite: hsm.NewInviteID(), CA: ca, Seed: hsm.NewSecret(seed),
		Expires: expires.UTC().Add(time.Second - 1).Truncate(time.Second), Addresses: addresses[:min(len(addresses), maxTokenAddresses)],
	}
	return t, t.check()
}

// Key returns the public key, which is what the cluster knows.
func (t *Token) Key() (key [32]byte) {
	copy(key[:], ed25519.NewKeyFromSeed(t.Seed.Reveal()).Public().(ed25519.PublicKey))
	return key
}

func (t *Token) check() error {
	switch {
	case t.Cluster == 0 || t.Invite == hsm.InviteID{} || t.Seed.Len() != ed25519.SeedSize:
		return fmt.Errorf("%w: join token without cluster, invitation or key", hsm.ErrInvalid)
	case len(t.Addresses) == 0:
		return fmt.Errorf("%w: join token without an address", hsm.ErrInvalid)
	}
	for _, a := range t.Addresses {
		if _, _, err := net.SplitHostPort(a); err != nil || len(a) > 255 {
			return fmt.Errorf("%w: join token: address %.80q: want host:port", hsm.ErrInvalid, a)
		}
	}
	return nil
}

// Text returns the token's text, a secret.
func (t *Token) Text() hsm.Secret {
	b := binary.BigEndian.AppendUint64(nil, uint64(t.Cluster))
	b = append(b, t.Invite[:]...)
	b = append(b, t.CA[:]...)
	b = append(b, t.Seed.Reveal()...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires.Unix()))
	b = append(b, byte(len(t.Addresses)))
	for _, a := range t.Addresses {
		b = append(append(b, byte(len(a))), a...)
	}
	sum := sha256.Sum256(b)
	b = append(b, sum[:tokenSum]...)
	defer clear(b)
	return hsm.NewSecret(append([]byte(tokenPrefix), base64.RawURLEncoding.EncodeToString(b)...))
}

var errToken = errors.New("join token is damaged: copy all of what hsm invite printed")

// ParseToken reads what Text returns, and nothing else. ErrInvalid; the error
// never quotes the token.
func ParseToken(text hsm.Secret) (*Token, error) {
	b, err := decodeToken(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", hsm.ErrInvalid, err)
	}
	defer clear(b)
	t := &Token{
		Cluster: hsm.ClusterID(binary.BigEndian.Uint64(b)), Invite: hsm.InviteID(b[8:24]), CA: [32]byte(b[24:56]),
		Seed: hsm.NewSecret(bytes.Clone(b[56:88])), Expires: time.Unix(int64(binary.BigEndian.Uint64(b[88:])), 0).UTC(),
	}
	rest := b[tokenFixed+1:]
	for range b[tokenFixed] {
		if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
			return nil, fmt.Errorf("%w: %w", hsm.ErrInvalid, errToken)
		}
		t.Addresses, rest = append(t.Addresses, string(rest[1:1+rest[0]])), rest[1+rest[0]:]
	}
	if len(rest) != 0 || len(t.Addresses) > maxTokenAddresses {
		return nil, fmt.Errorf("%w: %w", hsm.ErrInvalid, errToken)
	}
	return t, t.check()
}

// decodeToken returns the bytes before the checksum.
func decodeToken(text hsm.Secret) ([]byte, error) {
	s := bytes.TrimSpace(text.Reveal())
	body, ok := bytes.CutPrefix(s, []byte(tokenPrefix))
	if !ok {
		return nil, fmt.Errorf("no join token: it begins with %s", strings.TrimSuffix(tokenPrefix, "-"))
	}
	if len(body) > maxToken {
		return nil, errToken
	}
	b := make([]byte, base64.RawURLEncoding.DecodedLen(len(body)))
	n, err := base64.RawURLEncoding.Strict().Decode(b, body)
	if err != nil || n < tokenFixed+1+tokenSum || bytes.ContainsAny(body, "\r\n") { // the decoder skips line ends
		return nil, errToken
	}
	sum := sha256.Sum256(b[:n-tokenSum])
	if !bytes.Equal(sum[:tokenSum], b[n-tokenSum:n]) {
		return nil, errToken
	}
	return b[:n-tokenSum], nil
}

// notAfter is when the joiner's certificate ends; only the cluster's own clock
// decides whether the token is still good.
func (t *Token) notAfter() time.Time {
	latest := time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)
	if t.Expires.After(latest) || t.Expires.Before(time.Unix(1, 0)) {
		return latest
	}
	return t.Expires.Add(24 * time.Hour)
}

// Format keeps the secret out of every output of fmt.
func (t Token) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "[join token %s of %s]", t.Invite, t.Cluster)
}

// MarshalText refuses, and with it encoding/json.
func (t Token) MarshalText() ([]byte, error) {
	return nil, errors.New("pki: a token is not to be marshalled; print its Text")
}
