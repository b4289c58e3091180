package hsm

import (
	"context"
	"iter"
	"time"
)

// Object is what replication may know of a masked object; it reveals nothing
// about key material.
type Object struct {
	Ref       KeyRef
	Kind      Kind
	Tombstone bool
	Digest    Digest // equal digests, equal states
}

// MaskedObject is an object sealed under the masking key, as it lies on disk,
// in a snapshot and on the wire. Bytes is immutable once handed out.
type MaskedObject struct {
	Object
	Lineage Lineage
	Bytes   []byte
}

// Source is anything that holds masked objects and can be read.
//
// Sources are safe for concurrent use. A source may change while it is read:
// Objects and Extract then show each object as it was at some moment during
// the call; merging is idempotent, so the next round picks up the rest.
type Source interface {
	// Lineage returns the lineage of every object in the source.
	Lineage() Lineage
	// Objects yields the lineage's objects in ascending order of reference,
	// tombstones included, session and provisional keys never. After an error
	// nothing follows.
	Objects(ctx context.Context) iter.Seq2[Object, error]
	// Extract yields the named objects in the order asked for, or in any order
	// when the source is a snapshot. References the source does not hold are
	// passed over silently. The caller reads the sequence once.
	Extract(ctx context.Context, refs iter.Seq[KeyRef]) iter.Seq2[MaskedObject, error]
}

// Replica is a Source that takes objects.
type Replica interface {
	Source
	// Insert merges the objects into the replica. It is idempotent, and what it
	// counts in Inserted is durable when it returns, also when it returns an
	// error half way. Objects that do not authenticate, of another lineage or
	// from the future stop it with an error; a conflict (ErrConflict) does not:
	// the object is left out and listed in Inserted.Conflicts.
	Insert(ctx context.Context, objects iter.Seq2[MaskedObject, error]) (Inserted, error)
}

// Inserted counts what Insert did.
type Inserted struct {
	Added, Changed, Unchanged int
	Conflicts                 []KeyRef
}

// Add accumulates another count.
func (i *Inserted) Add(o Inserted) {
	i.Added += o.Added
	i.Changed += o.Changed
	i.Unchanged += o.Unchanged
	i.Conflicts = append(i.Conflicts, o.Conflicts...)
}

// Root is a 32-byte homomorphic fingerprint of a replica's items, with their
// number. Equal roots, equal contents.
type Root struct {
	Sum   [32]byte
	Count uint64
}

// Cell is one coded symbol of a sketch: the xor of the items mapped to it, the
// xor of their keyed checksums, and their number.
type Cell struct {
	Item  [24]byte
	Check uint64
	Count int64
}

// FingerprintKeys key the root and the sketch of one lineage. They protect
// against chosen items, not against reading: whoever reconciles needs them.
type FingerprintKeys struct {
	Root   [32]byte
	Sketch [16]byte
}

// Sketcher is a Source that keeps a root and a sketch, so that a difference
// costs what differs.
type Sketcher interface {
	Source
	// FingerprintKeys returns the keys both sides must share.
	FingerprintKeys(ctx context.Context) (FingerprintKeys, error)
	// Root is the fingerprint of this moment.
	Root(ctx context.Context) (Root, error)
	// Cells yields the coded symbols from index from on, without end, all of
	// one moment; the caller stops when it has decoded. Small differences never
	// touch the whole set.
	Cells(ctx context.Context, from int) iter.Seq2[Cell, error]
}

// OpID names one provisional operation; it is random, made by the client.
type OpID [16]byte

// OpState is what an HSM knows of an operation.
type OpState uint8

// The states. An HSM that answered OpAborted will never commit the operation.
const (
	OpUnknown   OpState = 0 // never heard of it
	OpPrepared  OpState = 1
	OpCommitted OpState = 2
	OpAborted   OpState = 3
)

// Provisional is creation in two steps, so that a failed creation leaves
// nothing behind (DESIGN §7). A provisional object is in the HSM's memory, and
// not visible, not synced, not usable; an HSM that starts again has none. What is
// durable is the end, Commit or Abort. Every step is idempotent.
type Provisional interface {
	// Prepare makes the objects provisional under op until Commit, Abort, or the
	// end of the lease. ErrExist or ErrConflict if a reference is taken.
	Prepare(ctx context.Context, op OpID, lease time.Duration, objects []MaskedObject) error
	// Commit makes the objects of op visible, durably. ErrOp if the HSM does
	// not hold the operation or its lease is over.
	Commit(ctx context.Context, op OpID) error
	// Abort drops op and refuses it from then on. If op is already committed,
	// Abort destroys its objects, leaving tombstones: for the crypto user who owns
	// them, if they were born in op, within an hour of the commit, and whether
	// they are destroyable or not. Otherwise it is ErrDenied, and op stays
	// committed. Session keys that this session made under op are gone, or are not
	// made any more.
	Abort(ctx context.Context, op OpID) error
	// Resolve tells the state of op. It is a promise: when the lease is over, or
	// the HSM never heard of op, the HSM marks op aborted and answers OpAborted,
	// and will never commit it on a client's word.
	Resolve(ctx context.Context, op OpID) (OpState, error)
}

// Info describes one HSM.
type Info struct {
	ID          HSMID
	Cluster     ClusterID
	ClusterName string
	Region      string
	Zone        string
	Lineage     Lineage
	Version     string
	State       State
	Notice      string  // what an operator should know of it; empty: nothing
	Root        Root    // lineage scope
	ClusterRoot Root    // cluster scope
	Keys        uint64  // live token keys
	InDoubt     uint64  // provisional operations past their lease
	Doubts      []Doubt // the oldest of them, at most MaxDoubts
	Sessions    uint64
	Started     time.Time
	LastSync    time.Time // last completed round of server-side sync with all peers
	Time        time.Time // its clock
	Settings    Settings  // policy of the cluster
	Epochs      []uint64  // of the masking keys it holds, ascending, at most MaxEpochs
	Sealing     uint64    // epoch of the one that seals
	// Format is the newest FormatVersion of masked objects that it knows; 0: from
	// before there was more than one.
	Format uint64
	// Clock is the time of the latest stamp that it has issued or observed; 0: none.
	Clock uint64
	// Quorum is how many approvals the services of the cluster take.
	Quorum QuorumValues
	// Timeouts are how long quorum tokens are good; 0: TokenLife.
	Timeouts QuorumTimeouts
	// Departure, of an HSM that leaves, names the time since which it takes nothing new:
	// random, and another one each time that its removal was taken back in between. 0: it
	// does take something.
	Departure uint64
	// OutOfTouch: there are other HSMs, and it has synced with none of them lately, or its
	// clock is off. It may not know of users, or passwords, that they know.
	OutOfTouch bool
}

// MaxEpochs bounds the masking keys of a lineage.
const MaxEpochs = 4096

// Bounds of the operations in doubt that Info lists, and of the references of one.
const (
	MaxDoubts    = 16
	MaxDoubtRefs = 4
)

// Doubt is a provisional operation past its lease: its client vanished, and not
// all members have told yet whether it was committed. Its keys are invisible
// until then.
type Doubt struct {
	Op    OpID
	Refs  []KeyRef // at most MaxDoubtRefs
	Since time.Time
}

// Settings is the cluster's policy object (kind policy).
type Settings struct {
	MinCopies  int
	MinZones   int // zones that those copies must stand in; 0: any
	CheckOnUse bool
	Custodians []string // age recipients
	Threshold  int      // custodians needed to open the recovery envelope
}

// Principal is who asks.
type Principal struct {
	Role Role
	Name string // user name; HSM id for RoleHSM; certificate name for an appliance
}

// Session is what one principal may do on one HSM. It is safe for concurrent
// use. Every method checks the principal's rights against the table of
// cloudhsm.md §1.4 and returns ErrDenied, or ErrNotFound where the existence
// of a key is not theirs to know. A crypto user reads and inserts only keys it
// owns; admin, appliance and HSM principals read and insert all.
type Session interface {
	Replica
	Sketcher
	Provisional

	// Principal returns who is logged in.
	Principal() Principal
	// Info describes the HSM. Anyone may ask.
	Info(ctx context.Context) (Info, error)
	// Members lists the cluster's HSMs, removed ones included.
	Members(ctx context.Context) ([]Member, error)

	// Scoped returns the replica of one scope. The session itself is that of
	// ScopeLineage; ScopeCluster is for HSM, appliance and admin principals.
	Scoped(s Scope) SketchReplica

	// Create makes key objects. With Token set they are provisional under op
	// and come back masked, to be prepared on the other HSMs; Commit makes them
	// visible. Without it they are session keys, usable at once, on this HSM
	// only, until the session ends; Created.Objects is then empty.
	Create(ctx context.Context, op OpID, r CreateRequest) (Created, error)
	// Change applies one change to a key, user or policy, durably on this HSM,
	// and returns the new state to be inserted on the others.
	Change(ctx context.Context, c Change) (MaskedObject, error)
	// Use performs one cryptographic operation.
	Use(ctx context.Context, u Use) ([]byte, error)

	// Keys yields the keys this principal may see, ascending by reference.
	Keys(ctx context.Context, f Filter) iter.Seq2[KeyInfo, error]
	// Key returns one key. ErrNotFound, or ErrDestroyed if a tombstone answers.
	Key(ctx context.Context, ref KeyRef) (KeyInfo, error)
	// Users lists users. Anyone logged in may ask.
	Users(ctx context.Context) ([]UserInfo, error)

	// Envelope seals the recovery envelope (masking keys, lineage secret, CA) to
	// the custodians inside the HSM. Admin, appliance.
	Envelope(ctx context.Context, custodians []string, threshold int) ([]byte, error)
	// Sign signs message with the lineage's Ed25519 key under a purpose, so that
	// a signature for one purpose never serves another. Admin, appliance, HSM;
	// PurposeChallenge: anyone logged in.
	Sign(ctx context.Context, purpose Purpose, message []byte) (LineageSignature, error)

	// Token issues a quorum token, encoded, to be approved by others and then to be
	// brought back to this HSM with an operation of this user; it is good once, and
	// until it expires, the HSM stops or the user's password changes. Of ServiceUser,
	// ServiceQuorum and ServiceCluster a user has one at a time: another one puts an end to it. Admins
	// for those, crypto users for the services of keys that they may use.
	Token(ctx context.Context, service Service, key KeyRef) ([]byte, error)
	// Tokens lists the tokens that this HSM has issued, of all users, and that wait, oldest
	// first. Admins, crypto users.
	Tokens(ctx context.Context) ([]TokenInfo, error)
	// DeleteTokens withdraws all tokens that wait on this HSM, or those of this user: they
	// approve nothing any more, one whose operation is under way not that either
	// when it comes to nothing. It returns how many. Admins.
	DeleteTokens(ctx context.Context, all bool) (int, error)

	// Close ends the session: session keys are gone when it returns.
	Close() error
}

// SketchReplica is a Replica that keeps a sketch.
type SketchReplica interface {
	Replica
	Sketcher
}

// Module is one HSM before anyone has logged in.
type Module interface {
	// Login starts a session for a user. RoleNone stands for whatever role the
	// user has. The ticket lets the same caller start
	// sessions on the cluster's other HSMs without the password being hashed
	// again; it lives for a few minutes and dies with the user or a change of
	// its password. ErrLogin, ErrLocked. A failed login counts against the user.
	Login(ctx context.Context, role Role, name string, password Secret) (s Session, ticket Secret, err error)
	// Redeem starts a session from a ticket of another HSM of the cluster.
	// ErrLogin if it is not valid any more.
	Redeem(ctx context.Context, ticket Secret) (Session, error)
	// Session starts a session without login: with the rights of the caller's
	// certificate (appliance, HSM), or with RoleNone.
	Session(ctx context.Context) (Session, error)
	// Close releases the module.
	Close() error
}

// Purpose separates the uses of the lineage's signing key.
type Purpose string

// The purposes.
const (
	PurposeManifest  Purpose = "manifest"
	PurposeChallenge Purpose = "challenge"
	PurposeReport    Purpose = "report"
	// PurposeVerified: records of verification. No HSM signs them; whoever opens
	// the recovery envelope to verify a snapshot does.
	PurposeVerified Purpose = "verified"
	// PurposeEnvelope: recovery envelopes. No HSM signs for whoever asks; what seals
	// an envelope, and so knows for whom, signs it there.
	PurposeEnvelope Purpose = "envelope"
)

// LineageSignature is an Ed25519 signature (RFC 8032) with the public key that
// verifies it; the key's fingerprint is the lineage.
type LineageSignature struct {
	Public    []byte
	Signature []byte
}

// Loader is a Replica that can be filled faster than Insert fills it, as long as
// it holds nothing of the lineage.
type Loader interface {
	// Load takes all objects of the parts. Each part ascends strictly by reference,
	// parts are read several at a time, and no reference is in two of them. The bytes
	// of an object need be valid only until the next one is asked for. Nothing is
	// visible before all is there, and durable: after an error, or if the process
	// dies, the replica is as empty as before. ErrExist if it is not; ErrInvalid if a
	// part does not ascend; otherwise as Insert.
	//
	// job names all parts together, number, order and contents. A replica that keeps
	// what a load has come to does not read those parts again that an earlier load of the
	// same job had read when its process died: their objects count as Unchanged. An
	// empty job is never gone on with.
	Load(ctx context.Context, job string, parts []iter.Seq2[MaskedObject, error]) (Inserted, error)
}
