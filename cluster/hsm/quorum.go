package hsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
	"time"
)

// Quorum approval (QUORUM.md): an operation is done when so many users have signed
// a token that one HSM has issued for it.

// Service is what a quorum value and a token are for.
type Service string

// The services (cloudhsm.md §1.6). The values of the first three are the cluster's;
// those of the others are attributes of each key.
const (
	ServiceUser          Service = "user"           // admin: user create, delete, change-password, unlock, deregistration of keys
	ServiceQuorum        Service = "quorum"         // admin: quorum values
	ServiceCluster       Service = "cluster"        // admin: settings, invitations, revocations
	ServiceKeyManagement Service = "key-management" // crypto user: wrap, unwrap, share, unshare, set-attribute, copy, value
	ServiceKeyUsage      Service = "key-usage"      // crypto user: sign, mac, encrypt, decrypt, derive
)

// OfKey tells whether the service is about one key.
func (s Service) OfKey() bool { return s == ServiceKeyManagement || s == ServiceKeyUsage }

// OfCluster tells whether the service's value is the cluster's.
func (s Service) OfCluster() bool {
	return s == ServiceUser || s == ServiceQuorum || s == ServiceCluster
}

func (s Service) known() bool { return s.OfCluster() || s.OfKey() }

// ParseService reads the name of a service. ErrInvalid.
func ParseService(s string) (Service, error) {
	if !Service(s).known() {
		return "", fmt.Errorf("%w: service %s: want %s, %s, %s, %s or %s", ErrInvalid, quote(s), ServiceUser, ServiceQuorum, ServiceCluster, ServiceKeyManagement, ServiceKeyUsage)
	}
	return Service(s), nil
}

// Bounds of quorum approval, from cloudhsm.md §1.6.
const (
	MaxQuorum     = 8
	TokenLife     = 10 * time.Minute // and how long it may wait once approved, unless the timeouts are set
	MaxTokenLife  = 24 * time.Hour   // that the timeouts can be set to
	MaxTokens     = 1024             // issued by one HSM and neither spent nor expired
	MaxUserTokens = 64               // of them, for one user
	MaxSignatures = 16               // of one approval
	MaxApprovals  = 4                // of one operation; a wrap may need two
)

// QuorumValues are how many approvals the services of the cluster take; 0 and 1: none.
type QuorumValues struct{ User, Quorum, Cluster int }

// Most is the largest of them.
func (v QuorumValues) Most() int { return max(v.User, v.Quorum, v.Cluster) }

// QuorumTimeouts are how long a token is good: Generated from when it was issued,
// and of that, Approved from when its HSM has first seen it with enough approvals.
type QuorumTimeouts struct{ Generated, Approved time.Duration }

// The names of the timeouts, in Change.Name.
const (
	TimeoutGenerated = "generated"
	TimeoutApproved  = "approved"
)

// ParseTokenTimeout reads a timeout in seconds, 1 to those of MaxTokenLife. ErrInvalid.
func ParseTokenTimeout(s string) (time.Duration, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	d := time.Duration(n) * time.Second
	if err != nil || d < time.Second || d > MaxTokenLife {
		return 0, fmt.Errorf("%w: timeout %s: want 1 to %d seconds", ErrInvalid, quote(s), MaxTokenLife/time.Second)
	}
	return d, nil
}

// TokenInfo is what an HSM shows of a token that it has issued and that waits.
type TokenInfo struct {
	Digest    [sha256.Size]byte // TokenDigest
	Service   Service
	Key       KeyRef // 0 unless it is of a key that whoever asks may see
	Requester string
	Required  int           // approvals that its operation takes
	Approvals int           // that the HSM has seen, in the last attempt that was not refused for a bad one
	Left      time.Duration // until it is void
}

// Approval is a token with the signatures of those who approve.
type Approval struct {
	Token      []byte // QuorumToken.Encode
	Signatures []ApprovalSignature
}

// ApprovalSignature is the signature of a user over the token.
type ApprovalSignature struct {
	User      string
	Signature []byte
}

// QuorumToken is what an HSM has issued. It is good once, on that HSM, for that user.
type QuorumToken struct {
	Service   Service
	Key       KeyRef // 0 unless the service is of a key
	Requester string
	HSM       HSMID
	Cluster   ClusterID
	Lineage   Lineage
	Issued    time.Time // milliseconds
	Expires   time.Time
	Nonce     [16]byte
}

const tokenMagic = "hsmbackup quorum token v1\x00"

// tokenFixed is the length of what stands between the magic and the two texts.
const tokenFixed = 8 + 8 + 16 + 8 + 8 + 8 + 16

// maxToken bounds an encoded token: CloudHSM's approval data has at most 245 bytes.
const maxToken = 245

// Encode returns what is signed (QUORUM.md, section 2).
func (t QuorumToken) Encode() []byte {
	b := []byte(tokenMagic)
	b = binary.BigEndian.AppendUint64(b, uint64(t.HSM))
	b = binary.BigEndian.AppendUint64(b, uint64(t.Cluster))
	b = append(b, t.Lineage[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Key))
	b = binary.BigEndian.AppendUint64(b, uint64(t.Issued.UnixMilli()))
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires.UnixMilli()))
	b = append(b, t.Nonce[:]...)
	for _, text := range []string{string(t.Service), t.Requester} {
		b = append(append(b, byte(len(text))), text...)
	}
	return b
}

// ParseQuorumToken reads what Encode writes, and nothing else: ErrInvalid. It says
// what the bytes claim; whether an HSM has issued them only that HSM knows.
func ParseQuorumToken(b []byte) (QuorumToken, error) {
	bad := fmt.Errorf("%w: this is not a quorum token", ErrInvalid)
	rest, ok := bytes.CutPrefix(b, []byte(tokenMagic))
	if !ok || len(b) > maxToken || len(rest) < tokenFixed {
		return QuorumToken{}, bad
	}
	u64 := func() uint64 {
		v := binary.BigEndian.Uint64(rest)
		rest = rest[8:]
		return v
	}
	t := QuorumToken{HSM: HSMID(u64()), Cluster: ClusterID(u64())}
	rest = rest[copy(t.Lineage[:], rest):]
	t.Key = KeyRef(u64())
	t.Issued, t.Expires = time.UnixMilli(int64(u64())).UTC(), time.UnixMilli(int64(u64())).UTC()
	rest = rest[copy(t.Nonce[:], rest):]
	for _, into := range []*string{(*string)(&t.Service), &t.Requester} {
		if len(rest) == 0 || int(rest[0]) > len(rest)-1 {
			return QuorumToken{}, bad
		}
		n := int(rest[0])
		*into, rest = string(rest[1:1+n]), rest[1+n:]
	}
	name, err := CanonicalUserName(t.Requester)
	if err != nil || name != t.Requester || len(rest) > 0 || !t.Service.known() || t.Service.OfKey() != t.Key.valid() || !t.Service.OfKey() && t.Key != 0 {
		return QuorumToken{}, bad
	}
	return t, nil
}

// TokenDigest is the SHA-256 that the signatures of an approval are over.
func TokenDigest(token []byte) [sha256.Size]byte { return sha256.Sum256(token) }
