package cluster

import (
	"context"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Settled is what Settle did.
type Settled struct {
	// Members are those that operations in doubt need no longer wait for.
	Members []hsm.HSMID
	Keep    bool
}

// Settle decides, by an admin's word, what becomes of operations in doubt that
// began until now and hang on nothing but HSMs that cannot be asked any more:
// removed by force, or set back to an older state. Keep makes their keys live,
// in case a caller was told of one; otherwise they are dropped. Each HSM acts on it
// when all members have answered that they know no better, and so do HSMs that are
// down now when they are back.
func (c *Cluster) Settle(ctx context.Context, keep bool) (*Settled, error) {
	members, err := c.Members(ctx)
	if err != nil {
		return nil, err
	}
	out := &Settled{Keep: keep, Members: []hsm.HSMID{}}
	for _, m := range members {
		if !m.Doubtful() {
			continue
		}
		m.Settled, m.Keep = time.Now().UnixMilli(), keep
		if _, err := c.Change(ctx, hsm.Change{Kind: hsm.ChangeMember, Member: &m}); err != nil {
			return out, err
		}
		out.Members = append(out.Members, m.ID)
	}
	return out, nil
}
