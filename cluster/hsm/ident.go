package hsm

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// KeyRef is the 64-bit name of an object, the same on every HSM of a lineage.
// It is random, 63 bits wide and never zero, so that clones do not collide.
// CloudHSM calls it key reference, and before that key handle.
type KeyRef uint64

// NewKeyRef draws a fresh reference from the system's random source.
func NewKeyRef() KeyRef {
	for {
		var b [8]byte
		rand.Read(b[:])
		if r := KeyRef(binary.BigEndian.Uint64(b[:]) >> 1); r != 0 {
			return r
		}
	}
}

// String prints the reference as 0x and 16 hexadecimal digits.
func (r KeyRef) String() string { return fmt.Sprintf("0x%016x", uint64(r)) }

// MarshalText is String, for JSON and flags.
func (r KeyRef) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// valid tells whether an object may have this reference.
func (r KeyRef) valid() bool { return r != 0 && r>>63 == 0 }

// UnmarshalText is ParseKeyRef, and reads what MarshalText writes of zero, so
// that a field without a reference survives JSON.
func (r *KeyRef) UnmarshalText(b []byte) (err error) {
	if string(b) == KeyRef(0).String() {
		*r = 0
		return nil
	}
	*r, err = ParseKeyRef(string(b))
	return err
}

// ParseKeyRef reads "0x" and 1 to 16 hexadecimal digits, or a decimal key
// handle as the older CloudHSM tools print it. Zero and references of more
// than 63 bits are refused with ErrInvalid.
func ParseKeyRef(s string) (KeyRef, error) {
	base, digits, most := 10, s, 19
	if len(s) > 2 && s[0] == '0' && (s[1] == 'x' || s[1] == 'X') {
		base, digits, most = 16, s[2:], 16
	}
	v, err := strconv.ParseUint(digits, base, 63)
	if err != nil || v == 0 || len(digits) > most {
		return 0, fmt.Errorf("%w: key reference %s: want 0x and up to 16 hexadecimal digits, or a decimal key handle; 1 to 0x%x", ErrInvalid, quote(s), uint64(math.MaxInt64))
	}
	return KeyRef(v), nil
}

// quote quotes a foreign text for an error, the beginning of a long one.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return strconv.Quote(s[:most]) + "…"
	}
	return strconv.Quote(s)
}

// Kind tells what a masked object is.
type Kind uint8

// The kinds. Keys, users and policies belong to the lineage: snapshots and
// clones carry them. Members, lockouts, invitations and revocations belong to
// one cluster: server-side sync spreads them, and they go no further.
const (
	KindKey        Kind = 1
	KindUser       Kind = 2
	KindPolicy     Kind = 3
	KindMember     Kind = 4
	KindLockout    Kind = 5
	KindInvite     Kind = 6 // a one-time token, and who claims it
	KindRevocation Kind = 7 // of a certificate
)

var kindNames = map[Kind]string{KindKey: "key", KindUser: "user", KindPolicy: "policy", KindMember: "member", KindLockout: "lockout",
	KindInvite: "invite", KindRevocation: "revocation"}

// String returns the kind's name, or kind(n) if there is none.
func (k Kind) String() string {
	if s, ok := kindNames[k]; ok {
		return s
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Scope returns the scope that objects of this kind live in.
func (k Kind) Scope() Scope {
	if k >= KindMember && k <= KindRevocation {
		return ScopeCluster
	}
	return ScopeLineage
}

// Scope separates what clones share from what one cluster keeps to itself.
type Scope uint8

// The scopes.
const (
	ScopeLineage Scope = 0 // keys, users, policies
	ScopeCluster Scope = 1 // members, lockouts, invitations, revocations
)

// Digest is the first 16 bytes of a masked object's synthetic IV: equal
// digests, equal states. It is an HMAC, so it reveals nothing to anyone
// without the lineage's secret.
type Digest [16]byte

// String prints the digest as 32 hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText is String, for JSON.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (d *Digest) UnmarshalText(b []byte) error {
	h, err := hex.DecodeString(string(b))
	if err != nil || len(h) != len(d) {
		return fmt.Errorf("%w: digest %s: want 32 hexadecimal digits", ErrInvalid, quote(string(b)))
	}
	*d = Digest(h)
	return nil
}

// Lineage names all clusters that share a masking key: the first 16 bytes of
// the SHA-256 of the lineage's Ed25519 public key. Whoever proves possession
// of that key proves the lineage.
type Lineage [16]byte

// String prints the lineage as "lineage-" and 32 hexadecimal digits.
func (l Lineage) String() string { return "lineage-" + hex.EncodeToString(l[:]) }

// MarshalText is String, for JSON.
func (l Lineage) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText is ParseLineage.
func (l *Lineage) UnmarshalText(b []byte) (err error) {
	*l, err = ParseLineage(string(b))
	return err
}

// ParseLineage reads what Lineage.String prints; the prefix may be left out.
func ParseLineage(s string) (l Lineage, err error) {
	h, err := hex.DecodeString(strings.TrimPrefix(s, "lineage-"))
	if err != nil || len(h) != len(l) {
		return l, fmt.Errorf("%w: lineage %s: want lineage- and 32 hexadecimal digits", ErrInvalid, quote(s))
	}
	return Lineage(h), nil
}

// HSMID names one HSM for ever; a replacement gets a new one.
type HSMID uint64

// ClusterID names one cluster; a clone gets a new one.
type ClusterID uint64

var idEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

func newID() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.BigEndian.Uint64(b[:]) | 1 // never zero
}

func formatID(prefix string, v uint64) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	return prefix + strings.ToLower(idEncoding.EncodeToString(b[:]))
}

func parseID(prefix, s string) (uint64, error) {
	body, ok := strings.CutPrefix(s, prefix)
	b, err := idEncoding.DecodeString(strings.ToUpper(body))
	if !ok || err != nil || len(b) != 8 || formatID(prefix, binary.BigEndian.Uint64(b)) != s {
		return 0, fmt.Errorf("%w: id %s: want %s and 13 characters of a-z, 2-7", ErrInvalid, quote(s), prefix)
	}
	return binary.BigEndian.Uint64(b), nil
}

// NewHSMID and NewClusterID draw fresh random identifiers.
func NewHSMID() HSMID         { return HSMID(newID()) }
func NewClusterID() ClusterID { return ClusterID(newID()) }

// String prints "hsm-" and 13 base32 characters.
func (id HSMID) String() string { return formatID("hsm-", uint64(id)) }

// MarshalText is String, for JSON.
func (id HSMID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is ParseHSMID.
func (id *HSMID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseHSMID(string(b))
	return err
}

// ParseHSMID reads what HSMID.String prints.
func ParseHSMID(s string) (HSMID, error) {
	v, err := parseID("hsm-", s)
	return HSMID(v), err
}

// String prints "cluster-" and 13 base32 characters.
func (id ClusterID) String() string { return formatID("cluster-", uint64(id)) }

// MarshalText is String, for JSON.
func (id ClusterID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is ParseClusterID.
func (id *ClusterID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseClusterID(string(b))
	return err
}

// ParseClusterID reads what ClusterID.String prints.
func ParseClusterID(s string) (ClusterID, error) {
	v, err := parseID("cluster-", s)
	return ClusterID(v), err
}
