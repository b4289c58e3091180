package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

var (
	// ErrNoHSM: no HSM of the cluster answers. It matches hsm.ErrUnavailable.
	ErrNoHSM = fmt.Errorf("no HSM of the cluster answers: %w", hsm.ErrUnavailable)
	// ErrMinCopies: fewer HSMs than the policy asks for hold, or could hold, the
	// objects. After a creation that fails so, no key is left behind.
	ErrMinCopies = errors.New("fewer copies than min-copies")
	// ErrAvailability: the key is on fewer HSMs than the policy wants before it
	// may be used.
	ErrAvailability = errors.New("key availability")
	// ErrDrift: the HSMs do not hold the same objects at this moment, so that
	// there is no one root.
	ErrDrift = errors.New("the HSMs of the cluster differ")
	// ErrClosed: the Cluster was closed.
	ErrClosed = fmt.Errorf("the cluster connection is closed: %w", hsm.ErrSession)
)

// Result is what became of an operation on one HSM.
type Result struct {
	HSM   hsm.HSMID
	Name  string // its address, where the id is not known
	State string // "committed", "prepared", "aborted", …
	Err   error
}

// String prints "hsm-…: state" or "hsm-…: error".
func (r Result) String() string {
	who := r.Name
	if r.HSM != 0 {
		who = r.HSM.String()
	}
	if r.Err == nil {
		return who + ": " + r.State
	}
	return who + ": " + strings.TrimPrefix(r.Err.Error(), who+": ")
}

// CopiesError says how far an operation came that fell short of its policy. It
// matches ErrMinCopies; under a policy with check on use also ErrAvailability; and
// hsm.ErrFuture if HSMs refused objects because of their clocks.
type CopiesError struct {
	What    string       // "key 0x… was", "user bob is"
	Refs    []hsm.KeyRef // the objects, if they had been made
	Copies  int          // HSMs that held them
	Members int
	Min     int
	Setting string // what Min is called; empty: min-copies
	// Zones are those that the copies stood in; MinZones is how many it takes, 0: any.
	Zones, MinZones int
	Check           bool // the policy checks on use
	Outcome         string
	Results         []Result
	// Undelivered are the HSMs on which the cleanup could not be delivered. What
	// they hold is provisional, or is destroyed by server-side sync.
	Undelivered []hsm.HSMID
	// Ahead is the HSM on which the objects were made, if others refused them as
	// from the future.
	Ahead hsm.HSMID
	Cause error
}

// Error says what, on what, and what next, on one line.
func (e *CopiesError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s on %d of %d HSMs, %s is %d", e.What, e.Copies, e.Members, cmp.Or(e.Setting, "min-copies"), e.Min)
	if e.MinZones > 1 {
		fmt.Fprintf(&b, "; in %d zones, min-zones is %d", e.Zones, e.MinZones)
	}
	if e.Outcome != "" {
		b.WriteString("; " + e.Outcome)
	}
	if e.Cause != nil {
		b.WriteString(": " + e.Cause.Error())
	}
	if e.Ahead != 0 {
		b.WriteString("; " + clockText(e.Ahead, refusedForTime(e.Results)))
	}
	for i, r := range e.Results {
		b.WriteString([]string{"; ", ", "}[min(i, 1)] + r.String())
	}
	for _, text := range e.residue() {
		b.WriteString("; " + text)
	}
	if e.Check {
		b.WriteString("; " + availabilityText(e.subject(), e.Min))
	}
	return b.String()
}

// residue says, in CloudHSM's words, which key could not be cleaned up where.
func (e *CopiesError) residue() (lines []string) {
	for _, ref := range e.Refs {
		for _, id := range e.Undelivered {
			lines = append(lines, fmt.Sprintf("Key: %s failed to tombstone on node:%s", ref, id))
		}
	}
	return lines
}

// log writes what could not be cleaned up, as CloudHSM's client does.
func (e *CopiesError) log(l *slog.Logger) {
	for _, text := range e.residue() {
		l.Error("liquidSecurity ERR: print_node_ts_status:")
		l.Error("[create_object_min_nodes]" + text)
	}
}

// Availability is the line that Client SDK 5 logs for it; empty if the policy does not
// check on use.
func (e *CopiesError) Availability() string {
	if !e.Check {
		return ""
	}
	return availabilityText(e.subject(), e.Min)
}

// subject names the first of the objects, or if none was made yet, any.
func (e *CopiesError) subject() string {
	if len(e.Refs) == 0 {
		return "The key"
	}
	return "Key " + e.Refs[0].String()
}

// Is matches ErrMinCopies, ErrAvailability if the policy checks on use, and
// hsm.ErrFuture if clocks are the reason.
func (e *CopiesError) Is(target error) bool {
	return target == ErrMinCopies || e.Check && target == ErrAvailability || e.Ahead != 0 && target == hsm.ErrFuture
}

// AvailabilityError refuses the use of a key that is on too few HSMs, in
// CloudHSM's exact words. It matches ErrAvailability.
type AvailabilityError struct {
	Ref     hsm.KeyRef
	Min     int
	Holders []hsm.HSMID
}

// Error is the exact text of Client SDK 5.
func (e *AvailabilityError) Error() string { return availabilityText("Key "+e.Ref.String(), e.Min) }

// Is matches ErrAvailability.
func (e *AvailabilityError) Is(target error) bool { return target == ErrAvailability }

func availabilityText(subject string, n int) string {
	return fmt.Sprintf("%s does not meet the availability requirements - The key must be available on at least %d HSMs before being used.", subject, n)
}

// noHSMError lists each HSM and why it does not answer.
type noHSMError struct{ results []Result }

func (e *noHSMError) Error() string {
	lines := make([]string, len(e.results))
	for i, r := range e.results {
		lines[i] = r.String()
	}
	return "no HSM of the cluster answers: " + strings.Join(lines, "; ")
}

func (e *noHSMError) Unwrap() error { return ErrNoHSM }
