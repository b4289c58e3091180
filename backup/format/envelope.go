package format

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// EnvelopeVersion is the version of the envelope's body. Version 1 had no
// recipients of packs, and neither it nor version 2 a signature; both are still read.
const EnvelopeVersion = 3

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
	// Custody is the fingerprint of custodians and threshold. Not before version 3.
	Custody [32]byte
	// Signature is the lineage's over SignedPart, made where the envelope was sealed.
	// Not before version 3, and to be verified by the caller.
	Signature hsm.LineageSignature
}

// Signed tells whether the envelope carries a signature. It says nothing of whose.
func (e Envelope) Signed() bool { return len(e.Signature.Signature) > 0 }

// SignedPart is what the signature of an envelope of version 3 is made over: the
// body without the signature.
func (e Envelope) SignedPart() ([]byte, error) {
	e.Signature = hsm.LineageSignature{}
	b := e.body()
	b.Version, b.Custody = EnvelopeVersion, e.Custody[:]
	return encMode.Marshal(b)
}

type envelopeBody struct {
	Version    uint64   `cbor:"1,keyasint"`
	Threshold  uint64   `cbor:"2,keyasint"`
	Custodians uint64   `cbor:"3,keyasint"`
	Shares     [][]byte `cbor:"4,keyasint,omitempty"`
	Sealed     []byte   `cbor:"5,keyasint"`
	Packs      []string `cbor:"6,keyasint,omitempty"`
	Epochs     []uint64 `cbor:"7,keyasint,omitempty"`
	Custody    []byte   `cbor:"8,keyasint,omitempty"`
	Public     []byte   `cbor:"9,keyasint,omitempty"`
	Signature  []byte   `cbor:"10,keyasint,omitempty"`
}

// body returns the envelope as it is encoded, in the version that fits what it has.
func (e Envelope) body() envelopeBody {
	b := envelopeBody{
		Version: 2, Threshold: uint64(e.Threshold), Custodians: uint64(e.Custodians), Shares: e.Shares, Sealed: e.Sealed,
		Packs: e.PackRecipients, Epochs: e.Epochs, Public: e.Signature.Public, Signature: e.Signature.Signature,
	}
	switch {
	case e.Signed():
		b.Version, b.Custody = 3, e.Custody[:]
	case len(b.Packs) == 0:
		b.Version = 1
	}
	return b
}

// check compares the fields with the version.
func (b envelopeBody) check() error {
	if old := b.Version == 1; old != (len(b.Packs) == 0) || old != (len(b.Epochs) == 0) {
		return fmt.Errorf("%w: envelope: version %d with %d recipients of packs and %d epochs", ErrCorrupt, b.Version, len(b.Packs), len(b.Epochs))
	}
	want := [3]int{}
	if b.Version >= 3 {
		want = [3]int{32, ed25519.PublicKeySize, ed25519.SignatureSize}
	}
	if got := [3]int{len(b.Custody), len(b.Public), len(b.Signature)}; got != want {
		return fmt.Errorf("%w: envelope: version %d with a fingerprint, a public key and a signature of %d bytes", ErrCorrupt, b.Version, got)
	}
	return nil
}

// EncodeEnvelope returns the stored bytes.
func EncodeEnvelope(e Envelope) ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	b, err := encMode.Marshal(e.body())
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
	if err := w.check(); err != nil {
		return Envelope{}, err
	}
	e := Envelope{
		Threshold: int(w.Threshold), Custodians: int(w.Custodians), Shares: w.Shares, Sealed: w.Sealed, PackRecipients: w.Packs, Epochs: w.Epochs,
		Signature: hsm.LineageSignature{Public: w.Public, Signature: w.Signature},
	}
	copy(e.Custody[:], w.Custody)
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
