package synckey

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// ErrLimit: the plan changes or destroys more than its options allow. Nothing
// was applied.
var ErrLimit = errors.New("more than is allowed")

// Limit bounds how much a plan may do: a number of objects, or a share of the
// keys that the changed side holds. The zero Limit is the default of the option
// it stands in.
type Limit struct {
	set     bool
	number  uint64
	percent float64
	share   bool // percent counts
}

// Unlimited allows everything.
func Unlimited() Limit { return Limit{set: true, number: ^uint64(0)} }

// AtMost allows n objects.
func AtMost(n uint64) Limit { return Limit{set: true, number: n} }

// ParseLimit reads a number, a percentage ("5%"), or "unlimited".
func ParseLimit(s string) (Limit, error) {
	bad := fmt.Errorf("%w: limit %q: want a number, a percentage as 5%%, or unlimited", hsm.ErrInvalid, s)
	switch text, share := strings.CutSuffix(s, "%"); {
	case s == "unlimited":
		return Unlimited(), nil
	case share:
		p, err := strconv.ParseFloat(text, 64)
		if err != nil || !(p >= 0 && p <= 100) {
			return Limit{}, bad
		}
		return Limit{set: true, percent: p, share: true}, nil
	default:
		n, err := strconv.ParseUint(s, 10, 63)
		if err != nil {
			return Limit{}, bad
		}
		return AtMost(n), nil
	}
}

// String writes a limit as ParseLimit reads it.
func (l Limit) String() string {
	switch {
	case !l.set:
		return "default"
	case l.share:
		return strconv.FormatFloat(l.percent, 'f', -1, 64) + "%"
	case l.number == ^uint64(0):
		return "unlimited"
	}
	return strconv.FormatUint(l.number, 10)
}

// of is the number of objects allowed at a side that holds so many keys.
func (l Limit) of(keys uint64) uint64 {
	if l.share {
		return uint64(l.percent * float64(keys) / 100)
	}
	return l.number
}

// The default of Options.MaxDestroyed: a tenth of the keys, and always a few, so
// that small clusters need no option.
const (
	destroyedPercent = 10
	destroyedAlways  = 10
)

// within refuses a plan that does more than is allowed, per side: ErrLimit, and
// the Result says so too.
func (p *Plan) within(ctx context.Context) error {
	p.Result.Refused = ""
	for _, f := range []*flow{p.forth, p.back} {
		if err := p.flowWithin(ctx, f); err != nil {
			if errors.Is(err, ErrLimit) {
				p.Result.Refused = err.Error()
			}
			return err
		}
	}
	return nil
}

func (p *Plan) flowWithin(ctx context.Context, f *flow) error {
	changes, destroys := uint64(f.steps.len()), f.destroys()
	most, doomed := p.options.MaxChanges, p.options.MaxDestroyed
	if !most.set {
		most = Unlimited()
	}
	if !doomed.set && destroys <= destroyedAlways {
		doomed = AtMost(destroyedAlways)
	}
	if !doomed.set {
		doomed = Limit{set: true, percent: destroyedPercent, share: true}
	}
	var keys uint64
	if most.share && changes > 0 || doomed.share && destroys > 0 {
		var err error
		if keys, err = f.to.liveKeys(ctx); err != nil {
			return err
		}
	}
	switch {
	case changes > most.of(keys):
		return fmt.Errorf("%w: the plan changes %d objects at the %s, max-changes is %s; nothing was applied", ErrLimit, changes, f.to.name, most.tell(keys))
	case destroys > doomed.of(keys):
		return fmt.Errorf("%w: the plan destroys %d objects that are live at the %s, max-destroyed is %s; nothing was applied", ErrLimit, destroys, f.to.name, doomed.tell(keys))
	}
	return nil
}

// tell writes the limit for people.
func (l Limit) tell(keys uint64) string {
	if l.share {
		return fmt.Sprintf("%s of %d keys", l, keys)
	}
	return l.String()
}

// destroys counts the live keys and users that the plan ends.
func (f *flow) destroys() uint64 {
	n := len(f.steps.refs[phaseLeavers])
	for _, k := range f.destroying {
		n += k
	}
	return uint64(n)
}

// liveKeys counts the keys that are compared at a side: all of its live token
// keys, or those that one user owns.
func (s *side) liveKeys(ctx context.Context) (n uint64, err error) {
	if owner := s.owner + s.cryptoUser(); owner != "" { // never both
		for _, err := range s.Keys(ctx, hsm.Filter{Owner: owner}) {
			if err != nil {
				return 0, s.wrap(fmt.Errorf("keys of %s: %w", owner, err))
			}
			n++
		}
		return n, nil
	}
	hsms, _, err := s.sources(ctx)
	if err != nil {
		return 0, err
	}
	var last error
	for _, h := range hsms {
		info, err := h.Info(ctx)
		if err == nil {
			return info.Keys, nil
		}
		last = err
	}
	return 0, s.wrap(fmt.Errorf("count keys: %w", last))
}
