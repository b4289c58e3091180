package cluster

import (
	"fmt"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
)

// Policy says when a key counts as durable.
//
// The copy is always attempted on every HSM; MinCopies only decides success.
// Client SDK 5 is {2, true}, with its key availability check disabled {1, false};
// create_object_minimum_nodes = N of Client SDK 3 is {N, false}.
type Policy struct {
	// MinCopies is the number of HSMs that must hold a key. 0: the cluster's.
	MinCopies int
	// CheckOnUse refuses to use a token key that is on fewer than MinCopies HSMs.
	CheckOnUse bool
	// Timeout bounds a creation; when it is over the key is not created. 0: 30 s.
	Timeout time.Duration
	// Setting is what errors call MinCopies, if it comes from a file that calls it
	// something else: create_object_minimum_nodes in FILE. Open refuses a policy
	// with a Setting that asks for more copies than the cluster has HSMs.
	Setting string
}

// DefaultPolicy is Client SDK 5's: two copies, checked on use.
var DefaultPolicy = Policy{MinCopies: 2, CheckOnUse: true, Timeout: 30 * time.Second}

// WithFlag returns the policy of one call that asks for at least n copies, and
// for a timeout. The larger number of copies applies (KMU's -min_srv), so that a
// call can raise the policy and never lower it. Zero values change nothing.
func (p Policy) WithFlag(n int, timeout time.Duration) Policy {
	if n > p.MinCopies {
		p.MinCopies, p.Setting = n, ""
	}
	if timeout > 0 {
		p.Timeout = timeout
	}
	return p
}

// policyOf takes what the profile says before what the cluster's settings say:
// the settings are the lineage's and come with a clone, which may have fewer
// HSMs than its source.
func policyOf(s hsm.Settings, p *profile.Profile) Policy {
	policy := DefaultPolicy
	switch {
	case p.MinCopies > 0:
		policy.MinCopies, policy.CheckOnUse = p.MinCopies, p.CheckOnUse
	case s.MinCopies > 0:
		policy.MinCopies, policy.CheckOnUse = s.MinCopies, s.CheckOnUse
	}
	return policy
}

// impossible refuses a policy by the name of its setting.
func (c *Cluster) impossible() error {
	p, members := c.Policy(), len(c.all())
	if p.Setting == "" || p.MinCopies <= members {
		return nil
	}
	return fmt.Errorf("%w: %s is %d, and cluster %s has %d HSMs: want 1 to %d", ErrMinCopies, p.Setting, p.MinCopies, c.profile.Name, members, members)
}

// Policy returns the policy in force: that of WithPolicy, otherwise the
// profile's, otherwise the cluster's settings, otherwise DefaultPolicy.
func (c *Cluster) Policy() Policy { return *c.policy.Load() }
