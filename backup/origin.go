package backup

import (
	"context"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Origin is what a snapshot is taken from: a cluster, seen with an appliance's
// rights. It is safe for concurrent use.
type Origin interface {
	// Describe tells which cluster it is.
	Describe(ctx context.Context) (Description, error)
	// Sources returns one source for each HSM that answers, and the HSMs that do
	// not. The sources must be usable until the take is over; one that becomes
	// unreachable answers hsm.ErrUnavailable, and one that was started again
	// hsm.ErrSession. The take then asks for the sources again.
	Sources(ctx context.Context) (answered []NamedSource, missing []hsm.HSMID, err error)
	// Envelope seals the recovery envelope inside an HSM (SealEnvelope).
	Envelope(ctx context.Context, custodians []string, threshold int) ([]byte, error)
	// Settings returns the cluster's policy: custodians and threshold are read.
	Settings(ctx context.Context) (hsm.Settings, error)
	// Sign signs with the lineage's key.
	Sign(ctx context.Context, purpose hsm.Purpose, message []byte) (hsm.LineageSignature, error)
}

// Rechecker is an Origin that can see which HSMs answer still, so that Sources has
// a new source for one that was started again.
type Rechecker interface {
	Recheck(ctx context.Context)
}

// Description names a cluster.
type Description struct {
	Cluster hsm.ClusterID
	Name    string
	Region  string
	Lineage hsm.Lineage
	Version string // of the software
}

// NamedSource is one HSM: an hsm.Session, or any source that keeps a sketch.
type NamedSource struct {
	ID hsm.HSMID
	hsm.Sketcher
}
