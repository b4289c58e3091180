package backup

import (
	"errors"
	"fmt"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
)

// The sentinels of the package. Beside them come those of hsm (ErrLineage: the
// snapshot is of another lineage than the one trusted; ErrSignature: a manifest
// that the lineage did not sign) and of storage. Hint has a next step for each.
var (
	// ErrCorrupt: an object of the repository is damaged, was swapped with
	// another, or does not fit what names it; the error names the object. A
	// missing object is ErrCorrupt and storage.ErrNotExist at once.
	ErrCorrupt = format.ErrCorrupt
	// ErrVersion: a newer version of this software wrote the object.
	ErrVersion = format.ErrVersion
	// ErrIdentity: the identities given do not decrypt a pack, or are too few
	// custodians to open the recovery envelope.
	ErrIdentity = format.ErrIdentity
	// ErrNoSnapshot: the repository holds no snapshot, or none of this id.
	ErrNoSnapshot = errors.New("no such snapshot")
	// ErrCoverage: an HSM did not answer and all were required.
	ErrCoverage = errors.New("not every HSM answered")
	// ErrUnsettled: too many objects are in different states on different HSMs.
	ErrUnsettled = errors.New("the HSMs do not agree yet")
	// ErrRecipient: a recipient, identity or threshold is malformed.
	ErrRecipient = errors.New("invalid recipient or identity")
	// ErrRetention: a rule of retention refuses it.
	ErrRetention = errors.New("refused by retention")
	// ErrNoRoom: the store is full, and a prune can put no mark.
	ErrNoRoom = errors.New("there is no room for the mark that comes before what is removed")
	// ErrOccupied: the destination of a copy has used the snapshot's number.
	ErrOccupied = errors.New("the number is taken at the destination")
	// ErrRaced: other writers took every number this take tried for.
	ErrRaced = errors.New("other snapshots kept being written")
)

var hints = []struct {
	kind error
	hint string
}{
	{ErrVersion, "upgrade hsmbackup to the version that wrote the repository"},
	{ErrIdentity, "give the identity files of the recipients, and of as many custodians as the threshold asks for (--identity)"},
	{ErrCorrupt, "verify the repository; restore the named object from a copy of the repository, or use another snapshot"},
	{ErrNoSnapshot, "list the snapshots of the location, or take one first"},
	{ErrCoverage, "start the missing HSMs, or take the snapshot without requiring all of them"},
	{ErrUnsettled, "wait until the HSMs are in sync (cluster wait), then run the same command again"},
	{ErrRecipient, "recipients are age1…, age1pq1… or ssh public keys; identity files are as age-keygen or ssh-keygen write them"},
	{ErrRaced, "run the same command again, and let fewer hosts take snapshots at the same time"},
	{ErrNoRoom, "free a little space in the store by other means, or enlarge it, then run the same command again: a mark takes some hundred bytes, and after it prune makes room"},
	{ErrOccupied, "copy into a prefix of its own, and do not copy again what was deleted there"},
	{ErrRetention, "snapshots list shows states and marks; take or verify a newer snapshot, or take the mark off with keep --no-keep or undelete"},
	{hsm.ErrLineage, "check that the location is this cluster's repository"},
	{hsm.ErrSignature, "the manifest was forged or damaged; use another snapshot, and find out who can write to the store"},
}

// Hint returns what to do next about err, in one line without a full stop, or
// "" if nothing is known to do.
func Hint(err error) string {
	if h := pluginHint(err); h != "" {
		return h
	}
	for _, h := range hints {
		if errors.Is(err, h.kind) {
			return h.hint
		}
	}
	return storage.Hint(err)
}

// missing marks the absence of an object that another one names as damage.
func missing(err error) error {
	if errors.Is(err, storage.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

// Unreadable tells whether the store serves and refuses to give out an object: a file
// that may not be read, or a key of the store's own encryption that was taken away.
// Refused credentials are no such thing. What does not need the object goes on.
func Unreadable(err error) bool {
	return errors.Is(err, storage.ErrDenied) && !errors.Is(err, storage.ErrCredentials)
}

// damaged tells whether err is about the repository's own objects.
func damaged(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion)
}
