package hsm

import (
	"fmt"
)

// recovery is the plaintext of a recovery envelope (FORMAT.md): deterministic
// CBOR.
type recovery struct {
	Secret  []byte            `cbor:"1,keyasint"`
	Masking map[uint64][]byte `cbor:"2,keyasint"`
	CA      []byte            `cbor:"3,keyasint"`
}

// EncodeRecovery returns everything that a lineage needs to be brought back:
// the lineage secret, the masking keys, and the cluster's CA as opaque bytes.
// It is for a seal or the custodians, and for nothing else. Equal inputs give
// equal bytes.
func EncodeRecovery(k *Keyring, ca Secret) Secret {
	r := recovery{Secret: k.secret.Reveal(), Masking: map[uint64][]byte{}, CA: ca.Reveal()}
	for epoch, m := range k.masking {
		r.Masking[epoch] = m.Reveal()
	}
	return NewSecret(must(encMode.Marshal(r)))
}

// DecodeRecovery is the inverse of EncodeRecovery. ErrCorrupt if the bytes are
// not what EncodeRecovery wrote. What it returns does not share memory with b.
func DecodeRecovery(b Secret) (*Keyring, Secret, error) {
	var r recovery
	if err := decodeCanonical(b.Reveal(), &r); err != nil {
		return nil, Secret{}, fmt.Errorf("%w: recovery envelope does not decode", ErrCorrupt)
	}
	masking := make(map[uint64]Secret, len(r.Masking))
	for epoch, m := range r.Masking {
		masking[epoch] = NewSecret(m)
	}
	k, err := OpenKeyring(NewSecret(r.Secret), masking)
	if err != nil {
		return nil, Secret{}, fmt.Errorf("%w: recovery envelope: %w", ErrCorrupt, err)
	}
	return k, NewSecret(r.CA), nil
}
