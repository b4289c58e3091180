package hsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
)

// Role is what a principal is.
type Role string

// The roles. Admin is CloudHSM's CO, crypto user its CU, appliance its AU: it
// may fingerprint, extract and insert masked objects, and nothing else. An HSM
// is a member of the cluster talking to another.
const (
	RoleAdmin      Role = "admin"
	RoleCryptoUser Role = "crypto-user"
	RoleAppliance  Role = "appliance"
	RoleHSM        Role = "hsm"
	RoleNone       Role = "" // a valid certificate and no login yet
)

// ParseRole reads a role that users may have: "admin" or "crypto-user", or
// CloudHSM's older CO and CU.
func ParseRole(s string) (Role, error) {
	switch strings.ToLower(s) {
	case "admin", "co":
		return RoleAdmin, nil
	case "crypto-user", "cu":
		return RoleCryptoUser, nil
	}
	return "", fmt.Errorf("%w: role %s: want admin or crypto-user", ErrInvalid, quote(s))
}

// Bounds of names and passwords, from cloudhsm.md §1.5.
const (
	MaxUserName     = 31
	MinPassword     = 8
	MaxPassword     = 32
	MaxFailedLogins = 5 // one more locks the user
)

// CanonicalUserName checks a user name and returns it in lower case. Letters,
// digits and '_' are allowed, at most 31.
func CanonicalUserName(s string) (string, error) {
	if s == "" || len(s) > MaxUserName {
		return "", fmt.Errorf("%w: user name %s: want 1 to %d characters", ErrInvalid, quote(s), MaxUserName)
	}
	name := []byte(s)
	for i, c := range name { // not strings.ToLower: it makes letters of what are none, such as the Kelvin sign
		switch {
		case 'A' <= c && c <= 'Z':
			name[i] = c - 'A' + 'a'
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '_':
		default:
			return "", fmt.Errorf("%w: user name %s: only letters, digits and _ are allowed", ErrInvalid, quote(s))
		}
	}
	return string(name), nil
}

// CheckPassword checks a new password: 8 to 32 bytes, no ':' (CloudHSM's PIN is
// user:password).
func CheckPassword(p Secret) error {
	b := p.Reveal()
	if len(b) < MinPassword || len(b) > MaxPassword {
		return fmt.Errorf("%w: password: want %d to %d bytes", ErrInvalid, MinPassword, MaxPassword)
	}
	if bytes.IndexByte(b, ':') >= 0 {
		return fmt.Errorf("%w: password: ':' is not allowed", ErrInvalid)
	}
	return nil
}

// UserRef is the reference of the user called name, which must be canonical.
// It follows from the name, so that two clients that create one user at the
// same time make one object and not two.
func UserRef(name string) KeyRef { return namedRef(KindUser, name) }

// Names of policies: the settings of a cluster, and its quorum values.
const (
	PolicySettings = "settings"
	PolicyQuorum   = "quorum"
)

// PolicyRef is the reference of a policy.
func PolicyRef(name string) KeyRef { return namedRef(KindPolicy, name) }

// MemberRef is the reference of the member object of an HSM.
func MemberRef(id HSMID) KeyRef { return namedRef(KindMember, id.String()) }

// InviteRef is the reference of an invitation.
func InviteRef(id InviteID) KeyRef { return namedRef(KindInvite, id.String()) }

// RevocationRef is the reference of the revocation of certificates.
func RevocationRef(kind, name string) KeyRef { return namedRef(KindRevocation, kind+"/"+name) }

func namedRef(k Kind, name string) KeyRef {
	h := sha256.Sum256(append([]byte{byte(k)}, name...))
	return KeyRef(binary.BigEndian.Uint64(h[:8])>>1 | 1)
}
