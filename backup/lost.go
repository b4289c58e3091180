package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// What a take does about HSMs that go away while it reads them. One that was
// started again serves after a second or so, under a new session: it is read from
// the beginning, so that a cluster whose HSMs are restarted one by one has
// snapshots that lack nothing. One that goes away again is missing from the
// snapshot, which says so.

// maxLost is how often an HSM may go away before it counts as missing.
const maxLost = 2

// goneError: an HSM became unreachable while it was read.
type goneError struct {
	id  hsm.HSMID
	err error
}

func (e *goneError) Error() string { return fmt.Sprintf("%s went away: %v", e.id, e.err) }
func (e *goneError) Unwrap() error { return e.err }

// at says which HSM an error is about.
func at(h NamedSource, err error) error {
	if err == nil || errors.Is(err, ErrCorrupt) {
		return err
	}
	if errors.Is(err, hsm.ErrUnavailable) || errors.Is(err, hsm.ErrSession) { // it is away, or was and has begun anew
		return &goneError{h.ID, err}
	}
	return fmt.Errorf("%s: %w", h.ID, err)
}

// sources reaches for the HSMs.
func (t *take) sources(ctx context.Context) (err error) {
	if t.hsms, t.absent, err = t.origin.Sources(ctx); err != nil {
		return fmt.Errorf("reach the HSMs: %w", err)
	}
	t.hsms = slices.DeleteFunc(t.hsms, func(h NamedSource) bool {
		gone := t.left[h.ID] >= maxLost
		if gone {
			t.absent = append(t.absent, h.ID)
		}
		return gone
	})
	for _, h := range t.hsms {
		if h.Lineage() != t.desc.Lineage {
			return fmt.Errorf("%w: %s is of %s, the cluster of %s", hsm.ErrLineage, h.ID, h.Lineage(), t.desc.Lineage)
		}
	}
	if m := t.series.known; m != nil && m.Lineage == t.desc.Lineage {
		for i, h := range t.hsms {
			t.hsms[i].Sketcher = keyed{h.Sketcher, m.Fingerprints}
		}
	}
	return t.checkCoverage()
}

func (t *take) checkCoverage() error {
	switch {
	case len(t.hsms) == 0:
		return fmt.Errorf("%w: none of the %d HSMs answers", hsm.ErrUnavailable, len(t.absent))
	case len(t.absent) > 0 && t.options.RequireAll:
		return fmt.Errorf("%w: %s", ErrCoverage, t.absent)
	}
	return nil
}

// lost reaches for the HSMs again after one went away.
func (t *take) lost(ctx context.Context, gone *goneError) error {
	if t.left == nil {
		t.left = map[hsm.HSMID]int{}
	}
	t.left[gone.id]++
	if r, ok := t.origin.(Rechecker); ok {
		r.Recheck(ctx)
	}
	if err := t.sources(ctx); err != nil {
		return fmt.Errorf("%w; %w", err, gone)
	}
	t.note("%v", gone)
	return errLost
}

// recover decides whether to start over: without an HSM that went away, or
// without a parent that is damaged.
func (t *take) recover(ctx context.Context, err error) error {
	var gone *goneError
	switch {
	case errors.As(err, &gone):
		t.contents = nil
		return t.lost(ctx, gone)
	case errors.Is(err, ErrCorrupt) && t.parent != nil:
		t.series.forget()
		t.series.desc = &t.desc
		t.fullReason = fmt.Sprintf("snapshot %s is damaged: %v", format.ID(t.parent.Sequence), err)
		return errAgain
	}
	return err
}
