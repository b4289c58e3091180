package hsm

import "time"

// Method is how a key comes to be.
type Method string

// The methods.
const (
	MethodGenerate Method = "generate"
	MethodImport   Method = "import"  // Data holds the key in clear
	MethodUnwrap   Method = "unwrap"  // Data holds the wrapped key, Key the unwrapping key
	MethodDerive   Method = "derive"  // Key is the base key
	MethodPromote  Method = "promote" // Key is a session key of this session
	MethodInsert   Method = "insert"  // Masked holds masked objects exported earlier
	MethodCopy     Method = "copy"    // Key is the key to copy; Attributes differ in the copy
)

// Params are the parameters of a mechanism. Which are read depends on it.
type Params struct {
	Mechanism  string // "rsa-pkcs", "aes-gcm", "aes-kwp", …
	Hash       string // "sha256", …
	Digest     bool   // Data is already hashed
	SaltLength int    // PSS; 0 means the hash's length
	AAD        []byte
	Peer       []byte // ECDH: the other side's public key (SPKI DER or point)
	SharedInfo []byte // KDF
	Context    []byte // KDF
	// IV is the caller's initialization vector, nonce or counter block. Without it
	// aes-gcm and aes-cbc-pad make one, and put it before the ciphertext.
	IV          []byte
	TagLength   int // aes-gcm with IV, bytes; 0: 16
	CounterBits int // aes-ctr: how many bits of the block count; 0: 128
}

// CreateRequest asks for a key, or for a pair when Type is asymmetric and
// Method is generate.
type CreateRequest struct {
	Method Method
	Token  bool   // token key; otherwise a session key
	Type   string // "aes", "generic-secret", "rsa", "ec", "ed25519", "ml-dsa", "ml-kem"
	Size   int    // bytes for secret keys, bits for RSA
	Curve  string
	Class  Class // import, unwrap: what the data is; empty: detect
	// Attributes are the wanted attributes by name, with the values of
	// ParseAttribute. Public are those of a pair's public key.
	Attributes, Public map[string]string
	Shares             []string // crypto users
	Data               Secret
	Key                KeyRef
	Params             Params
	Masked             []MaskedObject
	Approvals          []Approval    // for the key Key, where its quorum values ask for them
	Lease              time.Duration // how long the provisional objects wait for Commit; 0: 30 s
}

// Created is what Create made. For a pair Keys holds the private key first.
type Created struct {
	Keys    []KeyInfo
	Objects []MaskedObject // provisional, to be prepared elsewhere; none for session keys
}

// ChangeKind names what Change does.
type ChangeKind string

// The changes.
const (
	ChangeDestroy      ChangeKind = "destroy"       // Ref
	ChangeAttribute    ChangeKind = "set-attribute" // Ref, Name, Value
	ChangeShare        ChangeKind = "share"         // Ref, User
	ChangeUnshare      ChangeKind = "unshare"       // Ref, User
	ChangeUserCreate   ChangeKind = "user-create"   // User, Role, Password
	ChangeUserDelete   ChangeKind = "user-delete"   // User, Role
	ChangeUserPassword ChangeKind = "user-password" // User, Role, Password; unlocks
	ChangeUserUnlock   ChangeKind = "user-unlock"   // User, Role
	ChangeSettings     ChangeKind = "settings"      // Settings
	ChangeMember       ChangeKind = "member"        // Member
	// ChangeRevive makes a destroyed key live again, in the state of Masked, which
	// is from before: its next incarnation. Ref, Masked. For an admin, and the
	// key's owner.
	ChangeRevive ChangeKind = "revive"
	// ChangeSupersede decides between two births under one reference: of the one that
	// the HSM holds and the one of Masked, the birth Value (32 hexadecimal digits)
	// stands, and the other gives way: see Supersede. Ref, Masked, Value. For an admin,
	// and the owner of both. ErrNotFound if the HSM holds neither of two; ErrAttribute
	// if the one that gives way is trusted, or not destroyable and not kept.
	ChangeSupersede ChangeKind = "supersede"
	// ChangeKeepCopy keeps a live key that is to give way as a key of a reference of
	// its own, which Value determines: Keyring.Kept. Ref, Value, and Masked, which is
	// the other birth; otherwise it is refused. Idempotent. For an admin, and the owner of
	// both. ErrDestroyed if it was kept before and then destroyed.
	ChangeKeepCopy ChangeKind = "keep-copy"
	// ChangeRotate makes a masking key for what is sealed from now on, as an admin.
	ChangeRotate ChangeKind = "rotate-masking-key"
	// ChangeMaskingKeys brings masking keys to an HSM that lacks them: as another
	// HSM of the cluster, or as an admin with what custodians have opened. Recovery.
	ChangeMaskingKeys ChangeKind = "masking-keys"
	ChangeInvite      ChangeKind = "invite" // Invite
	ChangeClaim       ChangeKind = "claim"  // Ref of an invitation, Claim
	ChangeRevoke      ChangeKind = "revoke" // Revocation
	// ChangeQuorumValue sets how many approvals a service of the cluster takes: Name,
	// and Value in decimal, 1 (none) to MaxQuorum. It takes the approvals of
	// ServiceQuorum, and not fewer than the service takes now. ErrDenied if fewer admins
	// have a key to approve with.
	ChangeQuorumValue ChangeKind = "quorum-value"
	// ChangeQuorumTimeout sets how long tokens that are issued from now on are good: Name,
	// and Value as ParseTokenTimeout reads it. As an admin; it takes no approval, so that
	// one that is too short for anybody to approve in can be mended.
	ChangeQuorumTimeout ChangeKind = "quorum-timeout"
	// ChangeUserQuorum and ChangeUserMFA register a key of the caller's own: User, Public,
	// and Proof over RegistrationMessage. Idempotent; ErrExist if the user has another key,
	// or somebody else has this one. Without Public they take the key of User away, as an
	// admin.
	ChangeUserQuorum ChangeKind = "user-quorum"
	ChangeUserMFA    ChangeKind = "user-mfa"
)

// Change is one change to a key, user, policy or member.
type Change struct {
	Kind     ChangeKind
	Ref      KeyRef
	Name     string
	Value    string
	User     string
	Role     Role
	Password Secret
	Settings *Settings
	Member   *Member
	Masked   *MaskedObject
	Recovery Secret // EncodeRecovery
	Invite   *Invite
	Claim    *Claim
	Revoked  *Revocation
	// After is the time of a stamp: those of the change are later. A caller that has
	// asked other HSMs for their clocks (Info.Clock) so makes a change that wins over
	// all that they have acknowledged. ErrFuture if it is more than MaxAhead ahead of
	// the HSM's clock.
	//
	// What is set of a key, a user, a member or a policy is stamped one later, however late the HSM does
	// it: a call that hangs somewhere while its caller turns to another HSM does not
	// win over what was changed meanwhile. ErrLate if it would not win over what the
	// HSM has: hear the HSMs again. 0: the HSM stamps by its own clock.
	After uint64
	// Life, of a user to be made and of a key to be revived, is the incarnation that
	// begins, and one; 0: the next one. A call that arrives late, after that life has
	// ended again, so does not begin another: ErrDestroyed.
	Life uint64
	// Departure, of an HSM that is asked to know itself as removed (ChangeMember), is the
	// Info.Departure since which all that it holds was copied. ErrLate, and nothing is done,
	// if it is another one by now. 0: whatever it has taken.
	Departure uint64
	// Approvals are for users and quorum values, and for keys with quorum values.
	Approvals []Approval
	Public    []byte // SPKI of a signer
	Proof     []byte // signature with its private half
}

// UseKind names a cryptographic operation.
type UseKind string

// The operations. Verify and VerifyMAC return no bytes, and ErrSignature when
// the data does not verify. Wrap wraps the key Payload under the key Key.
const (
	UseSign      UseKind = "sign"
	UseVerify    UseKind = "verify"
	UseEncrypt   UseKind = "encrypt"
	UseDecrypt   UseKind = "decrypt"
	UseMAC       UseKind = "mac"
	UseVerifyMAC UseKind = "verify-mac"
	UseWrap      UseKind = "wrap"
	UsePublic    UseKind = "public" // the public key, SPKI DER
	UseRandom    UseKind = "random" // Length bytes; no key
	UseValue     UseKind = "value"  // the key itself in clear, if it is not sensitive and extractable; what a data object or certificate holds
)

// Use is one cryptographic operation.
type Use struct {
	Kind      UseKind
	Key       KeyRef
	Params    Params
	Data      []byte
	Signature []byte // verify, verify-mac
	Payload   KeyRef // wrap
	Length    int    // random
	Approvals []Approval
}

// Class is the class of a key object.
type Class string

// The classes, in CloudHSM's words.
const (
	ClassSecret  Class = "secret-key"
	ClassPublic  Class = "public-key"
	ClassPrivate Class = "private-key"
	// Objects that are no keys, which applications keep beside their keys. They
	// are imported and copied, and read with UseValue.
	ClassData        Class = "data"
	ClassCertificate Class = "certificate"
)

// IsKey tells whether objects of the class are keys.
func (c Class) IsKey() bool { return c != ClassData && c != ClassCertificate }

// MaxValue bounds a data object and a certificate, in bytes.
const MaxValue = 64 << 10

// KeyInfo is what may be shown of a key.
type KeyInfo struct {
	Ref         KeyRef
	Class       Class
	Type        string
	Size        int // bytes for secret keys, bits for RSA
	Curve       string
	Label, ID   string // ID in hexadecimal
	CheckValue  string // 6 hexadecimal digits, or empty
	Attributes  map[string]string
	Owner       string
	Shares      []string
	Pair        KeyRef // the other half, 0 if none
	Token       bool
	Created     time.Time
	Incarnation uint64
	Digest      Digest
}

// UserInfo is what may be shown of a user.
type UserInfo struct {
	Name   string
	Role   Role
	Locked bool
	Ref    KeyRef
	Digest Digest
	Quorum bool // has a key for approvals
	MFA    bool // has a key for logins
}
