package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// opened is the content of a recovery envelope.
type opened struct {
	keyring *hsm.Keyring
	ca      hsm.Secret
	packs   []Identity // the lineage's own
}

// memo keeps what opening the envelope came to, unless the store failed.
type memo struct {
	mu   sync.Mutex
	done bool
	opened
	err error
}

// opened opens the recovery envelope, once.
func (s *Snapshot) opened(ctx context.Context) (opened, error) {
	s.memo.mu.Lock()
	defer s.memo.mu.Unlock()
	if s.memo.done {
		return s.memo.opened, s.memo.err
	}
	o, err := s.recover(ctx)
	if err == nil || errors.Is(err, ErrIdentity) || damaged(err) {
		s.memo.opened, s.memo.err, s.memo.done = o, err, true
	}
	return o, err
}

// maxEnvelopes bounds the envelopes tried for one snapshot: custodians change
// now and then, and not hundreds of times.
const maxEnvelopes = 64

// Recovery opens the recovery envelope: the keys of the lineage, and the CA of
// the cluster that was backed up. If the snapshot's own envelope is sealed to
// custodians of former days, those of newer snapshots of the lineage serve, and if
// it is damaged or Unreadable those of any, the newest first: custodians may change, and masking
// keys be rotated, without touching a snapshot. ErrIdentity if the identities are too
// few custodians of any, ErrCorrupt if no envelope is whole, hsm.ErrLineage if
// it is another lineage's than the manifest.
func (s *Snapshot) Recovery(ctx context.Context) (*hsm.Keyring, hsm.Secret, error) {
	o, err := s.opened(ctx)
	if err != nil {
		return nil, hsm.Secret{}, err
	}
	return o.keyring, hsm.NewSecret(slices.Clone(o.ca.Reveal())), nil
}

// recover tries the snapshot's own envelope, then others, until every masking key
// that is needed is there. Masking keys are joined: what one envelope lacks another
// may hold. What it returns when none opens is what the own one said, or what the
// store did.
func (s *Snapshot) recover(ctx context.Context) (opened, error) {
	needs, known, err := s.needs(ctx)
	if err != nil {
		return opened{}, err
	}
	o, err := s.open(ctx, s.manifest.Envelope)
	if err == nil {
		err = o.serves(needs, s.manifest.Envelope)
	}
	if err == nil || !errors.Is(err, ErrIdentity) && !damaged(err) && !Unreadable(err) || len(s.options.Identities) == 0 {
		return o, err
	}
	for other, otherErr := range s.otherEnvelopes(ctx, errors.Is(err, ErrIdentity)) {
		if otherErr != nil {
			return opened{}, otherErr
		}
		if o = o.join(other); known && o.serves(needs, s.manifest.Envelope) == nil {
			return o, nil
		}
	}
	if o.keyring == nil {
		return opened{}, err
	}
	return o, o.serves(needs, s.manifest.Envelope)
}

// needs lists the epochs of the masking keys without which the snapshot cannot be
// restored: those that its envelope says it holds. known is false if that is
// damaged; then there is the manifest's newest epoch, and there may be others.
func (s *Snapshot) needs(ctx context.Context) (epochs []uint64, known bool, err error) {
	if s.manifest.Epoch != 0 {
		epochs = append(epochs, s.manifest.Epoch)
	}
	e, err := loadEnvelope(ctx, s.store, s.manifest.Envelope)
	if damaged(err) || Unreadable(err) {
		return epochs, false, nil
	}
	return append(epochs, e.Epochs...), true, err
}

// serves checks that the masking keys of all epochs are there.
func (o opened) serves(needs []uint64, own format.Name) error {
	if epoch := lacking(o.keyring.Epochs(), needs); epoch != 0 {
		return fmt.Errorf("%w: %s lacks the masking key of epoch %d", ErrCorrupt, format.EnvelopePath(own), epoch)
	}
	return nil
}

// join adds the masking keys of another envelope of the lineage. Of two keys for one
// epoch the first stays.
func (o opened) join(other opened) opened {
	if o.keyring == nil {
		return other
	}
	if k, err := o.keyring.Join(other.keyring); err == nil {
		o.keyring = k
	}
	return o
}

// otherEnvelopes yields what other snapshots' envelopes hold, the newest first, as
// far as they open; newer only leaves those of older snapshots out: who is no
// custodian any more is not let in by the back door. An error ends it. If none opens
// and some are Unreadable, that is the error: whose they are is not known.
func (s *Snapshot) otherEnvelopes(ctx context.Context, newer bool) iter.Seq2[opened, error] {
	return func(yield func(opened, error) bool) {
		numbers, err := sequences(ctx, s.store)
		if err != nil {
			yield(opened{}, err)
			return
		}
		tried := map[format.Name]bool{s.manifest.Envelope: true}
		var unreadable error
		opens := false
		for _, n := range slices.Backward(numbers) {
			if n < s.manifest.Sequence && newer || len(tried) > maxEnvelopes {
				break
			}
			o, err := s.envelopeOf(ctx, n, tried)
			switch {
			case Unreadable(err):
				unreadable = cmp.Or(unreadable, err)
			case err == nil && o.keyring == nil, useless(err):
			case !yield(o, err) || err != nil:
				return
			default:
				opens = true
			}
		}
		if !opens && unreadable != nil {
			yield(opened{}, unreadable)
		}
	}
}

// envelopeOf opens the envelope of a snapshot of the lineage, unless it was tried; nothing
// if there is none.
func (s *Snapshot) envelopeOf(ctx context.Context, n uint64, tried map[format.Name]bool) (opened, error) {
	m, _, err := loadManifest(ctx, s.store, n)
	if errors.Is(err, ErrNoSnapshot) {
		return opened{}, nil
	}
	if err != nil || m.Lineage != s.Lineage() || tried[m.Envelope] {
		return opened{}, err // what the lineage did not sign names nothing of its own
	}
	tried[m.Envelope] = true
	return s.open(ctx, m.Envelope)
}

// useless tells whether err is a reason to try another envelope; a store that
// fails is none: it would end in blaming the identities.
func useless(err error) bool {
	for _, kind := range []error{ErrIdentity, ErrCorrupt, ErrVersion, hsm.ErrCorrupt, hsm.ErrLineage, hsm.ErrSignature} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// open opens one envelope of the lineage.
func (s *Snapshot) open(ctx context.Context, name format.Name) (opened, error) {
	path := format.EnvelopePath(name)
	stored, err := fetch(ctx, s.store, path, name, format.MaxEnvelope)
	if err != nil {
		return opened{}, err
	}
	content, err := OpenEnvelope(stored, s.options.Identities)
	if err != nil {
		return opened{}, fmt.Errorf("%s: %w", path, err)
	}
	defer content.Wipe()
	keyring, ca, err := hsm.DecodeRecovery(content)
	switch {
	case errors.Is(err, hsm.ErrCorrupt):
		return opened{}, fmt.Errorf("%w: %s: %w", ErrCorrupt, path, err)
	case err != nil:
		return opened{}, fmt.Errorf("%s: %w", path, err)
	case keyring.Lineage() != s.Lineage():
		return opened{}, fmt.Errorf("%w: %s is of %s, the manifest of %s", hsm.ErrLineage, path, keyring.Lineage(), s.Lineage())
	}
	hybrid, classic, err := packIdentities(keyring)
	return opened{keyring: keyring, ca: ca, packs: []Identity{hybrid, classic}}, err
}

// identities are those that read the packs: the given ones, and the lineage's
// own where the given ones open an envelope; why says why they do not.
func (s *Snapshot) identities(ctx context.Context) (ids []Identity, why error) {
	if len(s.options.Identities) == 0 {
		return nil, nil
	}
	o, err := s.opened(ctx)
	return slices.Concat(o.packs, s.options.Identities), err
}

// eachBlock decrypts a pack with the identities of the snapshot; the rest is as
// with the function of that name.
func (s *Snapshot) eachBlock(ctx context.Context, stored []byte, f func(first int, b *format.BlockData) error) error {
	ids, why := s.identities(ctx)
	err := eachBlock(stored, ids, f)
	if errors.Is(err, ErrIdentity) && why != nil {
		return fmt.Errorf("%w; %w", err, why)
	}
	return err
}
