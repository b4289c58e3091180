package format

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// EnvelopeVersion is the version of the envelope's body. Version 1 had no
// recipients of packs and is still read.
const EnvelopeVersion = 2

// MaxPackRecipients is how many recipients of packs an envelope names: one of
// each kind there is, and room for kinds to come.
const MaxPackRecipients = 4

// Envelope is a recovery envelope as stored. With threshold 1 Sealed is age
// ciphertext to every custodian and there are no shares; above, Sealed is
// AES-256-GCM under a key shared among the custodians, and share i is age
// ciphertext to custodian i alone (FORMAT.md).
type Envelope struct {
	Threshold  int
	Custodians int
	Shares     [][]byte
	Sealed     []byte
	// PackRecipients are the lineage's own recipients (age), to which packs are
	// encrypted; their identities derive from the sealed content. None in version 1.
	PackRecipients []string
	// Epochs are those of the masking keys inside, ascending. None in version 1.
	Epochs []uint64
}

type envelopeBody struct {
	Version    uint64   `cbor:"1,keyasint"`
	Threshold  uint64   `cbor:"2,keyasint"`
	Custodians uint64   `cbor:"3,keyasint"`
	Shares     [][]byte `cbor:"4,keyasint,omitempty"`
	Sealed     []byte   `cbor:"5,keyasint"`
	Packs      []string `cbor:"6,keyasint,omitempty"`
	Epochs     []uint64 `cbor:"7,keyasint,omitempty"`
}

// EncodeEnvelope returns the stored bytes.
func EncodeEnvelope(e Envelope) ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	body := envelopeBody{Version: EnvelopeVersion, Threshold: uint64(e.Threshold), Custodians: uint64(e.Custodians), Shares: e.Shares, Sealed: e.Sealed, Packs: e.PackRecipients, Epochs: e.Epochs}
	if len(body.Packs) == 0 {
		body.Version = 1
	}
	b, err := encMode.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode envelope: %w", err)
	}
	stored := append([]byte(envelopeHeader), b...)
	if len(stored) > MaxEnvelope {
		return nil, fmt.Errorf("envelope of %d bytes, at most %d", len(stored), MaxEnvelope)
	}
	return stored, nil
}

// DecodeEnvelope reads stored bytes. ErrVersion, ErrCorrupt.
func DecodeEnvelope(stored []byte) (Envelope, error) {
	if len(stored) > MaxEnvelope {
		return Envelope{}, fmt.Errorf("%w: envelope of %d bytes, at most %d", ErrCorrupt, len(stored), MaxEnvelope)
	}
	b, err := cutHeader(stored, envelopeHeader)
	if err != nil {
		return Envelope{}, err
	}
	if err := checkVersion(b, "envelope", 1, EnvelopeVersion); err != nil {
		return Envelope{}, err
	}
	var w envelopeBody
	if err := decodeCanonical(b, &w); err != nil {
		return Envelope{}, err
	}
	if w.Threshold > MaxCustodians || w.Custodians > MaxCustodians {
		return Envelope{}, fmt.Errorf("%w: envelope: %d of %d custodians", ErrCorrupt, w.Threshold, w.Custodians)
	}
	if old := w.Version == 1; old != (len(w.Packs) == 0) || old != (len(w.Epochs) == 0) {
		return Envelope{}, fmt.Errorf("%w: envelope: version %d with %d recipients of packs and %d epochs", ErrCorrupt, w.Version, len(w.Packs), len(w.Epochs))
	}
	e := Envelope{Threshold: int(w.Threshold), Custodians: int(w.Custodians), Shares: w.Shares, Sealed: w.Sealed, PackRecipients: w.Packs, Epochs: w.Epochs}
	return e, e.check()
}

func (e Envelope) check() error {
	shares := 0
	if e.Threshold > 1 {
		shares = e.Custodians
	}
	if e.Threshold < 1 || e.Threshold > e.Custodians || e.Custodians > MaxCustodians || len(e.Shares) != shares || len(e.Sealed) == 0 {
		return fmt.Errorf("%w: envelope: %d of %d custodians, %d shares, %d sealed bytes", ErrCorrupt, e.Threshold, e.Custodians, len(e.Shares), len(e.Sealed))
	}
	return errors.Join(e.checkPackRecipients(), e.checkEpochs())
}

func (e Envelope) checkEpochs() error {
	if len(e.Epochs) > MaxEpochs || !slices.IsSorted(e.Epochs) || len(slices.Compact(slices.Clone(e.Epochs))) != len(e.Epochs) || slices.Contains(e.Epochs, 0) {
		return fmt.Errorf("%w: envelope: %d epochs, which do not ascend from 1 or are too many", ErrCorrupt, len(e.Epochs))
	}
	return nil
}

func (e Envelope) checkPackRecipients() error {
	if len(e.PackRecipients) > MaxPackRecipients {
		return fmt.Errorf("%w: envelope: %d recipients of packs", ErrCorrupt, len(e.PackRecipients))
	}
	for _, r := range e.PackRecipients {
		if r == "" || len(r) > MaxRecipientText || strings.ContainsFunc(r, func(c rune) bool { return c <= ' ' || c > '~' }) {
			return fmt.Errorf("%w: envelope: a recipient of packs is no text of an age recipient", ErrCorrupt)
		}
	}
	return nil
}
