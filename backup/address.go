package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/storage"
)

// sealed is a recovery envelope that an HSM sealed for one take.
type sealed struct {
	stored  []byte
	content format.Envelope
}

// seal has an HSM seal the recovery envelope to the custodians.
func (t *take) seal(ctx context.Context) (*sealed, error) {
	stored, err := t.origin.Envelope(ctx, slices.Clone(t.settings.Custodians), t.settings.Threshold)
	if err != nil {
		return nil, fmt.Errorf("recovery envelope: %w", err)
	}
	e, err := format.DecodeEnvelope(stored)
	if err != nil || e.Threshold != t.settings.Threshold || e.Custodians != len(t.settings.Custodians) {
		return nil, fmt.Errorf("recovery envelope: the HSM sealed something else than %d of %d custodians: %w",
			t.settings.Threshold, len(t.settings.Custodians), errors.Join(err, hsm.ErrInvalid))
	}
	if e.Signed() {
		if err := checkEnvelope(e, t.desc.Lineage); err != nil {
			return nil, fmt.Errorf("recovery envelope: what the HSM sealed: %w", err)
		}
		if e.Custody != t.custody {
			return nil, fmt.Errorf("%w: recovery envelope: the HSM sealed it to other custodians than the cluster's settings name", hsm.ErrInvalid)
		}
	}
	return &sealed{stored: stored, content: e}, nil
}

// address decides to whom packs are encrypted: to the recipients that were named
// and to the lineage's own, which the envelope of parent names, or one that an
// HSM seals now.
func (t *take) address(ctx context.Context, parent *format.Manifest) error {
	lineage, err := t.lineageRecipients(ctx, parent)
	if err != nil {
		return err
	}
	texts, err := withLineage(t.options.Recipients, lineage)
	if err != nil {
		return err
	}
	if len(texts) == 0 {
		return fmt.Errorf("%w: the HSMs' software is older than this one and names no recipient of its own; name one (--recipient)", ErrRecipient)
	}
	if t.packer.recipients, err = ParseRecipients(texts); err != nil {
		return err
	}
	t.recipients = fingerprint(texts, 1)
	return nil
}

// lineageRecipients reads them from the parent's envelope, if an HSM of the lineage
// signed that, so that an increment need not have one sealed; else an HSM says. That the parent's manifest
// is signed proves less: whoever got hold of an appliance's credential once could
// have had a manifest signed that names an envelope of their own making, and every
// increment from then on would be encrypted to them. Such a parent is suspect.
func (t *take) lineageRecipients(ctx context.Context, parent *format.Manifest) ([]string, error) {
	t.suspect = ""
	var found format.Envelope
	var doubt error
	if parent != nil {
		var err error
		if found, err = t.foundEnvelope(ctx, parent.Envelope); err != nil && !damaged(err) {
			return nil, err
		}
		if doubt = err; err == nil {
			doubt = checkEnvelope(found, t.desc.Lineage)
		}
		if doubt == nil {
			t.suspect = mismatch(found, parent)
			return found.PackRecipients, nil
		}
	}
	if t.sealed == nil {
		var err error
		if t.sealed, err = t.seal(ctx); err != nil {
			return nil, err
		}
	}
	told := t.sealed.content.PackRecipients
	if parent != nil && !damaged(doubt) && (found.Signed() || len(found.PackRecipients) > 0 && !slices.Equal(found.PackRecipients, told)) {
		t.suspect = fmt.Sprintf("no HSM of the lineage sealed the recovery envelope of snapshot %s: whoever had the lineage sign that snapshot made it up; revoke the appliance credentials that could",
			format.ID(parent.Sequence))
	}
	return told, nil
}

// mismatch tells what an envelope that an HSM sealed has to do with a manifest that
// it does not fit, or "".
func mismatch(e format.Envelope, m *format.Manifest) string {
	switch id := format.ID(m.Sequence); {
	case e.Custody != m.Custody:
		return fmt.Sprintf("snapshot %s names a recovery envelope of other custodians than it says", id)
	case m.Epoch != 0 && lacking(e.Epochs, []uint64{m.Epoch}) != 0:
		return fmt.Sprintf("the recovery envelope of snapshot %s lacks the masking key of epoch %d", id, m.Epoch)
	}
	return ""
}

// foundEnvelope reads an envelope, which a series remembers. Who sealed it is to be
// checked.
func (t *take) foundEnvelope(ctx context.Context, name format.Name) (format.Envelope, error) {
	known := &t.series.envelope
	if known.there && known.name == name {
		return known.content, nil
	}
	e, err := loadEnvelope(ctx, t.store, name)
	if err == nil {
		known.name, known.content, known.there = name, e, true
	}
	return e, err
}

func loadEnvelope(ctx context.Context, store storage.Store, name format.Name) (format.Envelope, error) {
	path := format.EnvelopePath(name)
	stored, err := fetch(ctx, store, path, name, format.MaxEnvelope)
	if err != nil {
		return format.Envelope{}, err
	}
	e, err := format.DecodeEnvelope(stored)
	if err != nil {
		return e, fmt.Errorf("%s: %w", path, err)
	}
	return e, nil
}
