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
	// MinZones is the number of zones that those HSMs must stand in for a creation to
	// succeed; 0: any. HSMs of unknown zone count as one. Use does not ask for zones.
	MinZones int
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
		policy.MinCopies, policy.MinZones, policy.CheckOnUse = p.MinCopies, p.MinZones, p.CheckOnUse
	case s.MinCopies > 0:
		policy.MinCopies, policy.MinZones, policy.CheckOnUse = s.MinCopies, s.MinZones, s.CheckOnUse
	}
	return policy
}

// raisedBy returns the policy of one call that asks for more.
func (p Policy) raisedBy(call Policy) Policy {
	raised := p.WithFlag(call.MinCopies, call.Timeout)
	raised.MinZones = max(p.MinZones, call.MinZones)
	return raised
}

// metBy tells whether copies on these HSMs are enough.
func (p Policy) metBy(holders []*remote) bool {
	return len(holders) >= p.MinCopies && (p.MinZones <= 1 || zonesOf(holders) >= p.MinZones)
}

// zonesOf counts the zones that HSMs stand in.
func zonesOf(rs []*remote) int {
	zones := map[string]bool{}
	for _, r := range rs {
		zones[r.describe().Zone] = true
	}
	return len(zones)
}

// Warnings say where a cluster of these HSMs cannot keep what people expect of the
// policy: each is one line, what and what to do.
func (p Policy) Warnings(members []hsm.Member) []string {
	zones, n := map[string]bool{}, 0
	for _, m := range members {
		if !m.Removed {
			zones[m.Zone] = true
			n++
		}
	}
	warnings := []string{}
	add := func(is bool, text string) {
		if is {
			warnings = append(warnings, text)
		}
	}
	add(n == 1, "a cluster of one HSM loses every key made since its last snapshot when that HSM dies; use at least two, better three")
	add(n > 1 && p.MinCopies == n, fmt.Sprintf("min-copies equals the number of HSMs, %d; no key can be made while one is down; want at most %d, or one more HSM", n, n-1))
	add(p.MinCopies > n, fmt.Sprintf("min-copies is %d and there are %d HSMs; no key can be made", p.MinCopies, n))
	add(n > 1 && p.MinCopies == 1, "min-copies is 1; a new key is lost if its HSM dies before the others have it; want at least 2")
	add(n > 1 && len(zones) == 1, "all HSMs stand in one zone; give each its own with --zone")
	add(n > 1 && p.MinZones > len(zones), fmt.Sprintf("min-zones is %d and the HSMs stand in %d; no key can be made", p.MinZones, len(zones)))
	return warnings
}

// Warnings are those of the policy in force.
func (c *Cluster) Warnings() []string { return c.Policy().Warnings(c.described()) }

func (c *Cluster) described() []hsm.Member {
	var members []hsm.Member
	for _, r := range c.all() {
		members = append(members, r.describe())
	}
	return members
}

// warnOnce logs the warnings, the first time that a key was made.
func (c *Cluster) warnOnce() {
	c.warned.Do(func() {
		for _, w := range c.Warnings() {
			c.log.Warn(w, "cluster", c.profile.Name)
		}
	})
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
