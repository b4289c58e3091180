package cluster

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Description names a cluster.
type Description struct {
	Cluster hsm.ClusterID
	Name    string
	Region  string
	Lineage hsm.Lineage
	Version string // of the software of one HSM
}

// Info is the state of a cluster, as `cluster info --json` prints it.
type Info struct {
	Name    string        `json:"name"`
	ID      hsm.ClusterID `json:"id"`
	Lineage hsm.Lineage   `json:"lineage"`
	Region  string        `json:"region"`
	HSMs    []HSMInfo     `json:"hsms"`
	// Keys is the largest number of live token keys on any HSM.
	Keys uint64 `json:"keys"`
	// InSync is true if every member answered and all hold the same objects.
	InSync bool `json:"in_sync"`
	// InDoubt counts provisional operations past their lease, over all HSMs.
	InDoubt uint64 `json:"in_doubt"`
	// UnderReplicated counts objects known to be on fewer than MinCopies of the
	// HSMs that answered. A principal that may not list objects (not logged in, or
	// a crypto user for the keys of others) sees the keys that the fullest HSM has
	// more than the emptiest.
	UnderReplicated uint64 `json:"under_replicated"`
	MinCopies       int    `json:"min_copies"`
	MinZones        int    `json:"min_zones"`
	CheckOnUse      bool   `json:"check_on_use"`
	// Removed are the former members.
	Removed []HSMInfo `json:"removed,omitempty"`
	// Warnings say where the cluster cannot keep what the policy promises.
	Warnings []string `json:"warnings"`
	// Residue lists the oldest operations in doubt of each HSM: provisional keys
	// that are not cleaned up, or not committed, before other HSMs have answered.
	Residue []Residue `json:"residue"`
}

// Residue is what an operation whose client vanished has left on an HSM. The HSM
// asks the others in every round of server-side sync until it knows the outcome.
type Residue struct {
	Op    string       `json:"op"`
	Refs  []hsm.KeyRef `json:"key_references"`
	HSM   hsm.HSMID    `json:"hsm"`
	Since time.Time    `json:"since"`
}

func residueOf(state hsm.Info) (out []Residue) {
	for _, d := range state.Doubts {
		out = append(out, Residue{Op: hex.EncodeToString(d.Op[:]), Refs: d.Refs, HSM: state.ID, Since: d.Since.UTC()})
	}
	return out
}

// HSMInfo is the state of one member.
type HSMInfo struct {
	ID      hsm.HSMID `json:"id"`
	Name    string    `json:"name,omitempty"`
	Address string    `json:"address"`
	Zone    string    `json:"zone"`
	// State is an hsm.State, or UNREACHABLE.
	State string `json:"state"`
	// Notice is what an operator should know of it.
	Notice string `json:"notice,omitempty"`
	Keys   uint64 `json:"keys"`
	Root   string `json:"root"` // 64 hexadecimal digits; empty if unreachable
	// LagSeconds is the time since the HSM was last in sync with all its peers;
	// -1 if it never was, or is unreachable.
	LagSeconds float64 `json:"lag_seconds"`
	InDoubt    uint64  `json:"in_doubt"`
	// ClockSeconds is how far its clock is ahead of the others'.
	ClockSeconds float64 `json:"clock_seconds"`
	Error        string  `json:"error,omitempty"`

	listed bool // known from the member list alone
}

// unreachable is the state of an HSM that does not answer.
const unreachable = "UNREACHABLE"

// anyInfo is what one HSM says of itself and its cluster.
func (c *Cluster) anyInfo(ctx context.Context) (hsm.Info, error) {
	return anyHSM(ctx, c, func(ctx context.Context, s hsm.Session) (hsm.Info, error) { return s.Info(ctx) })
}

// Describe names the cluster.
func (c *Cluster) Describe(ctx context.Context) (Description, error) {
	info, err := c.anyInfo(ctx)
	if err != nil {
		return Description{}, err
	}
	return Description{Cluster: info.Cluster, Name: info.ClusterName, Region: info.Region, Lineage: info.Lineage, Version: info.Version}, nil
}

// Settings returns the cluster's policy object.
func (c *Cluster) Settings(ctx context.Context) (hsm.Settings, error) {
	info, err := c.anyInfo(ctx)
	return info.Settings, err
}

// Envelope seals the recovery envelope to the custodians, inside one HSM. Admin,
// appliance.
func (c *Cluster) Envelope(ctx context.Context, custodians []string, threshold int) ([]byte, error) {
	return anyHSM(ctx, c, func(ctx context.Context, s hsm.Session) ([]byte, error) {
		return s.Envelope(ctx, custodians, threshold)
	})
}

// Sign signs with the lineage's key, on any HSM.
func (c *Cluster) Sign(ctx context.Context, purpose hsm.Purpose, message []byte) (hsm.LineageSignature, error) {
	return anyHSM(ctx, c, func(ctx context.Context, s hsm.Session) (hsm.LineageSignature, error) {
		return s.Sign(ctx, purpose, message)
	})
}

// Info asks every HSM for its state. An HSM that does not answer is shown as
// unreachable; ErrNoHSM if none answers.
func (c *Cluster) Info(ctx context.Context) (*Info, error) {
	c.muster(ctx)
	answers := gather(ctx, c, c.up(), nil, nil, func(ctx context.Context, s hsm.Session) (hsm.Info, error) { return s.Info(ctx) })
	states := map[*remote]hsm.Info{}
	failures := map[*remote]error{}
	for _, a := range answers {
		if a.err != nil {
			failures[a.from] = a.err
			continue
		}
		states[a.from] = a.value
	}
	if len(states) == 0 {
		return nil, errors.Join(c.noHSM(), ctx.Err())
	}
	p := c.Policy()
	out := &Info{Name: c.profile.Name, ID: c.profile.ID, Lineage: c.profile.Lineage, Region: c.profile.Region, MinCopies: p.MinCopies, MinZones: p.MinZones, CheckOnUse: p.CheckOnUse, Warnings: c.Warnings(), Residue: []Residue{}}
	for _, r := range c.all() {
		state, ok := states[r]
		err := failures[r]
		if !ok && err == nil {
			err = r.downError()
		}
		out.HSMs = append(out.HSMs, describeHSM(r.describe(), state, err))
		out.Keys = max(out.Keys, state.Keys)
		out.InDoubt += state.InDoubt
		out.Residue = append(out.Residue, residueOf(state)...)
	}
	noteClocks(out, states, time.Now())
	c.addOthers(ctx, out)
	out.InSync = len(states) == len(c.all()) && sameRoots(states)
	under, err := c.underReplicated(ctx, states, p.MinCopies)
	out.UnderReplicated = under
	return out, err
}

func describeHSM(m hsm.Member, state hsm.Info, err error) HSMInfo {
	h := HSMInfo{ID: m.ID, Name: m.Name, Address: m.Address, Zone: m.Zone, LagSeconds: -1}
	if err != nil {
		h.State, h.Error = unreachable, err.Error()
		return h
	}
	h.State, h.Notice, h.Keys, h.InDoubt, h.Root = string(state.State), state.Notice, state.Keys, state.InDoubt, hex.EncodeToString(state.Root.Sum[:])
	if !state.LastSync.IsZero() {
		h.LagSeconds = max(0, time.Since(state.LastSync).Seconds())
	}
	return h
}

func sameRoots(states map[*remote]hsm.Info) bool {
	var first *hsm.Root
	for _, s := range states {
		if first == nil {
			first = &s.Root
		}
		if s.Root != *first {
			return false
		}
	}
	return true
}

// underReplicated counts objects on fewer than n HSMs. Only when roots differ are
// objects listed.
func (c *Cluster) underReplicated(ctx context.Context, states map[*remote]hsm.Info, n int) (uint64, error) {
	var fullest uint64
	emptiest := ^uint64(0)
	for _, s := range states {
		fullest, emptiest = max(fullest, s.Keys), min(emptiest, s.Keys)
	}
	switch {
	case len(states) < n:
		return fullest, nil
	case sameRoots(states):
		return 0, nil
	}
	count, err := c.countBelow(ctx, states, n)
	if errors.Is(err, hsm.ErrDenied) || away(err) {
		return fullest - emptiest, nil
	}
	return count, err
}

func (c *Cluster) countBelow(ctx context.Context, states map[*remote]hsm.Info, n int) (uint64, error) {
	var lists []iter.Seq2[hsm.Object, error]
	for r := range states {
		lists = append(lists, listOn(ctx, r, func(s hsm.Session) iter.Seq2[hsm.Object, error] { return s.Objects(ctx) }))
	}
	m := newMerger(lists, func(o hsm.Object) hsm.KeyRef { return o.Ref })
	defer m.stop()
	var count uint64
	for m.next() {
		if len(m.from) < n && !m.items[0].Tombstone {
			count++
		}
	}
	return count, m.failure()
}

// Wait returns when a key is on every member; with the reference 0, when all
// members answer and hold the same objects. Otherwise it returns when the context
// ends, and says what is missing; the error matches the context's and ErrDrift or
// hsm.ErrUnavailable. hsm.ErrNotFound and hsm.ErrDestroyed at once.
func (c *Cluster) Wait(ctx context.Context, ref hsm.KeyRef) error {
	began := time.Now()
	wait := c.timing.backoffMin / 4
	var last error
	for {
		err := c.complete(ctx, ref)
		if err != nil && ctx.Err() != nil {
			err = cmp.Or(last, err) // this time there was no time to ask all
		}
		last = err
		switch {
		case err == nil:
			return nil
		case errors.Is(err, hsm.ErrDestroyed), errors.Is(err, hsm.ErrDenied), errors.Is(err, hsm.ErrNotFound):
			return err
		case ctx.Err() != nil:
			return &waitError{why: context.Cause(ctx), after: time.Since(began), missing: c.missingNow(ctx, ref, err)}
		}
		pause(ctx, wait, nil)
		wait = min(2*wait, c.timing.backoffMin*2)
	}
}

// waitError says what was missing when there was no more time to wait.
type waitError struct {
	why, missing error
	after        time.Duration
}

// Error names the time waited instead of the context's error, where time ran out.
func (e *waitError) Error() string {
	if !errors.Is(e.why, context.DeadlineExceeded) {
		return e.why.Error() + ": " + e.missing.Error()
	}
	unit := time.Second
	if e.after < unit {
		unit = time.Millisecond
	}
	return fmt.Sprintf("not within %s: %s", e.after.Round(unit), e.missing)
}

// Unwrap returns the context's error and what is missing.
func (e *waitError) Unwrap() []error { return []error{e.why, e.missing} }

// missingNow counts the objects that are not everywhere, if that is what is
// missing. The context of the wait is over; this takes a moment more.
func (c *Cluster) missingNow(ctx context.Context, ref hsm.KeyRef, err error) error {
	if ref != 0 || !errors.Is(err, ErrDrift) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timing.call)
	defer cancel()
	states := map[*remote]hsm.Info{}
	for _, a := range gather(ctx, c, c.up(), nil, nil, func(ctx context.Context, s hsm.Session) (hsm.Info, error) { return s.Info(ctx) }) {
		if a.err == nil {
			states[a.from] = a.value
		}
	}
	members := len(c.all())
	if len(states) < members {
		return err
	}
	if n, countErr := c.underReplicated(ctx, states, members); countErr == nil && n > 0 {
		return fmt.Errorf("%w: %d objects are not on all %d HSMs", ErrDrift, n, members)
	}
	return err
}

// partlyUp says which members do not answer, and why. It matches
// hsm.ErrUnavailable.
func (c *Cluster) partlyUp(up int) error {
	all := c.all()
	err := fmt.Errorf("%d of %d HSMs answer", up, len(all))
	for _, r := range all {
		if r.current() == nil {
			err = fmt.Errorf("%w; %s: %w", err, r.describe().Address, r.downError())
		}
	}
	if errors.Is(err, hsm.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", hsm.ErrUnavailable, err) // they came back meanwhile
}

// complete tells what is missing.
func (c *Cluster) complete(ctx context.Context, ref hsm.KeyRef) error {
	if ref != 0 {
		have, missing, err := c.Where(ctx, ref)
		if err == nil && len(missing) > 0 {
			return fmt.Errorf("%w: %s is on %d of %d HSMs, not on %s", ErrDrift, ref, len(have), len(have)+len(missing), missing)
		}
		return err
	}
	if up := c.muster(ctx); len(up) < len(c.all()) {
		return c.partlyUp(len(up))
	}
	_, err := c.rootNow(ctx)
	return err
}
