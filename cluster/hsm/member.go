package hsm

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"time"
)

// State is what an HSM does at the moment.
type State string

// The states. An HSM serves users in the first two only.
const (
	StateActive     State = "ACTIVE"
	StateDegraded   State = "DEGRADED"    // serves, with something that an operator must see to
	StateJoining    State = "JOINING"     // has an identity, and not yet every key
	StateCatchingUp State = "CATCHING-UP" // was away or set back, and has not yet learned what its peers know
	StateLeaving    State = "LEAVING"     // is about to be removed: takes no new keys
	StateDuplicate  State = "DUPLICATE"   // another HSM runs under the same identity
	StateRemoved    State = "REMOVED"
)

// Serves tells whether an HSM in this state serves users. One that does not say
// what it does, does.
func (s State) Serves() bool {
	return s == "" || s == StateActive || s == StateDegraded || s == StateLeaving
}

// Member is one HSM of the cluster as all others know it.
type Member struct {
	ID      HSMID
	Name    string
	Address string // host:port
	Zone    string
	// Removed members are members no more, for ever.
	Removed bool
	// RemovedAt, in Unix milliseconds, is when that was said, by the clock of the HSM
	// that it was said to. Each HSM knows it of its own; it is not sent and not set.
	RemovedAt int64
	// Joining members have an identity and not yet every key: nobody routes to
	// them, and they count nowhere.
	Joining bool
	// Leaving members take no new keys.
	Leaving bool
	// Drained, of a removed member: the others held all that it had committed.
	// Nothing that is in doubt hangs on it.
	Drained bool
	// Replaces is the member that this one removes when it has joined.
	Replaces HSMID
	// Doubt, in Unix milliseconds: what this member says of operations that began
	// until then does not count, since its folder was set back to an older state.
	Doubt int64
	// Settled, in Unix milliseconds: an admin has decided that operations that
	// began until then do not wait for this member. Keep: they are committed;
	// otherwise they are dropped.
	Settled int64
	Keep    bool
}

// With is the member as two HSMs know it together, one of which may not have heard yet
// of its last step. Steps go one way: a member joins, may leave, and is removed.
func (m Member) With(other Member) Member {
	if other.Removed && !m.Removed {
		m, other = other, m
	}
	m.Joining, m.Leaving = m.Joining && other.Joining, m.Leaving || other.Leaving && !m.Removed
	m.Doubt = max(m.Doubt, other.Doubt)
	if other.Settled > m.Settled {
		m.Settled, m.Keep = other.Settled, other.Keep
	}
	return m
}

// Counts tells whether the member is one of those that hold the cluster's keys.
func (m Member) Counts() bool { return !m.Removed && !m.Joining }

// Doubtful tells whether operations may be in doubt that nobody can ask this
// member about.
func (m Member) Doubtful() bool { return m.Removed && !m.Drained || m.Doubt != 0 }

// afterRemoval is how long operations that begin after the removal of a member may
// still hang on it: clocks may differ by MaxAhead in either direction, and clients look
// for members every few seconds.
const afterRemoval = 2*MaxAhead + time.Minute

// Verdict tells what this member means for an operation in doubt that began at
// since and that no other has committed: nothing; or that it may have it committed,
// and has to be waited for; or that an admin has decided.
//
// What begins well after a removal does not hang on the member that was removed: the
// clients that began it knew that, and asked it nothing.
func (m Member) Verdict(since time.Time) (waits, decided, keep bool) {
	began := since.UnixMilli()
	switch {
	case !m.Doubtful() || !m.Removed && began > m.Doubt:
		return false, false, false
	case m.Removed && m.RemovedAt != 0 && began > m.RemovedAt+afterRemoval.Milliseconds() && began > m.Doubt:
		return false, false, false
	case began <= m.Settled:
		return false, true, m.Keep
	}
	return true, false, false
}

// InviteID names one invitation.
type InviteID [16]byte

// NewInviteID draws a fresh id.
func NewInviteID() (id InviteID) {
	rand.Read(id[:])
	return id
}

// String prints 32 hexadecimal digits.
func (id InviteID) String() string { return hex.EncodeToString(id[:]) }

// ParseInviteID reads what String prints. ErrInvalid.
func ParseInviteID(s string) (InviteID, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(InviteID{}) {
		return InviteID{}, fmt.Errorf("%w: invitation %s: want 32 hexadecimal digits", ErrInvalid, quote(s))
	}
	return InviteID(b), nil
}

// Invite is a one-time token as the cluster knows it: the public half of its
// key, and never the token itself.
//
// One joiner at most ever uses it. Each voter records, durably and for ever, the
// first claim that it hears of, and refuses every other; more than half of the
// voters must have recorded a claim before anything is given to its joiner. The
// voters are fixed when the invitation is made, so any two majorities share one.
// Of two joiners at the same time none may win; then the token is of no more use.
type Invite struct {
	ID       InviteID
	Key      [32]byte // Ed25519 public key
	Expires  time.Time
	By       string // the admin who made it
	Voters   []HSMID
	Replaces HSMID           // the member in whose place the new one comes, or 0
	Claims   map[HSMID]Claim // by voter
}

// Claim is one joiner's, with a fingerprint of the keys that it proves to have.
type Claim struct {
	Joiner HSMID
	Proof  [32]byte
}

// Won tells whether a claim has the majority of the voters.
func (i *Invite) Won(c Claim) bool {
	n := 0
	for voter, claim := range i.Claims {
		if claim == c && slices.Contains(i.Voters, voter) {
			n++
		}
	}
	return n > len(i.Voters)/2
}

// Rival returns a claim other than c, if there is one.
func (i *Invite) Rival(c Claim) (Claim, bool) {
	for _, claim := range i.Claims {
		if claim != c {
			return claim, true
		}
	}
	return Claim{}, false
}

// Revocation ends certificates: those of this kind and name that were issued
// until this moment.
type Revocation struct {
	Kind, Name string
	Until      time.Time
}
