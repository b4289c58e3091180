package hsm

import (
	"errors"
	"fmt"
)

// The sentinels of the contract. Every implementation, local or remote,
// returns errors that match them with errors.Is.
var (
	// ErrInvalid: the request is malformed: a name, size, attribute or
	// encoding that does not exist. Nothing was done.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound: no such key or user here, or none this caller may see.
	ErrNotFound = errors.New("not found")
	// ErrExist: the name or reference is already taken.
	ErrExist = errors.New("already exists")
	// ErrDenied: the caller's role or ownership does not allow it.
	ErrDenied = errors.New("permission denied")
	// ErrLogin: unknown user or wrong password; which of both is not said.
	ErrLogin = errors.New("login failed")
	// ErrQuorum: so many users have to approve first (QUORUM.md), and the approval is
	// missing, not sufficient or not valid. Nothing was done.
	ErrQuorum = errors.New("quorum approval is required for this operation")
	// ErrMFA: the password is right, and the user has a key for logins too: see MFA. It
	// comes with ErrLogin.
	ErrMFA = errors.New("a second factor is required")
	// ErrLocked: the user is locked after too many failed logins.
	ErrLocked = errors.New("user is locked")
	// ErrSession: the session is unknown or over; log in again.
	ErrSession = errors.New("session is over")
	// ErrAttribute: a key attribute forbids the operation (not extractable,
	// not modifiable, sign is false, …).
	ErrAttribute = errors.New("key attribute forbids it")
	// ErrTemplate: the key to be wrapped lacks what the wrap-template of the wrapping key
	// asks for, or the request contradicts the unwrap-template of the unwrapping key, or the derive-template of the base key.
	ErrTemplate = errors.New("the key's template forbids it")
	// ErrLineage: the object or peer belongs to another lineage.
	ErrLineage = errors.New("no common lineage")
	// ErrConflict: one reference, two different births. Never merged.
	ErrConflict = errors.New("conflicting keys under one reference")
	// ErrCorrupt: bytes do not authenticate or do not decode.
	ErrCorrupt = errors.New("corrupt")
	// ErrMaskingKey: the object is sealed under a masking key that is not here,
	// because a rotation has not reached this place. It matches ErrCorrupt, since
	// the epoch is all there is to tell them apart.
	ErrMaskingKey = errors.New("masking key is not here")
	// ErrFuture: a stamp lies minutes ahead of this clock.
	ErrFuture = errors.New("stamp lies in the future")
	// ErrLate: a change that its caller had not heard of is there already, and would
	// win over this one (Change.After). Nothing was done.
	ErrLate = errors.New("a later change is there already")
	// ErrDestroyed: the key was destroyed; its tombstone answers.
	ErrDestroyed = errors.New("key is destroyed")
	// ErrOp: the provisional operation is unknown, aborted or expired here.
	ErrOp = errors.New("operation is not pending")
	// ErrSignature: the signature or MAC does not verify.
	ErrSignature = errors.New("signature does not verify")
	// ErrCrypto: decryption or unwrapping failed, without saying why.
	ErrCrypto = errors.New("cryptographic operation failed")
	// ErrFull: the disk is full, a session holds as many keys as it may, or as many
	// objects wait for a commit as may. Nothing was done.
	ErrFull = errors.New("no space left")
	// ErrStarting: the HSM does not serve yet and soon will. It comes with
	// ErrUnavailable.
	ErrStarting = errors.New("HSM is starting")
	// ErrUnavailable: the HSM cannot be reached or does not serve yet. The
	// operation may or may not have been done.
	ErrUnavailable = errors.New("HSM is unavailable")
)

// maskingKeyError is ErrMaskingKey for one epoch.
type maskingKeyError uint64

func (e maskingKeyError) Error() string {
	return fmt.Sprintf("the masking key of epoch %d is not here; wait until the rotation has reached this HSM, or adopt it (cluster adopt-masking-keys)", uint64(e))
}

func (e maskingKeyError) Is(target error) bool {
	return target == ErrMaskingKey || target == ErrCorrupt
}
