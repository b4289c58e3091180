package clone

import (
	"context"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Origin lets a snapshot be taken from a cluster: each HSM that answers is a
// source of its own.
func Origin(c *cluster.Cluster) backup.Origin { return origin{c} }

type origin struct{ *cluster.Cluster }

func (o origin) Describe(ctx context.Context) (backup.Description, error) {
	d, err := o.Cluster.Describe(ctx)
	return backup.Description(d), err
}

// Recheck asks every HSM for its state, which takes those out of use that do not
// answer or have forgotten the session, and connects them anew.
func (o origin) Recheck(ctx context.Context) { _, _ = o.Cluster.Info(ctx) }

func (o origin) Sources(ctx context.Context) ([]backup.NamedSource, []hsm.HSMID, error) {
	answered, missing, err := o.Cluster.Sources(ctx)
	out := make([]backup.NamedSource, len(answered))
	for i, s := range answered {
		out[i] = backup.NamedSource{ID: s.ID, Sketcher: s.Session}
	}
	return out, missing, err
}
