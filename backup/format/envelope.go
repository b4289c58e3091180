package format

import "fmt"

// EnvelopeVersion is the version of the envelope's body.
const EnvelopeVersion = 1

// Envelope is a recovery envelope as stored. With threshold 1 Sealed is age
// ciphertext to every custodian and there are no shares; above, Sealed is
// AES-256-GCM under a key shared among the custodians, and share i is age
// ciphertext to custodian i alone (FORMAT.md).
type Envelope struct {
	Threshold  int
	Custodians int
	Shares     [][]byte
	Sealed     []byte
}

type envelopeBody struct {
	Version    uint64   `cbor:"1,keyasint"`
	Threshold  uint64   `cbor:"2,keyasint"`
	Custodians uint64   `cbor:"3,keyasint"`
	Shares     [][]byte `cbor:"4,keyasint,omitempty"`
	Sealed     []byte   `cbor:"5,keyasint"`
}

// EncodeEnvelope returns the stored bytes.
func EncodeEnvelope(e Envelope) ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	b, err := encMode.Marshal(envelopeBody{Version: EnvelopeVersion, Threshold: uint64(e.Threshold), Custodians: uint64(e.Custodians), Shares: e.Shares, Sealed: e.Sealed})
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
	if err := checkVersion(b, "envelope", EnvelopeVersion); err != nil {
		return Envelope{}, err
	}
	var w envelopeBody
	if err := decodeCanonical(b, &w); err != nil {
		return Envelope{}, err
	}
	if w.Threshold > MaxCustodians || w.Custodians > MaxCustodians {
		return Envelope{}, fmt.Errorf("%w: envelope: %d of %d custodians", ErrCorrupt, w.Threshold, w.Custodians)
	}
	e := Envelope{Threshold: int(w.Threshold), Custodians: int(w.Custodians), Shares: w.Shares, Sealed: w.Sealed}
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
	return nil
}
