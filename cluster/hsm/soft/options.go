package soft

import (
	"context"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// DefaultIterations is the number of PBKDF2-HMAC-SHA-512 iterations of new
// password verifiers: what OWASP's Password Storage Cheat Sheet asks for. It is
// stored per verifier, so it may be raised at any time.
const DefaultIterations = 210_000

// FS is a file system for an object store.
type FS = vfs.FS

// Options describe an HSM.
type Options struct {
	// Dir is the folder of the object store; it is made if it is missing.
	Dir string
	// Existing refuses (hsm.ErrCorrupt) to make a store: what is missing there is
	// lost, or its disk is not mounted. An HSM that came back empty would answer
	// its peers as if it had never held anything.
	Existing bool
	// FS is the file system Dir is on; nil is the operating system's.
	FS FS

	ID                                 hsm.HSMID
	Cluster                            hsm.ClusterID
	ClusterName, Region, Zone, Version string

	// Keyring holds the lineage's keys, CA what else the recovery envelope
	// holds: the cluster's CA, opaque here.
	Keyring *hsm.Keyring
	CA      hsm.Secret
	// Seal encrypts the recovery envelope to custodians (Session.Envelope). Nil:
	// the HSM makes no envelopes.
	Seal func(ctx context.Context, secret hsm.Secret, custodians []string, threshold int) ([]byte, error)

	// Now is the wall clock; nil is time.Now.
	Now func() time.Time
	// Audit is told of every login and management command, done or refused. Uses
	// of keys are not reported. It is called from many goroutines and must not
	// call the HSM. Nil: nobody is told.
	Audit func(ctx context.Context, event string, who hsm.Principal, ref hsm.KeyRef, detail string, err error)
	// ClusterChanged is called after a member, an invitation or a revocation has
	// changed. It must be quick and must not call the HSM. Nil: nobody is told.
	ClusterChanged func()
	// Iterations of new password verifiers; 0 is DefaultIterations.
	Iterations int
	// LoadDir is a folder on the file system of Dir where a load keeps its tables, so
	// that a later one of the same job goes on with them (hsm.Loader). Whoever names
	// it removes it. Empty: nothing is kept.
	LoadDir string

	// Untidied leaves the store's tables as they are, and what is to be merged for whoever
	// opens it next: for a look, or a few writes. Many would come to a stop.
	Untidied bool

	loadUnit  int    // bytes of a unit in tests; 0: what fits
	loadApart uint64 // in tests, for apartBytes
}

func (o *Options) complete() error {
	switch {
	case o.Dir == "" || o.ID == 0 || o.Cluster == 0 || o.Keyring == nil:
		return fmt.Errorf("%w: HSM options: folder, id, cluster and keyring must be set", hsm.ErrInvalid)
	case o.Iterations < 0 || o.Iterations > maxIterations:
		return fmt.Errorf("%w: HSM options: %d iterations: want 1 to %d", hsm.ErrInvalid, o.Iterations, maxIterations)
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Iterations == 0 {
		o.Iterations = DefaultIterations
	}
	if o.Audit == nil {
		o.Audit = func(context.Context, string, hsm.Principal, hsm.KeyRef, string, error) {}
	}
	if o.ClusterChanged == nil {
		o.ClusterChanged = func() {}
	}
	o.Audit = cleanAudit(o.Audit)
	return nil
}
