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

// lineageRecipients reads them from the parent's envelope, which the parent's
// signature covers, so that an increment need not have one sealed.
func (t *take) lineageRecipients(ctx context.Context, parent *format.Manifest) ([]string, error) {
	if parent != nil {
		known := &t.series.envelope
		if known.recipients != nil && known.name == parent.Envelope {
			return known.recipients, nil
		}
		e, err := loadEnvelope(ctx, t.store, parent.Envelope)
		switch {
		case err == nil && len(e.PackRecipients) > 0:
			known.name, known.recipients = parent.Envelope, e.PackRecipients
			return e.PackRecipients, nil
		case err != nil && !damaged(err):
			return nil, err
		}
	}
	if t.sealed == nil {
		var err error
		if t.sealed, err = t.seal(ctx); err != nil {
			return nil, err
		}
	}
	return t.sealed.content.PackRecipients, nil
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
